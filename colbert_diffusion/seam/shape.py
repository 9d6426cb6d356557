"""What an index of a given size is made of, and what ColBERT cannot hold: its own arithmetic, with no import of it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError
from ..config import COLBERT_FILE, NBITS, RELEASED, check_colbert_file, layout_of

CHUNK = 25_000  # passages; ColBERT's with one rank (data/collection.py:84)
KMEANS_STEPS = 4  # ColBERT's default (infra/config/settings.py:168)
QUANTILE_LIMIT = 2**24  # elements torch.quantile accepts (collection_indexer.py:331)
GPU_THREADS = 1024  # of a block: decompress_residuals.cu starts dim * nbits / 8 of them
TORCH_FILE = 1_600  # bytes of a .pt file beyond its tensor
CHUNK_FILES = 1_000  # bytes of a chunk's metadata and of its lines in the manifest
CONFIG_FILES = 4_500  # bytes of metadata.json, plan.json and the rest of the manifest
TYPICAL_DOCLEN = 120  # what ColBERT samples passages for, whatever their length (collection_indexer.py:104)

Bytes = dict[str, int]


@dataclass(frozen=True)
class Shape:
    """An index of `passages` of `k` vectors of `dim` dimensions at `nbits` each, built by `ranks` processes."""

    passages: int
    k: int
    dim: int
    nbits: int
    ranks: int = 1

    def __post_init__(self) -> None:
        for name in ("passages", "k", "dim", "nbits", "ranks"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")

    @property
    def vectors(self) -> int:
        return self.passages * self.k

    @property
    def sampled_passages(self) -> int:
        """Those whose vectors k-means sees (collection_indexer.py:105)."""
        return min(1 + int(16 * math.sqrt(TYPICAL_DOCLEN * self.passages)), self.passages)

    @property
    def sampled_vectors(self) -> int:
        return self.sampled_passages * self.k

    @property
    def training_vectors(self) -> int:
        return training_vectors(self.sampled_vectors)

    @property
    def wanted_partitions(self) -> int:
        """By ColBERT's formula (collection_indexer.py:91)."""
        return int(2 ** math.floor(math.log2(16 * math.sqrt(self.vectors))))

    @property
    def partitions(self) -> int:
        return fitting_partitions(self.wanted_partitions, self.sampled_vectors)

    @property
    def chunk(self) -> int:
        """Passages of one (data/collection.py:78)."""
        return min(CHUNK, 1 + self.passages // self.ranks)

    @property
    def chunks(self) -> int:
        return -(-self.passages // self.chunk)


def index_bytes(shape: Shape) -> Bytes:
    """The finished index's files. The ivf is at most this: vectors of a passage that share a centroid are listed once."""
    return {
        "codes": 4 * shape.vectors + TORCH_FILE * shape.chunks,
        "residuals": shape.vectors * shape.dim * shape.nbits // 8 + TORCH_FILE * shape.chunks,
        "doclens": shape.passages * (len(str(shape.k)) + 2),
        "ivf": 4 * shape.vectors + 8 * shape.partitions + TORCH_FILE,
        "centroids": 2 * shape.partitions * shape.dim + 3 * TORCH_FILE,
        "metadata": CHUNK_FILES * shape.chunks + CONFIG_FILES,
    }


def building_bytes(shape: Shape) -> Bytes:
    """What lies beside a growing index: every vector until the end, the sample's until k-means has read it. float16."""
    return {
        "vectors": 2 * shape.vectors * shape.dim + 4 * shape.passages,
        "k-means sample": 2 * shape.sampled_vectors * shape.dim,
    }


def peak_disk(shape: Shape) -> int:
    """The sample is gone before the first chunk is written."""
    building = building_bytes(shape)
    return building["vectors"] + max(building["k-means sample"], sum(index_bytes(shape).values()))


def training_vectors(sampled: int) -> int:
    """How many of the sampled vectors make centroids; residuals are measured on the others (collection_indexer.py:250)."""
    return sampled - int(min(0.05 * sampled, 50_000))


def fitting_partitions(wanted: int, sampled: int) -> int:
    """No more partitions than there are vectors to make centroids from: k-means cannot make more."""
    training = training_vectors(sampled)
    return wanted if wanted <= training else int(2 ** (training.bit_length() - 1))


def faults(dim: int, nbits: int, *, gpu: bool) -> Iterator[str]:
    """What PLAID's packing (indexing/codecs/residual.py) and, with a GPU, its kernel cannot hold."""
    if nbits not in NBITS:
        yield f"nbits={nbits}: ColBERT packs residuals in 1, 2, 4 or 8 bits"
    elif dim % (8 * nbits):
        yield f"dim {dim} with nbits {nbits}: dim must be a multiple of {8 * nbits}; choose another nbits or dim"
    if gpu and dim * nbits // 8 > GPU_THREADS:
        yield (
            f"dim {dim} with nbits {nbits}: ColBERT's GPU kernel would need {dim * nbits // 8} threads, there are "
            f"{GPU_THREADS}, and it does not check; choose fewer bits or convert to a smaller --dim"
        )


def check_shape(dim: int, nbits: int, *, gpu: bool) -> None:
    """Raises UserError for the first of `faults`, before any forward pass."""
    for fault in faults(dim, nbits, gpu=gpu):
        raise UserError(fault)


def unindexable(folder: Path) -> Iterator[str]:
    """Why ColBERT cannot index with the checkpoint in this folder, and the command that helps."""
    layout = layout_of(folder)
    if layout is RELEASED:
        yield (
            f"{folder} is a released DiffRetriever folder without {COLBERT_FILE}; make it indexable with: "
            f"colbert-diffusion convert {folder} OUT --dim 128 --fit-on TEXTS"
        )
    elif layout is None:
        yield f"{folder} is not a diffusion checkpoint; for ColBERT's own checkpoints use colbert.Indexer"
    elif not (folder / COLBERT_FILE).is_file():
        yield f"{folder} has no {COLBERT_FILE}; write it with DiffusionConfig.load(folder).save(folder)"


def check_indexable(folder: Path) -> None:
    """Raises UserError for what `unindexable` says, and for settings that are no checkpoint's to decide."""
    check_colbert_file(folder)
    for reason in unindexable(folder):
        raise UserError(reason)
