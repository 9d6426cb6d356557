"""Where the time of an index goes: encoding, k-means, compression (assignment and packing), and everything else.

Passages are windows of words out of COLLECTION's, with MS MARCO's lengths (56 words on average). They are encoded and
indexed in one process, under Python's profiler, which names ColBERT's own functions; nothing is patched. "Overhead" is
the whole time over that of the first three: what each index needs, whoever builds it.

Usage: index.py COLLECTION --out FOLDER [--passages 100000] [--checkpoint FOLDER] [--nbits N]

FOLDER/index stays, FOLDER/passages.tsv too. Interrupted, the same command goes on, but its times are of the rest alone.
"""

import argparse
import cProfile
import math
import pstats
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from colbert.infra import ColBERTConfig, Run, RunConfig
from common import bytes_of, errors_in_a_line, make_parser, memory, packed_bytes, print_table, timed

from colbert_diffusion import Indexer
from colbert_diffusion.common.files import read_json
from colbert_diffusion.common.progress import only_our_output
from colbert_diffusion.index.planning import size
from colbert_diffusion.texts.collection import read_collection, write_tsv

WORDS, SPREAD = 56, 0.4  # of a passage of MS MARCO: mean, and standard deviation of the logarithm
STAGES = {
    "encoding": "encode_shards",
    "k-means": "compute_faiss_kmeans",
    "compression": "compress",
    "inverted list": "_build_ivf",
}
NEEDED = ("encoding", "k-means", "compression")


def windows(texts: Sequence[str], count: int) -> Iterator[str]:
    """`count` passages; a text shorter than its window is taken whole."""
    draw = random.Random(0)
    for _ in range(count):
        words = texts[draw.randrange(len(texts))].split()
        length = max(1, round(draw.lognormvariate(math.log(WORDS) - SPREAD**2 / 2, SPREAD)))
        start = draw.randrange(max(1, len(words) - length + 1))
        yield " ".join(words[start : start + length])


def seconds_of(profile: cProfile.Profile) -> dict[str, float]:
    """Of each stage, what it called included."""
    found = dict.fromkeys(STAGES, 0.0)
    for (_, _, function), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        for stage, name in STAGES.items():
            if function == name:
                found[stage] = max(found[stage], cumulative)
    return found


def build(given: argparse.Namespace) -> tuple[Path, dict[str, float], float]:
    """The index, the seconds of each stage, and of all."""
    path = given.out / "passages.tsv"
    if not path.exists():
        given.out.mkdir(parents=True, exist_ok=True)
        write_tsv(path, windows(read_collection(given.collection), given.passages))
    profile = cProfile.Profile()
    config = ColBERTConfig(nbits=given.nbits) if given.nbits else None
    with Run().context(RunConfig(index_root=str(given.out))), only_our_output(given.out / "colbert.log"):
        indexer = Indexer(given.checkpoint, config)
        index, total = timed(lambda: Path(profile.runcall(indexer.index, "index", str(path))))
    stages = seconds_of(profile)
    return index, stages | {"everything else": total - sum(stages.values())}, total


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("collection")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--checkpoint")
    parser.add_argument("--nbits", type=int)
    given = parser.parse_args(arguments)
    index, stages, total = build(given)
    about = read_json(index / "metadata.json")
    passages = len(read_collection(given.out / "passages.tsv"))
    print(f"{passages:,} passages, {about['num_embeddings']:,} vectors, {about['num_partitions']:,} partitions")
    overhead = total / sum(stages[stage] for stage in NEEDED)
    rows = [(stage, f"{seconds:.1f}", f"{seconds / total:.1%}") for stage, seconds in stages.items()]
    print_table(("stage", "seconds", "share"), [*rows, ("all", f"{total:.1f}", f"overhead {overhead:.3f}")])
    packed = packed_bytes(index) / passages
    print(f"index {size(bytes_of(index, '*'))}, codes and residuals {packed:.0f} bytes a passage")
    print(f"peak resident memory {size(memory().peak)}")


if __name__ == "__main__":
    main()
