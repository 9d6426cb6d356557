"""ColBERT's two heavy steps on random vectors, for a planner to time."""

from collections.abc import Callable

import torch
from colbert.indexing.codecs.residual import ResidualCodec
from colbert.indexing.collection_indexer import compute_faiss_kmeans
from colbert.infra.config import ColBERTConfig
from torch import Tensor
from torch.nn.functional import normalize

from ..seam.compressing import compress
from ..seam.shape import KMEANS_STEPS
from .indexing import check_faiss


def random_vectors(count: int, dim: int) -> Tensor:
    """float16 (count, dim), L2-normalised, as ColBERT holds them."""
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)), dim=-1).half()


def clustering(vectors: Tensor, partitions: int) -> Callable[[int], object]:
    """K-means over the first n of the vectors, at least as many as partitions. Raises UserError without a fitting faiss."""
    check_faiss()
    return lambda n: compute_faiss_kmeans(vectors.shape[1], partitions, KMEANS_STEPS, [[vectors[:n]]])


def compression(vectors: Tensor, partitions: int, nbits: int) -> Callable[[int], object]:
    """Assignment of the first n of the vectors to centroids, and packing of their residuals."""
    dim, buckets = vectors.shape[1], 2**nbits
    edges = torch.linspace(-0.1, 0.1, 2 * buckets + 1)
    codec = ResidualCodec(
        ColBERTConfig(dim=dim, nbits=nbits),
        random_vectors(partitions, dim),
        torch.tensor(0.05),
        bucket_cutoffs=edges[2:-1:2].contiguous(),
        bucket_weights=edges[1::2],
    )
    return lambda n: compress(codec, vectors[:n])
