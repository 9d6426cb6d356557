"""How many vectors a text deserves: those that say nearly the same are merged. Knows vectors alone.

ColBERT stores a list of lengths beside its codes, so a passage with 5 vectors costs 5 vectors, not 16.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .scoring import Vectors


def merge(vectors: Tensor, above: float) -> list[Vectors]:
    """Merge each text's vectors that are closer than a cosine; a merged vector is the normalised sum of its group.

    Greedy, in the vectors' order: the first one that is left takes all others that are left and closer to it.

    Args:
        vectors: float32 (texts, k, dim), L2-normalised.
        above: cosine; 1 merges nothing but equal vectors.

    Returns:
        float32 (k or fewer, dim) per text, L2-normalised, in the order of the groups' first vectors.
    """
    _, k, dim = vectors.shape
    cosines = vectors @ vectors.transpose(1, 2)
    leader = torch.full(vectors.shape[:2], -1, device=vectors.device)
    for i in range(k):
        leads = leader[:, i] < 0
        joins = leads[:, None] & (leader < 0) & (cosines[:, i] > above)
        joins[:, i] = leads
        leader[joins] = i
    sums = torch.zeros_like(vectors).scatter_add_(1, leader[:, :, None].expand(-1, -1, dim), vectors)
    leads = leader == torch.arange(k, device=vectors.device)
    merged = normalize(sums, dim=-1).cpu()
    return [text[kept].numpy() for text, kept in zip(merged, leads.cpu(), strict=True)]


def vectors_per_text(vectors: Sequence[Vectors]) -> float:
    """The mean length of the lists."""
    return sum(map(len, vectors)) / len(vectors)
