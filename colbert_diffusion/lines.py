"""A file's lines by number, without holding the file: offsets lie beside it, memory-mapped. Knows nothing of their meaning.

Of a file from 16 MiB on, `NAME.lines` holds int64: a version, the file's size and modification time (so a changed file is
read anew), each line's start and the last one's end. 8.8 million lines take 71 MB there and next to nothing in memory.
"""

import gzip
import os
import shutil
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from .errors import MissingPackageError, UserError
from .files import written_aside

VERSION = 1
HEADER = 3  # version, size, modification time
KEPT_FROM = 1 << 24  # bytes of a file; the offsets of a smaller one are made in a moment
FLUSHED = 1 << 17  # offsets held while they are counted: 1 MiB
PACKED = (".gz", ".zst")

Check = Callable[[int, bytes], None]  # (line number from 1, line): raises what is wrong with it


class LineFile(Sequence[bytes]):
    """The lines of a file, without their ends. Pickles as its path; a copy of it is itself.

    Args:
        check: called once for every line when the offsets are made, in order; what it raises ends the reading, and no
            offsets are kept. A file whose offsets are there was checked before.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, check: Check | None = None) -> None:
        self.path = path
        self._check = check
        self._open()

    def _open(self) -> None:
        self._file = self.path.open("rb")
        about = os.fstat(self._file.fileno())
        header = (VERSION, about.st_size, about.st_mtime_ns)
        offsets = _kept(self._kept_at, header)
        self._offsets = self._count(header) if offsets is None else offsets  # int64 (lines + 1,)

    @property
    def _kept_at(self) -> Path:
        return self.path.with_name(self.path.name + ".lines")

    def _count(self, header: tuple[int, int, int]) -> Any:
        """Go through the lines, keep their offsets: beside a large file, else (or where that is forbidden) in memory."""
        if header[1] >= KEPT_FROM:
            try:
                with written_aside(self._kept_at) as aside, aside.open("wb") as out:
                    _write_offsets(self.path, out, header, self._check)
                return _kept(self._kept_at, header)
            except PermissionError:
                pass
        offsets = array("q")
        for _ in _starts(self.path, offsets, self._check):
            pass
        return np.frombuffer(offsets, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"line {index} of {len(self)}")
        start, end = self._offsets[index % len(self) :][:2].tolist()
        return os.pread(self._file.fileno(), end - start, start).rstrip(b"\r\n")  # no seek: threads share the file

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            for line in file:
                yield line.rstrip(b"\r\n")

    def __reduce__(self) -> tuple[Any, ...]:
        return LineFile, (self.path, self._check)

    def __deepcopy__(self, memo: object) -> "LineFile":
        return self


def _kept(path: Path, header: tuple[int, int, int]) -> Any:
    """The offsets kept there, memory-mapped, if they are of this very file."""
    try:
        kept = np.memmap(path, dtype=np.int64, mode="r")
    except (OSError, ValueError):
        return None
    return kept[HEADER:] if len(kept) > HEADER and tuple(kept[:HEADER].tolist()) == header else None


def _write_offsets(path: Path, out: IO[bytes], header: tuple[int, int, int], check: Check | None) -> None:
    offsets = array("q", header)
    for _ in _starts(path, offsets, check):
        if len(offsets) >= FLUSHED:
            offsets.tofile(out)
            del offsets[:]
    offsets.tofile(out)


def _starts(path: Path, offsets: "array[int]", check: Check | None) -> Iterator[None]:
    """Append each line's start and the last one's end, pausing after each line."""
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if check is not None:
                check(number, line)
            offsets.append(position)
            position += len(line)
            yield
    offsets.append(position)


def unpacked(path: Path) -> Path:
    """The file itself, or what a .gz or .zst file holds: unpacked once, beside it.

    Raises:
        UserError: damaged.
        MissingPackageError: a .zst file, and Python before 3.14 without backports.zstd.
    """
    if path.suffix not in PACKED:
        return path
    inner = path.with_suffix("")
    plain = inner.with_name(f"{inner.stem}.unpacked{inner.suffix}")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    if plain.is_file() and plain.stat().st_mtime_ns == times[1]:
        return plain
    opened, damage = _opener(path)
    try:
        with written_aside(plain) as aside, opened(path, "rb") as packed:
            with aside.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
            os.utime(aside, ns=times)
    except damage as error:
        raise UserError(f"{path} is damaged ({error}); fetch or write it again") from error
    return plain


def _opener(path: Path) -> tuple[Callable[..., Any], tuple[type[Exception], ...]]:
    """How to open a packed file, and what a damaged one raises."""
    if path.suffix == ".gz":
        return gzip.open, (EOFError, zlib.error, gzip.BadGzipFile)
    zstd: Any
    try:
        zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError as error:
        raise MissingPackageError(f"{path} is compressed with zstd: pip install backports.zstd") from error
    return zstd.open, (EOFError, zstd.ZstdError)
