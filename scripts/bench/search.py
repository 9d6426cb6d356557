"""Search settings on real vectors: what each finds, costs and leaves out, for every nbits, in one run.

Per query all settings take turns in shuffled order, on one thread, so that a machine's drift hits them alike. Full
probing (every cell, nothing pruned, everything scored) is what the index itself could find; it runs apart, because
its memory traffic would slow the search after it. Query encoding is not timed. Candidates are the passages that the
probed cells hold; a quarter of ndocs of them, or all when fewer, are scored with their decompressed vectors.

--sweep tries a grid of settings and prints those that find enough of full probing's results and score few enough
passages, fastest first, with p50 as a ratio to that of ColBERT's defaults in the same run.

Usage: search.py COLLECTION QUERIES VECTORS WORK [--k 10] [--nbits 1 2 4] [--niters N] [--sweep]
                       [--json FILE]

VECTORS is what `colbert-diffusion encode COLLECTION VECTORS` wrote; WORK keeps the indexes, one folder per VECTORS.
"""

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from colbert.infra import ColBERTConfig, Run, RunConfig
from common import errors_in_a_line, make_parser, print_table, timed

from colbert_diffusion import Indexer, Searcher
from colbert_diffusion.encoding.scoring import maxsim
from colbert_diffusion.encoding.vectors import VectorFiles
from colbert_diffusion.seam.settings import SearchSettings, choose_settings
from colbert_diffusion.texts.collection import read_collection, read_queries

DEFAULTS = "ColBERT's defaults"
WARM_UP = 20  # queries


class Row(NamedTuple):
    """One setting on one index. Recalls and shares are means over the queries, times milliseconds."""

    nbits: int
    k: int
    name: str
    ncells: int
    threshold: float
    ndocs: int
    of_full: float  # recall@k of full probing's top k
    of_exact: float  # recall@k of exact MaxSim's top k over the float vectors
    p50: float
    p95: float
    ratio: float  # of p50 to that of ColBERT's defaults
    candidates: float  # share of the collection
    scored: float  # share of the collection


def colbert_defaults(k: int) -> SearchSettings:
    """What ColBERT chooses where nothing is set (searcher.py, dense_search)."""
    if k <= 10:
        return SearchSettings(1, 0.5, 256)
    if k <= 100:
        return SearchSettings(2, 0.45, 1024)
    return SearchSettings(4, 0.4, max(4 * k, 4096))


def build(collection: str, vectors: Path, work: Path, nbits: int, niters: int | None = None) -> str:
    """The name of the index in `work`; one that is there is reused."""
    name, config = f"nbits{nbits}", ColBERTConfig(nbits=nbits)
    if niters is not None:
        name, config = f"{name}-niters{niters}", ColBERTConfig(nbits=nbits, kmeans_niters=niters)
    with Run().context(RunConfig(index_root=str(work))):
        Indexer(str(vectors), config, verbose=0).index(name, collection, overwrite="reuse")
    return name


def exact_maxsim(vectors: VectorFiles, queries: torch.Tensor, k: int) -> list[list[int]]:
    """The k best pids of each query by brute force over the float vectors."""
    passages = list(vectors.read(range(len(vectors))))
    scores = (maxsim([query], passages)[0] for query in queries.numpy())
    return [np.argsort(-row, kind="stable")[:k].tolist() for row in scores]


def search(searcher: Searcher, query: torch.Tensor, k: int, settings: SearchSettings) -> tuple[list[int], float]:
    """(pids, milliseconds) under the given settings, as though the Searcher had been opened with them."""
    searcher.configure(**settings._asdict())
    (pids, _, _), seconds = timed(partial(searcher.dense_search, query, k))
    return pids, 1000 * seconds


def candidates(searcher: Searcher, query: torch.Tensor, ncells: int) -> int:
    found, _ = searcher.ranker.generate_candidates(ColBERTConfig(ncells=ncells), query)
    return len(found)


def recall(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    return statistics.fmean(len(set(f) & set(w)) / len(w) for f, w in zip(found, wanted, strict=True))


def measure(
    searcher: Searcher,
    nbits: int,
    queries: Sequence[torch.Tensor],
    k: int,
    settings: Mapping[str, SearchSettings],
    exact: Sequence[Sequence[int]],
) -> list[Row]:
    """A row for full probing and for each of the settings."""
    passages, partitions = len(searcher.ranker.doclens), len(searcher.ranker.codec.centroids)
    every = {**settings, "full": SearchSettings(partitions, -2.0, 4 * passages)}  # no cosine is below -2
    found: dict[str, list[list[int]]] = {name: [] for name in every}
    times: dict[str, list[float]] = {name: [] for name in every}

    def note(name: str, query: torch.Tensor) -> None:
        pids, ms = search(searcher, query, k, every[name])
        found[name].append(pids)
        times[name].append(ms)

    for query in queries:
        note("full", query)
    for query in queries[:WARM_UP]:
        for one in settings.values():
            search(searcher, query, k, one)
    shuffle = random.Random(0)
    for query in queries:
        for name in shuffle.sample(list(settings), len(settings)):
            note(name, query)
    counts = {n: [candidates(searcher, query, n) for query in queries] for n in {one.ncells for one in every.values()}}

    base = statistics.median(times[DEFAULTS])
    return [
        Row(
            nbits,
            k,
            name,
            *one,
            of_full=recall(found[name], found["full"]),
            of_exact=recall(found[name], exact),
            p50=statistics.median(times[name]),
            p95=float(np.percentile(times[name], 95)),
            ratio=statistics.median(times[name]) / base,
            candidates=statistics.fmean(counts[one.ncells]) / passages,
            scored=statistics.fmean(min(n, one.ndocs // 4) for n in counts[one.ncells]) / passages,
        )
        for name, one in every.items()
    ]


def show(rows: Iterable[Row]) -> None:
    columns = ("of full", "of exact", "p50 ms", "p95 ms", "p50 ratio", "candidates", "scored")
    print_table(
        ("", "ncells / threshold / ndocs", *columns),
        (
            (
                *(r.name, f"{r.ncells} / {r.threshold:g} / {r.ndocs}", f"{r.of_full:.3f}", f"{r.of_exact:.3f}"),
                *(f"{r.p50:.2f}", f"{r.p95:.2f}", f"{r.ratio:.2f}", f"{r.candidates:.1%}", f"{r.scored:.1%}"),
            )
            for r in rows
        ),
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("collection", help=".tsv, .jsonl or BEIR folder")
    parser.add_argument("queries", help=".tsv, .jsonl or BEIR folder")
    parser.add_argument("vectors", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=500, help="queries, drawn with a fixed seed")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--nbits", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--niters", type=int, help="of k-means; ColBERT's default is 4")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--ncells", type=int, nargs="+", default=[4, 8, 12, 16, 24, 32])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.0, 0.3, 0.4, 0.5])
    parser.add_argument("--ndocs", type=int, nargs="+", default=[512, 768, 1024, 2048])
    parser.add_argument("--at-least", type=float, default=0.98, help="of full probing's results, for --sweep to print")
    parser.add_argument("--at-most", type=float, default=0.10, help="of the passages scored, for --sweep to print")
    parser.add_argument("--json", type=Path, help="file for every row")
    return parser.parse_args(arguments)


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    names = {nbits: build(options.collection, options.vectors, options.work, nbits, options.niters) for nbits in options.nbits}
    texts = list(read_queries(options.queries).values())
    texts = random.Random(0).sample(texts, min(options.count, len(texts)))
    torch.set_num_threads(1)

    rows: list[Row] = []
    exact: list[list[int]] = []
    for nbits, name in names.items():
        searcher = Searcher(name, index_root=str(options.work.absolute()), verbose=0)
        encoded = searcher.encode(texts)
        exact = exact or exact_maxsim(VectorFiles(options.vectors), encoded, options.k)
        partitions = len(searcher.ranker.codec.centroids)
        settings = {DEFAULTS: colbert_defaults(options.k), "ours": choose_settings(options.k, partitions)}
        if options.sweep:
            grid = itertools.product(options.ncells, options.thresholds, options.ndocs)
            settings |= {f"grid {i}": SearchSettings(*cell) for i, cell in enumerate(grid, 1)}
        measured = measure(searcher, nbits, encoded.split(1), options.k, settings, exact)
        rows += measured
        print(
            f"\nnbits {nbits}, k {options.k}: {len(read_collection(options.collection)):,} passages, "
            f"{partitions:,} partitions, {len(texts)} queries of {encoded.shape[1]} vectors\n"
        )
        show(row for row in measured if not row.name.startswith("grid"))
        if options.sweep:
            good = [r for r in measured if r.of_full >= options.at_least and r.scored <= options.at_most]
            print(f"\nof full at least {options.at_least:g}, scored at most {options.at_most:.0%}, fastest first:\n")
            show(sorted(good, key=lambda r: r.p50))
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
