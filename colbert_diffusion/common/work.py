"""Unfinished work: a run says in a JSON file what it is, so that the same run may go on and another may not."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import read_json, write_json


@dataclass(frozen=True)
class Marker:
    """The file by which work names itself.

    Args:
        path: where it is, or will be.
        grows: its fields that say where the work is or how far it is, not which it is.
        renewed: gives what an earlier version wrote in this one's words.

    >>> Marker(folder / "run.json", grows={"best"}).differences({"steps": 400})
    'steps 300 there, 400 now'
    """

    path: Path
    grows: Collection[str] = ()
    renewed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict

    def found(self) -> dict[str, Any] | None:
        """What is written there; None: nothing. Raises UserError when it is damaged."""
        return dict(self.renewed(read_json(self.path))) if self.path.is_file() else None

    def differences(self, about: Mapping[str, Any]) -> str:
        """How the work there is another than `about`, for people; empty: it is the same, or there is none.

        Raises:
            UserError: the file is damaged.
        """
        there = self.found()
        return "" if there is None else differences(there, about, self.grows)

    def write(self, about: Mapping[str, Any]) -> None:
        """Write it whole."""
        write_json(self.path, dict(about))


def differences(there: Mapping[str, Any], now: Mapping[str, Any], grows: Collection[str] = ()) -> str:
    """Every value that is not the same, inside of nested objects too, for people.

    >>> differences({"recipe": {"steps": 300}}, {"recipe": {"steps": 400}})
    'recipe.steps 300 there, 400 now'
    """
    as_read_back = json.loads(json.dumps(now))
    return ", ".join(
        f"{name} {one!s:.60} there, {other!s:.60} now" for name, one, other in _differing(there, as_read_back, grows)
    )


def _differing(there: Mapping[str, Any], now: Mapping[str, Any], grows: Collection[str]) -> Iterator[tuple[str, Any, Any]]:
    for name in {**there, **now}:
        one, other = there.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from ((f"{name}.{inner}", *values) for inner, *values in _differing(one, other, grows))
        elif name not in grows and one != other:
            yield name, one, other
