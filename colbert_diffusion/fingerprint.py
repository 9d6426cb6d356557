"""Short content hashes: has this checkpoint or collection changed since? Knows nothing about what they mean."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

WHOLE = 64 * 2**20  # files up to this size are hashed whole
SLICES, SLICE = 64, 2**20  # larger ones by their size and evenly spread slices: 15 GB of weights in under a second


def of_files(paths: Iterable[Path]) -> str:
    """A hash of the files' names and contents (of large files: their size and 64 slices of 1 MiB)."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
                continue
            for i in range(SLICES):
                file.seek((size - SLICE) * i // (SLICES - 1))
                digest.update(file.read(SLICE))
    return digest.hexdigest()[:16]


def of_texts(texts: Iterable[str]) -> str:
    """A hash of the texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()[:16]
