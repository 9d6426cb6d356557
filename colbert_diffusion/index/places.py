"""Where an index grows and how it takes its place. All that is unfinished lies in `NAME.partial` beside the target.

NAME.partial/build.json   what is being built; the sign that the folder is ours
NAME.partial/vectors/     the passages' vectors
NAME.partial/index/       the index, until it is complete; the old one, after it took its place
NAME.partial/replaced/    the old one, where the system cannot exchange two folders in one step
.NAME.lock                the one writer's lock

Only a writer, under its lock, changes anything here. Readers follow whatever is whole: see `snapshot`.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from ..common.errors import UserError
from ..common.files import is_aside, is_full, link, put_in_place, read_json, remove, remove_asides, to_disk, write_json
from ..common.locking import BusyError, Lock, left_behind, writing
from ..common.stamps import sha256_of
from ..common.work import differences
from .layout import OFFSETS, PLAN_FILES, chunk_of, is_own, is_stock, kind_of
from .manifest import MANIFEST_FILE, read_manifest

BUILD_FILE = "build.json"
SWAPPING = "swapping"  # its field while a complete index is taking its place: what tells that one from the old
PATIENCE = 30.0  # seconds a reader goes on when an index is replaced again and again
GAP = 0.01  # seconds until a missing index is looked for again: it may be between two renames

T = TypeVar("T")
Renew = Callable[[Mapping[str, Any]], dict[str, Any]]


class Places:
    """The paths of one target index, and the steps by which it comes there.

    Args:
        target: the index's folder. A link to it stays a link: what it leads to is replaced.

    Raises:
        UserError: a link that leads in circles.
    """

    def __init__(self, target: Path) -> None:
        self.named = Path(os.path.abspath(target))
        try:
            self.target = self.named.resolve() if self.named.is_symlink() else self.named
        except (OSError, RuntimeError) as error:
            raise UserError(f"{target} is a link that leads nowhere ({error}); remove it or choose another name") from error
        self._lock: Lock | None = None

    @property
    def work(self) -> Path:
        return self.target.with_name(self.target.name + ".partial")

    @property
    def _marker(self) -> Path:
        return self.work / BUILD_FILE

    @property
    def index(self) -> Path:
        return self.work / "index"

    @property
    def vectors(self) -> Path:
        return self.work / "vectors"

    @property
    def replaced(self) -> Path:
        return self.work / "replaced"

    # One writer ----------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer of this index, until the block ends.

        Raises:
            UserError: another process is, or nothing can be written there.
        """
        with ExitStack() as held:
            try:
                self._lock = held.enter_context(writing(self.target))
            except OSError as error:
                if is_full(error):
                    raise
                raise UserError(
                    f"nothing can be written beside {self.target} ({error.strerror}); choose another place"
                ) from error
            try:
                yield
            finally:
                self._lock = None

    def _locked(self) -> Any:
        return nullcontext() if self._lock is not None else self.writing()

    def claim(self, build: Mapping[str, Any], *, discard: bool, renewed: Renew = dict) -> None:
        """Take the work folder for this build: go on with what is there if it is the same build.

        Args:
            discard: drop the unfinished index of another build (its vectors stay as long as they fit).
            renewed: gives a build as an earlier version wrote it down in this one's words.

        Raises:
            UserError: the folder is not ours, or holds another build and `discard` is False.
        """
        marker = self._marker
        if self.work.exists() and not marker.exists():
            if not self._is_ours_to_begin():
                raise UserError(f"{self.work} is in the way and is no unfinished index; move it elsewhere")
        elif marker.exists() and (other := differences(renewed(self._marked()), build)):
            if not discard:
                raise UserError(
                    f"{self.work} holds an unfinished index of another build ({other}); pass overwrite=True (--overwrite) "
                    "to drop it, or choose another name"
                )
            remove(self.index)
        if self.work.exists():
            remove_asides(self.work)
        write_json(marker, dict(build))

    def _marked(self) -> dict[str, Any]:
        """What the marker says; nothing where it is damaged (a disk that loses what it said it wrote)."""
        try:
            return read_json(self._marker)
        except (UserError, OSError):  # or gone: the writer just removed it
            return {}

    def _is_ours_to_begin(self) -> bool:
        """A work folder without a marker: one that a kill left before the marker was whole."""
        return self.work.is_dir() and all(is_aside(path) for path in self.work.iterdir())

    def interrupted(self) -> bool:
        """Whether the last writer died after it put the index that is there now in its place. Changes nothing."""
        signs = {left_behind(self.target) if self._lock is None else self._lock.left}
        signs.add(self._marked().get(SWAPPING))
        return _sign_of(self.target) in signs - {None}

    # Before anything is encoded ------------------------------------------------------------------------------------

    def check_feasible(self) -> None:
        """Whatever would keep the finished index from taking its place shows now.

        Raises:
            UserError: the target is no index, or is a mount point; a file of somebody's would be lost; a permission is
                missing; the work folder is elsewhere.
        """
        for path in (self.work, self.index, self.vectors):
            if path.is_symlink() or (path.exists() and _device(path) != _device(self.target.parent)):
                raise UserError(f"{path} is a link or on another file system; move it away: the index grows there")
        if not os.path.lexists(self.target):
            return
        if not self.target.is_dir():
            raise UserError(f"{self.target} is a file, no index; it is never replaced: choose another name")
        self._check_permission()
        own = own_files(self.target)
        if own is None and any(self.target.iterdir()):
            raise UserError(f"{self.target} is no index (it has no {MANIFEST_FILE}) and is never replaced; choose another name")
        for point in mount_points():
            if point == self.target.resolve() or self.target.resolve() in point.parents:
                raise UserError(
                    f"{point} is a mount point and cannot be replaced; build the index in a folder below or beside it"
                )
        for path in self.target.iterdir():
            if path.name in (own or ()) or path.name.endswith(OFFSETS):
                continue
            if kind_of(path.name):
                raise UserError(f"{path} is not the index's own and has the name of one of its files; move it elsewhere")
            for inner in [path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())]:
                _check_carriable(inner)

    def _check_permission(self) -> None:
        user, about, parent = os.geteuid(), self.target.stat(), self.target.parent.stat()
        kept = bool(parent.st_mode & stat.S_ISVTX) and user not in (0, about.st_uid, parent.st_uid)
        if kept or not all(os.access(folder, os.R_OK | os.W_OK | os.X_OK) for folder in (self.target, self.target.parent)):
            raise UserError(f"{self.target} may not be replaced by this user (permission denied); choose another place")

    # The swap ------------------------------------------------------------------------------------------------------

    def swap(self) -> None:
        """Put the complete index in the target's place, then drop the old one and the work folder.

        From here on the marker says so: a swap that is interrupted is finished by `recover`.

        Raises:
            UserError: it cannot take its place; the old index is in its own, the new one stays in the work folder.
        """
        with self._locked():
            self._keep_only_own()
            if self.target.exists():
                _carry(self.target, self.index)
            try:
                to_disk(self.index, everything=True)
                write_json(self._marker, {**read_json(self._marker), SWAPPING: _sign_of(self.index)})
                self._finish_swap()
            except OSError as error:
                self._give_up(error)

    def recover(self) -> bool:
        """Finish a swap that was interrupted; nothing happens when none was, or somebody is at it. Returns whether one was."""
        if self._lock is not None and not self._marker.exists() and self._is_ours_to_begin():
            remove(self.work)  # what a kill left of it
        if not self._is_swapping():
            return False
        try:
            with self._locked():
                if swapping := self._is_swapping():
                    self._finish_swap()
                return swapping
        except BusyError:
            return False

    def _is_swapping(self) -> bool:
        return self._marker.is_file() and bool(self._marked().get(SWAPPING))

    def _finish_swap(self) -> None:
        marker = read_json(self._marker)
        if marker[SWAPPING] is True and self.index.exists():  # version 1's sign: what is there is the new one
            marker[SWAPPING] = _sign_of(self.index)
            write_json(self._marker, marker)
        if self.index.exists() and _sign_of(self.target) != marker[SWAPPING]:
            if self._lock is not None:
                self._lock.note(str(marker[SWAPPING]))
            put_in_place(self.index, self.target, self.replaced)
        for old in (self.index, self.replaced):
            if old.exists():
                _carry(old, self.target)  # what came into it meanwhile
        self._drop_work()

    def _drop_work(self) -> None:
        """The marker goes last, then the empty folder."""
        for path in self.work.iterdir():
            if path != self._marker:
                remove(path)
        remove(self._marker)
        self.work.rmdir()

    def _give_up(self, error: OSError) -> None:
        with suppress(OSError, UserError):
            marker = read_json(self._marker)
            if _sign_of(self.target) != marker.get(SWAPPING):
                write_json(self._marker, {name: value for name, value in marker.items() if name != SWAPPING})
        raise UserError(
            f"{self.target} could not be replaced ({error}); it is as it was, and the new index lies whole in {self.work}: "
            "mend the cause and run the same command again"
        ) from error

    def _keep_only_own(self) -> None:
        """Out of the new index goes whatever an interrupted try left in it."""
        for path in self.index.iterdir():
            if not is_own(path.name):
                remove(path)

    # Readers -------------------------------------------------------------------------------------------------------

    def readable(self) -> Path:
        """The index as a reader finds it: in its place, or, between the two renames of a swap, aside."""
        if not self.target.exists() and (self.replaced / "metadata.json").is_file():
            return self.replaced
        return self.target


def _sign_of(folder: Path) -> str | None:
    """What tells one index from another."""
    paths = (folder / name for name in (MANIFEST_FILE, PLAN_FILES[0]))
    return next((sha256_of(path) for path in paths if path.is_file()), None)


def snapshot(target: Path, read: Callable[[Path], T]) -> T:
    """`read(folder)` of one index from beginning to end: once more whenever it was replaced meanwhile. Changes nothing.

    Raises:
        UserError: the index is replaced faster than it can be read.
        Exception: what `read` raises of an index that nobody replaced.
    """
    places, deadline, missing = Places(target), time.monotonic() + PATIENCE, 0
    while True:
        folder = places.readable()
        with _held(folder):  # so that its inode is given to no other folder
            before = _identity(folder)
            try:
                result = read(folder)
            except Exception:
                missing += before is None
                replaced = places.readable() != folder or _identity(folder) != before
                if not replaced and not 0 < missing < 3:
                    raise
                if time.monotonic() > deadline:
                    raise
                time.sleep(GAP if before is None else 0)
                continue
            if places.readable() == folder and _identity(folder) == before:
                return result
        if time.monotonic() > deadline:
            raise UserError(f"{target} is replaced again and again, for {PATIENCE:.0f} s now; open it when that has ended")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.close(descriptor)


def _identity(folder: Path) -> tuple[Any, ...] | None:
    try:
        about = folder.stat()
    except OSError:
        return None
    content = []
    for name in (MANIFEST_FILE, PLAN_FILES[0]):
        with suppress(OSError):
            content.append((folder / name).read_bytes())
    return about.st_dev, about.st_ino, *content


def own_files(folder: Path) -> set[str] | None:
    """The files in a folder that are an index's own, by its manifest or by a stock ColBERT index's plan; None: no index."""
    names = {path.name for path in folder.iterdir()}
    own: Callable[[str], object] = is_stock
    try:
        manifest = read_manifest(folder)
        if manifest is not None:
            return {name for name in names & {*manifest["files"], MANIFEST_FILE} if kind_of(name)}
    except UserError:  # damaged, but ours
        own = kind_of
    for plan in PLAN_FILES:
        with suppress(UserError, OSError):
            content = read_json(folder / plan)
            chunks = content.get("num_chunks")
            if isinstance(content.get("config"), dict) and isinstance(chunks, int):
                return {name for name in names if own(name) and ((chunk := chunk_of(name)) is None or chunk < chunks)}
    return None


def inside_an_index(path: Path) -> bool:
    """Whether a file lies in an index's folder or in a work folder: it may be gone when that index is."""
    for folder in path.resolve().parents:
        marks = (MANIFEST_FILE, *PLAN_FILES)
        if folder.name.endswith(".partial") and (folder / BUILD_FILE).is_file():
            return True
        if any((folder / mark).is_file() for mark in marks):
            with suppress(UserError, OSError):
                if own_files(folder) is not None:
                    return True
    return False


def mount_points() -> set[Path]:
    """Also those of folders of the same file system, which only Linux's own list shows."""
    with suppress(OSError):
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        names = (re.sub(rb"\\(\d{3})", lambda octal: bytes([int(octal[1], 8)]), line.split(b" ")[4]) for line in lines)
        return {Path(os.fsdecode(name)) for name in names}
    return set()


def _check_carriable(path: Path) -> None:
    """Raises UserError for a file of the user's that cannot be taken over into the new index."""
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
        raise UserError(f"{path} is no file, folder or link and cannot be carried over into the new index; move it elsewhere")
    if not stat.S_ISLNK(mode) and not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read by this user and would be lost; move it elsewhere")


def _carry(old: Path, new: Path) -> None:
    """Take over what is in an index's folder and not its own, unless it is there; links stay links."""
    for path in old.iterdir():
        if not kind_of(path.name):
            _carry_one(path, new / path.name)


def _carry_one(path: Path, to: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        to.mkdir(exist_ok=True)
        for inner in path.iterdir():
            _carry_one(inner, to / inner.name)
        with suppress(OSError):
            os.chmod(to, stat.S_IMODE(path.stat().st_mode))
    elif not os.path.lexists(to):
        link(path, to)


def _device(path: Path) -> int:
    return next(parent for parent in (path, *path.parents) if parent.exists()).stat().st_dev
