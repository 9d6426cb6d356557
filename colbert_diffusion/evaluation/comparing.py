"""Systems side by side on collections: each cell is encoded once, measured once and kept, whatever it is shown as afterwards.

A system is a checkpoint (its readout makes it DiffRetriever, DiffEmbed, RepLLaMA or PromptReps) with the words of its index, or
BM25. A cell is a system on a collection: a folder with its vectors, its index, its runs and, written last, `cell.json`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

from ..common.checks import listed
from ..common.errors import UserError
from ..common.files import read_json, write_json
from ..common.progress import note
from ..common.work import Marker
from ..config import CHECKPOINT, RELEASED, layout_of
from ..encoding.checkpoint import DiffusionCheckpoint
from ..encoding.identity import CheckpointIdentity, identify
from ..encoding.scoring import maxsim
from ..encoding.vectors import encode_to
from ..index.rows import Row
from ..texts.collection import collection_fingerprint
from .benchmarks import Benchmark
from .bm25 import bm25_run
from .exact import EncodedPassages, exact_run
from .measuring import Comparison, Report, evaluate
from .plaid import build_index, index_runs
from .runs import Run, read_run, write_run

BM25 = "BM25"
MODES = ("dense", "lexical", "hybrid")
CELL_FILE = "cell.json"
TIMED = 200  # queries, one after the other
PROBED = 32  # passages encoded to say how long all will take
SHOWN = 10  # passages of a timed search


@dataclass(frozen=True)
class System:
    """A row or, with words, three of the table.

    Args:
        checkpoint: folder or hub id; None: BM25.
        words: which words its index gets; None: none, its vectors alone.
        exact: exact MaxSim over every passage instead of an index, for vectors that PLAID does not take.
        nbits: of its index; None: the checkpoint's recommendation.
        random: its weights are: times are shown, quality is not.

    Raises:
        UserError: words without an index.
    """

    name: str
    checkpoint: str | None
    words: Literal["bm25", "predicted"] | None = None
    exact: bool = False
    nbits: int | None = None
    random: bool = False

    def __post_init__(self) -> None:
        if self.words not in (None, "bm25", "predicted"):
            raise UserError(f'{self.name}: words are {self.words!r:.40}, expected "bm25", "predicted" or null')
        if self.exact and (self.words or self.nbits):
            raise UserError(f"{self.name}: exact search has no index: leave its words and nbits out")
        for name in ("exact", "random"):
            if type(getattr(self, name)) is not bool:
                raise UserError(f"{self.name}: {name} is {getattr(self, name)!r:.40}, expected true or false")

    @property
    def modes(self) -> tuple[str, ...]:
        return MODES if self.words else ("dense",)


def read_systems(source: str | Path) -> list[System]:
    """From a JSON object of names and systems' fields (or just their checkpoints), or from a folder of checkpoints.

    Of a folder each checkpoint is a system, with predicted words where it predicts some.

    Raises:
        UserError: neither, a field that no system has, or no system.
    """
    path = Path(source)
    if path.is_dir():
        folders = [folder for folder in sorted(path.iterdir()) if layout_of(folder) in (CHECKPOINT, RELEASED)]
        systems = [System(folder.name, str(folder), words=_predicted(folder)) for folder in folders]
    else:
        if not path.is_file():
            raise UserError(f"{path} does not exist; give a folder of checkpoints or a JSON file of systems")
        known = {field.name for field in fields(System)} - {"name"}
        systems = []
        for name, given in read_json(path).items():
            about = {"checkpoint": given} if isinstance(given, str) else given
            if not isinstance(about, Mapping) or not isinstance(about.get("checkpoint"), str) or set(about) - known:
                raise UserError(f"{path}: {name} is {given!r:.60}, expected a checkpoint or an object with {listed(known)}")
            systems.append(System(name, **about))
    if not systems:
        raise UserError(f"{path} names no system; give a folder of checkpoints or a JSON object of them")
    if bad := [one.name for one in systems if one.name == BM25 or "/" in one.name or one.name.startswith(".")]:
        raise UserError(f"{path}: a system is called {bad[0]!r:.60}: {BM25} is always there, and a name becomes a folder's")
    return [System(BM25, None), *systems]


def _predicted(folder: Path) -> Literal["predicted"] | None:
    return None if DiffusionCheckpoint(folder, verbose=0).why_no_words() else "predicted"


@dataclass(frozen=True)
class Cost:
    """What a system costs, in one mode: bytes a passage, and milliseconds of a query, encoded and searched for alone."""

    bytes: float
    encode_p50: float
    encode_p95: float
    search_p50: float
    search_p95: float


@dataclass(frozen=True)
class Compared:
    """Everything measured on one collection. Systems are called by name and mode, BM25 by its name."""

    collection: str
    passages: int
    queries: int
    report: Report
    costs: dict[str, Cost]
    adjusted: dict[str, dict[str, float]]
    seconds: dict[str, float]
    random: frozenset[str]


def compare_systems(
    benchmark: Benchmark, systems: Sequence[System], out: Path, *, measures: str, depth: int = 1000, baseline: str = BM25
) -> Compared:
    """Fill the cells of a collection that are not there yet, and measure all.

    Args:
        out: the folder of the comparison; a cell is OUT/COLLECTION/SYSTEM.
        baseline: the row that every other is compared with.

    Raises:
        UserError: a cell is of another checkpoint or other documents, or there is no such baseline.
    """
    runs: dict[str, Run] = {}
    costs: dict[str, Cost] = {}
    seconds: dict[str, float] = {}
    for system in systems:
        folder = out / benchmark.name / system.name
        facts = _cell(benchmark, system, folder, depth)
        seconds[system.name] = facts["seconds"]
        for mode in system.modes:
            row = system.name if system.checkpoint is None else f"{system.name} {mode}"
            runs[row] = read_run(folder / f"{mode}.trec")
            if mode in facts["costs"]:
                costs[row] = Cost(**facts["costs"][mode])
    if baseline not in runs:
        raise UserError(f"there is no row {baseline!r:.60}; choose the baseline from: {', '.join(runs)}")
    report = evaluate(benchmark, {baseline: runs.pop(baseline), **runs}, measures)
    names = {system.name for system in systems if system.random}
    return Compared(
        collection=benchmark.name,
        passages=len(benchmark.documents),
        queries=len(benchmark.queries),
        report=report,
        costs=costs,
        adjusted=holm(report.comparisons),
        seconds=seconds,
        random=frozenset(row for row in report.means if row.rpartition(" ")[0] in names),
    )


def holm(comparisons: Sequence[Comparison]) -> dict[str, dict[str, float]]:
    """p of each system by measure, corrected for the number of systems (Holm 1979): system -> measure -> p.

    >>> holm([Comparison("a", "b", "RR", .1, 0, .2, .01), Comparison("c", "b", "RR", .1, 0, .2, .03)])
    {'a': {'RR': 0.02}, 'c': {'RR': 0.03}}
    """
    adjusted: dict[str, dict[str, float]] = {}
    for measure in dict.fromkeys(one.measure for one in comparisons):
        ranked = sorted((one for one in comparisons if one.measure == measure), key=lambda one: one.p)
        largest = 0.0
        for place, one in enumerate(ranked):
            largest = max(largest, min(1.0, (len(ranked) - place) * one.p))
            adjusted.setdefault(one.system, {})[measure] = largest
    return adjusted


def plan_lines(benchmarks: Sequence[Benchmark], systems: Sequence[System], out: Path) -> list[str]:
    """How long encoding what is not there yet takes here, by a few passages of each system."""
    lines, total = [], 0.0
    sample = list(benchmarks[0].texts[:PROBED])
    for system in systems:
        todo = [one for one in benchmarks if not (out / one.name / system.name / CELL_FILE).is_file()]
        if system.checkpoint is None or not todo:
            continue
        model = DiffusionCheckpoint(system.checkpoint, verbose=0)
        model.encode_document(sample[:1])
        started = perf_counter()
        model.encode_document(sample)
        hours = (perf_counter() - started) / len(sample) * sum(len(one.documents) for one in todo) / 3600
        lines.append(f"{system.name}: {hours:.2f} h to encode {listed([one.name for one in todo])}")
        total += hours
    return [*lines, f"all: {total:.2f} h of encoding on this machine; indexes and searches come on top"]


# A cell -----------------------------------------------------------------------------------------------------------


def _cell(benchmark: Benchmark, system: System, folder: Path, depth: int) -> dict[str, Any]:
    """What is known of a cell, run if it is not there."""
    identity = None if system.checkpoint is None else identify(system.checkpoint)
    about = {
        "checkpoint_fingerprint": identity and identity.fingerprint,
        "collection_fingerprint": collection_fingerprint(benchmark.texts),
        "queries": len(benchmark.queries),
        "words": system.words,
        "exact": system.exact,
        "nbits": system.nbits,
        "depth": depth,
    }
    marker = Marker(folder / CELL_FILE, grows={"costs", "seconds"})
    if other := marker.differences(about):
        raise UserError(f"{folder} holds another cell ({other}); choose another --out or delete it")
    if (there := marker.found()) is not None:
        return there
    note(f"{benchmark.name}: {system.name}")
    started = perf_counter()
    if identity is None:
        runs, costs = {"dense": bm25_run(benchmark, depth)}, dict[str, dict[str, float]]()
    else:
        runs, costs = _run(benchmark, system, identity, folder, depth)
    for mode, run in runs.items():
        write_run(folder / f"{mode}.trec", run, system.name.replace(" ", "-"))
    facts = {**about, "costs": costs, "seconds": perf_counter() - started}
    write_json(folder / CELL_FILE, facts)
    return facts


def _run(
    benchmark: Benchmark, system: System, identity: CheckpointIdentity, folder: Path, depth: int
) -> tuple[dict[str, Run], dict[str, dict[str, float]]]:
    """Encode once; exact MaxSim, or an index and its modes."""
    load, predicted = cache(partial(DiffusionCheckpoint, identity.path, verbose=0)), system.words == "predicted"
    files = encode_to(folder / "vectors", identity, load, benchmark.texts, lexical=predicted, show_progress_bar=True)
    texts = list(benchmark.queries.values())[: TIMED + 1]
    if system.exact:
        passages = list(files.read(range(len(files))))
        run = exact_run(EncodedPassages(load(), passages), benchmark, depth)
        size = 2 * identity.config.dim * sum(map(len, passages)) / len(passages)  # as float16, which its files have

        def asked(text: str) -> Any:
            return load().encode_query([text])

        return {"dense": run}, {"dense": _timed(texts, asked, lambda query: maxsim(query, passages), size)}
    from ..index.by_path import open_index
    from ..index.layout import stored_bytes

    index = build_index(str(folder / "vectors"), benchmark, folder / "index", system.nbits, system.words)
    runs = index_runs(index, benchmark, {mode: Row(mode) for mode in system.modes}, depth)
    searcher = open_index(index, collection=benchmark.texts)
    vectors, words = stored_bytes(index)
    sizes = {"dense": vectors, "lexical": words, "hybrid": vectors + words}

    def costs(mode: str) -> dict[str, float]:
        def ask(text: str) -> Any:
            return searcher.ask([text], mode=mode)[0]

        def answer(query: Any) -> Any:
            return searcher.answer(query, SHOWN, mode=mode)

        return _timed(texts, ask, answer, sizes[mode] / len(benchmark.documents))

    return runs, {mode: costs(mode) for mode in system.modes}


def _timed(texts: Sequence[str], ask: Callable[[str], Any], answer: Callable[[Any], Any], size: float) -> dict[str, float]:
    """`Cost`'s fields; the first query is not counted."""
    asking, answering = [], []
    for text in texts:
        started = perf_counter()
        query = ask(text)
        asked = perf_counter()
        answer(query)
        asking.append(1000 * (asked - started))
        answering.append(1000 * (perf_counter() - asked))
    percentiles = [np.percentile(times[1:] or times, (50, 95)).tolist() for times in (asking, answering)]
    (encode_p50, encode_p95), (search_p50, search_p95) = percentiles
    return {
        "bytes": size,
        "encode_p50": encode_p50,
        "encode_p95": encode_p95,
        "search_p50": search_p50,
        "search_p95": search_p95,
    }
