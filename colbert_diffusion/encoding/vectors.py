"""Vector files: encode once, index many times. Knows neither models nor ColBERT.

A folder holds `vectors.json` (what made it) and shards `00000.safetensors` of `SHARD` passages each: `vectors`
float16 (sum of lengths, dim) and `doclens` int32, perhaps the passages' predicted words (`word_ids` int32, `word_weights`
float32, `word_counts` int32), and in the header the sha256 of all. A shard appears by a rename when it is whole, so an
interrupted run goes on with the next one; batches never cross a shard, so going on changes no bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..backbones.backbone import Cut
from ..common.checks import is_number, listed
from ..common.errors import UserError
from ..common.files import is_aside, needing_room, read_json, remove_asides, write_json
from ..common.locking import claimed, writing
from ..common.progress import note, progress_bar
from ..common.work import Marker
from ..config import COLBERT_FILE, VECTORS_FILE, check_colbert_file
from ..texts.collection import collection_fingerprint
from .identity import CheckpointIdentity
from .lexical import Weights
from .scoring import Vectors
from .shards import HASH, VOCABULARY, DocumentEncoder, Shard, fit_words, hash_of, make_shard, write_shard

FORMAT_VERSION = 1
SHARD = 10_000  # passages; at k=16, dim=128 a shard is 41 MB
WORDS = "words_fingerprint"  # the manifest's field that says that there are words, and by which head
REMEDY = "delete this file and run the same command again: only its passages are encoded anew"


TEXTS = ("checkpoint", "checkpoint_fingerprint", "dtype", "collection_fingerprint")
NUMBERS = {"passages": 2**40, "shard": 2**30, "dim": 2**16}  # from 1 on


class Cluster(Protocol):
    """Machines that make shards; `distributed.RayCluster` is one."""

    def encode(
        self, identity: CheckpointIdentity, texts: Iterable[tuple[int, Sequence[str]]], *, lexical: bool
    ) -> Iterator[tuple[int, Shard]]:
        """(number, texts) of shards -> (number, shard), in any order."""
        ...


def encode_to(
    folder: Path,
    identity: CheckpointIdentity,
    load: Callable[[], DocumentEncoder],
    texts: Sequence[str],
    *,
    lexical: bool = False,
    cluster: Cluster | None = None,
    show_progress_bar: bool = False,
) -> "VectorFiles":
    """Encode passages into a folder of vector files; run again after an interruption, it goes on.

    Args:
        load: loads the model; not called when every shard is there.
        lexical: keep the predicted words too, of the same forward pass.
        cluster: encodes in place of the model here.

    Raises:
        UserError: the folder holds vectors of another checkpoint or collection, or there are no texts.
    """
    needed = len(texts) * _bytes_per_passage(identity)
    with needing_room(folder, lambda: needed), writing(folder):
        claim(folder, identity, texts, lexical=lexical)
        if cluster is None:
            encode_shards(folder, load, texts, show_progress_bar=show_progress_bar)
        else:
            encode_elsewhere(folder, cluster, identity, texts, show_progress_bar=show_progress_bar)
        mark_complete(folder)
    return VectorFiles(folder)


def _bytes_per_passage(identity: CheckpointIdentity) -> int:
    """At most, of vectors alone."""
    return 2 * identity.config.k_passage * identity.config.dim + 4


def is_claimed_by(folder: Path, identity: CheckpointIdentity, texts: Sequence[str], *, lexical: bool = False) -> bool:
    """Whether the folder holds these texts' vectors (and words) by this checkpoint, complete or not."""
    marker = _marker(folder, identity)
    return marker.path.is_file() and not marker.differences(_describe(identity, texts, lexical))


def _fits(name: str, about: Mapping[str, Any]) -> bool:
    """Whether a field of a manifest is what its readers rely on."""
    if name in NUMBERS:
        return is_number(about.get(name), 1, NUMBERS[name], whole=True)
    if name == "shards":  # since version 0.2
        hashes = about.get(name, [])
        return isinstance(hashes, list) and all(entry is None or isinstance(entry, str) for entry in hashes)
    return isinstance(about.get(name), str)


def _describe(identity: CheckpointIdentity, texts: Sequence[str], lexical: bool) -> dict[str, Any]:
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
        **({WORDS: identity.words_fingerprint} if lexical else {}),
    }


def _marker(folder: Path, identity: CheckpointIdentity) -> Marker:
    """Vectors are the same wherever their checkpoint's folder is."""
    renewed = partial(identity.current, name="checkpoint_fingerprint")
    return Marker(folder / VECTORS_FILE, grows={"checkpoint", "complete", "shards"}, renewed=renewed)


def claim(folder: Path, identity: CheckpointIdentity, texts: Sequence[str], *, lexical: bool = False) -> None:
    """Write the manifest, or check that the one there says the same.

    Raises:
        UserError: it does not, the folder holds something else, or there are no texts.
    """
    if not len(texts):
        raise UserError("there are no texts to encode")
    about, marker = _describe(identity, texts, lexical), _marker(folder, identity)
    path = marker.path
    if path.exists():
        if other := marker.differences(about):
            raise UserError(f"{folder} holds vectors of another run ({other}); choose another folder or delete this one")
        there = read_json(path)
        if not there.items() >= about.items():  # the checkpoint moved, or an earlier version named it
            write_json(path, {**there, **about})
    elif folder.exists() and not _is_begun(folder):
        raise UserError(f"{folder} exists and holds no vector files; choose a new or empty folder")
    if folder.exists():
        remove_asides(folder)
    if not (folder / COLBERT_FILE).exists():
        write_json(folder / COLBERT_FILE, identity.config.colbert_settings())
    if not path.exists():  # last: it says that the folder is begun
        write_json(path, {**about, "complete": False})


def _is_begun(folder: Path) -> bool:
    """Whether there is nothing but what a kill may leave before a folder is claimed."""
    return folder.is_dir() and all(path.name == COLBERT_FILE or is_aside(path) for path in folder.iterdir())


def encode_shards(
    folder: Path,
    load: Callable[[], DocumentEncoder],
    texts: Sequence[str],
    *,
    shared: bool = False,
    show_progress_bar: bool = False,
) -> None:
    """Encode the shards that are not there yet.

    Args:
        shared: with other processes, each of which takes the next shard that nobody has: whoever is slow holds up nobody.
            A shard that another one has is its to finish; it may not be there yet on return.
    """
    todo, lexical = _todo(folder, texts)
    if not todo:
        return
    encoder = load()
    with progress_bar(len(texts), "encode", show=show_progress_bar) as progress:
        progress.update(len(texts) - sum(map(todo.passages, todo)))
        for number, chunk in todo.items():
            path = _shard_path(folder, number)
            with claimed(path) if shared else nullcontext(True) as mine:
                if mine:
                    write_shard(path, make_shard(encoder, chunk, progress, lexical=lexical))
                else:
                    progress.update(len(chunk))
    if show_progress_bar and (cut := encoder.cut_documents()):
        note(cut)


def encode_elsewhere(
    folder: Path, cluster: Cluster, identity: CheckpointIdentity, texts: Sequence[str], *, show_progress_bar: bool = False
) -> None:
    """As `encode_shards` by other machines; the files are written here."""
    todo, lexical = _todo(folder, texts)
    left = sum(map(todo.passages, todo))
    if show_progress_bar and left:
        size = left * _bytes_per_passage(identity) / 1e9
        note(f"{left:,} passages go to the cluster, up to {size:,.3g} GB of vectors come back; files are written here")
    with progress_bar(len(texts), "encode", show=show_progress_bar) as progress:
        progress.update(len(texts) - left)
        cut: Cut | None = None
        for number, shard in cluster.encode(identity, todo.items(), lexical=lexical):
            write_shard(_shard_path(folder, number), shard)
            progress.update(todo.passages(number))
            if shard.cut is not None:
                cut = shard.cut if cut is None else cut.more(shard.cut)
    if show_progress_bar and cut is not None and (told := cut.told("passages")):
        note(told)


def _todo(folder: Path, texts: Sequence[str]) -> tuple["_Slices", bool]:
    """The shards that are not there yet, and whether they have words."""
    about = read_json(folder / VECTORS_FILE)
    size = about["shard"]
    missing = [number for number in range(-(-len(texts) // size)) if not _shard_path(folder, number).exists()]
    return _Slices(texts, size, missing), WORDS in about


class _Slices(Mapping[int, Sequence[str]]):
    """Shards' texts by number, read when they are asked for."""

    def __init__(self, texts: Sequence[str], size: int, numbers: Sequence[int]) -> None:
        self._texts, self._size, self._numbers = texts, size, numbers

    def __getitem__(self, number: int) -> Sequence[str]:
        return self._texts[number * self._size : (number + 1) * self._size]

    def passages(self, number: int) -> int:
        return min(self._size, len(self._texts) - number * self._size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def shards_of(passages: int) -> int:
    """How many shards new vector files of so many passages have."""
    return -(-passages // SHARD)


def mark_complete(folder: Path) -> None:
    """Declare that every shard is there, and which: a shard of another run is not taken for one."""
    about = read_json(folder / VECTORS_FILE)
    count = -(-about["passages"] // about["shard"])
    hashes = [_recorded_hash(_shard_path(folder, number)) for number in range(count)]
    write_json(folder / VECTORS_FILE, {**about, "complete": True, "shards": hashes})


def _recorded_hash(path: Path) -> str | None:
    """What a shard's header says; None of one by version 0.1."""
    try:
        with safe_open(path, "pt") as file:
            found: str | None = (file.metadata() or {}).get(HASH)
            return found
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); {REMEDY}") from error


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


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
        check_colbert_file(folder)
        if about.get("format_version") != FORMAT_VERSION:
            version = about.get("format_version")
            raise UserError(f"{folder / VECTORS_FILE} has format_version {version!r:.40}, expected {FORMAT_VERSION}")
        if wrong := [name for name in (*TEXTS, *NUMBERS, "shards") if not _fits(name, about)]:
            raise UserError(f"{folder / VECTORS_FILE} is damaged (its {listed(wrong)}); restore it or encode again")
        if not about.get("complete"):
            raise UserError(f"{folder} is incomplete; run the same `colbert-diffusion encode` again, it goes on from there")
        self.checkpoint: str = about["checkpoint"]
        self.fingerprint: str = about["checkpoint_fingerprint"]
        self.dtype: str = about["dtype"]
        self.collection_fingerprint: str = about["collection_fingerprint"]
        self.dim: int = about["dim"]
        self._words: str | None = about.get(WORDS)
        self._passages: int = about["passages"]
        self._shard: int = about["shard"]
        self._hashes: list[str | None] = about.get("shards", [])
        self._open: _Read | None = None

    def __len__(self) -> int:
        return self._passages

    def read(self, pids: Sequence[int]) -> Iterator[Vectors]:
        """Yield float32 (length, dim) for each pid, in the order given; ascending pids read each shard once."""
        for pid in pids:
            if not isinstance(pid, int) or not 0 <= pid < self._passages:
                raise UserError(f"{self.folder} serves passages by pid 0..{self._passages - 1}, not {pid!r:.40}")
            shard, i = self._load(pid // self._shard), pid % self._shard
            yield shard.tensors["vectors"][shard.ends[i] : shard.ends[i + 1]].float().numpy()

    @property
    def words_fingerprint(self) -> str:
        """Which head predicted the words. Raises UserError when there are none."""
        if self._words is None:
            raise UserError(
                f"{self.folder} was encoded without words; encode again with --lexical, or index with --lexical bm25"
            )
        return self._words

    @property
    def vocabulary(self) -> int:
        """How many words that head knows. Raises UserError as `words`."""
        return self._load(0).vocabulary if self.words_fingerprint else 0

    def words(self) -> Iterator[Weights]:
        """Every passage's predicted words, by pid. Raises UserError when there are none, or a shard is damaged."""
        for number in range(-(-self._passages // self._shard) if self.words_fingerprint else 0):
            tensors = self._load(number).tensors
            ends = np.cumsum(tensors["word_counts"].numpy(), dtype=np.int64)[:-1]
            ids, weights = tensors["word_ids"].numpy(), tensors["word_weights"].numpy()
            yield from map(Weights, np.split(ids, ends), np.split(weights, ends))

    def _faults(self, number: int, tensors: Mapping[str, torch.Tensor], expected: str | None) -> Iterator[str]:
        """What makes a shard not the one that was written; one by version 0.1 has no hash."""
        vectors, doclens = tensors.get("vectors"), tensors.get("doclens")
        passages = min(self._shard, self._passages - number * self._shard)
        if vectors is None or doclens is None or vectors.shape[1:] != (self.dim,) or vectors.dtype != torch.float16:
            yield f"it does not hold float16 vectors of dim {self.dim} and their doclens"
        elif len(doclens) != passages or int(doclens.min()) < 0 or int(doclens.sum()) != len(vectors):
            yield f"the lengths of {len(doclens)} passages do not add up to {len(vectors)} vectors of {passages}"
        elif self._words is not None and not fit_words(tensors, passages, self._vocabulary_of(number)):
            yield f"its words are not those of {passages} passages"
        elif expected is not None and hash_of(tensors) != expected:
            yield "its sha256 differs from what was written"
        elif expected is None and not bool(vectors.isfinite().all()):
            yield "it holds numbers that are not finite"

    def _vocabulary_of(self, number: int) -> int:
        with safe_open(_shard_path(self.folder, number), "pt") as file:
            text = (file.metadata() or {}).get(VOCABULARY, "")
        return int(text) if text.isdecimal() and len(text) < 10 else 0

    def _load(self, number: int) -> "_Read":
        if self._open is None or self._open.number != number:
            path = _shard_path(self.folder, number)
            try:
                tensors = load_file(path)
                expected = self._hashes[number] if number < len(self._hashes) else _recorded_hash(path)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} is missing or damaged ({error}); {REMEDY}") from error
            for fault in self._faults(number, tensors, expected):
                raise UserError(f"{path} is damaged ({fault}); {REMEDY}")
            ends = np.concatenate([[0], np.cumsum(tensors["doclens"].numpy(), dtype=np.int64)])
            self._open = _Read(number, tensors, ends, self._vocabulary_of(number) if self._words is not None else 0)
        return self._open


class _Read(NamedTuple):
    """The one that was read last."""

    number: int
    tensors: Mapping[str, torch.Tensor]
    ends: npt.NDArray[np.int64]
    vocabulary: int
