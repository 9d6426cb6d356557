"""Where an id stands among many, in 16 bytes each: ids are found by their hash and compared where they lie."""

from collections.abc import Callable, Iterable
from hashlib import blake2b

import numpy as np


class Lookup:
    """Places by id.

    Args:
        ids: in their order.
        count: how many.
        at: the id at a place.
    """

    def __init__(self, ids: Iterable[str], count: int, at: Callable[[int], str]) -> None:
        hashes = np.fromiter(map(hash_of, ids), dtype=np.uint64, count=count)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._at = at

    def find(self, identifier: str) -> int | None:
        """The first place of an id; None where it is not."""
        digest = hash_of(identifier)
        for i in range(int(np.searchsorted(self._hashes, np.uint64(digest))), len(self._hashes)):
            if self._hashes[i] != digest:
                return None
            place = int(self._order[i])
            if self._at(place) == identifier:
                return place
        return None

    def repeats(self) -> bool:
        """Whether an id may occur twice: two have the same hash."""
        return bool((self._hashes[1:] == self._hashes[:-1]).any())


def hash_of(identifier: str) -> int:
    return int.from_bytes(blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
