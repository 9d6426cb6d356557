#!/usr/bin/env python3
"""Prove that the INSTALLED ColBERT is the published wheel, unedited. Usage: python third_party/verify.py

The witness is `colbert.json` beside this script: the sha256 of every file of the wheel as published (in one number), and
those of the files our seam relies on with why each. The wheel's own RECORD only names what differs: who edits a file can
edit that too. Nothing may be added to the package, its compiled files must be those of its sources, and `colbert` must be
found there and nowhere before. What other packages do when they are imported is not looked at.

Exit 0 when all agree, 1 with one line per difference. Only the standard library is used, nothing of ColBERT is imported.
"""

import base64
import hashlib
import json
import marshal
import sys
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

PIN = Path(__file__).with_name("colbert.json")


def differences(installed: Distribution, pin: dict[str, Any]) -> list[str]:
    """What differs between the disk, the wheel's RECORD and our pin; empty when nothing does."""
    found = []
    if installed.version != pin["version"]:
        found.append(f"{pin['package']} {installed.version} is installed, the pin is {pin['version']}")
    recorded = {str(f): f.hash for f in installed.files or () if f.hash is not None and f.hash.mode == "sha256"}
    if not recorded:
        found.append(f"{pin['package']} has no RECORD: it was not installed from a wheel")
    for name, recorded_hash in recorded.items():
        digest = _sha256(Path(str(installed.locate_file(name))))
        if digest is None or base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != recorded_hash.value:
            found.append(f"{name}: {'missing' if digest is None else 'edited'} (differs from the wheel's RECORD)")
    folder = Path(str(installed.locate_file(pin["module"])))
    there = {path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"}
    published = sorted(name for name in recorded if ".dist-info/" not in name)
    if combined(installed, published) != pin["all_files_sha256"]:
        found.append(f"the {len(published)} files that RECORD lists are not the {pin['all_files']} that were published")
    for extra in sorted(there - {Path(str(installed.locate_file(name))) for name in published}):
        found.append(f"{extra.relative_to(folder.parent)}: not of the published wheel")
    found += [f"{path.relative_to(folder.parent)}: not what its source compiles to" for path in miscompiled(folder)]
    found += shadows(folder, pin["module"])
    for name, entry in pin["files"].items():
        digest = _sha256(Path(str(installed.locate_file(name))))
        if digest is None or digest.hex() != entry["sha256"]:
            found.append(f"{name}: {'missing' if digest is None else 'not the pinned file'} (needed: {entry['why']})")
    return found


def combined(installed: Distribution, names: list[str]) -> str:
    """One hash of files, by name and content."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0".encode() + (_sha256(Path(str(installed.locate_file(name)))) or b"missing"))
    return digest.hexdigest()


def miscompiled(folder: Path) -> list[Path]:
    """The compiled files that this Python would load in their sources' place and that say something else."""
    found = []
    for path in sorted(folder.rglob(f"__pycache__/*.{sys.implementation.cache_tag}*.pyc")):
        stem, _, level = path.name.partition(f".{sys.implementation.cache_tag}")
        source = path.parent.parent / f"{stem}.py"
        try:
            optimize = int(level.removeprefix(".opt-").removesuffix(".pyc") or 0)
            expected = compile(source.read_bytes(), str(source), "exec", dont_inherit=True, optimize=optimize)
            same = marshal.loads(path.read_bytes()[16:]) == expected
        except (OSError, ValueError, EOFError, TypeError, SyntaxError):
            same = False
        if not same:
            found.append(path)
    return found


def shadows(folder: Path, module: str) -> list[str]:
    """What would be imported in the package's place, or before it."""
    path = [entry for entry in sys.path if Path(entry or ".").resolve() != PIN.parent]
    spec = PathFinder.find_spec(module, path)
    found = []
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != (folder / "__init__.py").resolve():
        found.append(f"`import {module}` finds {spec.origin if spec else 'nothing'}, not {folder / '__init__.py'}")
    for name in ("sitecustomize", "usercustomize"):
        if (folder.parent / f"{name}.py").exists() or (folder.parent / name).is_dir():
            found.append(f"{folder.parent / name}: runs at every start of Python, before anything can be proved")
    return found


def _sha256(path: Path) -> bytes | None:
    return hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None


def main() -> int:
    pin = json.loads(PIN.read_text(encoding="utf-8"))
    try:
        installed = distribution(pin["package"])
    except PackageNotFoundError:
        print(f"{pin['package']} is not installed: pip install {pin['package']}=={pin['version']}")
        return 1
    found = differences(installed, pin)
    for line in found:
        print(line)
    if found:
        print(f"mend it: pip install --force-reinstall --no-deps {pin['package']}=={pin['version']}")
    else:
        print(f"{pin['package']} {pin['version']}: {len(pin['files'])} pinned files and the whole wheel unedited")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
