"""Everything that decides a training run besides its data: one frozen dataclass, written into the checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from ..common.errors import UserError
from ..common.files import parse_json, read_json
from ..config import NBITS


@dataclass(frozen=True)
class Recipe:
    """Settings of a run. Weights of losses are 0 where a loss is not used.

    Args:
        steps, batch: optimizer steps, and queries per step over all processes.
        grouped: this many batches are drawn at once and their examples sorted into batches of like passages, by the
            teacher's vectors (`grouping.grouped`); 1: batches are random.
        negatives: hard negatives per query; an example with fewer repeats its own.
        learning_rate, warmup, final: linear from 0 over `warmup` steps, then linear to `final` times the rate.
        weight_decay, clip: AdamW's, and the gradient norm's bound (0: none).
        contrastive: weight of InfoNCE over MaxSim divided by k_query (DiffRetriever section 3), with in-batch
            negatives of all processes.
        symmetric: InfoNCE from passages to queries too, the mean of both.
        temperature: scores are divided by it.
        sparse: weight of InfoNCE over the words that masked positions predict (eq. 2, no temperature).
        scores: weight of the KL divergence to the examples' own scores (ColBERTv2's distillation).
        teacher: checkpoint whose scores of the whole batch are distilled; None: none.
        teacher_weight, teacher_temperature: of that KL divergence, and for student and teacher alike.
        second_teacher, second_weight: a checkpoint of any dim whose scores, times the weight, are added to the teacher's.
        teacher_words: added to the teacher's scores, which are means of cosines: this times BM25's over the query's best in
            the batch.
        coverage: weight of 1 - the cosine between each of the teacher's vectors and the nearest of the text's own
            (`losses.coverage_loss`); the teacher has the checkpoint's dim.
        codes: passages are scored as an index of so many bits would keep them (`losses.coded`); 0: as they are.
        diffusion: weight of the masked-diffusion objective on passages (mask ratio t uniform, weight 1/t).
        diffusion_share: of the passages that it sees.
        diversity: weight of the mean squared cosine between a passage's vectors.
        nested_k_query, nested_k_passage, nested_dim: prefixes trained to be good by themselves; empty: none.
        nested_cells: prefixes drawn per step, beside the whole.
        lora_rank, lora_alpha, lora_dropout: of a new adapter; rank 0 trains all weights.
        projection_rate: the projection's learning rate is this times the others'.
        query_tokens, passage_tokens: bounds of the TEXT in training, as in the reference.
        cached: gradient caching: memory holds one chunk's graph, for a second forward pass.
        chunk_tokens: tokens of one padded chunk.
        bf16: autocast, where the device is fast at it (`model.autocasts`).
        gradient_checkpointing: recompute inside the backward pass.
        save_every, evaluate_every: steps.
    """

    steps: int = 1000
    batch: int = 64
    grouped: int = 1
    negatives: int = 0
    learning_rate: float = 1e-4
    warmup: int = 0
    final: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    contrastive: float = 1.0
    symmetric: bool = False
    temperature: float = 0.01
    sparse: float = 0.0
    scores: float = 0.0
    teacher: str | None = None
    teacher_weight: float = 0.0
    teacher_temperature: float = 0.05
    second_teacher: str | None = None
    second_weight: float = 0.0
    teacher_words: float = 0.0
    coverage: float = 0.0
    codes: int = 0
    diffusion: float = 0.0
    diffusion_share: float = 0.25
    diversity: float = 0.0
    nested_k_query: tuple[int, ...] = ()
    nested_k_passage: tuple[int, ...] = ()
    nested_dim: tuple[int, ...] = ()
    nested_cells: int = 3
    lora_rank: int = 16
    lora_alpha: int = 64
    lora_dropout: float = 0.0
    projection_rate: float = 1.0
    query_tokens: int = 32
    passage_tokens: int = 156
    cached: bool = True
    chunk_tokens: int = 4096
    bf16: bool = True
    gradient_checkpointing: bool = False
    save_every: int = 100
    evaluate_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "grouped", "save_every", "evaluate_every", "chunk_tokens", "query_tokens", "passage_tokens")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("temperature", "teacher_temperature", "learning_rate"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.teacher is None and (asked := self._asked("teacher_weight", "coverage", "grouped")):
            raise UserError(f"the recipe has {asked} and there is no teacher: name a checkpoint")
        if not self.teacher_weight and (asked := self._asked("teacher_words", "second_weight")):
            raise UserError(f"the recipe has {asked}, added to a teacher's scores, and teacher_weight is 0")
        if (self.second_teacher is None) != (self.second_weight == 0):
            raise UserError(
                f"second_teacher is {self.second_teacher} and second_weight {self.second_weight}: give both or none"
            )
        if self.codes not in (0, *NBITS):
            raise UserError(f"codes is {self.codes}, expected bits of an index ({', '.join(map(str, NBITS))}) or 0")
        if self.scores and not self.negatives:
            raise UserError("distillation from scores ranks a query's own passages: set negatives to 1 or more")
        if not any((self.contrastive, self.sparse, self.scores, self.teacher_weight, self.coverage, self.diffusion)):
            raise UserError("every loss has weight 0: nothing would be trained")

    def _asked(self, *names: str) -> str:
        """Which of these fields are not as where nobody asks for them, for people."""
        unasked = {field.name: field.default for field in fields(self)}
        return ", ".join(f"{name} {getattr(self, name)}" for name in names if getattr(self, name) != unasked[name])

    @property
    def nested(self) -> bool:
        return bool(self.nested_k_query or self.nested_k_passage or self.nested_dim)

    def changed(self, settings: Mapping[str, Any]) -> "Recipe":
        """The recipe with these fields replaced; strings are read as JSON where the field is no string.

        Raises:
            UserError: an unknown field or a value of another type.
        """
        types = get_type_hints(Recipe)
        known = [f.name for f in fields(Recipe)]
        values: dict[str, Any] = {}
        for name, value in settings.items():
            if name not in known:
                raise UserError(f'recipe field "{name}" is unknown; choose one of {known}')
            values[name] = _typed(name, value, types[name])
        return replace(self, **values)


def _typed(name: str, value: Any, wanted: Any) -> Any:
    if wanted == str | None:
        return None if value in (None, "none") else str(value)
    if isinstance(value, str):
        try:
            value = float(value) if wanted is float else parse_json(value)  # .5 is a number to everyone but JSON
        except ValueError as error:
            raise UserError(f"recipe field {name}: {value!r:.60} is no {getattr(wanted, '__name__', wanted)}") from error
    if wanted == tuple[int, ...]:
        if isinstance(value, list | tuple) and all(type(item) is int and item > 0 for item in value):
            return tuple(value)
        raise UserError(f"recipe field {name}: expected a list of positive integers such as [1,4,16], not {value!r}")
    if wanted is float and type(value) is int:
        value = float(str(value))  # one of 400 digits is infinite, no OverflowError
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"recipe field {name} is {value}, expected a finite number")
    if type(value) is not wanted:
        raise UserError(f"recipe field {name}: {value!r} is a {type(value).__name__}, expected {wanted.__name__}")
    return value


PRESETS: Mapping[str, Recipe] = {
    # DiffRetriever section 4 and its code at 1689527: MS MARCO triples, one positive with 15 hard negatives.
    "paper": Recipe(
        batch=128,
        negatives=15,
        learning_rate=1e-4,
        temperature=0.01,
        sparse=1.0,
        lora_dropout=0.05,
        query_tokens=32,
        passage_tokens=156,
        gradient_checkpointing=True,
    ),
    # A small base on two cores: short texts, a dense teacher, no second forward pass.
    "small": Recipe(
        batch=64,
        learning_rate=1e-3,
        warmup=30,
        final=0.05,
        contrastive=0.3,
        symmetric=True,
        temperature=0.05,
        teacher_weight=0.0,
        query_tokens=32,
        passage_tokens=96,
        cached=False,
    ),
}


def read_recipe(preset: str, path: Path | None = None, settings: Mapping[str, Any] | None = None) -> Recipe:
    """A preset, then a JSON file's fields, then single settings, each over the one before.

    Raises:
        UserError: unknown preset or field, or a value out of its range.
    """
    if preset not in PRESETS:
        raise UserError(f'preset "{preset}" is unknown; choose one of {sorted(PRESETS)}')
    recipe = PRESETS[preset]
    if path is not None:
        recipe = recipe.changed(read_json(path))
    return recipe.changed(settings or {})
