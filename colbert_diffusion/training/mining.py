"""Hard negatives from our own index: what a checkpoint ranks high for a query and is not its positive."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..common import fingerprint
from ..common.errors import UserError
from ..common.files import needing_room, remove, written_aside
from ..common.locking import writing
from ..common.progress import note, progress_bar
from ..common.work import Marker
from ..encoding.identity import CheckpointIdentity, identify
from .data import Example

MINED_FILE = "mined.jsonl"
MANIFEST_FILE = "mined.json"
INDEX = "index"
BATCH = 256  # queries encoded at once
# A candidate that scores nearly as high as the positive is probably one too, only unlabelled. Measured against the
# positive's own score as NV-Retriever does (arXiv 2407.15831, TopK-PercPos at 95 %): scores differ from query to query.
POSITIVE_SHARE = 0.95


def mine(
    checkpoint: str,
    examples: Iterable[Example],
    folder: Path,
    *,
    negatives: int = 8,
    depth: int = 100,
    skip_top: int = 0,
    show_progress_bar: bool = False,
) -> Path:
    """Write the examples with negatives mined among each other's positives, as Tevatron JSONL; return its path.

    The positives, each text once, become an index in `folder`; every query is searched in it. Left out are all
    positives of the same query, texts equal to them but for case and white space, and candidates that score at least
    95 % of the example's positive. What an example then lacks is filled up with random passages, so that all have the
    same number (fewer in a tiny collection); negatives that it came with are dropped.

    Interrupted, the same call goes on with the index; done before with the same examples, checkpoint and settings, it
    returns at once. With others, what `folder` holds of earlier mining is replaced.

    Args:
        checkpoint: as Indexer's: folder or hub id.
        examples: held in memory.
        negatives: at most this many per example, the best ranked first.
        depth: candidates looked at per query.
        skip_top: leave out this many of the best candidates as well.

    Raises:
        UserError: fewer than two different positives, impossible settings, or a checkpoint that cannot be indexed.
    """
    examples = list(examples)
    passages = list(dict.fromkeys(example.passages[0] for example in examples))
    if len(passages) < 2:
        raise UserError(f"{len(passages)} different positives: a negative is another query's positive, give at least 2")
    if negatives < 1 or skip_top < 0 or depth <= skip_top:
        raise UserError(f"negatives={negatives}, depth={depth}, skip_top={skip_top}: expected 1 or more, 0 <= skip_top < depth")
    identity = identify(checkpoint)
    about = {
        "checkpoint": identity.fingerprint,
        "examples": fingerprint.of_texts(text for e in examples for text in (e.query, e.passages[0])),
        "negatives": negatives,
        "depth": depth,
        "skip_top": skip_top,
        "positive_share": POSITIVE_SHARE,
    }
    with needing_room(folder), writing(folder):
        return _mine(identity, examples, passages, folder, about, show_progress_bar)


def _mine(
    identity: CheckpointIdentity,
    examples: Sequence[Example],
    passages: Sequence[str],
    folder: Path,
    about: dict[str, Any],
    show_progress_bar: bool,
) -> Path:
    negatives, depth, skip_top = about["negatives"], about["depth"], about["skip_top"]
    own = _own_pids(examples, passages)
    mined = folder / MINED_FILE
    if _claim(folder, identity, about) and mined.is_file():
        return mined
    searcher = _searcher(str(identity.path), passages, folder)
    written = 0
    with (
        written_aside(mined) as aside,
        aside.open("w", encoding="utf-8") as file,
        progress_bar(len(examples), "mining", show=show_progress_bar) as bar,
    ):
        found = _search(searcher, examples, passages, own, depth)
        for number, (example, (ranked, refused)) in enumerate(zip(examples, found, strict=True)):
            hard = ranked[skip_top:][:negatives]
            kept = hard + _random(len(passages), negatives - len(hard), {*hard, *refused}, number)
            record = _record(number, example, [passages[pid] for pid in kept])
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            written += len(hard)
            bar.update()
    if show_progress_bar:
        note(f"{written:,} hard negatives for {len(examples):,} examples in {mined}, the rest of {negatives} each at random")
    return mined


def _claim(folder: Path, identity: CheckpointIdentity, about: dict[str, Any]) -> bool:
    """Take the folder for this mining. Returns whether it was of the same; what it held of another is removed."""
    marker = Marker(folder / MANIFEST_FILE, renewed=partial(identity.current, name="checkpoint"))
    there = marker.found()
    if marker.differences(about):
        (folder / MINED_FILE).unlink(missing_ok=True)
        if there is not None and any(there.get(name) != about[name] for name in ("checkpoint", "examples")):
            for name in (INDEX, f"{INDEX}.partial"):
                remove(folder / name)
    marker.write(about)  # last: interrupted before, it is all done again
    return there == about


def _searcher(checkpoint: str, passages: Sequence[str], folder: Path) -> Any:
    """A searcher in the index of the passages, which is built unless it is there."""
    from ..index.by_path import build_index, open_index  # heavy

    built = build_index(folder / INDEX, passages, checkpoint, overwrite="resume", verbose=0)
    return open_index(built, checkpoint=checkpoint)


def _own_pids(examples: Sequence[Example], passages: Sequence[str]) -> dict[str, set[int]]:
    """Per query the pids of its positives and their copies."""
    copies: dict[str, set[int]] = {}
    for pid, text in enumerate(passages):
        copies.setdefault(_plain(text), set()).add(pid)
    own: dict[str, set[int]] = {}
    for example in examples:
        own.setdefault(example.query, set()).update(copies[_plain(example.passages[0])])
    return own


def _random(count: int, wanted: int, never: set[int], seed: int) -> list[int]:
    """`wanted` pids below `count`, fewer where there are no more."""
    if wanted >= count - len(never):
        return sorted(set(range(count)) - never)
    draw, drawn = random.Random(seed), dict[int, None]()
    while len(drawn) < wanted:
        pid = draw.randrange(count)
        if pid not in never:
            drawn[pid] = None
    return list(drawn)


def _search(
    searcher: Any, examples: Sequence[Example], passages: Sequence[str], own: dict[str, set[int]], depth: int
) -> Iterator[tuple[list[int], set[int]]]:
    """For each example the pids that may serve as its negatives, best first, and those that may not."""
    pid_of = {text: pid for pid, text in enumerate(passages)}
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        vectors = searcher.encode([example.query for example in batch])  # (batch, k_query, dim)
        for example, q in zip(batch, vectors.split(1), strict=True):
            pids, _, scores = searcher.dense_search(q, min(depth, len(passages)))
            _, _, [of_positive] = searcher.dense_search(q, 1, pids=[pid_of[example.passages[0]]])  # may not be in pids
            bound = POSITIVE_SHARE * of_positive
            near = {pid for pid, score in zip(pids, scores, strict=True) if score >= bound}
            refused = near | own[example.query]
            yield [pid for pid in pids if pid not in refused], refused


def _record(number: int, example: Example, negatives: Sequence[str]) -> dict[str, Any]:
    """One line in Tevatron's form."""
    return {
        "query_id": str(number),
        "query": example.query,
        "positive_passages": [{"title": "", "text": example.passages[0]}],
        "negative_passages": [{"title": "", "text": text} for text in negatives],
    }


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
