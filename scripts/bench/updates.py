"""What many small updates cost: an index that grew by `--adds` updates of `--each` passages beside one built at once.

Recall of exact MaxSim's ten best over the float vectors, at our own search settings; partitions, chunks and files of both;
seconds of an update. The base is all passages of the collection but the last adds x each.

Usage: updates.py COLLECTION QUERIES VECTORS WORK [--adds 100] [--each 10] [--nbits 2] [--limit 500]

VECTORS is what `colbert-diffusion encode COLLECTION VECTORS` wrote; WORK must not exist.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from colbert.infra import ColBERTConfig, Run, RunConfig
from common import errors_in_a_line, make_parser, timed
from search import exact_maxsim, recall

from colbert_diffusion import Indexer, IndexUpdater, Searcher
from colbert_diffusion.common.files import read_json
from colbert_diffusion.encoding.vectors import VectorFiles
from colbert_diffusion.texts.collection import read_collection, read_queries

K = 10  # passages of a search


def grow(name: str, texts: Sequence[str], base: int, each: int) -> list[float]:
    """Add the texts behind the first `base` to an index, some at a time; seconds of each update."""

    def add(more: Sequence[str]) -> None:
        updater = IndexUpdater(name, verbose=0)
        updater.add(more)
        updater.persist_to_disk()

    return [timed(partial(add, texts[start : start + each]))[1] for start in range(base, len(texts), each)]


def report(index: Path, found: Sequence[Sequence[int]], exact: Sequence[Sequence[int]], base: int, added: int) -> str:
    new = [[pid for pid in pids if pid >= base] for pids in exact]
    among_new = [(pids, wanted) for pids, wanted in zip(found, new, strict=True) if wanted]
    of_new = f"{recall(*zip(*among_new, strict=True)):.4f}" if among_new else f"unknown, none is among a query's {K} best"
    about = read_json(index / "metadata.json")
    return (
        f"{index.name}: recall@{K} of exact {recall(found, exact):.4f}, of the {added} passages added {of_new}; "
        f"{about['num_partitions']} partitions, {about['num_chunks']} chunks, {len(list(index.iterdir()))} files"
    )


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    for name in ("collection", "queries", "vectors", "work"):
        parser.add_argument(name, type=Path)
    for name, default in (("adds", 100), ("each", 10), ("nbits", 2), ("limit", 500)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)

    texts = list(read_collection(options.collection))
    queries = list(read_queries(options.queries).values())[: options.limit]
    files = VectorFiles(options.vectors)
    base = len(texts) - options.adds * options.each
    options.work.mkdir()
    with Run().context(RunConfig(index_root=str(options.work))):
        config = ColBERTConfig(nbits=options.nbits)
        Indexer(files.checkpoint, config, verbose=0).index("grown", texts[:base])
        Indexer(str(options.vectors), config, verbose=0).index("built", texts)
        seconds = grow("grown", texts, base, options.each)
        exact: list[list[int]] = []
        for name in ("built", "grown"):
            searcher = Searcher(name, verbose=0)
            encoded = searcher.encode(queries)
            exact = exact or exact_maxsim(files, encoded, K)
            found = [searcher.dense_search(query, K)[0] for query in torch.split(encoded, 1)]
            print(report(options.work / name, found, exact, base, len(texts) - base))
    print(f"{options.adds} updates of {options.each}: median {statistics.median(seconds):.2f} s, last {seconds[-1]:.2f} s")


if __name__ == "__main__":
    main()
