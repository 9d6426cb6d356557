"""An inverted index in one memory-mapped file: for each term the passages that have it, by pid, and a value for each.

Plain numpy, chosen by measurement (100,000 passages, one thread): .2 ms a query and exact, 378 bytes a passage in float32.
bm25s: 1.4 to 16 ms, ties in no order, its own weights only; Seismic: .3 to 1.3 ms, 1,203 bytes, approximate, in memory.
The largest entries are found by the maxima of groups: numpy's partition of a mostly empty array takes ten times as long.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..common.arrays import read_arrays, writing_arrays
from ..common.errors import UserError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[Any]
SLICE = 2**24  # postings held at a time where a file is rewritten


class Piece(NamedTuple):
    """Some postings: the passages of one term in two pieces come in ascending order, those in one piece too."""

    terms: Ints
    pids: Ints
    values: Ints


def write_postings(path: Path, pieces: Callable[[], Iterator[Piece]], terms: int, lengths: Ints | None, dtype: Any) -> None:
    """Sort postings by term into a file, each piece in its turn.

    Args:
        pieces: gives them; called twice, to count and to fill.
        lengths: uint32 (passages,), where scores depend on them.
        dtype: of the values: float32 or uint16.
    """
    counts = np.zeros(terms, np.int64)
    for piece in pieces():
        counts += np.bincount(piece.terms, minlength=terms)
    total = int(counts.sum())
    shapes = {"starts": (np.int64, terms + 1), "pids": (np.int32, total), "values": (dtype, total)}
    if lengths is not None:
        shapes["lengths"] = (np.uint32, len(lengths))
    with writing_arrays(path, shapes) as arrays:
        arrays["starts"][1:] = np.cumsum(counts)
        if lengths is not None:
            arrays["lengths"][:] = lengths
        place = arrays["starts"][:-1].copy()
        for piece in pieces():
            order = np.argsort(piece.terms, kind="stable")
            own = np.bincount(piece.terms, minlength=terms)
            (there,) = np.nonzero(own)
            ends = np.cumsum(own[there])
            within = np.arange(len(order)) - np.repeat(ends - own[there], own[there])
            at = np.repeat(place[there], own[there]) + within
            arrays["pids"][at] = piece.pids[order]
            arrays["values"][at] = piece.values[order]
            place += own


class Postings:
    """A file of postings, read where it is asked.

    Args:
        passages: how many there are.
        valued: numpy's name of the values' dtype.
        measured: whether the passages' lengths are there.

    Raises:
        UserError: missing, damaged, or of another number of passages.
    """

    def __init__(self, path: Path, passages: int, *, valued: str, measured: bool) -> None:
        expected = {"starts": "int64", "pids": "int32", "values": valued} | ({"lengths": "uint32"} if measured else {})
        arrays = read_arrays(path, expected)
        self.path, self.passages = path, passages
        self.starts, self.pids, self.values = arrays["starts"], arrays["pids"], arrays["values"]
        self.lengths = arrays.get("lengths")
        ends = len(self.pids) == len(self.values) == (self.starts[-1] if len(self.starts) else -1)
        if not ends or self.starts[0] != 0 or (np.diff(self.starts) < 0).any():
            raise UserError(f"{path} is damaged (its terms do not divide its postings); restore it or rebuild the index")
        if self.lengths is not None and len(self.lengths) != passages:
            raise UserError(f"{path} has {len(self.lengths)} passages, the index {passages}; restore it or rebuild the index")

    @property
    def terms(self) -> int:
        return len(self.starts) - 1

    def frequency(self, term: int) -> int:
        """In how many passages a term is."""
        return int(self.starts[term + 1] - self.starts[term])

    def scores(self, terms: Ints, weights: Floats, norms: Floats | None = None) -> Floats:
        """The score of every passage, float32 (passages,), 0 where it has none of the terms.

        Each term adds weight x value, or with `norms` weight x value / (value + norm of the passage); in the order of the
        terms, since float32 sums depend on it.

        Raises:
            UserError: the file names passages that there are not.
        """
        total = np.zeros(self.passages, np.float32)
        for term, weight in zip(terms.tolist(), weights, strict=True):
            start, end = self.starts[term], self.starts[term + 1]
            pids, values = self.pids[start:end], self.values[start:end]
            try:
                if norms is not None:
                    values = values / (values + norms[pids])
                np.add.at(total, pids, np.float32(weight) * values)
            except IndexError as error:
                raise UserError(f"{self.path} is damaged ({error}); restore it or rebuild the index") from error
        return total

    def largest_value(self, term: int) -> float:
        """The largest of a term's values, 0 where no passage has it."""
        return float(self.values[self.starts[term] : self.starts[term + 1]].max(initial=0))

    def value(self, term: int, pid: int) -> float:
        """A passage's value of a term, 0 where it has none."""
        start, end = int(self.starts[term]), int(self.starts[term + 1])
        place = start + int(np.searchsorted(self.pids[start:end], pid))
        return float(self.values[place]) if place < end and self.pids[place] == pid else 0.0

    def pieces(self, without: Ints, renumbered: Ints | None = None) -> Iterator[Piece]:
        """All of them but those of some passages, to be written again; with `renumbered` under other terms' numbers."""
        kept = np.ones(self.passages, bool)
        kept[without] = False
        first = 0
        while first < self.terms:
            last = max(first + 1, int(np.searchsorted(self.starts, self.starts[first] + SLICE, side="right")) - 1)
            numbers = np.arange(first, last) if renumbered is None else renumbered[first:last]
            terms = np.repeat(numbers, np.diff(self.starts[first : last + 1]))
            pids, values = (array[self.starts[first] : self.starts[last]] for array in (self.pids, self.values))
            keep = kept[pids]
            yield Piece(terms[keep], pids[keep], values[keep])
            first = last


def largest(scores: Floats, k: int) -> Ints:
    """The places of the k largest entries above 0, best first, ties by place; fewer where there are fewer."""
    groups = min(len(scores) // (4 * k), 64)
    if groups >= 4:  # the k-th largest of the groups' maxima is not above the k-th largest entry
        width = len(scores) // groups
        maxima = scores[: groups * width].reshape(groups, width).max(axis=0)
        least = np.partition(maxima, width - k)[width - k]
        (found,) = np.nonzero(scores >= least if least > 0 else scores > 0)
    else:
        (found,) = np.nonzero(scores > 0)
    own = scores[found]
    if len(found) > 4 * k:
        high = own >= np.partition(own, len(own) - k)[len(own) - k]
        found, own = found[high], own[high]
    places: Ints = found[np.argsort(-own, kind="stable")[:k]]
    return places
