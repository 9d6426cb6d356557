"""How many vectors a text deserves: as many as say something of their own. Knows vectors alone.

ColBERT stores a list of lengths beside its codes, so a passage with 5 vectors costs 5 vectors, not 16.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..config import DiffusionConfig
from .scoring import Vectors


def allocator(config: DiffusionConfig) -> Callable[[Tensor], list[Vectors]] | None:
    """How a checkpoint's passages get their number of vectors; None: all have k."""
    if config.merge_above is not None:
        return partial(merge, above=config.merge_above)
    return None if config.cover_above is None else partial(cover, above=config.cover_above)


def merge(vectors: Tensor, above: float) -> list[Vectors]:
    """Merge each text's vectors that are closer than a cosine; a merged vector is the normalised sum of its group.

    Greedy, in the vectors' order: the first one that is left takes all others that are left and closer to it.

    Args:
        vectors: float32 (texts, k, dim), L2-normalised.
        above: cosine; 1 merges nothing but equal vectors.

    Returns:
        float32 (k or fewer, dim) per text, L2-normalised, in the order of the groups' first vectors.
    """
    k = vectors.shape[1]
    cosines = vectors @ vectors.transpose(1, 2)
    leader = torch.full(vectors.shape[:2], -1, device=vectors.device)
    for i in range(k):
        leads = leader[:, i] < 0
        joins = leads[:, None] & (leader < 0) & (cosines[:, i] > above)
        joins[:, i] = leads
        leader[joins] = i
    return _centroids(vectors, leader)


def cover(vectors: Tensor, above: float) -> list[Vectors]:
    """Keep the fewest of each text's vectors whose nearest ones have a mean cosine with all of them, found greedily.

    Each step takes the vector that raises the mean most (facility location, whose greedy solution is within 1 - 1/e of
    the best: Nemhauser, Wolsey and Fisher 1978). A kept vector then becomes the normalised sum of those nearest to it.

    Args:
        vectors: float32 (texts, k, dim), L2-normalised.
        above: mean cosine; 1 keeps all but equal vectors.

    Returns:
        As `merge`.
    """
    count, k, _ = vectors.shape
    texts = torch.arange(count, device=vectors.device)
    cosines = vectors @ vectors.transpose(1, 2)
    nearest = torch.full_like(cosines[:, 0], -1)
    kept = torch.zeros_like(nearest, dtype=torch.bool)
    lacks = torch.ones_like(kept[:, 0])
    for _ in range(k):
        best = torch.maximum(nearest[:, None], cosines).mean(dim=2).argmax(dim=1)
        kept[texts[lacks], best[lacks]] = True
        nearest = torch.where(lacks[:, None], torch.maximum(nearest, cosines[texts, best]), nearest)
        lacks &= nearest.mean(dim=1) < above
        if not lacks.any():
            break
    return _centroids(vectors, cosines.masked_fill(~kept[:, None], -2).argmax(dim=2))


def _centroids(vectors: Tensor, leader: Tensor) -> list[Vectors]:
    """The normalised sum of each group, in the order of the leaders: int64 (texts, k), each vector's leader."""
    groups = torch.zeros_like(leader, dtype=torch.bool).scatter_(1, leader, True).cpu()
    sums = torch.zeros_like(vectors).scatter_add_(1, leader[:, :, None].expand_as(vectors), vectors)
    return [text[kept].numpy() for text, kept in zip(normalize(sums, dim=-1).cpu(), groups, strict=True)]


def vectors_per_text(vectors: Sequence[Vectors]) -> float:
    """The mean length of the lists."""
    return sum(map(len, vectors)) / len(vectors)
