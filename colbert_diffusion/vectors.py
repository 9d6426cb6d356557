"""Vector files: encode once, index many times. Knows neither models nor ColBERT.

A folder holds `vectors.json` (what made it) and shards `00000.safetensors` of `SHARD` passages each: `vectors`
float16 (sum of lengths, dim) and `doclens` int32. A shard appears by a rename when it is whole, so an interrupted
run goes on with the next one; batches never cross a shard, so going on changes no bit.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .collection import collection_fingerprint
from .config import COLBERT_FILE, VECTORS_FILE
from .errors import UserError
from .files import read_json, write_json, written_aside
from .identity import CheckpointIdentity
from .progress import Progress, progress_bar
from .projection import Vectors

FORMAT_VERSION = 1
SHARD = 10_000  # passages; at k=16, dim=128 a shard is 41 MB


class DocumentEncoder(Protocol):
    """What encoding to files needs of a checkpoint."""

    def iter_document(self, documents: Sequence[str], progress: Progress | None = None) -> Iterator[Vectors]: ...


def encode_to(
    folder: Path,
    identity: CheckpointIdentity,
    load: Callable[[], DocumentEncoder],
    texts: Sequence[str],
    *,
    show_progress_bar: bool = False,
) -> "VectorFiles":
    """Encode passages into a folder of vector files; run again after an interruption, it goes on.

    Args:
        load: loads the model; not called when every shard is there.

    Raises:
        UserError: the folder holds vectors of another checkpoint or collection, or there are no texts.
    """
    claim(folder, identity, texts)
    encode_shards(folder, load, texts, show_progress_bar=show_progress_bar)
    mark_complete(folder)
    return VectorFiles(folder)


def is_claimed_by(folder: Path, identity: CheckpointIdentity, texts: Sequence[str]) -> bool:
    """Whether the folder holds these texts' vectors by this checkpoint, complete or not."""
    path = folder / VECTORS_FILE
    return path.is_file() and read_json(path).items() >= _describe(identity, texts).items()


def _describe(identity: CheckpointIdentity, texts: Sequence[str]) -> dict[str, Any]:
    """The manifest of the vector files that these texts give with this checkpoint."""
    return {
        "format_version": FORMAT_VERSION,
        "checkpoint": str(identity.path),
        "checkpoint_fingerprint": identity.fingerprint,
        "dtype": identity.dtype,
        "collection_fingerprint": collection_fingerprint(texts),
        "passages": len(texts),
        "shard": SHARD,
        "dim": identity.config.dim,
    }


def claim(folder: Path, identity: CheckpointIdentity, texts: Sequence[str]) -> None:
    """Write the manifest, or check that the one there says the same.

    Raises:
        UserError: it does not, the folder holds something else, or there are no texts.
    """
    if not len(texts):
        raise UserError("there are no texts to encode")
    about = _describe(identity, texts)
    path = folder / VECTORS_FILE
    if path.exists():
        there = read_json(path)
        for name, value in about.items():
            if there.get(name) != value:
                raise UserError(
                    f"{folder} holds vectors of another run: {name} is {there.get(name)!r}, now {value!r}; "
                    "choose another folder or delete this one"
                )
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and holds no vector files; choose a new or empty folder")
    write_json(path, {**about, "complete": False})
    write_json(folder / COLBERT_FILE, identity.config.colbert_settings())


def encode_shards(
    folder: Path,
    load: Callable[[], DocumentEncoder],
    texts: Sequence[str],
    *,
    rank: int = 0,
    nranks: int = 1,
    show_progress_bar: bool = False,
) -> None:
    """Encode the shards that are not there yet, every `nranks`th from `rank` on."""
    size: int = read_json(folder / VECTORS_FILE)["shard"]
    mine = range(rank, -(-len(texts) // size), nranks)
    todo = [number for number in mine if not _shard_path(folder, number).exists()]
    if not todo:
        return
    encoder = load()
    with progress_bar(len(texts), "encode", show=show_progress_bar) as progress:
        progress.update(len(texts) - sum(len(texts[n * size : (n + 1) * size]) for n in todo))
        for number in todo:
            chunk = texts[number * size : (number + 1) * size]
            _write_shard(_shard_path(folder, number), list(encoder.iter_document(chunk, progress)))


def mark_complete(folder: Path) -> None:
    """Declare that every shard is there."""
    write_json(folder / VECTORS_FILE, {**read_json(folder / VECTORS_FILE), "complete": True})


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def _write_shard(path: Path, vectors: Sequence[Vectors]) -> None:
    packed = torch.from_numpy(np.concatenate(vectors)).half()
    doclens = torch.tensor([len(v) for v in vectors], dtype=torch.int32)
    with written_aside(path) as aside:
        save_file({"vectors": packed, "doclens": doclens}, aside)


class VectorFiles:
    """A complete folder of vector files, read by pid.

    Raises:
        UserError: not such a folder, incomplete, or a shard is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / VECTORS_FILE).is_file():
            raise UserError(f"{folder} holds no vector files; make them with `colbert-diffusion encode TEXTS {folder}`")
        about = read_json(folder / VECTORS_FILE)
        if about.get("format_version") != FORMAT_VERSION:
            version = about.get("format_version")
            raise UserError(f"{folder / VECTORS_FILE} has format_version {version}, expected {FORMAT_VERSION}")
        if not about.get("complete"):
            raise UserError(f"{folder} is incomplete; run the same `colbert-diffusion encode` again, it goes on from there")
        self.checkpoint: str = about["checkpoint"]
        self.fingerprint: str = about["checkpoint_fingerprint"]
        self.dtype: str = about["dtype"]
        self.collection_fingerprint: str = about["collection_fingerprint"]
        self.dim: int = about["dim"]
        self._passages: int = about["passages"]
        self._shard: int = about["shard"]
        self._open: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._passages

    def read(self, pids: Sequence[int]) -> Iterator[Vectors]:
        """Yield float32 (length, dim) for each pid, in the order given; ascending pids read each shard once."""
        for pid in pids:
            if not isinstance(pid, int) or not 0 <= pid < self._passages:
                raise UserError(f"{self.folder} serves passages by pid 0..{self._passages - 1}, not {pid!r:.40}")
            vectors, ends = self._load(pid // self._shard)
            i = pid % self._shard
            yield vectors[ends[i] : ends[i + 1]].float().numpy()

    def _load(self, number: int) -> Any:
        if self._open[0] != number:
            path = _shard_path(self.folder, number)
            try:
                tensors = load_file(path)
            except (SafetensorError, FileNotFoundError) as error:
                raise UserError(f"{path} is missing or damaged ({error}); delete it and run `encode` again") from error
            ends = np.concatenate([[0], np.cumsum(tensors["doclens"].numpy(), dtype=np.int64)])
            self._open = (number, (tensors["vectors"], ends))
        return self._open[1]
