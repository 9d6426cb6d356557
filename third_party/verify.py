#!/usr/bin/env python3
"""Prove that the INSTALLED ColBERT is the published wheel, unedited. Usage: python third_party/verify.py

Two witnesses: the wheel's own RECORD (every file it installed) and `colbert.json` beside this script (the files our
seam relies on, their sha256 as published, and why each). Exit 0 when both agree with the disk, 1 with one line per
difference. Only the standard library is used and nothing of ColBERT is imported.
"""

import base64
import hashlib
import json
import sys
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
    for name, entry in pin["files"].items():
        digest = _sha256(Path(str(installed.locate_file(name))))
        if digest is None or digest.hex() != entry["sha256"]:
            found.append(f"{name}: {'missing' if digest is None else 'not the pinned file'} (needed: {entry['why']})")
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
