"""External ids of an index's passages: one line each, in the pids' order. An index without them goes by pids."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..common.checks import whole_number
from ..common.errors import UserError
from ..common.files import written_aside
from .collection import Passages
from .lines import LineFile
from .lookup import Lookup, hash_of

IDS_FILE = "ids.txt"


class Ids:
    """The ids stored with an index, or the pids themselves as strings.

    Args:
        folder: the index.
        passages: how many it has.
    """

    def __init__(self, folder: Path, passages: int) -> None:
        path = folder / IDS_FILE
        self._passages = passages
        self._lines = LineFile(path) if path.is_file() else None
        if self._lines is not None and len(self._lines) != passages:
            raise UserError(f"{path} has {len(self._lines)} ids for {passages} passages; rebuild the index")

    def of(self, pids: Iterable[int]) -> list[str]:
        """The ids of pids, in their order."""
        if self._lines is None:
            return [str(pid) for pid in pids]
        return [self._lines[pid].decode("utf-8") for pid in pids]

    def pids(self, ids: Iterable[str | int]) -> list[int]:
        """The pids of ids, in their order.

        Raises:
            UserError: an id that the index does not have.
        """
        wanted = as_ids(ids)
        unknown = [identifier for identifier in wanted if self._pid(identifier) is None]
        if unknown:
            raise UserError(f"{len(unknown)} ids are not in the index (first: {unknown[0]!r:.60})")
        return [pid for identifier in wanted if (pid := self._pid(identifier)) is not None]

    def has(self, identifier: str, below: int) -> bool:
        """Whether a pid below this one has the id."""
        pid = self._pid(identifier)
        return pid is not None and pid < below

    def _pid(self, identifier: str) -> int | None:
        if self._lines is None:
            if len(identifier) > len(str(self._passages)) or not identifier.isdecimal():  # int() refuses very long ones
                return None
            pid = int(identifier)
            return pid if str(pid) == identifier and pid < self._passages else None
        return self._lookup.find(identifier)

    @cached_property
    def _lookup(self) -> Lookup:
        """Made when ids are first looked up."""
        lines: Sequence[bytes] = self._lines or ()
        return Lookup((line.decode("utf-8") for line in lines), len(lines), lambda pid: lines[pid].decode("utf-8"))


def as_ids(ids: Any) -> list[str]:
    """A caller's ids: texts, or whole numbers as texts, from any iterable.

    Raises:
        UserError: one text, or what can be no id: another type, a line break, half a character.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise UserError(f"ids are {ids!r:.40} of type {type(ids).__name__}, expected a list of ids")
    checked = []
    for place, identifier in enumerate(ids):
        if not isinstance(identifier, str):
            try:
                identifier = str(whole_number("", identifier))
            except UserError as error:
                kind = f"{identifier!r:.40} of type {type(identifier).__name__}"
                raise UserError(f"id {place} is {kind}, expected a string or a whole number") from error
        if fault := _fault(identifier):
            raise UserError(f"id {place} is {identifier!r:.60}, which has {fault}")
        checked.append(str(identifier))
    return checked


def _fault(identifier: str) -> str | None:
    """Why a text cannot be a line of a file."""
    if "\n" in identifier or "\r" in identifier:
        return "a line break"
    try:
        identifier.encode("utf-8")
    except UnicodeEncodeError:
        return "half a character (a lone surrogate)"
    return None


def write_ids(path: Path, passages: Passages) -> None:
    """Write a collection's ids, unless they are the pids.

    Raises:
        UserError: an id that occurs twice, or has a line break or half a character.
    """
    hashes = np.empty(len(passages), dtype=np.uint64)
    are_pids = True
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        for pid, identifier in enumerate(passages.keys()):
            if fault := _fault(identifier):
                raise UserError(f"{passages.path}, line {pid + 1}: the id {identifier!r:.60} has {fault}; remove it")
            are_pids = are_pids and identifier == str(pid)
            hashes[pid] = hash_of(identifier)
            file.write(identifier + "\n")
    if len(np.unique(hashes)) < len(hashes):
        path.unlink()
        _name_repeated(passages)
    if are_pids:
        path.unlink()


def _name_repeated(passages: Passages) -> None:
    seen: dict[str, int] = {}
    for number, identifier in enumerate(passages.keys(), 1):
        if identifier in seen:
            first = seen[identifier]
            raise UserError(
                f"{passages.path}, line {number}: the id {identifier!r:.60} is also on line {first}; make the ids unique"
            )
        seen[identifier] = number
