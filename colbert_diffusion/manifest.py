"""`index.json`: what an index was made from, and the size and sha256 of each of its files. Knows nothing of ColBERT."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import read_json, write_json

MANIFEST_FILE = "index.json"
FORMAT_VERSION = 1


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Declare the folder a complete index: every file in it is recorded. Written last."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_FILE
    }
    write_json(folder / MANIFEST_FILE, {"format_version": FORMAT_VERSION, "complete": True, **about, "files": files})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none (an index built by a stock ColBERT script).

    Raises:
        UserError: damaged, or of another format version.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return None
    manifest = read_json(folder / MANIFEST_FILE)
    if manifest.get("format_version") != FORMAT_VERSION or not isinstance(manifest.get("files"), dict):
        found = manifest.get("format_version")
        raise UserError(f"{folder / MANIFEST_FILE} has format_version {found}, expected {FORMAT_VERSION}; rebuild the index")
    return manifest


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
        elif _sha256(path) != entry["sha256"]:
            found.append(f"{name}: changed (sha256 differs)")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
