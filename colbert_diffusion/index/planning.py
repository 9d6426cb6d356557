"""What an index will take, before anything is encoded: disk, memory, hours, and the limits it hits.

Sizes are arithmetic over what ColBERT and our Indexer write and hold. Hours are a short run of the same steps on this
machine, carried on by operation count, and a constant for each passage and vector.
"""

import math
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ..common.errors import UserError
from ..config import DiffusionConfig
from ..doctor import memory_available
from ..encoding.allocation import allocator
from ..encoding.checkpoint import DiffusionCheckpoint
from ..encoding.identity import identify
from ..encoding.vectors import SHARD
from ..seam import install
from ..seam.shape import KMEANS_STEPS, QUANTILE_LIMIT, Bytes, Shape, building_bytes, faults, index_bytes, peak_disk, unindexable
from .lexical import described

PROBE_SECONDS = 1.5  # of a step at least, where there is enough to do; twice that at most
ROUNDS = 3
POOL = 2**18  # random vectors that are clustered and compressed
CLUSTERED = 4096  # partitions of the clustering that is timed: it costs the same per operation with more
POINTS = 256  # vectors per centroid that faiss uses (max_points_per_centroid)
HANDLING = 20e-6  # seconds a passage beside the arithmetic: read, its text and length written (profiled on an EPYC core)
HANDLING_VECTOR = 2e-6  # and each of its vectors
UNBATCHED = 3  # times as long ColBERT's own assignment takes, by which it measures residuals of the held-out sample
DISTANCES = 2**29  # entries of the matrix vectors x centroids that ColBERT makes at a time (codecs/residual.py:203)
MEAN_CHARACTERS = 335  # of a passage of MS MARCO
POSTINGS = {"bm25": 30, "predicted": 30}  # of such a passage: its different words without stop words, or pieces of them
POSTING_BYTES = {"bm25": 6, "predicted": 8}
TERM_BYTES = 18  # of a word of BM25's: where its postings begin, and the word; there are about 7 for each root of passages x 60
COUNTING = 100e-6  # seconds a passage to count and stem its words (profiled on an EPYC core); predicted ones come encoded
INVERTING = 10e-6  # and to sort its postings
WORDS = "the of and to in is that for it as was with by on from water people city year system number name blood".split()


@dataclass(frozen=True)
class Rates:
    """What this machine did in a short run. `encoding` is None where there is no checkpoint to run."""

    encoding: float | None  # passages per second
    clustering: float  # vectors x centroids x dim per second
    compression: float  # vectors per second, at this many partitions


@dataclass(frozen=True)
class Plan:
    """Everything `plan` says.

    Args:
        index: bytes of the finished index's files; the texts of a collection that is no .tsv come on top.
        building: bytes beside it while it is built.
        memory: bytes held at each stage by each process that works on it, the libraries' own not counted.
        hours: of each stage; None where this machine could not measure them.
        refused: what makes the Indexer refuse, or fail.
        notes: what else to know.
    """

    shape: Shape
    index: Bytes
    building: Bytes
    memory: Bytes
    hours: dict[str, float] | None
    refused: list[str]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        shape = {name: getattr(self.shape, name) for name in ("passages", "k", "dim", "nbits", "ranks", "vectors")}
        return shape | {
            "partitions": self.shape.partitions,
            "sampled_passages": self.shape.sampled_passages,
            "index_bytes": self.index | {"total": sum(self.index.values())},
            "building_bytes": self.building | {"peak": peak_disk(self.shape)},
            "memory_bytes": self.memory,
            "hours": self.hours and self.hours | {"total": sum(self.hours.values())},
            "refused": self.refused,
            "notes": self.notes,
        }

    def lines(self) -> Iterator[str]:
        """The same for people."""
        s = self.shape
        yield f"{s.passages:,} passages x {s.k} vectors x {s.dim} dimensions at {s.nbits} bits: {s.partitions:,} partitions"
        yield _row("index", _sizes(self.index), size(sum(self.index.values())))
        yield _row("while it is built", _sizes(self.building), f"{size(peak_disk(s))} of disk at most")
        yield _row("memory", _sizes(self.memory), f"{size(max(self.memory.values()))} at most")
        if self.hours:
            hours = {name: f"{value:.2f}" for name, value in self.hours.items()}
            yield _row("hours", hours, f"{sum(self.hours.values()):.2f}")
        yield from (f"refused: {text}" for text in self.refused)
        yield from (f"note: {text}" for text in self.notes)


def _row(name: str, parts: Mapping[str, str], total: str) -> str:
    return f"{name}: {total} ({', '.join(f'{part} {value}' for part, value in parts.items())})"


def _sizes(parts: Bytes) -> dict[str, str]:
    return {name: size(count) for name, count in parts.items()}


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def memory_bytes(shape: Shape, weights: int = 0) -> Bytes:
    """What each process holds at each stage on a CPU. With a GPU the vectors are half as large, and it holds the model.

    Args:
        weights: bytes of the model's.
    """
    vector = 4 * shape.dim  # float32
    centroids = vector * shape.partitions
    chunk = shape.k * min(shape.chunk, shape.passages)
    index = index_bytes(shape)
    return {
        "encoding": weights + shape.k * min(SHARD, shape.passages) * (2 * vector + vector // 2),  # list, array, float16
        "k-means sample": 2 * shape.sampled_vectors * vector,  # its parts, and joined
        "k-means": shape.training_vectors * (vector + vector // 2) + 2 * centroids,
        "compression": max(2 * chunk * vector, chunk * vector // 2 + centroids + 4 * min(DISTANCES, chunk * shape.partitions)),
        "inverted list": 32 * shape.vectors,  # sorted codes and their order int64; pids, sorted pids and the unique ones
        "searching": sum(index[name] for name in ("codes", "residuals", "ivf")) + centroids,
    }


def lexical_bytes(source: str, passages: int) -> int:
    """An index's words: postings, the passages' lengths and the words themselves; predicted words are the checkpoint's."""
    postings = POSTING_BYTES[source] * POSTINGS[source] * passages
    if source == "predicted":
        return postings
    return postings + 4 * passages + round(TERM_BYTES * 7 * math.sqrt(60 * passages))


def hours(shape: Shape, rates: Rates, lexical: str | None = None) -> dict[str, float]:
    """Of each stage. Ranks share the encoding and the compression; one of them clusters; the files are counted for one."""
    clustered = min(shape.training_vectors, POINTS * shape.partitions)
    heldout = shape.sampled_vectors - shape.training_vectors
    seconds = {
        "k-means": KMEANS_STEPS * clustered * shape.partitions * shape.dim / rates.clustering,
        "compression": (shape.vectors / shape.ranks + UNBATCHED * heldout) / rates.compression,
        "reading and writing": shape.passages * HANDLING + shape.vectors * HANDLING_VECTOR,
    }
    if lexical is not None:
        seconds["words"] = shape.passages * (INVERTING + (COUNTING if lexical == "bm25" else 0))
    if rates.encoding is not None:
        seconds = {"encoding": shape.passages / shape.ranks / rates.encoding} | seconds
    return {stage: value / 3600 for stage, value in seconds.items()}


def shortages(shape: Shape, memory: Bytes, place: Path, *, free: int, available: int | None) -> Iterator[str]:
    """What this machine lacks.

    Args:
        memory: as `memory_bytes` gives it.
        free, available: bytes of disk in `place`, and of memory; None where that is not known.
    """
    if (peak := peak_disk(shape)) > free:
        yield f"{size(peak)} of disk are needed, {size(free)} are free in {place}; free some, or choose another place"
    for stage, count in memory.items():
        if available is not None and count > available:
            yield f"{stage} holds {size(count)}, {size(available)} of memory are available; choose a smaller dim or k"


def notes(shape: Shape) -> Iterator[str]:
    """Limits that the Indexer works around, and what that costs."""
    if shape.partitions < shape.wanted_partitions:
        yield (
            f"{shape.training_vectors:,} sampled vectors are too few for ColBERT's {shape.wanted_partitions:,} partitions: "
            f"there will be {shape.partitions:,}"
        )
    heldout = shape.sampled_vectors - shape.training_vectors
    if heldout * shape.dim > QUANTILE_LIMIT:
        yield (
            f"dim {shape.dim}: residuals are measured on {QUANTILE_LIMIT // shape.dim:,} vectors, not on {heldout:,}, "
            f"for torch's quantile takes {QUANTILE_LIMIT:,} numbers"
        )


def make_plan(
    passages: int,
    k: int | None = None,
    dim: int | None = None,
    nbits: int | None = None,
    checkpoint: str | None = None,
    gpus: int | None = None,
    index: Path | None = None,
    lexical: Literal["bm25", "predicted"] | None = None,
) -> Plan:
    """Plan an index, and time its steps on this machine for about half a minute.

    Args:
        k, dim, nbits: None: the checkpoint's own, else 16, 128 and 2.
        checkpoint: folder or hub id; with one, encoding is timed too.
        gpus: how many there will be; None: those that are here.
        index: where the index will be; None: in the current folder.
        lexical: the words that it will have beside its vectors.

    Raises:
        UserError: a number below 1, or k or dim that are not the checkpoint's.
    """
    described(lexical)
    here = torch.cuda.device_count()
    gpus = here if gpus is None else gpus
    refused: list[str] = []
    said: list[str] = []
    if checkpoint is not None:
        identity = identify(checkpoint)
        config = identity.config
        _check_own(config, checkpoint, k=k, dim=dim)
        k, dim, nbits = config.k_passage, config.dim, nbits or config.nbits
        refused += unindexable(identity.path)
        if allocator(config) is not None:
            said.append("passages keep fewer vectors where they are alike: all figures are upper bounds")
    shape = Shape(passages, k or 16, dim or 128, nbits or 2, max(1, gpus))
    refused += faults(shape.dim, shape.nbits, gpu=gpus > 0)
    rates, weights = None, 0
    if bool(gpus) != bool(here):
        said.append(f"hours can be measured only on a machine {'with' if gpus else 'without'} a GPU; run plan there")
    elif not refused:
        rates, weights = probe(shape, checkpoint, lexical=lexical == "predicted")
        if checkpoint is not None:
            said.append(f"encoding is timed on passages of {MEAN_CHARACTERS} characters on average, as MS MARCO's")
    memory = memory_bytes(shape, weights)
    place = (index or Path()).absolute()
    place = next(folder for folder in (place, *place.parents) if folder.is_dir())
    refused += shortages(shape, memory, place, free=shutil.disk_usage(place).free, available=memory_available())
    timed = None if rates is None else hours(shape, rates, lexical)
    files = index_bytes(shape) | ({} if lexical is None else {"words": lexical_bytes(lexical, passages)})
    return Plan(shape, files, building_bytes(shape), memory, timed, refused, [*notes(shape), *said])


def _check_own(config: DiffusionConfig, checkpoint: str, **asked: int | None) -> None:
    own = {"k": config.k_passage, "dim": config.dim}
    for name, value in asked.items():
        if value not in (None, own[name]):
            raise UserError(f"--{name} {value}: {checkpoint} has {own[name]}; leave --{name} or the checkpoint out")


def probe(shape: Shape, checkpoint: str | None = None, *, lexical: bool = False) -> tuple[Rates, int]:
    """Run each step on this machine for some seconds; the rates, and the bytes of the checkpoint's weights."""
    install()
    from .trial import clustering, compression, random_vectors  # imports colbert

    vectors = random_vectors(min(POOL, shape.vectors), shape.dim)
    partitions = min(CLUSTERED, shape.partitions)
    steps = {
        "clustering": Step(clustering(vectors, partitions), partitions, min(len(vectors), POINTS * partitions)),
        "compression": Step(compression(vectors, shape.partitions, shape.nbits), 1024, len(vectors)),
    }
    weights = 0
    if checkpoint is not None:
        model = DiffusionCheckpoint(checkpoint, verbose=0)
        weights = sum(p.numel() * p.element_size() for p in model.encoder.backbone.model.parameters())
        texts = example_passages(min(shape.passages, POOL))
        encode = partial(model.encode_document, lexical=True) if lexical else model.encode_document
        steps["encoding"] = Step(lambda n: encode(texts[:n]), 16, len(texts))
    with torch.inference_mode():
        per_second = rates(steps)
    operations = KMEANS_STEPS * partitions * shape.dim
    return Rates(per_second.get("encoding"), operations * per_second["clustering"], per_second["compression"]), weights


class Step(NamedTuple):
    """Something to time: `run(units)`, for `start` to `most` units."""

    run: Callable[[int], object]
    start: int
    most: int

    def seconds(self, units: int) -> float:
        started = time.perf_counter()
        self.run(units)
        return max(time.perf_counter() - started, 1e-9)

    def enough(self) -> int:
        """Units that take `PROBE_SECONDS`, found by doubling, or `most`."""
        units = min(self.start, self.most)
        while units < self.most and self.seconds(units) < PROBE_SECONDS:
            units = min(2 * units, self.most)
        return units


def rates(steps: Mapping[str, Step]) -> dict[str, float]:
    """Units per second of each step: the median of `ROUNDS`, in turns, for other work on a machine comes and goes."""
    units = {name: step.enough() for name, step in steps.items()}
    seconds = [{name: step.seconds(units[name]) for name, step in steps.items()} for _ in range(ROUNDS)]
    return {name: units[name] / statistics.median(one[name] for one in seconds) for name in steps}


def example_passages(count: int) -> list[str]:
    """Words at random, of MS MARCO's mean length in characters and half to one and a half times that."""
    draw = random.Random(0)
    words = MEAN_CHARACTERS / (sum(map(len, WORDS)) / len(WORDS) + 1)
    return [" ".join(draw.choices(WORDS, k=round(words * draw.uniform(0.5, 1.5)))) for _ in range(count)]
