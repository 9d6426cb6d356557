"""What many small updates cost: an index that grew by `--adds` updates of `--each` passages beside one built at once.

Recall of exact MaxSim's ten best over the float vectors, at our own search settings; partitions, chunks and files of both;
seconds of an update. The base is all passages of the collection but the last adds x each.

Usage: bench_updates.py COLLECTION QUERIES VECTORS WORK [--adds 100] [--each 10] [--nbits 2] [--limit 500]

VECTORS is what `colbert-diffusion encode COLLECTION VECTORS` wrote; WORK must not exist.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from bench_search import exact_maxsim, recall
from colbert.infra import ColBERTConfig, Run, RunConfig

from colbert_diffusion import Indexer, IndexUpdater, Searcher
from colbert_diffusion.common.files import read_json
from colbert_diffusion.encoding.vectors import VectorFiles
from colbert_diffusion.texts.collection import read_collection, read_queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("collection", "queries", "vectors", "work"):
        parser.add_argument(name, type=Path)
    for name, default in (("adds", 100), ("each", 10), ("nbits", 2), ("limit", 500)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()

    texts = list(read_collection(options.collection))
    queries = list(read_queries(options.queries).values())[: options.limit]
    files = VectorFiles(options.vectors)
    base = len(texts) - options.adds * options.each
    options.work.mkdir()
    with Run().context(RunConfig(index_root=str(options.work))):
        config = ColBERTConfig(nbits=options.nbits)
        Indexer(files.checkpoint, config, verbose=0).index("grown", texts[:base])
        Indexer(str(options.vectors), config, verbose=0).index("built", texts)
        seconds = []
        for start in range(base, len(texts), options.each):
            started = time.perf_counter()
            updater = IndexUpdater("grown", verbose=0)
            updater.add(texts[start : start + options.each])
            updater.persist_to_disk()
            seconds.append(time.perf_counter() - started)
        exact: list[list[int]] = []
        for name in ("built", "grown"):
            searcher = Searcher(name, verbose=0)
            encoded = searcher.encode(queries)
            exact = exact or exact_maxsim(files, encoded, 10)
            new = [[pid for pid in pids if pid >= base] for pids in exact]
            found = [searcher.dense_search(query, 10)[0] for query in torch.split(encoded, 1)]
            among_new = [(pids, wanted) for pids, wanted in zip(found, new, strict=True) if wanted]
            about = read_json(options.work / name / "metadata.json")
            print(
                f"{name}: recall@10 of exact {recall(found, exact):.4f}, of the {len(texts) - base} passages added "
                f"{recall(*zip(*among_new, strict=True)):.4f}; {about['num_partitions']} partitions, "
                f"{about['num_chunks']} chunks, {len(list((options.work / name).iterdir()))} files"
            )
    print(f"{options.adds} updates of {options.each}: median {statistics.median(seconds):.2f} s, last {seconds[-1]:.2f} s")


if __name__ == "__main__":
    main()
