"""What a Ray cluster on this machine costs and gains: encoding shards in one process against one worker, and many.

One process and one worker with as many threads: the difference is what handing out shards and taking them back costs. Then one
process with one thread against as many workers with one thread each. The cells take turns; models are loaded before.

Usage: cluster.py COLLECTION [--checkpoint C] [--texts 1000] [--shard 100] [--workers 2] [--rounds 3]
"""

import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import errors_in_a_line, in_turns, make_parser, print_table

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.distributed import RayCluster
from colbert_diffusion.encoding import vectors as vector_files
from colbert_diffusion.encoding.checkpoint import default_checkpoint
from colbert_diffusion.encoding.vectors import encode_to
from colbert_diffusion.texts.collection import read_collection


def encode(model: DiffusionCheckpoint, texts: list[str], cluster: RayCluster | None) -> None:
    """All texts into shards, in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        encode_to(Path(folder, "vectors"), model.identity, lambda: model, texts, cluster=cluster)


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("collection")
    parser.add_argument("--checkpoint", default=default_checkpoint())
    for name, default in (("texts", 1000), ("shard", 100), ("workers", 2), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    texts = list(read_collection(given.collection)[: given.texts])
    model = DiffusionCheckpoint(given.checkpoint, verbose=0)
    vector_files.SHARD = given.shard
    rows = []
    for threads, workers in ((given.workers, 1), (1, given.workers)):
        torch.set_num_threads(threads)
        with RayCluster("local", cpus=threads) as cluster:
            few = texts[: workers * given.shard * 2]
            encode(model, few, cluster)  # everyone has a model
            ways = {"alone": None, "shared": cluster}
            times = in_turns({name: partial(encode, model, texts, way) for name, way in ways.items()}, given.rounds)
        one, many = map(statistics.median, times.values())
        rows.append((threads, workers, f"{one:.1f}", f"{many:.1f}", f"{one / many:.2f}"))
    print(f"{len(texts)} passages in shards of {given.shard}, median of {given.rounds}")
    print_table(("threads", "workers", "one process, s", "cluster, s", "times as fast"), rows)


if __name__ == "__main__":
    main()
