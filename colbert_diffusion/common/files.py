"""Writing so that a reader never sees half of anything, and a power cut leaves the old or the new. Knows no contents.

What this package puts in place goes through here: written beside its place, forced to the disk, renamed, and the rename
forced to the disk before anything old is deleted. Nothing else renames.
"""

import ctypes
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .locking import NoLocksError, locked_file

if TYPE_CHECKING:
    from torch import Tensor

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_WORDS = ("no space left", "disk quota", "file too large", "disk is full", "pytorchstreamwriter failed", "unexpected pos")
NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # of a folder, on some file systems
NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # NFS, SMB, old kernels
ASIDE = re.compile(r"\..+\.partial")
AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2


def aside_of(path: Path) -> Path:
    """Where a file or folder is written until it is whole. One name, so that what a kill leaves is used again."""
    return path.with_name(f".{path.name}.partial")


def is_aside(path: Path) -> bool:
    """Whether it is a file that a writer was killed over; version 0.1 put its process id into the name."""
    return ASIDE.fullmatch(path.name) is not None and path.is_file()


def remove_asides(folder: Path) -> None:
    """Delete what killed writers left in a folder that nobody else writes."""
    for path in folder.iterdir():
        if is_aside(path):
            path.unlink()


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a neighbouring path to write to; rename it over `path` on success, remove it on failure.

    A good file at `path` stays as it is until the new one is complete and on the disk.

    Raises:
        UserError: another process is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(path)
    try:
        held = locked_file(aside)
    except NoLocksError:
        held = aside.open("ab", buffering=0)
    if held is None:
        raise UserError(f"{path} is being written by another process; let it end, then try again")
    with held:
        os.ftruncate(held.fileno(), 0)
        try:
            yield aside
            to_disk(aside)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        to_disk(path.parent)


def save_tensors(tensors: Mapping[str, "Tensor"], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that others may read as any other file: its own writer leaves one that only its owner can."""
    from safetensors.torch import save_file  # torch, which few of those who write files need

    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, dict(metadata) if metadata is not None else None)
    path.chmod(mode)


@contextmanager
def folder_aside(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty neighbouring folder to fill; it becomes `folder` when it is whole. One writer at a time: see `locking`.

    Args:
        replace: put it in the place of a folder that is there; else none may be there.
    """
    aside, replaced = aside_of(folder), _replaced(folder)
    restore(folder)
    for left in (aside, replaced):  # of an earlier try
        remove(left)
    aside.mkdir(parents=True)
    try:
        yield aside
        to_disk(aside, everything=True)
        if folder.exists() and not replace:
            raise UserError(f"{folder} exists; choose another folder or delete it")
        put_in_place(aside, folder, replaced)
    finally:
        for left in (aside, replaced):
            remove(left)


def publish(aside: Path, folder: Path, *, last: str) -> None:
    """Move every file of one folder into another on the same disk, each over the one that is there.

    Args:
        last: the end of the name of a file that says by being there that the others are.
    """
    paths = sorted(aside.iterdir(), key=lambda path: (path.name.endswith(last), path.name))
    for path in paths:
        to_disk(path)
        if path.name.endswith(last):
            to_disk(folder)
        os.replace(path, folder / path.name)
    to_disk(folder)


def restore(folder: Path) -> None:
    """Undo a replacement by two renames that was interrupted between them."""
    if not folder.exists() and (replaced := _replaced(folder)).exists():
        os.rename(replaced, folder)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def put_in_place(new: Path, target: Path, replaced: Path) -> None:
    """Give `new` the name `target`, in one step where the system can and else in two; what was there may be deleted then.

    What was there is at `new` (one step) or at `replaced` (two) afterwards; without, it is where it was.

    Raises:
        OSError: it could not; everything is as it was.
    """
    if not target.exists():
        os.rename(new, target)
    elif not exchange(new, target):
        os.rename(target, replaced)
        try:
            os.rename(new, target)
        except OSError:
            os.rename(replaced, target)
            raise
    for parent in {new.parent, target.parent, replaced.parent}:
        to_disk(parent)


def exchange(one: Path, two: Path) -> bool:
    """Swap two folders of one file system in one step. False where the system cannot; then nothing happened."""
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(two)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE)
    elif sys.platform == "darwin":
        failed = libc.renamex_np(first, second, RENAME_SWAP)
    else:
        return False
    if not failed:
        return True
    if (number := ctypes.get_errno()) in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(two))


def to_disk(path: Path, *, everything: bool = False) -> None:
    """Force a file, or a folder's list of names, out of the system's memory; `everything`: with all that is in it."""
    if everything:
        for folder, _, names in os.walk(path):
            for name in names:
                if (file := Path(folder, name)).is_file() and not file.is_symlink():
                    to_disk(file)
            to_disk(Path(folder))
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in NO_FSYNC):
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(path: Path, to: Path) -> None:
    """The same file under another name, where the file system can; else a copy. A link stays one, wherever it leads."""
    if path.is_symlink():
        os.symlink(os.readlink(path), to)
        return
    try:
        os.link(path, to)
    except OSError:
        shutil.copy2(path, to)


@contextmanager
def needing_room(folder: Path, needed: Callable[[], int | None] = lambda: None) -> Iterator[None]:
    """Whatever a full disk raises in here, from torch or safetensors too, becomes one line that says so.

    Args:
        needed: bytes that are needed in `folder`, where they can be told.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        count = needed()
        amount = "" if count is None else f", needs about {max(1, round(count / 1e6)):,} MB"
        with suppress(OSError):
            amount += f", {shutil.disk_usage(_existing(folder)).free / 1e6:,.0f} MB are free"
        number = getattr(error, "errno", None)
        reason = f" ({os.strerror(number)})" if number in FULL - {errno.ENOSPC} else ""
        raise UserError(
            f"no space left on {folder}{amount}; make room and run the same command again, it goes on{reason}"
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether it says that a disk, a quota or a file's limit is full; torch and safetensors say so in words alone."""
    cause: BaseException | None = error
    while cause is not None:
        said = str(cause).lower()
        if getattr(cause, "errno", None) in FULL or any(words in said for words in FULL_WORDS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, all of it or nothing."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_json(text: str) -> Any:
    """A JSON value. Raises ValueError with a short reason, also for thousands of brackets or of digits in one number."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError as error:
        raise ValueError("a number of thousands of digits") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError naming the file when it is not one."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore or rewrite the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content
