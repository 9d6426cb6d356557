"""What `colbert-diffusion evaluate` does for one benchmark: run the systems asked for, measure, write it all down."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import __version__
from ..common.errors import UserError
from ..common.files import write_json
from ..index.fusion import Fusion
from ..index.rows import Row
from .benchmarks import Benchmark
from .bm25 import bm25_run
from .exact import Cell, EncodedPassages, TextEncoder, cell_runs, check_cells
from .measuring import DEFAULT_MEASURES, RESAMPLES, SEED, Report, evaluate, parse_measures
from .plaid import build_index, check_documents, check_words, index_runs
from .runs import Run, read_run, without_own, write_run

if TYPE_CHECKING:
    from ..encoding.checkpoint import DiffusionCheckpoint
    from ..encoding.identity import CheckpointIdentity

REPORT_FILE = "measures.json"
VECTORS = "vectors-of-this-run"  # gone once the index stands; no name that a user's own folder has


@dataclass(frozen=True)
class Systems:
    """Which systems to run, and how. With none named it is PLAID, on an index built for the occasion.

    They come in this order, and the first is the baseline: BM25, exact, exact by cells, PLAID, words, both, run files.

    Args:
        checkpoint: folder or hub id; None: the index's, else the small default checkpoint.
        index: an existing index of the documents, for PLAID, words and both.
        k_passage, dim: cells of prefixes, all combinations; empty: the checkpoint's own.
        depth: documents per query.
        nbits: of an index that is built; None: the checkpoint's recommendation.
        lexical: a row of an index's words alone, "bm25" or "predicted"; and which words an index gets that is built.
        hybrid: a row of vectors and words, by the fusion that the index recommends, else its default.
        fusions: a row for each of these.

    Raises:
        UserError: settings that do not go together.
    """

    checkpoint: str | None = None
    index: Path | None = None
    plaid: bool = False
    exact: bool = False
    bm25: bool = False
    runs: tuple[Path, ...] = ()
    k_passage: tuple[int, ...] = ()
    dim: tuple[int, ...] = ()
    depth: int = 1000
    nbits: int | None = None
    measures: str = DEFAULT_MEASURES
    lexical: Literal["bm25", "predicted"] | None = None
    hybrid: bool = False
    fusions: tuple[Fusion, ...] = ()

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UserError(f"depth is {self.depth}, expected at least 1")
        if self.index is not None and self.nbits is not None:
            raise UserError(f"{self.index} has its own bits; leave --nbits {self.nbits} or --index out")
        if self.lexical not in (None, "bm25", "predicted"):
            raise UserError(f"--lexical {self.lexical!r:.40}: expected bm25 or predicted")
        made = {name for name, named in (("bm25", self.bm25), ("exact", self.exact)) if named} | set(self.rows)
        names = [run.stem for run in self.runs]
        for name in names:
            if names.count(name) > 1 or name in made:
                raise UserError(f"a run file named {name} would be mistaken for another system; rename it")

    @property
    def has_cells(self) -> bool:
        return bool(self.k_passage or self.dim)

    @property
    def runs_plaid(self) -> bool:
        named = self.exact or self.bm25 or self.runs or self.has_cells or self.needs_words
        return self.plaid or self.index is not None or not named

    @property
    def needs_words(self) -> bool:
        return bool(self.lexical or self.hybrid or self.fusions)

    @property
    def rows(self) -> dict[str, Row]:
        """Those of the index, by name."""
        return (
            ({"plaid": Row("dense")} if self.runs_plaid else {})
            | ({"lexical": Row("lexical")} if self.lexical else {})
            | ({"hybrid": Row("hybrid")} if self.hybrid else {})
            | {f"hybrid-{fusion.rule}-{fusion.weight:g}": Row("hybrid", fusion) for fusion in self.fusions}
        )


def measure_systems(
    benchmark: Benchmark, systems: Systems, out: Path | None = None, cluster: Any = None
) -> tuple[Report, dict[str, Any]]:
    """Run the systems on a benchmark.

    Args:
        cluster: encodes passages, compresses and searches in place of this machine (`distributed.RayCluster`).
        out: folder for the run files SYSTEM.trec, measures.json, and the index where one is built.

    Returns:
        The report, and what it is a report of (as in measures.json).

    Raises:
        UserError: what any of the steps raises; what can be checked is checked before anything is encoded.
    """
    for measure in parse_measures(systems.measures):
        if systems.depth < min(measure.params.get("cutoff", 0), len(benchmark.documents)):
            raise UserError(f"{measure} looks deeper than the {systems.depth} passages per query; raise --depth")
    given = {path.stem: without_own(read_run(path), benchmark.own, systems.depth) for path in systems.runs}
    about: dict[str, Any] = {
        "benchmark": {
            "name": benchmark.name,
            "split": benchmark.split,
            "documents": len(benchmark.documents),
            "queries": len(benchmark.queries),
            "judgements": sum(map(len, benchmark.qrels.values())),
            "queries_left_out": benchmark.left_out,
            "judged_documents_missing": benchmark.missing,
            "queries_without_their_own_document": len(benchmark.own),
        },
        "checkpoint": None,
        "settings": {
            "depth": systems.depth,
            "measures": systems.measures,
            "index": systems.index and str(systems.index),
            "nbits": systems.nbits,
            "lexical": systems.lexical,
            "bootstrap": {"resamples": RESAMPLES, "seed": SEED},
            "version": __version__,
        },
    }
    made: dict[str, Run] = {}
    depth, systems = systems.depth, replace(systems, depth=systems.depth + bool(benchmark.own))  # one of them will go

    def keep(name: str, run: Run) -> None:
        made[name] = run = without_own(run, benchmark.own, depth)
        if out is not None:  # at once: what comes next may fail, after hours
            write_run(out / f"{name}.trec", run, name)

    if systems.bm25:
        keep("bm25", bm25_run(benchmark, systems.depth))
    if systems.rows or systems.exact or systems.has_cells:
        about["checkpoint"] = _run_checkpoint(benchmark, systems, out, keep, cluster)
    report = evaluate(benchmark, made | given, systems.measures)
    if out is not None:
        write_json(out / REPORT_FILE, about | asdict(report))
    return report, about


def _run_checkpoint(
    benchmark: Benchmark, systems: Systems, out: Path | None, keep: Callable[[str, Run], None], cluster: Any
) -> dict[str, Any]:
    """Run the systems that need a model; which model it was."""
    from ..encoding.checkpoint import DiffusionCheckpoint, default_checkpoint
    from ..encoding.identity import identify

    def keep_all(runs: dict[str, Run]) -> None:
        for name, run in runs.items():
            keep(name, run)

    path = systems.checkpoint or (_checkpoint_of(systems.index) if systems.index else default_checkpoint())
    identity = identify(path)
    own = Cell(identity.config.k_passage, identity.config.dim)
    cells = [Cell(*cell) for cell in product(systems.k_passage or (own.k,), systems.dim or (own.dim,))]
    check_cells(identity.config, cells)
    if systems.index is not None:
        check_documents(systems.index.absolute(), benchmark)
        if systems.needs_words:
            check_words(systems.index.absolute(), systems.lexical)
    names = ({"exact": own} if systems.exact else {}) | (
        {f"exact-k{cell.k}-dim{cell.dim}": cell for cell in cells} if systems.has_cells else {}
    )
    words = (systems.lexical or "bm25") if systems.needs_words else None
    with tempfile.TemporaryDirectory() as temporary:
        work, source = out or Path(temporary), str(identity.path)
        vectors = work / VECTORS
        if names:
            model = DiffusionCheckpoint(identity.path)
            encoder: TextEncoder = model
            if systems.index is None and systems.rows:  # passages are encoded once, for both
                source = str(vectors)
                encoder = _encoded(model, identity, benchmark, vectors, cluster, predicted=words == "predicted")
            runs = cell_runs(encoder, benchmark, list(dict.fromkeys(names.values())), systems.depth)
            keep_all({name: runs[cell] for name, cell in names.items()})
            del model, encoder  # the searcher loads its own
        if systems.index is not None:
            keep_all(index_runs(systems.index, benchmark, systems.rows, systems.depth, systems.checkpoint, cluster))
        elif systems.rows:
            index = build_index(source, benchmark, work / "index", systems.nbits, words, cluster)
            shutil.rmtree(vectors, ignore_errors=True)
            keep_all(index_runs(index, benchmark, systems.rows, systems.depth, cluster=cluster))
    return {"path": str(identity.path), "fingerprint": identity.fingerprint, "dtype": identity.dtype}


def _encoded(
    model: "DiffusionCheckpoint",
    identity: "CheckpointIdentity",
    benchmark: Benchmark,
    folder: Path,
    cluster: Any,
    *,
    predicted: bool,
) -> TextEncoder:
    """The model with the benchmark's passages, which are encoded into the folder for an index too; interrupted, it goes on."""
    from ..encoding.vectors import encode_to

    how: dict[str, Any] = {"lexical": predicted, "cluster": cluster, "show_progress_bar": True}
    files = encode_to(folder, identity, lambda: model, benchmark.texts, **how)
    return EncodedPassages(model, files.read(range(len(files))))


def _checkpoint_of(index: Path) -> str:
    from ..index.opening import checkpoint_of, index_config

    index = index.absolute()
    return checkpoint_of(index, index_config(index))
