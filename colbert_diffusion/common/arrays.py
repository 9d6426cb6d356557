"""Named arrays in a safetensors file, memory-mapped both ways. Knows nothing of what they mean.

The safetensors library copies what it loads into numpy and what it saves from it: an inverted index of millions of passages
would be in memory twice. Its format is a header of JSON and the bytes behind it; any reader of it opens these files.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import UserError
from .files import parse_json, written_aside

DTYPES = {"F32": "<f4", "U8": "<u1", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8"}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
ALIGNMENT = 64  # of what lies behind the header; arrays lie in the order given: the wider ones come first
MOST_HEADER = 2**20

Array = npt.NDArray[Any]


@contextmanager
def writing_arrays(path: Path, shapes: Mapping[str, tuple[Any, int]]) -> Iterator[dict[str, Array]]:
    """Yield arrays to fill, by name; the file appears whole, by a rename, when the block ends.

    Args:
        shapes: name -> (numpy dtype, length).
    """
    header, end = dict[str, Any](), 0
    for name, (dtype, length) in shapes.items():
        start, end = end, end + np.dtype(dtype).itemsize * length
        header[name] = {"dtype": NAMES[np.dtype(dtype)], "shape": [length], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with written_aside(path) as aside:
        with aside.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        arrays = _mapped(aside, header, 8 + len(text), "r+")
        yield arrays
        for array in arrays.values():
            if isinstance(array.base, np.memmap):
                array.base.flush()


def read_arrays(path: Path, expected: Mapping[str, str]) -> dict[str, Array]:
    """The arrays of a file, mapped: read when they are used.

    Args:
        expected: name -> the dtypes it may have, by their numpy names with spaces between; others in the file are left out.

    Raises:
        UserError: missing or damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(MOST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = parse_json(file.read(length).decode("utf-8"))
        entries = {name: header[name] for name in expected}
        for name, entry in entries.items():
            start, end = entry["data_offsets"]
            dtype = np.dtype(DTYPES[entry["dtype"]])
            if dtype.name not in expected[name].split():
                raise ValueError(f"{name} is of dtype {dtype.name}")
            if [(end - start) // dtype.itemsize] != entry["shape"] or not 0 <= start <= end <= size - 8 - length:
                raise ValueError(f"{name} does not lie in the file")
        return _mapped(path, entries, 8 + length, "r")
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is missing or damaged ({reason:.200}); restore it or rebuild the index") from error


def _mapped(path: Path, entries: Mapping[str, Any], behind: int, mode: Any) -> dict[str, Array]:
    """Plain arrays over maps: the memmap class costs more than a short array's arithmetic."""
    arrays = dict[str, Array]()
    for name, entry in entries.items():
        dtype, [length] = np.dtype(DTYPES[entry["dtype"]]), entry["shape"]
        empty = np.zeros(0, dtype)
        offset = behind + entry["data_offsets"][0]
        arrays[name] = np.memmap(path, dtype, mode, offset, (length,)).view(np.ndarray) if length else empty
    return arrays
