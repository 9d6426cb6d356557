"""Short content hashes: has this checkpoint or collection changed since? Knows nothing about what they mean."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from .stamps import UNKNOWN, Stamp, stamp_of

BLOCK = 2**25  # bytes that one thread hashes
PIECE = 2**20
WHOLE = 64 * 2**20  # version 0.1 hashed files up to this size whole
SLICES, SLICE = 64, 2**20  # and larger ones by their size and evenly spread slices


def of_contents(contents: Mapping[str, str]) -> str:
    """A hash of what stands under which name; 32 hexadecimal digits, where version 0.1's had 16."""
    digest = hashlib.sha256()
    for name, content in sorted(contents.items()):
        digest.update(f"{len(name)} {name} {len(content)} {content}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def of_file(path: Path) -> str:
    """A hash of every byte, by as many threads as there are cores; once per process for a file that stays as it is."""
    about = path.stat()
    stamp = stamp_of(about)
    return _of_blocks(path, about.st_size) if stamp == UNKNOWN else _kept(path, about.st_size, stamp)


@lru_cache(maxsize=4096)
def _kept(path: Path, size: int, stamp: Stamp) -> str:
    return _of_blocks(path, size)


def _of_blocks(path: Path, size: int) -> str:
    starts = range(0, size, BLOCK)
    if len(starts) < 2:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as file, ThreadPoolExecutor(os.cpu_count()) as threads:
        digests = threads.map(lambda start: _of_block(file.fileno(), start), starts)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _of_block(descriptor: int, start: int) -> bytes:
    digest = hashlib.sha256()
    for offset in range(start, start + BLOCK, PIECE):
        digest.update(os.pread(descriptor, PIECE, offset))
    return digest.digest()


def of_files(paths: Iterable[Path]) -> str:
    """A hash of the files' names and contents (of large files: their size and 64 slices of 1 MiB)."""
    digest = hashlib.sha256()
    for path in paths:
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
