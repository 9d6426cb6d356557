"""`train`: a start checkpoint, examples and a recipe -> a checkpoint folder, resumable to the exact step.

A run lives in `OUT.training` beside its target: `run.json` (what it is), `log.jsonl`, `curves.png`, `state/`, `best/`.
`OUT` appears by a rename when the run is complete. The work folder stays; the log and the curves are worth keeping.
"""

import itertools
import json
import platform
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..common.errors import MissingPackageError, UserError
from ..common.files import folder_aside, needing_room, restore, write_json
from ..common.locking import writing
from ..common.optional import extra
from ..common.progress import note, progress_bar
from ..common.work import Marker
from ..evaluation.benchmarks import read_benchmark
from ..evaluation.exact import exact_run
from ..evaluation.measuring import evaluate
from .data import Example, Source, Stream, data_hash, read_source
from .grouping import grouped
from .log import Log, draw_curves
from .mining import mine
from .model import LiveCheckpoint, TrainableModel, autocasts
from .recipe import Recipe
from .state import load_state, save_state, saved_step
from .step import TrainingStep
from .teacher import Teacher

PACKAGES = ("torch", "transformers", "peft", "accelerate")


@dataclass(frozen=True)
class Data:
    """Files of examples (see `data.read_source`), with queries and collection where they hold ids."""

    paths: Sequence[Path]
    queries: Path | None = None
    collection: Path | None = None

    def describe(self) -> list[dict[str, str]]:
        files = [*self.paths, *(path for path in (self.queries, self.collection) if path is not None)]
        return [{"file": path.name, "sha256": data_hash(path)} for path in files]

    def mined(self, checkpoint: str | Path, recipe: Recipe, folder: Path) -> "Data":
        """The same examples with `recipe.negatives` hard negatives each, mined by the checkpoint into `folder`.

        Raises:
            UserError: the recipe uses no negatives, or distils scores that mined negatives do not have.
        """
        if not recipe.negatives or recipe.scores:
            raise UserError("mining needs a recipe with negatives of 1 or more and without distillation from scores")
        examples = itertools.chain.from_iterable(self._sources(recipe))
        return Data([mine(str(checkpoint), examples, folder, negatives=recipe.negatives, show_progress_bar=True)])

    def stream(self, recipe: Recipe) -> Stream:
        return Stream(self._sources(recipe), seed=recipe.seed)

    def _sources(self, recipe: Recipe) -> list[Source]:
        options: dict[str, Any] = {"queries": self.queries, "collection": self.collection}
        return [read_source(path, negatives=recipe.negatives, **options) for path in self.paths]


def train(
    start: str | Path,
    data: Data,
    out: str | Path,
    recipe: Recipe,
    *,
    dev: Sequence[str | Path] = (),
    measure: str = "nDCG@10",
    command: str | None = None,
    show_progress_bar: bool = False,
) -> Path:
    """Train a checkpoint; run again after an interruption, it goes on from its last saved step.

    Started by torchrun, the processes share each batch and see each other's negatives.

    Args:
        start: checkpoint folder to begin from (`colbert-diffusion convert` makes one of a backbone).
        data: the examples.
        out: folder of the trained checkpoint; it must not exist.
        dev: collections (BEIR folders and so on) evaluated every `recipe.evaluate_every` steps by exact MaxSim; the
            weights with the best mean of `measure` are kept. Without any, the last weights are.
        command: for the provenance.

    Returns:
        `out`.

    Raises:
        UserError: `out` exists, its work folder holds another run, the batch does not divide among the processes, or
            anything wrong with checkpoint, data or recipe.
    """
    out = Path(out)
    _require_plotting()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mixed = autocasts(recipe, device)
    if recipe.bf16 and not mixed:
        note("this processor computes bfloat16 slowly (it has no AVX-512): float32 instead")
    accelerator = Accelerator(mixed_precision="bf16" if mixed else "no", cpu=device.type == "cpu")
    with ExitStack() as held:
        held.enter_context(needing_room(out.with_name(out.name + ".training")))
        if accelerator.is_main_process:
            held.enter_context(writing(out))
        if out.exists():
            raise UserError(f"{out} exists; choose another folder or delete it")
        if recipe.batch % accelerator.num_processes:
            raise UserError(f"a batch of {recipe.batch} does not divide among {accelerator.num_processes} processes")
        held.enter_context(torch.random.fork_rng())
        return _Run(start, data, out, recipe, tuple(dev), measure, command, show_progress_bar, accelerator).run()


class _Run:
    """One process's view of a run."""

    def __init__(
        self,
        start: str | Path,
        data: Data,
        out: Path,
        recipe: Recipe,
        dev: Sequence[str | Path],
        measure: str,
        command: str | None,
        show: bool,
        accelerator: Accelerator,
    ) -> None:
        self.out, self.recipe, self.data, self.measure, self.show = out, recipe, data, measure, show
        self.accelerator, self.command = accelerator, command
        self.work = out.with_name(out.name + ".training")
        self.examples = data.stream(recipe)  # what is wrong with the files shows before a model is loaded
        self.benchmarks = [read_benchmark(path) for path in dev]
        self.model = TrainableModel(start, recipe, accelerator.device)
        self.parameters = self.model.parameters
        groups = parameter_groups(self.parameters, recipe)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        self.schedule = LambdaLR(self.optimizer, lambda step: rate_at(step, recipe))
        teacher, second = (
            None if checkpoint is None else Teacher(checkpoint, recipe, accelerator.device, out.parent)
            for checkpoint in (recipe.teacher, recipe.second_teacher)
        )
        if teacher is not None and recipe.coverage and teacher.config.dim != self.model.config.dim:
            raise UserError(
                f"coverage compares vectors with the teacher's, of dim {teacher.config.dim}; the checkpoint's dim is "
                f"{self.model.config.dim}: convert the teacher with --dim {self.model.config.dim}, or set coverage to 0"
            )
        self.step = TrainingStep(self.model, recipe, accelerator, teacher, second)
        self.about = self._describe()
        self.best: dict[str, Any] = {}

    def _describe(self) -> dict[str, Any]:
        """What makes this run this run; a resumed one must say the same."""
        return {
            "start": self.model.start.path.name,
            "start_fingerprint": self.model.start.fingerprint,
            "teacher_fingerprint": None if self.step.teacher is None else self.step.teacher.identity.fingerprint,
            "second_fingerprint": None if self.step.second is None else self.step.second.identity.fingerprint,
            "data": self.data.describe(),
            "recipe": asdict(self.recipe),
            "dev": [benchmark.name for benchmark in self.benchmarks],
            "measure": self.measure,
        }

    def run(self) -> Path:
        done = self._claim()
        self.accelerator.wait_for_everyone()
        log = Log(self.work / "log.jsonl", done) if self.accelerator.is_main_process else None
        batches = draw_batches(self.examples, self.recipe, self.step.teacher, done)
        main = self.accelerator.is_main_process
        with progress_bar(self.recipe.steps, "train", show=self.show and main, unit=" steps") as progress:
            progress.update(done)
            for step in range(done + 1, self.recipe.steps + 1):
                started = time.monotonic()
                losses = self.step(next(batches), step)
                self._update(losses)
                seconds = time.monotonic() - started
                if log is not None:
                    rate = round(self.recipe.batch / seconds, 1)
                    log.add({"step": step, "losses": losses, "pairs_per_second": rate})
                progress.update(1)
                progress.set_postfix(loss=f"{losses['loss']:.3f}")
                self._now_and_then(step, log)
        if main:
            self._finish()
        self.accelerator.wait_for_everyone()
        return self.out

    def _claim(self) -> int:
        """Make or check the work folder, put back what was saved; the steps already done."""
        if self.accelerator.is_main_process:
            restore(self.work / "best")
        marker = Marker(self.work / "run.json", grows={"best"}, renewed=self._renewed)
        there = marker.found()
        if other := marker.differences(self.about):
            raise UserError(f"{self.work} holds another run ({other}); choose another OUT or delete it")
        if there is not None:
            self.best = there.get("best", {})
        elif self.accelerator.is_main_process:
            marker.write(self.about)
        done = saved_step(self.work / "state")
        if done is None:
            return 0
        load_state(self.work / "state", done, self.parameters, self.optimizer)
        self.schedule.last_epoch = done
        for group, rate in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = rate * rate_at(done, self.recipe)
        if self.show and self.accelerator.is_main_process:
            note(f"going on after step {done} of {self.recipe.steps}")
        return done

    def _renewed(self, there: Mapping[str, Any]) -> dict[str, Any]:
        """A run by version 0.1 named its checkpoints by its own hashes; fields of later recipes had their defaults' meaning."""
        there = self.model.start.current(there, "start_fingerprint")
        defaults = json.loads(json.dumps({field.name: field.default for field in fields(Recipe)}))
        there = {**there, "recipe": defaults | there["recipe"]}
        return there if self.step.teacher is None else self.step.teacher.identity.current(there, "teacher_fingerprint")

    def _update(self, losses: Mapping[str, float]) -> None:
        if losses["loss"] != losses["loss"]:
            raise UserError("the loss is not a number; lower the learning rate, or raise the temperature")
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()

    def _now_and_then(self, step: int, log: Log | None) -> None:
        """Evaluate, then save, each in its rhythm and at the end: a resumed run repeats neither."""
        if log is None:
            return
        last = step == self.recipe.steps
        if self.benchmarks and (last or step % self.recipe.evaluate_every == 0):
            values = self._evaluate()
            log.add({"step": step, "dev": values})
            if self.show:
                note(f"step {step}: {self.measure} {', '.join(f'{name} {value:.4f}' for name, value in values.items())}")
            self._keep_best(step, values)
        if last or step % self.recipe.save_every == 0:
            log.to_disk()
            save_state(self.work / "state", step, self.parameters, self.optimizer)
            draw_curves(log.path, self.work / "curves.png")

    def _evaluate(self) -> dict[str, float]:
        live: LiveCheckpoint = self.model.live()
        values = {}
        for benchmark in self.benchmarks:
            runs = {"exact": exact_run(live, benchmark, depth=100)}
            values[benchmark.name] = evaluate(benchmark, runs, self.measure).means["exact"][self.measure]
        return values

    def _keep_best(self, step: int, values: Mapping[str, float]) -> None:
        mean = sum(values.values()) / len(values)
        if mean <= self.best.get("mean", -1.0):
            return
        self.best = {"step": step, "mean": mean, **values}
        _replace(self.work / "best", lambda folder: self.model.save(folder, self._provenance(step)))
        write_json(self.work / "run.json", {**self.about, "best": self.best})

    def _finish(self) -> None:
        if not self.best:
            _replace(self.work / "best", lambda folder: self.model.save(folder, self._provenance(self.recipe.steps)))
        with folder_aside(self.out) as aside:
            shutil.copytree(self.work / "best", aside, dirs_exist_ok=True)

    def _provenance(self, step: int) -> dict[str, Any]:
        versions = {package: version(package) for package in PACKAGES} | {"python": platform.python_version()}
        processes = self.accelerator.num_processes
        return {
            **_plain(self.about),
            "step": step,
            "best": self.best,
            "processes": processes,
            "versions": versions,
            "command": self.command,
        }


def draw_batches(examples: Stream, recipe: Recipe, teacher: Teacher | None, done: int) -> Iterator[list[Example]]:
    """The batches after the first `done`; like passages share one where the recipe groups them."""
    batch, pool = recipe.batch, recipe.grouped
    stream = examples.iterate(start=done // pool * pool * batch)
    skipped = done % pool
    while True:
        drawn = list(itertools.islice(stream, pool * batch))
        groups = [list(range(len(drawn)))]
        if pool > 1 and teacher is not None:
            vectors = teacher.vectors([example.passages[0] for example in drawn], "passage")
            groups = grouped(torch.stack([own.mean(dim=0) for own in vectors]), batch)
            random.Random(f"{recipe.seed} {drawn[0].query}").shuffle(groups)
        yield from ([drawn[i] for i in group] for group in groups[skipped:])
        skipped = 0


def rate_at(step: int, recipe: Recipe) -> float:
    """The learning rate's factor for the update after `step` updates."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    left = (recipe.steps - step) / max(1, recipe.steps - recipe.warmup)
    return recipe.final + (1 - recipe.final) * max(0.0, left)


def parameter_groups(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW's groups: the projection may learn at another rate."""
    projection = [p for name, p in parameters.items() if name == "projection.weight"]
    others = [p for name, p in parameters.items() if name != "projection.weight"]
    rates = ((others, recipe.learning_rate), (projection, recipe.learning_rate * recipe.projection_rate))
    return [{"params": group, "lr": rate} for group, rate in rates if group]


def _plain(about: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain


def _replace(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder aside and put it in the other's place."""
    with folder_aside(folder, replace=True) as aside:
        write(aside)


def _require_plotting() -> None:
    if find_spec("matplotlib") is None:
        raise MissingPackageError(f"training draws its curves with matplotlib: {extra('train')}")
