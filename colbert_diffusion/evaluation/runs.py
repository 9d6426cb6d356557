"""Runs: which documents a system gives for each query, in memory and as TREC files. Knows nothing about systems."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..common.errors import UserError
from ..common.files import written_aside
from ..texts.lines import text_lines

Run = dict[str, list[tuple[str, float]]]  # qid -> (document id, score), best first


def best(scores: npt.NDArray[np.float32], document_ids: Sequence[str], depth: int) -> list[tuple[str, float]]:
    """The `depth` best documents by scores (documents,), best first; equal scores in the documents' order."""
    if depth < len(scores):
        least = np.partition(scores, -depth)[-depth]
        above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        kept = np.sort(np.concatenate([above, equal[: depth - len(above)]]))
    else:
        kept = np.arange(len(scores))
    order = kept[np.argsort(-scores[kept], kind="stable")]
    return [(document_ids[i], float(scores[i])) for i in order]


def without_own(run: Run, own: Collection[str], depth: int | None = None) -> Run:
    """At most `depth` documents per query; a query's own document is none of them where BEIR leaves it out."""
    return {qid: [hit for hit in found if qid not in own or hit[0] != qid][:depth] for qid, found in run.items()}


def read_run(path: str | Path) -> Run:
    """Read a TREC run: `qid Q0 docid rank score tag`. Order is by score, as trec_eval's; the rank column is not used.

    Equal scores keep the file's order (trec_eval's measures break such ties by document id, whatever the order).

    Raises:
        UserError: no such file, a malformed line, or a document twice for one query.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"run {path} does not exist; give a TREC run (qid Q0 docid rank score tag)")
    scores: dict[str, dict[str, float]] = {}
    for number, line in text_lines(path):
        columns = line.split()
        if len(columns) != 6:
            raise UserError(f"{path}, line {number}: {len(columns)} columns, expected 6: qid Q0 docid rank score tag")
        qid, _, document, _, score, _ = columns
        try:
            value = math.nan if "_" in score else float(score)  # Python's own notation
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{path}, line {number}: score {score!r:.40}, expected a finite number")
        if document in scores.setdefault(qid, {}):
            raise UserError(f"{path}, line {number}: document {document} occurs twice for query {qid}; keep one")
        scores[qid][document] = value
    if not scores:
        raise UserError(f"{path} is empty; give a TREC run (qid Q0 docid rank score tag)")
    return {qid: sorted(found.items(), key=lambda pair: -pair[1]) for qid, found in scores.items()}


def write_run(path: str | Path, run: Run, tag: str) -> None:
    """Write a TREC run, all of it or nothing; scores in full, so that reading it back gives the same run."""
    with written_aside(Path(path)) as aside, aside.open("w", encoding="utf-8") as file:
        for qid, found in run.items():
            for rank, (document, score) in enumerate(found, 1):
                file.write(f"{qid} Q0 {document} {rank} {score!r} {tag}\n")
