"""One writer at a time: a lock beside whatever is written. Knows nothing of what that is.

The system holds the lock (flock, by portalocker) on `.NAME.lock` and lets go of it however its holder ends, so a lock
that is left behind says that its writer died, and nothing is ever locked by the dead. The file holds the writer's process
id, host and note. Readers take no lock and need no permission to write.

Network file systems: NFS 4 and SMB hold such locks for every machine that mounts them, NFS 3 where its lock service runs.
Where a file system has no locks (Lustre without `-o flock`) writing is refused: two writers would mix unseen.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import portalocker

from .errors import UserError
from .progress import note

PATIENCE = 0.25  # seconds until a lock counts as held: somebody may look at it for a moment
TELL = 2.0  # seconds until one who waits says for whom
POLL = 0.02
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL}


class BusyError(UserError):
    """Somebody else is writing there; later the same call succeeds."""


class NoLocksError(UserError):
    """The file system has no locks."""


class Lock:
    """A lock that this process holds.

    Args:
        left: what the writer before noted if it died, "" if it noted nothing; None if it ended well.
    """

    def __init__(self, file: IO[bytes], left: str | None) -> None:
        self._file, self.left = file, left
        self.note("")

    def note(self, text: str) -> None:
        """Leave a word for the next writer, which it reads if this one dies."""
        content = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "note": text}).encode()
        with suppress(OSError):  # a full disk: the lock holds without a word
            os.pwrite(self._file.fileno(), content, 0)
            os.ftruncate(self._file.fileno(), len(content))


def lock_path(target: Path) -> Path:
    """Where the lock of a file or folder lies."""
    whole = Path(os.path.abspath(target))
    return whole.with_name(f".{whole.name}.lock")


@contextmanager
def writing(target: Path, *, wait: bool = False) -> Iterator[Lock]:
    """Be the only writer of a file or folder.

    Args:
        wait: for the other one, however long it takes; else it is refused.

    Raises:
        BusyError: another process (or thread) is writing it.
        NoLocksError: its file system has no locks.
        OSError: nothing can be written beside it.
    """
    path = lock_path(target)
    with _folder(path.parent), _locked(target, path, wait) as file:
        try:
            yield Lock(file, _read(path).get("note"))
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def claimed(target: Path) -> Iterator[bool]:
    """Whether a file is this process's to make: not while another one makes it, nor once that one has. Nobody waits."""
    path = lock_path(target)
    if (file := locked_file(path)) is None:
        yield False
        return
    with file:
        try:
            yield not target.exists()
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make a folder, and take it away again when nothing came into it."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for parent in made:
                parent.rmdir()


def _locked(target: Path, path: Path, wait: bool) -> IO[bytes]:
    started, told = time.monotonic(), False
    while (file := locked_file(path)) is None:
        waited = time.monotonic() - started
        if waited > PATIENCE and not wait:
            raise BusyError(f"{target} is being written by {_holder(path)}; let it end, or end it, then try again")
        if waited > TELL and not told:
            note(f"waiting for {_holder(path)}, which is writing {target}")
            told = True
        time.sleep(POLL)
    return file


def left_behind(target: Path) -> str | None:
    """The note of a writer that died; None where none did, one is at work, or this cannot be known. Changes nothing."""
    path = lock_path(target)
    try:
        if not path.is_file() or (file := locked_file(path, create=False)) is None:
            return None
    except (OSError, NoLocksError):
        return None
    with file:
        found = _read(path).get("note")
    return found if isinstance(found, str) else None


def locked_file(path: Path, *, create: bool = True) -> IO[bytes] | None:
    """The file at `path`, locked until it is closed; None while somebody else holds it.

    Raises:
        NoLocksError: the file system has no locks.
        OSError: the file cannot be opened.
    """
    flags = os.O_RDWR | (os.O_CREAT if create else 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        try:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
            if _is_at(file, path):
                return file
        except portalocker.AlreadyLocked:
            file.close()
            return None
        except (portalocker.LockException, OSError) as error:
            file.close()
            number = _errno(error)
            if number in NO_LOCKS:
                raise NoLocksError(
                    f"the file system of {path.parent} has no locks ({os.strerror(number)}): two writers would mix unseen; "
                    "write on a local disk and move the result there"
                ) from error
            raise
        file.close()  # its holder removed it in between


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _errno(error: BaseException) -> int:
    """portalocker wraps what the system said."""
    inner = error.args[0] if error.args and isinstance(error.args[0], OSError) else error
    return getattr(inner, "errno", None) or 0


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes() or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _holder(path: Path) -> str:
    content = _read(path)
    return (
        f"process {content['pid']!s:.20} on {content['host']!s:.80}" if {"pid", "host"} <= set(content) else "another process"
    )
