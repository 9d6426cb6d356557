"""What `plan` says against what an index takes: bytes on disk and seconds, cell by cell.

A cell is PASSAGES:K:DIM:NBITS. Its vectors are drawn around common centres, so that centroids have something to find,
and written as vector files; ColBERT's indexer then builds the index from them in this process, as `index --vectors`
does. Seconds are those of all of that: reading, k-means, assignment, packing, the inverted list; the plan's are from its
own probe, just before. Encoding is not in either. Measured against planned is what counts: other work on the machine
shows in it.

Usage: bench_plan.py --out FOLDER [--cells 10000:16:128:2,...] [--keep]

OUT/plan.json keeps every row; interrupted, the same command goes on, and other cells may be asked for later. With
--keep the indexes built by this run stay in OUT, named by their cells, for bench_memory.py --index. At most 16 vectors
of 128 dimensions, as the shipped checkpoint has.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from colbert.infra import ColBERTConfig, Run, RunConfig

from colbert_diffusion import Indexer, convert, default_checkpoint
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import read_json, write_json
from colbert_diffusion.common.progress import Progress, note, only_our_output
from colbert_diffusion.encoding.identity import CheckpointIdentity, identify
from colbert_diffusion.encoding.scoring import Vectors
from colbert_diffusion.encoding.vectors import encode_to
from colbert_diffusion.index.planning import example_passages, make_plan, size

CENTRES = 4096  # in float32 (CENTRES, dim)
SPREAD = 1.0  # of a vector around its centre, both of length 1 before they are added
SMALL = [f"10000:{k}:{dim}:{nbits}" for k in (1, 4, 16) for dim in (64, 128) for nbits in (1, 2, 4)]
DEFAULT = [*SMALL, "50000:4:128:2", "50000:16:128:2", "100000:4:128:2", "100000:16:128:2"]


class Cell(NamedTuple):
    passages: int
    k: int
    dim: int
    nbits: int

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """Raises UserError for anything but four whole numbers."""
        parts = text.split(":")
        if len(parts) != 4 or not all(part.isdecimal() for part in parts):
            raise UserError(f"{text!r} is no cell; write PASSAGES:K:DIM:NBITS, as in {DEFAULT[0]}")
        return cls(*map(int, parts))


class Drawn:
    """An encoder whose vectors are drawn: k of `dim` dimensions for each passage, whatever its text."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.draw = cell, np.random.default_rng(0)
        self.centres = _unit(self.draw.standard_normal((CENTRES, cell.dim), dtype=np.float32))

    def cut_documents(self) -> None:
        """Not told here."""

    def iter_document(self, documents: Sequence[str], progress: Progress | None = None) -> Iterator[Vectors]:
        for _ in documents:
            near = self.centres[self.draw.integers(CENTRES, size=self.cell.k)]
            away = _unit(self.draw.standard_normal(near.shape, dtype=np.float32))
            yield _unit(near + SPREAD * away)


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit


def identity(cell: Cell, folder: Path) -> CheckpointIdentity:
    """The checkpoint whose vectors the drawn ones pass for: the shipped one, with as few vectors and dimensions."""
    if not folder.exists():
        convert(str(default_checkpoint()), folder, k_passage=cell.k, dim=cell.dim)
    return identify(folder)


def measure(cell: Cell, folder: Path, checkpoints: Path) -> dict[str, Any]:
    """Plan and build a cell's index in `folder`; both, as a row."""
    texts = example_passages(cell.passages)
    made_by = identity(cell, checkpoints / f"{cell.k}-{cell.dim}")
    encode_to(folder / "vectors", made_by, lambda: Drawn(cell), texts)
    planned = make_plan(*cell, index=folder)
    started = time.perf_counter()
    with Run().context(RunConfig(index_root=str(folder))):
        index = Path(Indexer(str(folder / "vectors"), ColBERTConfig(nbits=cell.nbits), verbose=0).index("index", texts))
    seconds = time.perf_counter() - started
    stored = sum(file.stat().st_size for file in index.iterdir() if file.name != "collection.tsv")
    return {
        **cell._asdict(),
        "planned_bytes": sum(planned.index.values()),
        "bytes": stored,
        "planned_seconds": 3600 * sum((planned.hours or {}).values()),
        "seconds": seconds,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| passages | k | dim | nbits | size planned | measured | ratio | seconds planned | measured | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cell = f"{row['passages']:,} | {row['k']} | {row['dim']} | {row['nbits']}"
        sizes = f"{size(row['planned_bytes'])} | {size(row['bytes'])} | {row['bytes'] / row['planned_bytes']:.2f}"
        times = f"{row['planned_seconds']:.1f} | {row['seconds']:.1f} | {row['seconds'] / row['planned_seconds']:.2f}"
        lines.append(f"| {cell} | {sizes} | {times} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=lambda text: text.split(","), default=DEFAULT)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args(arguments)
    path, checkpoints = given.out / "plan.json", given.out / "checkpoints"
    try:
        cells = [Cell.parse(text) for text in given.cells]
        rows: list[dict[str, Any]] = read_json(path)["rows"] if path.exists() else []
        done = {tuple(row[name] for name in Cell._fields): row for row in rows}
        given.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=given.out) as folder, only_our_output(given.out / "colbert.log"):
            if any(tuple(cell) not in done for cell in cells):  # loads and compiles what the others find loaded
                measure(Cell(1000, 4, 64, 2), Path(folder) / "first", checkpoints)
        for cell in cells:
            if tuple(cell) in done:
                continue
            kept = given.out / "-".join(map(str, cell))
            if given.keep and kept.exists():
                raise UserError(f"{kept} exists; delete it, or leave --keep out")
            with tempfile.TemporaryDirectory(dir=given.out) as folder, only_our_output(given.out / "colbert.log"):
                rows.append(measure(cell, Path(folder), checkpoints))
                if given.keep:
                    Path(folder, "index").rename(kept)
            done[tuple(cell)] = rows[-1]
            note(f"{cell}: {rows[-1]['seconds']:.1f} s, planned {rows[-1]['planned_seconds']:.1f} s")
            write_json(path, {"rows": rows})
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table([done[tuple(cell)] for cell in cells]))


if __name__ == "__main__":
    main()
