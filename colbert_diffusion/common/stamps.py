"""Is a file still what it was? By its times where they can be believed, by its content where not."""

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

SETTLED = 2.0  # seconds after its last change from which a file's times tell a later one apart


class Stamp(NamedTuple):
    """What changes with every write, rename and copy: the system sets the change time, nobody can set it back."""

    mtime_ns: int
    ctime_ns: int
    inode: int


UNKNOWN = Stamp(0, 0, 0)


def stamp_of(about: os.stat_result) -> Stamp:
    """UNKNOWN where the file changed a moment ago: another change in the same tick of the clock could not be seen."""
    if abs(time.time() - about.st_ctime) < SETTLED:
        return UNKNOWN
    return Stamp(about.st_mtime_ns, about.st_ctime_ns, about.st_ino)


def believed(kept: Stamp, about: os.stat_result) -> bool:
    """Whether the times alone say that the file is the one whose stamp was kept."""
    return kept != UNKNOWN and kept == (about.st_mtime_ns, about.st_ctime_ns, about.st_ino)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """A file as JSON, for `is_same` to recognise."""
    about = path.stat()
    return {"size": about.st_size, "sha256": sha256 or sha256_of(path), "stamp": list(stamp_of(about))}


def is_same(path: Path, kept: Mapping[str, Any]) -> bool:
    """Whether the file has the content that `describe` saw."""
    try:
        about = path.stat()
        if about.st_size != kept["size"]:
            return False
        return believed(Stamp(*kept["stamp"]), about) or sha256_of(path) == kept["sha256"]
    except (FileNotFoundError, KeyError, TypeError):
        return False
