"""Is a value the number it should be? For files that anyone may have written, and for callers' arguments."""

import operator
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import UserError

NAME_MAX = 255  # bytes
LARGEST = sys.float_info.max


def is_number(value: object, least: float = -LARGEST, most: float = LARGEST, *, whole: bool = False) -> bool:
    """Whether a value read from JSON is a finite number in a range; true and false are none."""
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most


def is_file_name(name: object) -> bool:
    """Whether a text from a file names another file of its own folder, in a way that every system can look for."""
    plain = isinstance(name, str) and Path(name).name == name != ".." and name.isprintable()
    return plain and len(str(name).encode()) <= NAME_MAX


def listed(names: Iterable[object]) -> str:
    """The first of some names that anyone may have chosen, for a line that people read."""
    shown = [f"{name!r:.40}" for name in names]
    return f"[{', '.join(shown[:5])}]" + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def whole_number(name: str, value: Any) -> int:
    """A caller's whole number, numpy's and torch's as well.

    Raises:
        UserError: it is none: a text, a float, a mask's True.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise UserError(f"{name} is {value!r:.40} of type {type(value).__name__}, expected a whole number")


def whole_numbers(name: str, values: Any) -> list[int]:
    """A caller's whole numbers from any iterable, numpy's and torch's arrays as well, in its order.

    Raises:
        UserError: it is no iterable (one number, one text), or an item is no whole number.
    """
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, str | bytes):
        with suppress(TypeError):
            return [whole_number(f"a {name}", item) for item in values]
    raise UserError(f"{name}s are {values!r:.40} of type {type(values).__name__}, expected a list of whole numbers")
