"""MaxSim in its forms: of lists of texts' vectors (search, reranking) and of padded batches (losses); and prefixes of vectors.

A query scores a passage with the sum over its vectors of the largest dot product with one of the passage's (DiffRetriever
eq. 1): not floored at 0, and not divided by k_query unless a function says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # evaluation measures runs without torch
    from torch import Tensor

Vectors = npt.NDArray[np.float32]  # a text's, (k, dim), L2-normalised


def maxsim(queries: Sequence[Vectors], passages: Sequence[Vectors]) -> npt.NDArray[np.float32]:
    """Every query with every passage: float32 (k, dim) each, of any k from 1 on -> float32 (queries, passages).

    Holds all products at once, a query vector times a passage vector each: the caller cuts what does not fit.
    """
    if not queries or not passages:
        return np.zeros((len(queries), len(passages)), np.float32)
    q, q_starts = _packed(queries)
    p, p_starts = _packed(passages)
    largest = np.maximum.reduceat(q @ p.T, p_starts, axis=1)  # (query vectors, passages)
    scores: npt.NDArray[np.float32] = np.add.reduceat(largest, q_starts, axis=0)
    return scores


def mean_maxsim(queries: Tensor, passages: Tensor) -> Tensor:
    """Divided by k_query: (q, k_query, dim), (p, k_passage, dim) -> (q, p)."""
    return _products(queries, passages).amax(dim=3).mean(dim=1)


def mean_maxsim_padded(queries: Tensor, passages: Tensor) -> Tensor:
    """`mean_maxsim` of texts with fewer vectors than k, the others zeros: (q, k_query, dim), (p, k_passage, dim) -> (q, p).

    A query's score is divided by its own number of vectors, a passage's zeros are never the largest.
    """
    products = _products(queries, passages).masked_fill(~passages.any(dim=2), float("-inf"))
    own = queries.any(dim=2)
    return (products.amax(dim=3) * own[:, :, None]).sum(dim=1) / own.sum(dim=1, keepdim=True)


def _products(queries: Tensor, passages: Tensor) -> Tensor:
    """(q, k_query, p, k_passage)"""
    (q, k_query, dim), (p, k_passage, _) = queries.shape, passages.shape
    products = queries.reshape(q * k_query, dim) @ passages.reshape(p * k_passage, dim).T
    return products.view(q, k_query, p, k_passage)


def _packed(vectors: Sequence[Vectors]) -> tuple[Vectors, npt.NDArray[Any]]:
    """(sum of lengths, dim), and where each text's vectors start."""
    lengths = np.array([len(v) for v in vectors])
    return np.concatenate(vectors), np.cumsum(lengths) - lengths


# The first vectors and dimensions of nested (Matryoshka) checkpoints ------------------------------------------------------


def prefix(vectors: Sequence[Vectors], k: int | None = None, dim: int | None = None) -> list[Vectors]:
    """Of each float32 (k', dim') the first `k` vectors and their first `dim` dimensions, L2-normalised again."""
    cut = [v[:k, :dim] for v in vectors]
    return [c if c.shape[1] == v.shape[1] else _normalised(c) for v, c in zip(vectors, cut, strict=True)]


def prefix_of_batch(vectors: Tensor, k: int, dim: int) -> Tensor:
    """The same of a batch: (n, k_max, dim_max) -> (n, k, dim)."""
    from torch.nn.functional import normalize

    return normalize(vectors[:, :k, :dim], dim=-1)


def _normalised(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Vectors = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return result
