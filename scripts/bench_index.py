"""Where the time of an index goes: encoding, k-means, compression (assignment and packing), and everything else.

Passages are windows of words out of COLLECTION's, with MS MARCO's lengths (56 words on average). They are encoded and
indexed in one process, under Python's profiler, which names ColBERT's own functions; nothing is patched. "Overhead" is
the whole time over that of the first three: what each index needs, whoever builds it.

Usage: bench_index.py COLLECTION --out FOLDER [--passages 100000] [--checkpoint FOLDER] [--nbits N]

FOLDER/index stays, FOLDER/passages.tsv too. Interrupted, the same command goes on, but its times are of the rest alone.
"""

import argparse
import cProfile
import math
import pstats
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from colbert.infra import ColBERTConfig, Run, RunConfig

from colbert_diffusion import Indexer
from colbert_diffusion.common.errors import UserError
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--checkpoint")
    parser.add_argument("--nbits", type=int)
    given = parser.parse_args(arguments)
    try:
        path = given.out / "passages.tsv"
        if not path.exists():
            given.out.mkdir(parents=True, exist_ok=True)
            write_tsv(path, windows(read_collection(given.collection), given.passages))
        profile = cProfile.Profile()
        config = ColBERTConfig(nbits=given.nbits) if given.nbits else None
        with Run().context(RunConfig(index_root=str(given.out))), only_our_output(given.out / "colbert.log"):
            started = time.perf_counter()
            index = Path(profile.runcall(Indexer(given.checkpoint, config).index, "index", str(path)))
            total = time.perf_counter() - started
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    stages = seconds_of(profile)
    stages["everything else"] = total - sum(stages.values())
    about = read_json(index / "metadata.json")
    passages = len(read_collection(path))
    print(f"{passages:,} passages, {about['num_embeddings']:,} vectors, {about['num_partitions']:,} partitions")
    print("| stage | seconds | share |\n|---|---|---|")
    for stage, seconds in stages.items():
        print(f"| {stage} | {seconds:.1f} | {seconds / total:.1%} |")
    print(f"| all | {total:.1f} | overhead {total / sum(stages[stage] for stage in NEEDED):.3f} |")
    stored = sum(file.stat().st_size for file in index.iterdir())
    packed = sum(file.stat().st_size for kind in ("codes", "residuals") for file in index.glob(f"*.{kind}.pt"))
    print(f"index {size(stored)}, codes and residuals {packed / passages:.0f} bytes a passage")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(f"peak resident memory {size(1024 * int(status['VmHWM'].split()[0]))}")  # ru_maxrss may be the parent's


if __name__ == "__main__":
    main()
