"""PLAID: the product's own path, ColBERT's Indexer and Searcher."""

from pathlib import Path

from ..common.errors import UserError
from ..common.files import read_json
from ..common.progress import progress_bar
from ..index.manifest import read_manifest
from ..texts.collection import collection_fingerprint
from .benchmarks import Benchmark
from .runs import Run

ENCODED = 128  # queries per call of the encoder


def build_index(checkpoint: str | None, benchmark: Benchmark, folder: Path, nbits: int | None = None) -> Path:
    """Index the benchmark's documents into `folder`; an index of the same build that is there is used as it is.

    Raises:
        UserError: what `Indexer` raises, or the folder holds another index.
    """
    from ..index.by_path import build_index as build

    return build(folder, benchmark.texts, checkpoint, nbits=nbits, overwrite="resume")


def plaid_run(index: str | Path, benchmark: Benchmark, depth: int = 1000, checkpoint: str | None = None) -> Run:
    """Search an index of the benchmark's documents, with the settings that `Searcher` chooses for this depth.

    Args:
        checkpoint: None: the one that the index was built with.

    Raises:
        UserError: there is no such index, it is of other documents, or the checkpoint is another.
    """
    from ..index.by_path import open_index

    check_documents(Path(index), benchmark)
    searcher = open_index(index, checkpoint=checkpoint, collection=benchmark.texts, verbose=1)
    ids, queries = benchmark.document_ids, list(benchmark.queries.items())
    run: Run = {}
    with progress_bar(len(queries), "search") as progress:
        for start in range(0, len(queries), ENCODED):
            part = queries[start : start + ENCODED]
            vectors = searcher.encode([text for _, text in part])
            for i, (qid, _) in enumerate(part):
                pids, _, scores = searcher.dense_search(vectors[i : i + 1], k=min(depth, len(ids)))
                run[qid] = [(ids[pid], float(score)) for pid, score in zip(pids, scores, strict=True)]
                progress.update(1)
    return run


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
