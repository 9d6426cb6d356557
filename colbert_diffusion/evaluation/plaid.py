"""Systems that are an index: PLAID over its vectors, its words, or both, by ColBERT's Indexer and our Searcher."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..common.errors import UserError
from ..common.files import read_json
from ..common.progress import progress_bar
from ..index.fusion import Both, Fusion
from ..index.manifest import read_manifest
from ..texts.collection import collection_fingerprint
from .benchmarks import Benchmark
from .runs import Run

if TYPE_CHECKING:
    from ..index.lexical import Lexical
    from ..index.searching import Asked, Searcher

ENCODED = 128  # queries per call of the encoder


class Row(NamedTuple):
    """How an index is searched: mode "dense", "lexical" or "hybrid"; how both become one, None: by the index's default."""

    mode: str
    fusion: Fusion | None = None


def build_index(
    checkpoint: str | None, benchmark: Benchmark, folder: Path, nbits: int | None = None, lexical: "Lexical" = None
) -> Path:
    """Index the benchmark's documents into `folder`; an index of the same build that is there is used as it is.

    Raises:
        UserError: what `Indexer` raises, or the folder holds another index.
    """
    from ..index.by_path import build_index as build

    return build(folder, benchmark.texts, checkpoint, nbits=nbits, lexical=lexical, overwrite="resume")


def plaid_run(index: str | Path, benchmark: Benchmark, depth: int = 1000, checkpoint: str | None = None) -> Run:
    """Search an index of the benchmark's documents, with the settings that `Searcher` chooses for this depth.

    Args:
        checkpoint: None: the one that the index was built with.

    Raises:
        UserError: there is no such index, it is of other documents, or the checkpoint is another.
    """
    return index_runs(index, benchmark, {"plaid": Row("dense")}, depth, checkpoint)["plaid"]


def index_runs(
    index: str | Path, benchmark: Benchmark, rows: Mapping[str, Row], depth: int = 1000, checkpoint: str | None = None
) -> dict[str, Run]:
    """As `plaid_run` for each of several rows, by name; every query is encoded once.

    Raises:
        UserError: as `plaid_run`, or a row needs words and the index has none.
    """
    from ..index.by_path import open_index

    check_documents(Path(index), benchmark)
    searcher = open_index(index, checkpoint=checkpoint, collection=benchmark.texts, verbose=1)
    ids, queries = benchmark.document_ids, list(benchmark.queries.items())
    modes = {row.mode for row in rows.values()}
    mode = modes.pop() if len(modes) == 1 else "hybrid"
    runs: dict[str, Run] = {name: {} for name in rows}
    with progress_bar(len(queries), "search") as progress:
        for start in range(0, len(queries), ENCODED):
            part = queries[start : start + ENCODED]
            for (qid, _), asked in zip(part, searcher.ask([text for _, text in part], mode=mode), strict=True):
                for name, (pids, scores) in _answers(searcher, asked, rows, min(depth, len(ids))).items():
                    runs[name][qid] = [(ids[pid], float(score)) for pid, score in zip(pids, scores, strict=True)]
                progress.update(1)
    return runs


def _answers(searcher: "Searcher", asked: "Asked", rows: Mapping[str, Row], k: int) -> dict[str, tuple[list[int], list[float]]]:
    """What `Searcher.answer` gives for each row; fusions of the same depth share their lists."""
    found, shared = {}, dict[int, Both]()
    for name, row in rows.items():
        if row.mode == "hybrid":
            fusion = row.fusion or searcher.default_fusion
            depth = fusion.depth(k)
            if depth not in shared:
                shared[depth] = searcher.both(asked, k, depth)
            found[name] = shared[depth].best(fusion, k)
        else:
            pids, _, scores = searcher.answer(asked, k, mode=row.mode)
            found[name] = pids, scores
    return found


def check_words(index: Path, lexical: "Lexical") -> None:
    """Raises UserError where an index has no words, or not those that are asked for (None: any)."""
    from ..index.lexical import LEXICAL_FILE, read_about

    build = "or leave --index out, so that one is built"
    if not (index / LEXICAL_FILE).is_file():
        raise UserError(
            f"{index} has no words; build it with `colbert-diffusion index ... --lexical {lexical or 'bm25'}`, {build}"
        )
    if lexical is not None and (there := read_about(index)["source"]) != lexical:
        raise UserError(f"{index} has the words of --lexical {there}, not {lexical}; ask for those, {build}")


def check_documents(index: Path, benchmark: Benchmark) -> None:
    """Raises UserError unless the index is of these documents in this order (their number, without our manifest)."""
    from ..index.opening import index_config

    index_config(index)  # says when there is no index
    build = (read_manifest(index) or {}).get("build", {})
    about = read_json(index / "metadata.json")
    passages = build.get("passages", round(about["num_embeddings"] / about["avg_doclen"]))
    if passages != len(benchmark.documents):
        raise UserError(f"{index} has {passages} passages, {benchmark.name} has {len(benchmark.documents)}; index it anew")
    if build.get("collection") not in (None, collection_fingerprint(benchmark.texts)):
        raise UserError(f"{index} has {passages} passages as {benchmark.name}, but other texts or another order; index it anew")
