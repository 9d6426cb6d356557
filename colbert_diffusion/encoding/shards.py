"""One shard of vector files: a slice of passages, encoded, as tensors and as a safetensors file."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from ..backbones.backbone import Cut
from ..common.files import save_tensors, written_aside
from ..common.progress import Progress
from .encoder import Encoded
from .scoring import Vectors

HASH = "sha256"  # a shard's own, in its header
VOCABULARY = "vocabulary"  # how many words its head knows, in its header
NAMES = ("vectors", "doclens", "word_ids", "word_weights", "word_counts")


class Shard(NamedTuple):
    """Before it is a file.

    cut: what was not read of its texts, where another machine made it; here the encoder knows.
    """

    tensors: dict[str, torch.Tensor]
    about: dict[str, str]
    cut: Cut | None = None


class DocumentEncoder(Protocol):
    """What encoding to files needs of a checkpoint."""

    def iter_document(self, documents: Sequence[str], progress: Progress | None = None) -> Iterator[Vectors]: ...
    def cut_documents(self) -> str | None: ...


@runtime_checkable
class LexicalEncoder(Protocol):
    """And what it needs where predicted words are kept."""

    def iter_encoded(self, documents: Sequence[str], progress: Progress | None = None) -> Iterator[Encoded]: ...
    @property
    def vocabulary(self) -> int: ...


def make_shard(encoder: DocumentEncoder, texts: Sequence[str], progress: Progress | None = None, *, lexical: bool) -> Shard:
    """Encode a shard's texts, and their words where they are wanted."""
    if lexical and isinstance(encoder, LexicalEncoder):
        return _shard(list(encoder.iter_encoded(texts, progress)), encoder.vocabulary)
    return _shard([Encoded(own, None) for own in encoder.iter_document(texts, progress)], None)


def _shard(encoded: Sequence[Encoded], vocabulary: int | None) -> Shard:
    tensors = {
        "vectors": torch.from_numpy(np.concatenate([one.vectors for one in encoded])).half(),
        "doclens": torch.tensor([len(one.vectors) for one in encoded], dtype=torch.int32),
    }
    about = dict[str, str]()
    if vocabulary is not None:
        words = [one.words for one in encoded if one.words is not None]
        tensors |= {
            "word_ids": torch.from_numpy(np.concatenate([own.ids for own in words])),
            "word_weights": torch.from_numpy(np.concatenate([own.weights for own in words])),
            "word_counts": torch.tensor([len(own.ids) for own in words], dtype=torch.int32),
        }
        about[VOCABULARY] = str(vocabulary)
    return Shard(tensors, about)


def write_shard(path: Path, shard: Shard) -> None:
    with written_aside(path) as aside:
        save_tensors(shard.tensors, aside, {HASH: hash_of(shard.tensors), **shard.about})


def hash_of(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in (name for name in NAMES if name in tensors):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fit_words(tensors: Mapping[str, torch.Tensor], passages: int, vocabulary: int) -> bool:
    """Whether a shard's words are as many as it says, and some of the vocabulary."""
    ids, weights, counts = (tensors.get(name) for name in NAMES[2:])
    if ids is None or weights is None or counts is None or len(counts) != passages or int(counts.min()) < 0:
        return False
    if ids.dtype != torch.int32 or weights.dtype != torch.float32 or not int(counts.sum()) == len(ids) == len(weights):
        return False
    return not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < vocabulary and bool(weights.isfinite().all()))
