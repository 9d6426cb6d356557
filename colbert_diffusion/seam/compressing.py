"""Vectors to codes and residuals with ColBERT's codec, here or on other machines."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from colbert.indexing.codecs.residual import ResidualCodec
from colbert.infra.config import ColBERTConfig
from torch import Tensor

PIECE = 128  # vectors: their distances to all centroids stay in the CPU's caches


def compress(codec: Any, vectors: Tensor) -> Any:
    """ColBERT's `codec.compress`, on a CPU a few vectors at a time: the same codes and residuals in a third of the time.

    ColBERT writes 2**29 distances into memory and then looks for each vector's smallest (codecs/residual.py:203).
    """
    if codec.use_gpu:
        return codec.compress(vectors)
    pieces = [codec.compress(vectors[start : start + PIECE]) for start in range(0, max(1, len(vectors)), PIECE)]
    codes, residuals = (torch.cat([getattr(piece, name) for piece in pieces]) for name in ("codes", "residuals"))
    return codec.Embeddings(codes, residuals)


class Codec(NamedTuple):
    """A trained codec as tensors and numbers, to send."""

    dim: int
    nbits: int
    centroids: Tensor
    bucket_cutoffs: Tensor
    bucket_weights: Tensor

    @classmethod
    def of(cls, codec: Any) -> "Codec":
        return cls(codec.dim, codec.nbits, codec.centroids.cpu(), codec.bucket_cutoffs.cpu(), codec.bucket_weights.cpu())

    def compress(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """float16 (n, dim) -> codes and residuals, as `Saver.save_chunk` has them."""
        config = ColBERTConfig(dim=self.dim, nbits=self.nbits)
        cutoffs, weights = self.bucket_cutoffs, self.bucket_weights
        found = compress(ResidualCodec(config, self.centroids, bucket_cutoffs=cutoffs, bucket_weights=weights), vectors)
        return found.codes, found.residuals


class Compressor(Protocol):
    """Machines that compress chunks; `distributed.RayCluster` is one."""

    def compress(self, codec: Codec, vectors: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """(number, vectors) of chunks -> (number, (codes, residuals)), in any order."""
        ...
