"""One training step: texts -> representations -> losses -> gradients, over all processes, in bounded memory.

Gradient caching (GradCache, arXiv 2101.06983): the losses are functions of every representation of the batch, so they
and their gradients with respect to the representations come first; then each chunk of texts is run again and takes
its own representations' gradients into the weights. Memory holds the graph of one chunk.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence

from ..common.errors import UserError
from ..config import Side
from ..encoding.encoder import batches
from ..encoding.lexical import ContentIds
from ..encoding.prompts import Row, pad
from ..encoding.scoring import mean_maxsim_padded
from .data import Example
from .losses import Targets, diffusion_loss, diversity_loss, nested_losses, sparse_loss
from .model import TrainableModel
from .recipe import Recipe
from .teacher import Teacher, WordTeacher

Representation = tuple[Tensor, Tensor]  # vectors (n, k, dim), word activations (n, words)
Forward = Callable[[int], Representation]  # chunk number -> its texts' representations


class Chunked:
    """Representations of many texts, computed chunk by chunk.

    Args:
        chunks: indices of each chunk's texts; together all texts once.
        cached: whether graphs are dropped and chunks run again in `backward`.
    """

    def __init__(self, forward: Forward, chunks: Sequence[Sequence[int]], *, cached: bool) -> None:
        self._forward, self._chunks = forward, chunks
        with torch.set_grad_enabled(not cached):
            parts = [forward(number) for number in range(len(chunks))]
        order = torch.tensor([i for chunk in chunks for i in chunk]).argsort()
        self.vectors = torch.cat([vectors.detach() for vectors, _ in parts])[order]
        self.activations = torch.cat([activations.detach() for _, activations in parts])[order]
        self._graphs = None if cached else parts

    def backward(self, *gradients: Tensor) -> None:
        """Add to the weights' gradients what the representations' gradients (vectors, activations) make of them."""
        for number, chunk in enumerate(self._chunks):
            part = self._forward(number) if self._graphs is None else self._graphs[number]
            pairs = [(tensor, grad[list(chunk)]) for tensor, grad in zip(part, gradients, strict=True) if tensor.requires_grad]
            torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])


@dataclass
class TrainingStep:
    """Computes gradients of a batch's losses; they are the whole batch's in every process."""

    model: TrainableModel
    recipe: Recipe
    accelerator: Accelerator
    teacher: Teacher | None = None
    second: Teacher | None = None

    def __post_init__(self) -> None:
        tokenizer = self.model.backbone.tokenizer
        never = (tokenizer.unk_token_id, tokenizer.mask_token_id, self.model.backbone.mask_token_id)
        self._word_teacher = WordTeacher()
        self._content_ids = ContentIds(self.model.backbone.tokenize, never)

    def __call__(self, examples: Sequence[Example], step: int) -> dict[str, float]:
        """Leave the gradients in the parameters, summed over processes.

        Args:
            examples: the batch of all processes together, the same list in each.
            step: seeds dropout, mask ratios and prefixes, so that a resumed run repeats them.

        Returns:
            Each loss as it is weighted, and their sum under "loss".
        """
        with self._attention():
            losses = self._losses(examples, step)
        self._sum_gradients()
        return {name: float(loss) for name, loss in (*losses.items(), ("loss", sum(losses.values())))}

    def _losses(self, examples: Sequence[Example], step: int) -> dict[str, Tensor]:
        """The weighted losses; this process's part of their gradients is left in the parameters."""
        own = 1 + self.recipe.negatives
        queries = [example.query for example in examples]
        passages = [text for example in examples for text in own_passages(example, own)]
        words = self._words(queries + passages)
        represented = [
            self._represent(self._share(queries), "query", words, step),
            self._represent(self._share(passages), "passage", words, step),
        ]
        losses = self._contrast(represented, self._targets(examples, queries, passages, own), step)
        if self.recipe.diffusion:
            losses["diffusion"] = self._predict_words(passages[::own], step)
        return losses

    def _share(self, texts: Sequence[str]) -> Sequence[str]:
        """This process's part of the batch, which is in the processes' order."""
        size = len(texts) // self.accelerator.num_processes
        rank = self.accelerator.process_index
        return texts[rank * size : (rank + 1) * size]

    def _words(self, texts: Sequence[str]) -> Tensor:
        """The content words' ids of the batch, sorted; empty without the sparse loss."""
        if not self.recipe.sparse:
            return torch.empty(0, dtype=torch.long, device=self.accelerator.device)
        return torch.tensor(sorted(set().union(*self._content_ids(texts))), device=self.accelerator.device, dtype=torch.long)

    def _represent(self, texts: Sequence[str], side: Side, words: Tensor, step: int) -> Chunked:
        rows = self.model.encoder.rows(texts, side)
        chunks = list(batches([len(row.ids) for row in rows], self.recipe.chunk_tokens))
        present = self._present(texts, words)

        def forward(number: int) -> Representation:
            self._seed(step, side, number)
            chunk = chunks[number]
            with self.accelerator.autocast():
                return self.model.vectors([rows[i] for i in chunk], side, words, present[chunk])

        return Chunked(forward, chunks, cached=self.recipe.cached)

    def _present(self, texts: Sequence[str], words: Tensor) -> Tensor:
        """bool (texts, words)."""
        present = torch.zeros(len(texts), len(words), dtype=torch.bool)
        if len(words):
            column = {word: i for i, word in enumerate(words.tolist())}
            for row, ids in enumerate(self._content_ids(texts)):
                present[row, [column[word] for word in ids]] = True
        return present.to(words.device)

    def _attention(self) -> AbstractContextManager[None]:
        """On CPU plain attention, whose backward pass takes a quarter of the fused one's time on short rows.

        For the whole step: layers that are recomputed in the backward pass must choose as they did before.
        """
        plain: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
        return plain if self.accelerator.device.type == "cpu" else nullcontext()

    def _seed(self, step: int, side: Side, chunk: int) -> None:
        """Dropout of a chunk's second pass must be its first's."""
        if self.recipe.lora_dropout:
            key = (self.recipe.seed, step, self.accelerator.process_index, side, chunk)
            torch.manual_seed(hash_of(*key))

    def _targets(self, examples: Sequence[Example], queries: Sequence[str], passages: Sequence[str], own: int) -> Targets:
        device = self.accelerator.device
        number = {text: i for i, text in enumerate(dict.fromkeys([*queries, *passages]))}
        query_texts = torch.tensor([number[text] for text in queries], device=device)
        passage_texts = torch.tensor([number[text] for text in passages], device=device)
        positives = torch.arange(len(queries), device=device) * own
        excluded = passage_texts[None, :] == passage_texts[positives][:, None]
        excluded[:, positives] |= query_texts[None, :] == query_texts[:, None]
        excluded[torch.arange(len(queries), device=device), positives] = False
        scores = None
        if self.recipe.scores:
            scores = torch.tensor([own_scores(example, own) for example in examples], device=device)
        teacher = covered = None
        if self.teacher is not None and (self.recipe.teacher_weight or self.recipe.coverage):
            covered = self._taught(self.teacher, queries, passages)
            teacher = mean_maxsim_padded(*covered)
            if self.second is not None:
                others = mean_maxsim_padded(*self._taught(self.second, queries, passages))
                teacher = teacher + self.recipe.second_weight * others
            if self.recipe.teacher_words:
                teacher = teacher + self.recipe.teacher_words * self._word_teacher.scores(queries, passages).to(device)
        return Targets(positives, excluded, own, scores, teacher, covered)

    def _taught(self, teacher: Teacher, queries: Sequence[str], passages: Sequence[str]) -> tuple[Tensor, Tensor]:
        """A teacher's vectors of all processes' queries and passages."""
        q = self._gather_ragged(teacher.vectors(self._share(queries), "query"))
        return q, self._gather_ragged(teacher.vectors(self._share(passages), "passage"))

    def _gather_ragged(self, vectors: Sequence[Tensor]) -> Tensor:
        """All processes' texts, (texts, most vectors, dim), zeros behind each text's own."""
        padded = self.accelerator.pad_across_processes(pad_sequence(list(vectors), batch_first=True), dim=1)
        gathered: Tensor = self.accelerator.gather(padded)
        return gathered

    def _contrast(self, represented: Sequence[Chunked], targets: Targets, step: int) -> dict[str, Tensor]:
        """The losses between texts, and their gradients sent into the weights."""
        recipe = self.recipe
        local = [tensor for side in represented for tensor in (side.vectors, side.activations)]
        leaves = [self.accelerator.gather(tensor).requires_grad_() for tensor in local]
        q, q_words, p, p_words = leaves
        losses = nested_losses(q, p, targets, recipe, self._cells(step))
        if recipe.sparse:
            losses["sparse"] = recipe.sparse * sparse_loss(q_words, p_words, targets)
        if recipe.diversity:
            losses["diversity"] = recipe.diversity * diversity_loss(p)
        if losses:
            total = torch.stack(list(losses.values())).sum()
            whole = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
            rank = self.accelerator.process_index
            gradients = [g[rank * len(t) : (rank + 1) * len(t)] for g, t in zip(whole, local, strict=True)]
            represented[0].backward(*gradients[:2])
            represented[1].backward(*gradients[2:])
        return {name: loss.detach() for name, loss in losses.items()}

    def _cells(self, step: int) -> list[tuple[int, int, int]]:
        """This step's prefixes (k_query, k_passage, dim), the same in every process."""
        recipe, config = self.recipe, self.model.config
        if not recipe.nested:
            return []
        generator = torch.Generator().manual_seed(hash_of(recipe.seed, step, "cells"))

        def draw(prefixes: tuple[int, ...], whole: int) -> int:
            choices = prefixes or (whole,)
            return choices[int(torch.randint(len(choices), (1,), generator=generator))]

        return [
            (
                draw(recipe.nested_k_query, config.k_query),
                draw(recipe.nested_k_passage, config.k_passage),
                draw(recipe.nested_dim, config.dim),
            )
            for _ in range(recipe.nested_cells)
        ]

    def _predict_words(self, passages: Sequence[str], step: int) -> Tensor:
        """The masked-diffusion objective on an even share of the passages; its gradients are added to the weights."""
        recipe, model = self.recipe, self.model
        chosen = [i for i in range(len(passages)) if int((i + 1) * recipe.diffusion_share) > int(i * recipe.diffusion_share)]
        size = len(passages) // self.accelerator.num_processes
        first = self.accelerator.process_index * size
        mine = [i for i in chosen if first <= i < first + size]
        rows = model.encoder.rows([passages[i] for i in mine], "passage")
        masked = [self._mask(row, hash_of(recipe.seed, step, i)) for row, i in zip(rows, mine, strict=True)]
        tokens = torch.tensor(float(sum(m.tokens for m in masked)), device=self.accelerator.device)
        everyones = self.accelerator.reduce(tokens, "sum").clamp(min=1)
        total = torch.zeros((), device=self.accelerator.device)
        for chunk in batches([len(row.ids) for row in rows], recipe.chunk_tokens):
            ids, lengths = pad([masked[i].ids for i in chunk], model.backbone.filler_id)
            where, _ = pad([masked[i].where for i in chunk], 0)
            original, _ = pad([rows[i].ids for i in chunk], model.backbone.filler_id)
            ratio = torch.tensor([masked[i].ratio for i in chunk])[:, None].expand_as(ids)
            at = where.bool()
            if not at.any():
                continue
            with self.accelerator.autocast():
                logits = model.word_logits(ids, lengths, at)
            loss = diffusion_loss(logits, original[at].to(logits.device), ratio[at].to(logits.device)) / everyones
            loss = recipe.diffusion * loss
            loss.backward()
            total += loss.detach()
        everyones_loss: Tensor = self.accelerator.reduce(total, "sum")
        return everyones_loss

    def _mask(self, row: Row, seed: int) -> "Masked":
        """Mask each text token with a probability drawn for the whole text."""
        prompt = self.model.encoder.prompts["passage"]
        start, end = len(prompt.prefix), row.first_mask - len(prompt.suffix)
        mask = self.model.backbone.mask_token_id
        if mask is None:
            raise UserError("the masked-diffusion objective needs a mask token")
        generator = torch.Generator().manual_seed(seed)
        ratio = float(torch.rand(1, generator=generator)) * 0.99 + 0.01  # 1 / ratio stays bounded
        drawn = torch.rand(len(row.ids), generator=generator) < ratio
        where = [bool(drawn[i]) and start <= i < end for i in range(len(row.ids))]
        return Masked([mask if at else i for i, at in zip(row.ids, where, strict=True)], where, ratio, end - start)

    def _sum_gradients(self) -> None:
        """Each process holds its own texts' part; the whole is their sum."""
        if self.accelerator.num_processes == 1:
            return
        parameters = [p for p in self.model.parameters.values() if p.grad is not None]
        flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        summed = self.accelerator.reduce(flat, "sum")
        for parameter, part in zip(parameters, summed.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()


@dataclass(frozen=True)
class Masked:
    """A row with some text tokens masked: its ids, where (per position), the ratio, the text's tokens."""

    ids: list[int]
    where: list[bool]
    ratio: float
    tokens: int


def own_passages(example: Example, own: int) -> list[str]:
    """The positive and `own - 1` negatives, repeated where the example has fewer.

    Raises:
        UserError: negatives are wanted and the example has none.
    """
    positive, *negatives = example.passages
    if own > 1 and not negatives:
        raise UserError(
            f'the query "{example.query[:60]}" has no negatives, the recipe asks for {own - 1}: '
            "mine them (--mine), or set negatives to 0"
        )
    return [positive, *(negatives[i % len(negatives)] for i in range(own - 1))]


def own_scores(example: Example, own: int) -> list[float]:
    """As `own_passages`, the teacher's scores."""
    if example.scores is None:
        raise UserError(f'the query "{example.query[:60]}" has no scores: set the weight of scores to 0')
    positive, *negatives = example.scores
    return [positive, *(negatives[i % len(negatives)] for i in range(own - 1))]


def hash_of(*parts: int | str) -> int:
    """A seed of these parts: another draw for each, the same in every run and process."""
    value = 0
    for part in parts:
        number = part if isinstance(part, int) else int.from_bytes(part.encode(), "little")
        value = (value * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return value
