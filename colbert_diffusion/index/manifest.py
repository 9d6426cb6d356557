"""`index.json`: what an index was made from, and the size and sha256 of each of its files. Knows nothing of ColBERT."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..common.checks import is_file_name
from ..common.errors import UserError
from ..common.files import read_json, write_json
from ..common.stamps import sha256_of

MANIFEST_FILE = "index.json"
FORMAT_VERSION = 1
FUSION = "fusion"  # its field for how the scores of vectors and words become one: a rule and a weight
TEXTS = "texts"  # its field for a collection outside of the index: path, size and sha256


def write_manifest(folder: Path, about: Mapping[str, Any], own: Callable[[str], object] = lambda name: True) -> None:
    """Declare the folder a complete index. Written last.

    Args:
        own: which names are the index's own files. Others are somebody's, and not recorded.
    """
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_FILE and own(path.name)
    }
    write_json(folder / MANIFEST_FILE, {"format_version": FORMAT_VERSION, "complete": True, **about, "files": files})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none (an index built by a stock ColBERT script).

    Raises:
        UserError: damaged, or of another format version.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    manifest = read_json(path)
    if manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version")
        raise UserError(f"{path} has format_version {found!r:.40}, expected {FORMAT_VERSION}; rebuild the index")
    for fault in _faults(manifest):
        raise UserError(f"{path} is damaged ({fault}); restore it or rebuild the index")
    return manifest


def _faults(manifest: Mapping[str, Any]) -> list[str]:
    """What its readers rely on and is not so."""
    files = manifest.get("files")
    if not isinstance(files, dict):
        return ["no list of files"]
    found = []
    for name, entry in files.items():
        whole = isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
        if not whole or not is_file_name(name):
            found.append(f"no size and sha256 of a file {name!r:.60}")
    for field in ("build", "update", TEXTS):
        if not isinstance(manifest.get(field, {}), dict):
            found.append(f"its {field} is no object")
    texts = manifest.get(TEXTS)
    if isinstance(texts, dict) and not (isinstance(texts.get("size"), int) and isinstance(texts.get("sha256"), str)):
        found.append("no size and sha256 of its texts")
    return found


def check_sizes(folder: Path) -> None:
    """Raises UserError when a recorded file is missing or has another size: cheap enough for every load."""
    manifest = read_manifest(folder)
    for name, entry in (manifest or {"files": {}})["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["size"]:
            state = "is missing" if size is None else f"has {size} bytes instead of {entry['size']}"
            raise UserError(f"{path} {state}: the index is damaged; restore the file or rebuild the index")


def verify(folder: Path) -> list[str]:
    """Hash every recorded file; one line per difference, none when all is as it was written.

    Raises:
        UserError: the folder has no manifest.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} has no {MANIFEST_FILE} to verify against; `colbert-diffusion index` writes one")
    found = []
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name}: missing")
        elif path.stat().st_size != entry["size"]:
            found.append(f"{name}: {path.stat().st_size} bytes instead of {entry['size']}")
        elif sha256_of(path) != entry["sha256"]:
            found.append(f"{name}: changed (sha256 differs)")
    return found
