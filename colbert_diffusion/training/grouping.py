"""Batches of like texts: what stands in one batch is each other's negatives, and likeness makes them hard.

Knows vectors alone. Hard negatives that cost nothing: no text is encoded for its sake, and a teacher's scores say which
of them are none.
"""

import torch
from torch import Tensor


def grouped(vectors: Tensor, size: int) -> list[list[int]]:
    """Indices of the rows in groups of `size`, near ones together.

    Halved again and again at the median along the direction in which a part spreads most, at a multiple of `size`, so
    that all groups but the last are full.

    Args:
        vectors: (n, dim).

    Returns:
        Every index once.
    """

    def split(rows: Tensor) -> list[list[int]]:
        if len(rows) <= size:
            return [rows.tolist()]
        part = vectors[rows].double()
        centred = part - part.mean(dim=0)
        direction = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
        ordered = rows[(centred @ direction).argsort(stable=True)]
        middle = -(-len(rows) // size) // 2 * size
        return [*split(ordered[:middle]), *split(ordered[middle:])]

    return split(torch.arange(len(vectors)))
