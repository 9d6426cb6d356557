"""Quality against size: a nested checkpoint's nDCG@10 and bytes per passage for fewer vectors, dimensions and bits.

A cell (k_passage, dim, how vectors are merged or chosen) is a checkpoint of its own, made by `convert` in OUT/cells. The whole
checkpoint encodes each collection once; a cell's vectors are the prefixes of these, merged, and are indexed from vector
files at every nbits. Measured through PLAID at its default settings, and by exact MaxSim over the same vectors.
Bytes are those of the codes and residuals on disk, as `colbert-diffusion index` reports them; the files' own headers
are in them, a few kB together, which shows in a small collection.

Usage: curve.py CHECKPOINT COLLECTION ... --out FOLDER [--k-passage 1,2,4,8,16] [--merge-above none,0.98,0.95,0.9]
           [--cover-above 0.98,0.95,0.9] [--nbits 1,2,4] [--dim 64,128]

OUT/curve.json keeps every row and OUT/curve.png the plot; interrupted, the same command goes on, and other cells may be
asked for later. In the table * marks the Pareto front: nothing smaller is as good.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from common import Cell, KeptRows, Row, errors_in_a_line, make_parser, numbers, packed_bytes, print_table

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import written_aside
from colbert_diffusion.common.fingerprint import of_texts
from colbert_diffusion.common.progress import Progress, note, only_our_output
from colbert_diffusion.encoding.allocation import allocator, vectors_per_text
from colbert_diffusion.encoding.conversion import convert
from colbert_diffusion.encoding.encoder import Encoder
from colbert_diffusion.encoding.identity import identify
from colbert_diffusion.encoding.scoring import Vectors
from colbert_diffusion.encoding.vectors import encode_to
from colbert_diffusion.evaluation import Benchmark, build_index, evaluate, exact_run, plaid_run, prefix, read_benchmark

MEASURE = "nDCG@10"


@dataclass(frozen=True)
class Size(Cell):
    """What is kept of a checkpoint's vectors."""

    k_passage: int
    dim: int
    merge_above: float | None
    cover_above: float | None

    @property
    def name(self) -> str:
        """A folder's name."""
        return f"k{self.k_passage}-dim{self.dim}-{how_kept(self.as_row())}".removesuffix("-all").replace(" ", "")


def how_kept(row: Row) -> str:
    """For people."""
    if row["merge_above"]:
        return f"merge {row['merge_above']:g}"
    return f"cover {row['cover_above']:g}" if row.get("cover_above") else "all"  # earlier rows covered nothing


class Whole:
    """A collection's queries and documents as the whole checkpoint encodes them, unmerged: by text, float32 (k, dim)."""

    def __init__(self, checkpoint: str, benchmark: Benchmark) -> None:
        note(f"{benchmark.name}: encoding {len(benchmark.documents):,} passages")
        loaded = DiffusionCheckpoint(checkpoint)
        own = loaded.encoder
        unmerged = Encoder(own.backbone, replace(loaded.config, merge_above=None, cover_above=None), own.projection)
        self.queries = dict(zip(benchmark.queries.values(), loaded.encode_query([*benchmark.queries.values()]), strict=True))
        self.documents = dict(zip(benchmark.texts, unmerged.encode(benchmark.texts, "passage"), strict=True))


class Part:
    """A cell as an encoder: prefixes of the whole vectors, merged or covered."""

    def __init__(self, whole: Whole, cell: Size) -> None:
        self.whole, self.cell = whole, cell
        self.allocate = allocator(DiffusionConfig("", merge_above=cell.merge_above, cover_above=cell.cover_above))

    def encode_query(self, queries: Iterable[str]) -> list[Vectors]:
        return prefix([self.whole.queries[text] for text in queries], None, self.cell.dim)

    def encode_document(self, documents: Iterable[str]) -> list[Vectors]:
        cut = prefix([self.whole.documents[text] for text in documents], self.cell.k_passage, self.cell.dim)
        if self.allocate is None:
            return cut
        return [kept for text in cut for kept in self.allocate(torch.from_numpy(text)[None])]

    def cut_documents(self) -> None:
        """Not told here."""

    def iter_document(self, documents: Sequence[str], progress: Progress | None = None) -> Iterator[Vectors]:
        return iter(self.encode_document(documents))


def make_checkpoint(source: str, folder: Path, cell: Size) -> None:
    """The cell's checkpoint in `folder`; its thresholds are the cell's, whatever the source's."""
    if not folder.exists():
        convert(source, folder, k_passage=cell.k_passage, dim=cell.dim)
    config = DiffusionConfig.load(folder)
    replace(config, merge_above=cell.merge_above, cover_above=cell.cover_above).save(folder)


def measure_cell(
    source: str, benchmark: Benchmark, whole: Callable[[], Whole], cell: Size, todo: Sequence[int], out: Path
) -> Iterator[Row]:
    """A row for each nbits of `todo`."""
    checkpoint, work = out / "cells" / cell.name, out / benchmark.name / cell.name
    make_checkpoint(source, checkpoint, cell)
    part = Part(whole(), cell)
    encode_to(work / "vectors", identify(checkpoint), lambda: part, benchmark.texts)
    runs = {"exact": exact_run(part, benchmark)}
    for nbits in todo:
        with only_our_output(out / "colbert.log"):
            index = build_index(str(work / "vectors"), benchmark, work / f"nbits{nbits}", nbits)
            runs["plaid"] = plaid_run(index, benchmark)
        means = evaluate(benchmark, runs, MEASURE).means
        yield {
            "collection": benchmark.name,
            **cell.as_row(),
            "nbits": nbits,
            "vectors": vectors_per_text(part.encode_document(benchmark.texts)),
            "bytes": packed_bytes(index) / len(benchmark.documents),
            **{system: means[system][MEASURE] for system in ("exact", "plaid")},
        }


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows of one collection that no smaller row equals, smallest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["bytes"], -row["plaid"])):
        if not best or row["plaid"] > best[-1]["plaid"]:
            best.append(row)
    return best


def show(rows: Sequence[Row]) -> None:
    best = [row for name in {row["collection"] for row in rows} for row in front([r for r in rows if r["collection"] == name])]
    print_table(
        ("collection", "k", "dim", "kept", "nbits", "vectors", "bytes", "exact", "PLAID", ""),
        (
            (
                *(row["collection"], row["k_passage"], row["dim"], how_kept(row), row["nbits"]),
                *(f"{row['vectors']:.1f}", f"{row['bytes']:.0f}", f"{row['exact']:.3f}", f"{row['plaid']:.3f}"),
                "*" if row in best else "",
            )
            for row in rows
        ),
    )


def draw(rows: Sequence[Row], out: Path) -> None:
    """A panel for each collection: bytes per passage (log) against nDCG@10 through PLAID, a colour for each k, the front."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["collection"] for row in rows))
    figure = Figure(figsize=(1 + 5 * len(names), 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        group = [row for row in rows if row["collection"] == name]
        best = front(group)
        axes.step([row["bytes"] for row in best], [row["plaid"] for row in best], where="post", color="grey", label="front")
        for k in sorted({row["k_passage"] for row in group}):
            of_k = [row for row in group if row["k_passage"] == k]
            axes.scatter([row["bytes"] for row in of_k], [row["plaid"] for row in of_k], s=18, label=f"k {k}")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(title=name, xlabel="bytes per passage", ylabel=f"{MEASURE}, PLAID")
        axes.legend(loc="lower right")
    with written_aside(out) as aside:
        figure.savefig(aside, format="png")


def read_kept(path: Path, source: str, benchmarks: Sequence[Benchmark]) -> KeptRows:
    """What `path` says so far.

    Raises:
        UserError: it is of another checkpoint, or of other documents; or two collections have the same name.
    """
    checkpoint, collections = identify(source).fingerprint, {one.name: of_texts(one.texts) for one in benchmarks}
    if len(collections) < len(benchmarks):
        raise UserError("two collections have the same name; measure them apart")
    found = KeptRows(path, checkpoint=checkpoint, collections={})
    if found.content["checkpoint"] != checkpoint:
        raise UserError(f"{path} is of another checkpoint; choose another --out or delete it")
    known = found.content["collections"]
    if differs := [name for name, texts in collections.items() if known.get(name, texts) != texts]:
        raise UserError(f"{path} is of other documents in {', '.join(differs)}; choose another --out or delete it")
    known |= collections
    return found


def measure(source: str, collections: Sequence[str], cells: Sequence[Size], bits: Sequence[int], out: Path) -> list[Row]:
    """The rows asked for; those that OUT/curve.json has are not measured again."""
    benchmarks = [read_benchmark(collection) for collection in collections]
    kept = read_kept(out / "curve.json", source, benchmarks)
    asked: list[Row] = []
    for benchmark in benchmarks:
        whole = cache(partial(Whole, source, benchmark))
        for cell in cells:
            find = partial(kept.find, collection=benchmark.name, **cell.as_row())
            todo = [nbits for nbits in bits if find(nbits=nbits) is None]
            for row in measure_cell(source, benchmark, whole, cell, todo, out) if todo else ():
                note(f"{benchmark.name} {cell.name} nbits {row['nbits']}: {row['bytes']:.0f} bytes, {row['plaid']:.4f}")
                kept.add(row)
            asked += [known for nbits in bits if (known := find(nbits=nbits))]
    return asked


def make_cells(
    config: DiffusionConfig,
    ks: Sequence[int],
    dims: Sequence[int],
    merged: Sequence[float | None],
    covered: Sequence[float],
) -> list[Size]:
    """All combinations, merged or covered; one vector alone is neither.

    Raises:
        UserError: the checkpoint does not have one of them.
    """
    for k, dim in itertools.product(ks, dims or [config.dim]):
        config.prefix(k_passage=k, dim=dim)
    kept = [*((above, None) for above in merged), *((None, above) for above in covered)]
    combinations = itertools.product(ks, dims or [config.dim], kept)
    return list(dict.fromkeys(Size(k, dim, *(how if k > 1 else (None, None))) for k, dim, how in combinations))


def thresholds(text: str) -> list[float | None]:
    return [None if part == "none" else float(part) for part in text.split(",")]


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", help="a nested one")
    parser.add_argument("collections", nargs="+", help="BEIR folders and so on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--k-passage", type=numbers, default=[1, 2, 4, 8, 16])
    parser.add_argument("--dim", type=numbers, default=[], help="default: the checkpoint's own")
    parser.add_argument("--merge-above", type=thresholds, default=[None, 0.98, 0.95, 0.9])
    parser.add_argument("--cover-above", type=thresholds, default=[], help="default: none")
    parser.add_argument("--nbits", type=numbers, default=[1, 2, 4])
    given = parser.parse_args(arguments)
    config = identify(given.checkpoint).config
    cells = make_cells(config, given.k_passage, given.dim, given.merge_above, given.cover_above)
    rows = measure(given.checkpoint, given.collections, cells, given.nbits, given.out)
    draw(rows, given.out / "curve.png")
    show(rows)


if __name__ == "__main__":
    main()
