"""What `plan` says against what an index takes: bytes on disk and seconds, cell by cell.

A cell is PASSAGES:K:DIM:NBITS. Its vectors are drawn around common centres, so that centroids have something to find,
and written as vector files; ColBERT's indexer then builds the index from them in this process, as `index --vectors`
does. Seconds are those of all of that: reading, k-means, assignment, packing, the inverted list; the plan's are from its
own probe, just before. Encoding is not in either. Measured against planned is what counts: other work on the machine
shows in it.

Usage: plan.py --out FOLDER [--cells 10000:16:128:2,...] [--keep]

OUT/plan.json keeps every row; interrupted, the same command goes on, and other cells may be asked for later. With
--keep the indexes built by this run stay in OUT, named by their cells, for memory.py --index. At most 16 vectors
of 240 dimensions, as many masks and dimensions as the shipped checkpoint has.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from colbert.infra import ColBERTConfig, Run, RunConfig
from common import Cell, KeptRows, Row, bytes_of, errors_in_a_line, make_parser, print_table, timed

from colbert_diffusion import DiffusionConfig, Indexer, default_checkpoint
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import folder_aside
from colbert_diffusion.common.progress import Progress, note, only_our_output
from colbert_diffusion.encoding.identity import CheckpointIdentity, identify
from colbert_diffusion.encoding.scoring import Vectors
from colbert_diffusion.encoding.vectors import encode_to
from colbert_diffusion.index.planning import example_passages, make_plan, size

CENTRES = 4096  # in float32 (CENTRES, dim)
SPREAD = 1.0  # of a vector around its centre, both of length 1 before they are added
SMALL = [f"10000:{k}:{dim}:{nbits}" for k in (1, 4, 16) for dim in (64, 128) for nbits in (1, 2, 4)]
DEFAULT = [*SMALL, "50000:4:128:2", "50000:16:128:2", "100000:4:128:2", "100000:16:128:2"]


@dataclass(frozen=True)
class Built(Cell):
    """The shape of an index."""

    passages: int
    k: int
    dim: int
    nbits: int

    @classmethod
    def parse(cls, text: str) -> "Built":
        """Raises UserError for anything but four whole numbers."""
        parts = text.split(":")
        if len(parts) != 4 or not all(part.isdecimal() for part in parts):
            raise UserError(f"{text!r} is no cell; write PASSAGES:K:DIM:NBITS, as in {DEFAULT[0]}")
        return cls(*map(int, parts))


class Drawn:
    """An encoder whose vectors are drawn: k of `dim` dimensions for each passage, whatever its text."""

    def __init__(self, cell: Built) -> None:
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


def identity(cell: Built, folder: Path) -> CheckpointIdentity:
    """The checkpoint whose vectors the drawn ones pass for: the shipped one, with as few vectors and dimensions."""
    if not folder.exists():
        with folder_aside(folder) as aside:
            shutil.copytree(default_checkpoint(), aside, dirs_exist_ok=True)
            shape = replace(DiffusionConfig.load(aside), projection="learned")  # drawn, so that a part of them is as good
            shape.prefix(k_passage=cell.k, dim=cell.dim).save(aside)
    return identify(folder)


def measure(cell: Built, folder: Path, checkpoints: Path) -> Row:
    """Plan and build a cell's index in `folder`; both, as a row."""
    texts = example_passages(cell.passages)
    made_by = identity(cell, checkpoints / f"{cell.k}-{cell.dim}")
    encode_to(folder / "vectors", made_by, lambda: Drawn(cell), texts)
    planned = make_plan(**cell.as_row(), index=folder)
    with Run().context(RunConfig(index_root=str(folder))):
        config = ColBERTConfig(nbits=cell.nbits)
        index, seconds = timed(lambda: Path(Indexer(str(folder / "vectors"), config, verbose=0).index("index", texts)))
    return {
        **cell.as_row(),
        "planned_bytes": sum(planned.index.values()),
        "bytes": bytes_of(index, "*") - bytes_of(index, "collection.tsv"),
        "planned_seconds": 3600 * sum((planned.hours or {}).values()),
        "seconds": seconds,
    }


def show(rows: Sequence[Row]) -> None:
    columns = ("passages", "k", "dim", "nbits", "size planned", "measured", "ratio", "seconds planned", "measured", "ratio")
    print_table(
        columns,
        (
            (
                f"{row['passages']:,}",
                *(row[name] for name in ("k", "dim", "nbits")),
                *(size(row["planned_bytes"]), size(row["bytes"]), f"{row['bytes'] / row['planned_bytes']:.2f}"),
                *(f"{row['planned_seconds']:.1f}", f"{row['seconds']:.1f}"),
                f"{row['seconds'] / row['planned_seconds']:.2f}",
            )
            for row in rows
        ),
    )


def measure_all(cells: Sequence[Built], out: Path, keep: bool) -> list[Row]:
    """Their rows; those that OUT/plan.json has are not measured again."""
    kept, checkpoints, found = KeptRows(out / "plan.json"), out / "checkpoints", []
    out.mkdir(parents=True, exist_ok=True)
    if not all(kept.find(**cell.as_row()) for cell in cells):  # loads and compiles what the others find loaded
        with tempfile.TemporaryDirectory(dir=out) as folder, only_our_output(out / "colbert.log"):
            measure(Built(1000, 4, 64, 2), Path(folder), checkpoints)
    for cell in cells:
        row = kept.find(**cell.as_row())
        if row is None:
            if keep and (out / cell.name).exists():
                raise UserError(f"{out / cell.name} exists; delete it, or leave --keep out")
            with tempfile.TemporaryDirectory(dir=out) as folder, only_our_output(out / "colbert.log"):
                row = measure(cell, Path(folder), checkpoints)
                if keep:
                    Path(folder, "index").rename(out / cell.name)
            note(f"{cell.name}: {row['seconds']:.1f} s, planned {row['planned_seconds']:.1f} s")
            kept.add(row)
        found.append(row)
    return found


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=lambda text: text.split(","), default=DEFAULT)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args(arguments)
    show(measure_all([Built.parse(text) for text in given.cells], given.out, given.keep))


if __name__ == "__main__":
    main()
