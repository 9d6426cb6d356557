"""A file's lines by number, without holding the file: offsets lie beside it, memory-mapped. Knows nothing of their meaning.

Of a file from 16 MiB on, `NAME.lines` holds int64: a version, the file's size, its stamp and its sha256 (so that a changed
file is read anew, see `stamps`), each line's start and the last one's end. 8.8 million lines take 71 MB there and next to
nothing in memory. Where it cannot be written (a read-only or full disk) the offsets are in memory.
"""

import atexit
import gzip
import hashlib
import io
import os
import shutil
import sys
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, overload

import numpy as np

from ..common.errors import UserError
from ..common.files import needing_room, read_json, write_json, written_aside
from ..common.locking import NoLocksError, writing
from ..common.optional import need
from ..common.stamps import UNKNOWN, Stamp, believed, describe, is_same, stamp_of

VERSION = 2
HEADER = 9  # version, size, 3 of the stamp, 4 of the sha256
KEPT_FROM = 1 << 24  # bytes of a file; the offsets of a smaller one are made in a moment
FLUSHED = 1 << 17  # offsets held while they are counted: 1 MiB
BLOCK = 1 << 20
PACKED = (".gz", ".zst")
BOM = b"\xef\xbb\xbf"


class Check(Protocol):
    """What is asked about every line of a file, in order. It raises what is wrong."""

    def __call__(self, number: int, raw: bytes) -> None:
        """About one line, numbered from 1."""

    def finish(self) -> None:
        """About all of them, after the last."""


class LineFile(Sequence[bytes]):
    """The lines of a file, without their ends. A copy of it is itself; pickled it is a path, and the same file must be there.

    The file is opened once and stays open: renamed, replaced or deleted, the lines are those that were there.

    Args:
        check: called once for every line when the offsets are made, in order; what it raises ends the reading, and no
            offsets are kept. A file whose offsets are there was checked before.
        sha256: the file's content, where the caller knows it (an index's manifest says so): offsets of that content are
            believed without reading the file.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, check: Check | None = None, sha256: str | None = None) -> None:
        self.path = path
        self._check = check
        self._file = path.open("rb", buffering=0)
        about = os.fstat(self._file.fileno())
        self.size = about.st_size
        kept = _read_kept(kept_at(path), self, about, sha256)
        if kept is None and self.size >= KEPT_FROM:
            kept = self._keep(about, sha256)
        self._offsets = self._count() if kept is None else kept.offsets  # int64 (lines + 1,)
        if kept is not None:
            self.sha256 = kept.sha256

    @cached_property
    def sha256(self) -> str:
        """The content's hash, read once."""
        digest = hashlib.sha256()
        for block in _blocks(self._file.fileno()):
            digest.update(block)
        return digest.hexdigest()

    def _keep(self, about: os.stat_result, sha256: str | None) -> "_Kept | None":
        """Count the lines into a file beside this one; None where none can be written."""
        path = kept_at(self.path)
        if not _is_ours(path):
            return None
        try:
            with writing(path, wait=True):
                kept = _read_kept(path, self, about, sha256)  # somebody else's, made meanwhile
                if kept is None:
                    with written_aside(path) as aside:
                        _write_kept(aside, self, stamp_of(about), self._check)
                    kept = _read_kept(path, self, about, self.sha256)
                return kept
        except (OSError, NoLocksError):
            return None

    def _count(self) -> Any:
        if self._check is None:
            found, position = [np.zeros(1, dtype=np.int64)], 0
            for block in _blocks(self._file.fileno()):
                found.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + position + 1)
                position += len(block)
            ends = np.concatenate(found)
            return ends if ends[-1] == position else np.append(ends, position)
        offsets = array("q")
        for _ in _starts(self, offsets, self._check):
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
        return (line.rstrip(b"\r\n") for line in self.raw())

    def raw(self) -> IO[bytes]:
        """The lines with their ends, from the first one on."""
        return io.BufferedReader(_FromTheStart(self._file.fileno()), BLOCK)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self._check, (self.size, os.fstat(self._file.fileno()).st_mtime_ns))

    def __deepcopy__(self, memo: object) -> "LineFile":
        return self


def _reopened(path: Path, check: Check | None, was: tuple[int, int]) -> LineFile:
    """In another process."""
    lines = LineFile(path, check)
    if (lines.size, os.fstat(lines._file.fileno()).st_mtime_ns) != was:
        raise UserError(f"{path} was changed while it was in use; run the same command again")
    return lines


class _FromTheStart(io.RawIOBase):
    """An open file read from its beginning, whoever else reads it meanwhile."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._position = descriptor, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self._descriptor, [buffer], self._position)
        self._position += count
        return count


def _blocks(descriptor: int) -> Iterator[bytes]:
    position = 0
    while block := os.pread(descriptor, BLOCK, position):
        position += len(block)
        yield block


# Kept offsets ------------------------------------------------------------------------------------------------------


class _Kept(NamedTuple):
    offsets: Any
    sha256: str


def kept_at(path: Path) -> Path:
    """Where the offsets of a file's lines are kept."""
    return path.with_name(path.name + ".lines")


def keep(path: Path) -> None:
    """Keep a large file's offsets beside it for good: as long as whoever reads them knows its content's hash."""
    if path.stat().st_size >= KEPT_FROM:
        lines = LineFile(path)
        with written_aside(kept_at(path)) as aside:
            _write_kept(aside, lines, UNKNOWN, None)


def _read_kept(path: Path, lines: LineFile, about: os.stat_result, sha256: str | None) -> _Kept | None:
    """The offsets kept there, memory-mapped, if they are of this very content."""
    try:
        kept = np.memmap(path, dtype=np.int64, mode="r")
    except (OSError, ValueError):
        return None
    if len(kept) <= HEADER or tuple(kept[:2].tolist()) != (VERSION, about.st_size) or int(kept[-1]) != about.st_size:
        return None
    content = kept[5:HEADER].tobytes().hex()
    if not believed(Stamp(*kept[2:5].tolist()), about) and content != sha256:
        if content != lines.sha256:
            return None
        with suppress(OSError):  # from now on its times can be believed
            _restamp(path, stamp_of(about))
    return _Kept(kept[HEADER:], content)


def _is_ours(path: Path) -> bool:
    """Whether offsets may be written there: nothing is, or offsets of some version."""
    try:
        with path.open("rb") as file:
            return int.from_bytes(file.read(8), "little") in range(VERSION + 1)
    except OSError:
        return not path.exists()


def _restamp(path: Path, stamp: Stamp) -> None:
    if stamp != UNKNOWN:
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), array("q", stamp).tobytes(), 2 * 8)


def _write_kept(path: Path, lines: LineFile, stamp: Stamp, check: Check | None) -> None:
    digest = hashlib.sha256()
    offsets = array("q", [0] * HEADER)
    with path.open("wb") as out:
        for _ in _starts(lines, offsets, check, digest):
            if len(offsets) >= FLUSHED:
                offsets.tofile(out)
                del offsets[:]
        offsets.tofile(out)
        out.seek(0)
        out.write(array("q", [VERSION, lines.size, *stamp]).tobytes() + digest.digest())
    lines.sha256 = digest.hexdigest()


def _starts(lines: LineFile, offsets: "array[int]", check: Check | None, digest: Any = None) -> Iterator[None]:
    """Append each line's start and the last one's end, pausing after each line."""
    position = 0
    for number, line in enumerate(lines.raw(), 1):
        if check is not None:
            check(number, line)
        if digest is not None:
            digest.update(line)
        offsets.append(position)
        position += len(line)
        yield
    if check is not None:
        check.finish()
    offsets.append(position)


# Lines of any text file ----------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line as it stands in a file, with its end."""

    number: int  # from 1
    raw: bytes
    share: float  # of the file read so far, 0 to 1


def raw_lines(path: Path) -> Iterator[Line]:
    """The lines of a file, plain, gzipped or .zst.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is no file")
    number = 0
    with path.open("rb") as file:
        zipped = path.suffix in PACKED or file.read(2) == b"\x1f\x8b"  # Tevatron's files are gzipped under any name
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        opened, damage = _opener(path) if zipped else (None, ())
        try:
            for number, raw in enumerate(file if opened is None else opened(file), 1):
                yield Line(number, raw, file.tell() / size)
        except damage as error:
            raise UserError(f"{path} is damaged behind line {number} ({error}); fetch or write it again") from error


def found(path: Path) -> Path:
    """The file, or the packed one of its name where there is none."""
    return next((file for end in ("", *PACKED) if (file := path.with_name(path.name + end)).is_file()), path)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and texts without their ends; raises as `raw_lines` and, by line, as `decode`."""
    for line in raw_lines(path):
        try:
            yield line.number, decode(line.number, line.raw)
        except UserError as error:
            raise UserError(f"{path}, line {line.number}: {error}") from error


def decode(number: int, raw: bytes) -> str:
    """A line's text without its end, and without the byte order mark that some editors begin a file with.

    Raises:
        UserError: it is not UTF-8; the reason alone.
    """
    if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError("UTF-16, as Excel writes it; convert it: iconv -f UTF-16 -t UTF-8")
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 ({error.reason}); convert it, e.g. with iconv") from error
    return line.rstrip("\r\n")


# Packed files ------------------------------------------------------------------------------------------------------


def unpacked(path: Path) -> Path:
    """The file itself, or what a .gz or .zst file holds: unpacked once, beside it, else (read-only, full) for this process.

    Beside the unpacked file lies `NAME.source.json`: of which content it is and what it then was.

    Raises:
        UserError: damaged.
        MissingPackageError: a .zst file, and Python before 3.14 without backports.zstd.
    """
    if path.suffix not in PACKED:
        return path
    inner = path.with_suffix("")
    plain = inner.with_name(f"{inner.stem}.unpacked{inner.suffix}")
    if _is_unpacked(path, plain):
        return plain
    if plain.exists() and not is_derived(plain) and plain.stat().st_mtime_ns != path.stat().st_mtime_ns:  # version 1's sign
        raise UserError(f"{plain} is in the way: {path.name} would be unpacked there; rename or delete one of them")
    try:
        with writing(plain, wait=True):
            if not _is_unpacked(path, plain):  # by somebody else, meanwhile
                _unpack(path, plain)
        return plain
    except (OSError, NoLocksError):
        plain = _scratch() / plain.name
        with needing_room(plain.parent):
            _unpack(path, plain)
        return plain


def is_derived(path: Path) -> bool:
    """Whether the file was unpacked here, and may go whenever somebody tidies up."""
    return _source_of(path).exists()


def _source_of(plain: Path) -> Path:
    return plain.with_name(plain.name + ".source.json")


def _is_unpacked(path: Path, plain: Path) -> bool:
    try:
        source = read_json(_source_of(plain))
        same = is_same(path, source["packed"]) and is_same(plain, source["plain"])
    except (OSError, UserError, KeyError):
        return False
    now = {"packed": describe(path, source["packed"]["sha256"]), "plain": describe(plain, source["plain"]["sha256"])}
    if same and now != source:
        with suppress(OSError, UserError):  # from now on their times can be believed
            write_json(_source_of(plain), now)
    return same


def _unpack(path: Path, plain: Path) -> None:
    opened, damage = _opener(path)
    packed = describe(path)
    try:
        with written_aside(plain) as aside:
            with opened(path, "rb") as stream, aside.open("wb") as out:
                shutil.copyfileobj(stream, out, BLOCK)
            write_json(_source_of(plain), {"packed": packed, "plain": describe(aside)})  # first: a file without it is not ours
    except damage as error:
        raise UserError(f"{path} is damaged ({error}); fetch or write it again") from error


def _scratch() -> Path:
    """A folder of this process alone, removed when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="colbert-diffusion-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _opener(path: Path) -> tuple[Callable[..., Any], tuple[type[Exception], ...]]:
    """How to open a packed file, and what a damaged one raises."""
    if path.suffix != ".zst":
        return gzip.open, (EOFError, zlib.error, gzip.BadGzipFile)
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    zstd: Any = need(module, f"{path}, compressed with zstd,", "pip install backports.zstd")
    return zstd.open, (EOFError, zstd.ZstdError)
