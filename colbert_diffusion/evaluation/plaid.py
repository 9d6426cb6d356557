"""Systems that are an index: PLAID over its vectors, its words, or both, by ColBERT's Indexer and our Searcher."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import UserError
from ..common.files import read_json
from ..common.progress import progress_bar
from ..index.manifest import read_manifest
from ..index.rows import Found, Replica, Row, SearchCluster, answers, answers_elsewhere
from ..texts.collection import collection_fingerprint
from .benchmarks import Benchmark
from .runs import Run

if TYPE_CHECKING:
    from ..encoding.vectors import Cluster
    from ..index.lexical import Lexical


def build_index(
    checkpoint: str | None,
    benchmark: Benchmark,
    folder: Path,
    nbits: int | None = None,
    lexical: "Lexical" = None,
    cluster: "Cluster | None" = None,
) -> Path:
    """Index the benchmark's documents into `folder`; an index of the same build that is there is used as it is.

    Raises:
        UserError: what `Indexer` raises, or the folder holds another index.
    """
    from ..index.by_path import build_index as build

    return build(folder, benchmark.texts, checkpoint, nbits=nbits, lexical=lexical, overwrite="resume", cluster=cluster)


def plaid_run(index: str | Path, benchmark: Benchmark, depth: int = 1000, checkpoint: str | None = None) -> Run:
    """Search an index of the benchmark's documents, with the settings that `Searcher` chooses for this depth.

    Args:
        checkpoint: None: the one that the index was built with.

    Raises:
        UserError: there is no such index, it is of other documents, or the checkpoint is another.
    """
    return index_runs(index, benchmark, {"plaid": Row("dense")}, depth, checkpoint)["plaid"]


def index_runs(
    index: str | Path,
    benchmark: Benchmark,
    rows: Mapping[str, Row],
    depth: int = 1000,
    checkpoint: str | None = None,
    cluster: SearchCluster | None = None,
) -> dict[str, Run]:
    """As `plaid_run` for each of several rows, by name; every query is encoded once.

    Args:
        cluster: searches in place of this machine; the index is on each of its machines, at the same path.

    Raises:
        UserError: as `plaid_run`, or a row needs words and the index has none.
    """
    from ..index.by_path import open_index

    check_documents(Path(index), benchmark)
    ids, qids, queries = benchmark.document_ids, list(benchmark.queries), list(benchmark.queries.values())
    k = min(depth, len(ids))
    if cluster is None:
        searcher = open_index(index, checkpoint=checkpoint, collection=benchmark.texts, verbose=1)
        found: Iterable[tuple[int, dict[str, Found]]] = enumerate(answers(searcher, queries, rows, k))
    else:
        found = answers_elsewhere(cluster, Replica.of(Path(index), checkpoint), queries, rows, k)
    runs: dict[str, Run] = {name: {qid: [] for qid in qids} for name in rows}
    with progress_bar(len(queries), "search") as progress:
        for place, by_row in found:
            for name, (pids, scores) in by_row.items():
                runs[name][qids[place]] = [(ids[pid], float(score)) for pid, score in zip(pids, scores, strict=True)]
            progress.update(1)
    return runs


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
