"""As fuzz_readers.py, with inputs that atheris (libFuzzer for Python; pip install atheris) grows by the branches they take.

The first failure ends it and is printed with its input.

Usage: grow_readers.py [libFuzzer's options, e.g. -runs=100000 -seed=1]
"""

import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

with atheris.instrument_imports(include=["colbert_diffusion"]):
    from fuzz_readers import READERS, Room, memory_folder


def main() -> None:
    names = list(READERS)
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        room, corpus = Room(Path(folder)), Path(folder) / "corpus"
        corpus.mkdir()
        for number, name in enumerate(names):
            (corpus / str(number)).write_bytes(bytes([number]) + READERS[name].good)

        def one(data: bytes) -> None:
            if data:
                room.read(names[data[0] % len(names)], data[1:])

        atheris.Setup([sys.argv[0], "-max_len=4096", *sys.argv[1:], str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
