"""One index and the same index in parts: are their answers equal, and what do parts cost?

Queries are the first words of passages. Every query is asked of the whole index, and of its parts in this process; with --ray
also of parts in processes of their own, each behind a handle of Ray Serve. They take turns. Times are of one query at a time,
encoded before; an answer is equal when its pids are the same in the same order, and its scores within 1e-5.

Usage: parts.py COLLECTION [--checkpoint C] [--texts 4000] [--chunk 1000] [--parts 2] [--queries 1000] [--k 10] [--ray]
"""

import os
import random
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from common import errors_in_a_line, make_parser, print_table

from colbert_diffusion import Searcher, build_index, open_index
from colbert_diffusion.common.optional import extra, need
from colbert_diffusion.common.progress import only_our_output
from colbert_diffusion.distributed import RayCluster
from colbert_diffusion.index.opening import index_state
from colbert_diffusion.index.parts import LocalParts
from colbert_diffusion.seam import building
from colbert_diffusion.texts.collection import read_collection

WORDS = 8
Answer = tuple[list[int], list[int], list[float]]


def queries_of(texts: list[str], count: int) -> list[str]:
    return [" ".join(text.split()[:WORDS]) for text in random.Random(0).choices(texts, k=count)]


def differ(one: Answer, other: Answer) -> tuple[bool, float]:
    """Whether pids or their order differ, and by how much scores do."""
    pids = one[0] != other[0]
    return pids, float(np.abs(np.array(one[2]) - np.array(other[2])).max(initial=0)) if len(one[2]) == len(other[2]) else np.inf


@contextmanager
def ways(index: Path, parts: int, *, ray: bool) -> Iterator[dict[str, Searcher]]:
    """The whole first."""
    opened = {"whole": open_index(index), f"{parts} parts here": open_index(index, parts=lambda path: LocalParts(path, parts))}
    if not ray:
        yield opened
        return
    from colbert_diffusion.distributed.deploying import COMMON
    from colbert_diffusion.distributed.replicas import Part, RemoteParts, Served, part_name

    with RayCluster("local"):
        serve = need("ray.serve", "parts", extra("ray"))
        part = serve.deployment(Part).options(**COMMON, ray_actor_options={"num_cpus": 0})
        served = Served((index,), (index_state(index),), {})
        for number in range(parts):
            serve.run(part.bind(served, number, parts), name=part_name(served.states[0], number, parts), route_prefix=None)
        opened[f"{parts} parts, Ray Serve"] = open_index(index, parts=lambda path: RemoteParts(path, parts))
        yield opened


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("collection")
    parser.add_argument("--checkpoint")
    for name, default in (("texts", 4000), ("chunk", 1000), ("parts", 2), ("queries", 1000), ("k", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ray", action="store_true", help="parts in processes of their own, too")
    given = parser.parse_args(arguments)
    texts = list(read_collection(given.collection)[: given.texts])
    setattr(building, "CHUNK", given.chunk)  # noqa: B010 - nobody exports it
    with tempfile.TemporaryDirectory() as work:
        with only_our_output(Path(os.devnull)):
            index = build_index(Path(work, "index"), texts, given.checkpoint, verbose=0)
        torch.set_num_threads(1)
        with ways(index, given.parts, ray=given.ray) as opened:
            [(_, whole), *others] = opened.items()
            times: dict[str, list[float]] = {name: [] for name in opened}
            unlike = {name: [0, 0.0] for name, _ in others}
            for asked in whole.ask(queries_of(texts, given.queries), mode="dense"):
                answers = {}
                for name, searcher in opened.items():
                    started = perf_counter()
                    answers[name] = searcher.answer(asked, given.k, mode="dense")
                    times[name].append(1000 * (perf_counter() - started))
                for name, _ in others:
                    other, by = differ(answers["whole"], answers[name])
                    unlike[name][0] += other or by > 1e-5
                    unlike[name][1] = max(unlike[name][1], by)
    base = statistics.median(times["whole"])
    print(f"{len(texts)} passages in chunks of {given.chunk}, {given.queries} queries, k {given.k}")
    rows = [("whole", "", "", f"{base:.2f}", "1.00")]
    for name, _ in others:
        p50 = statistics.median(times[name])
        rows.append((name, str(unlike[name][0]), f"{unlike[name][1]:.1e}", f"{p50:.2f}", f"{p50 / base:.2f}"))
    print_table(("", "unlike answers", "largest difference of a score", "p50 ms", "times the whole"), rows)


if __name__ == "__main__":
    main()
