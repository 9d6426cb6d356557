"""Progress bars, and keeping ColBERT's own chatter out of the way. Knows nothing about what progresses."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

Progress = tqdm  # what encoders update: `.update(n)`

_stream: TextIO | None = None  # where bars go while stdout and stderr are diverted; None: stderr


def progress_bar(total: int | None, description: str, *, show: bool = True, unit: str = " texts") -> "tqdm[None]":
    """A bar over texts (or another unit), on stderr, silent where stderr is not a terminal."""
    stream = _stream or sys.stderr
    return tqdm(total=total, desc=description, unit=unit, file=stream, disable=not (show and stream.isatty()), leave=False)


def note(text: str) -> None:
    """One line about what happens now, on stderr."""
    print(text, file=_stream or sys.stderr, flush=True)


def _flush() -> None:
    """Python's buffers and C's: faiss prints through stdio, which would empty itself when the descriptors are back."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)


@contextmanager
def only_our_output(log: Path) -> Iterator[None]:
    """Send everything that this process, its libraries and its children print to `log`; our bars stay visible.

    Works on file descriptors: faiss and the C++ compiler do not print through Python.
    """
    global _stream
    _flush()
    saved = os.dup(1), os.dup(2)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file, os.fdopen(os.dup(2), "w") as visible:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        _stream = visible
        try:
            yield
        finally:
            _stream = None
            _flush()
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)
