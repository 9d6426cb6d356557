"""Training speed: our step beside a plain loop, on the same pairs, in one run; and the share of the matmul rate.

Usage: train.py PAIRS.jsonl[.gz] [--steps 12] [--start CHECKPOINT]

Both train the same adapter with the same losses, under bfloat16 autocast where the processor is fast at it. The plain
loop pads queries and passages to their longest, runs the teacher at every step and draws its batches in the file's
order; ours fills chunks by tokens and asks the teacher once per text (here: before the clock starts, as in every epoch
or run but the first; "first epoch" is with an empty cache). The matmul rate is that of products of 2048 x 2048 matrices
in the same type, counted in the same run.
"""

import itertools
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from common import errors_in_a_line, make_parser, timed
from torch.utils.flop_counter import FlopCounterMode

from colbert_diffusion.backbones.loading import load_backbone
from colbert_diffusion.encoding.checkpoint import default_checkpoint
from colbert_diffusion.encoding.conversion import convert
from colbert_diffusion.encoding.identity import identify
from colbert_diffusion.encoding.prompts import pad
from colbert_diffusion.encoding.scoring import mean_maxsim
from colbert_diffusion.training.data import Example, read_source
from colbert_diffusion.training.losses import Targets, dense_losses
from colbert_diffusion.training.model import TrainableModel, autocasts
from colbert_diffusion.training.recipe import PRESETS, Recipe
from colbert_diffusion.training.step import TrainingStep
from colbert_diffusion.training.teacher import Teacher

Step = Callable[[list[Example]], float]


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--start", default=default_checkpoint())
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        teacher = make_teacher(options.start, Path(folder))
        recipe = PRESETS["small"].changed({"teacher": str(teacher), "teacher_weight": 1.0})
        examples = list(itertools.islice(read_source(options.pairs), recipe.batch * (options.steps + 1)))
        batches = [examples[i : i + recipe.batch] for i in range(0, len(examples) - recipe.batch + 1, recipe.batch)]
        dtype = torch.bfloat16 if autocasts(recipe, torch.device("cpu")) else torch.float32
        rate = matmul_rate(dtype)
        print(f"matmul, {str(dtype).removeprefix('torch.')}: {rate / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} threads")
        ours = our_step(options.start, recipe, Path(folder))
        first = measure("ours, first epoch", ours, batches, rate)
        plain = measure("plain loop", plain_step(options.start, recipe), batches, rate)
        warm = measure("ours, teacher known", ours, batches, rate)
        print(f"ratio to the plain loop: {warm / plain:.2f} (first epoch {first / plain:.2f})")


def make_teacher(start: str, folder: Path) -> Path:
    """The start checkpoint's base, mean-pooled."""
    base = identify(start).config.backbone
    hidden = load_backbone(identify(start).backbone_path).hidden_size
    convert(base, folder / "teacher", readout="mean", dim=hidden)
    return folder / "teacher"


def measure(name: str, step: Step, batches: list[list[Example]], rate: float) -> float:
    """Pairs per second, the median over batches; the first one warms up. The second's operations are counted apart."""
    step(batches[0])
    seconds = [timed(partial(step, batch))[1] for batch in batches[1:]]
    with FlopCounterMode(display=False) as counter:
        step(batches[1])
    operations = counter.get_total_flops()
    pairs = len(batches[0]) / statistics.median(seconds)
    share = operations / seconds[0] / rate
    print(f"{name}: {pairs:.1f} pairs/s, {operations / 1e9:.0f} GFLOP a step, {share:.0%} of the matmul rate")
    return pairs


def matmul_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 8) -> float:
    """Operations per second of the best of several large products."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(timed(partial(torch.mm, a, b))[1] for _ in range(repeats))


def our_step(start: str, recipe: Recipe, folder: Path) -> Step:
    mixed = autocasts(recipe, torch.device("cpu"))
    accelerator = Accelerator(mixed_precision="bf16" if mixed else "no", cpu=True)
    model = TrainableModel(start, recipe, accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters.values(), lr=recipe.learning_rate)
    run = TrainingStep(model, recipe, accelerator, Teacher(str(recipe.teacher), recipe, accelerator.device, folder))
    count = itertools.count(1)

    def step(examples: list[Example]) -> float:
        loss = run(examples, next(count))["loss"]
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def plain_step(start: str, recipe: Recipe) -> Step:
    """What one would write first: pad, forward, loss, backward; the teacher beside it."""
    model = TrainableModel(start, recipe, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters.values(), lr=recipe.learning_rate)
    taught = identify(str(recipe.teacher))
    teacher = load_backbone(taught.backbone_path)
    bounds = {"query": recipe.query_tokens, "passage": recipe.passage_tokens}

    def encode(texts: list[str], side: str) -> torch.Tensor:
        rows = model.encoder.rows(texts, side)  # type: ignore[arg-type]
        return model.projection(model.encoder.readout.states(rows, side))  # type: ignore[arg-type]

    def teach(texts: list[str], side: str) -> torch.Tensor:
        cls, sep = teacher.tokenizer.cls_token_id, teacher.tokenizer.sep_token_id
        rows = [[cls, *ids, sep] for ids in teacher.tokenize(texts, bounds[side])]
        ids, lengths = pad(rows, teacher.filler_id)
        real = torch.arange(ids.shape[1]) < lengths[:, None]
        states = teacher.states(ids, lengths).float() * real[:, :, None]
        return torch.nn.functional.normalize(states.sum(dim=1, keepdim=True) / lengths[:, None, None], dim=-1)

    def step(examples: list[Example]) -> float:
        queries, passages = [e.query for e in examples], [e.passages[0] for e in examples]
        positives = torch.arange(len(examples))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocasts(recipe, torch.device("cpu"))):
            with torch.no_grad():
                taught_scores = mean_maxsim(teach(queries, "query"), teach(passages, "passage"))
            q, p = encode(queries, "query"), encode(passages, "passage")
        excluded = torch.zeros(len(queries), len(passages), dtype=torch.bool)
        targets = Targets(positives, excluded, 1, teacher=taught_scores.float())
        loss = torch.stack(list(dense_losses(q.float(), p.float(), targets, recipe).values())).sum()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
