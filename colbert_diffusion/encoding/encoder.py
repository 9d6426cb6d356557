"""The engine: texts -> batches -> vectors, in input order. Knows nothing about ColBERT or folders.

Texts pass in windows of bounded size: while the model runs on one window, the next is tokenised in a thread (the
tokenizer itself uses every core). Inside a window rows are sorted by length and batched to a token budget, so
padding is small and memory depends on neither the number of texts nor their lengths.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbones.backbone import Backbone, Cut
from ..common.errors import UserError
from ..common.progress import Progress
from ..config import DiffusionConfig, Side
from .allocation import allocator
from .heads import PredictionHead
from .lexical import Weights, WordReader
from .projection import Projection
from .prompts import Row
from .readouts import Head, find_readout
from .scoring import Vectors

WINDOW = 2048  # texts sorted together; the last few percent of padding are not worth more memory
PREDICTED = 16  # texts whose words are predicted together
BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}  # tokens of a padded batch; scripts/bench/encode.py measures them


class Encoded(NamedTuple):
    """What one forward pass gives of a text: float32 (k, dim), and its words where they were asked for."""

    vectors: Vectors
    words: Weights | None


class _Window(NamedTuple):
    """Rows of the model's input, and which words of each text may be kept."""

    rows: Sequence[Row]
    kept: Sequence[frozenset[int]] | None

    def part(self, places: Sequence[int]) -> "_Window":
        kept = None if self.kept is None else [self.kept[i] for i in places]
        return _Window([self.rows[i] for i in places], kept)


class Encoder:
    """A backbone with its prompts, readout and projection.

    Args:
        batch_tokens: budget of one padded batch, rows times longest row; None: by device.
        head: gives the prediction head, for readouts that decode.

    Raises:
        UserError: readout and k disagree, a prompt leaves no room, or a row would exceed the backbone's positions.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: DiffusionConfig,
        projection: Projection,
        batch_tokens: int | None = None,
        head: Head | None = None,
    ) -> None:
        self.backbone = backbone
        self.config = config
        self.readout = find_readout(config.readout)(backbone, config, head)
        self.prompts = self.readout.prompts
        self._allocate = allocator(config)
        self.projection = projection.to(backbone.device)
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(backbone.device.type, BATCH_TOKENS["cuda"])
        self.cut: dict[Side, Cut] = {side: Cut(prompt.room) for side, prompt in self.prompts.items()}  # since it was made

    def encode(self, texts: Iterable[str], side: Side, *, progress: Progress | None = None) -> Iterator[Vectors]:
        """Yield each text's vectors, in input order: float32 (k, dim), L2-normalised.

        Fewer than k where passages are merged, or the readout gives one per token and there are fewer tokens.

        Texts are consumed lazily; at most two windows of them are held.

        Raises:
            UserError: an item is not a string.
        """
        for encoded in self.encode_both(texts, side, None, progress=progress):
            yield encoded.vectors

    def encode_both(
        self, texts: Iterable[str], side: Side, words: WordReader | None, *, progress: Progress | None = None
    ) -> Iterator[Encoded]:
        """As `encode`, with the words of the same states where there is a reader for them."""
        windows = _windows(texts, WINDOW)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize") as pool:
            ahead = pool.submit(self._next_rows, windows, side, words)
            while (window := ahead.result()).rows:
                ahead = pool.submit(self._next_rows, windows, side, words)
                yield from self._encode_window(window, side, words, progress)

    def cut_texts(self, side: Side) -> str | None:
        """How many texts were longer than what is read of each, for people; None: none was."""
        return self.cut[side].told("queries" if side == "query" else "passages")

    def rows(self, texts: Sequence[str], side: Side) -> list[Row]:
        """The model's inputs for these texts."""
        prompt = self.prompts[side]
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]  # lone surrogates become "?"
        return [prompt.row(ids) for ids in self.backbone.tokenize(clean, prompt.room, self.cut[side])]

    def logits(self, texts: Sequence[str], side: Side, head: PredictionHead) -> Iterator[Tensor]:
        """What each read position predicts: float32 (k or fewer, vocabulary) per text, in input order, on CPU.

        One batch's logits are held at a time: 16 positions of 30,000 words are 2 MB a text.
        """
        for start in range(0, len(texts), PREDICTED):
            rows = self.rows(texts[start : start + PREDICTED], side)
            with torch.inference_mode():
                states = self.readout.trim(list(self.readout.states(rows, side)), rows)
                predicted = head(torch.cat(states)).float().cpu()
            yield from predicted.split([len(own) for own in states])

    def _next_rows(self, windows: Iterator[tuple[int, list[str]]], side: Side, words: WordReader | None) -> _Window:
        start, texts = next(windows, (0, []))
        for offset, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {start + offset} is {text!r} of type {type(text).__name__}, expected a string")
        return _Window(self.rows(texts, side), None if words is None else words.of(texts))

    def _encode_window(
        self, window: _Window, side: Side, words: WordReader | None, progress: Progress | None
    ) -> Iterator[Encoded]:
        found: list[Encoded | None] = [None] * len(window.rows)
        for batch in batches([len(row.ids) for row in window.rows], self.batch_tokens):
            for i, encoded in zip(batch, self._run(window.part(batch), side, words), strict=True):
                found[i] = encoded
            if progress is not None:
                progress.update(len(batch))
        yield from (encoded for encoded in found if encoded is not None)

    def _run(self, batch: _Window, side: Side, words: WordReader | None) -> list[Encoded]:
        """One batch; halved and tried again when the GPU's memory does not suffice."""
        try:
            return self._forward(batch, side, words)
        except torch.OutOfMemoryError as error:
            if len(batch.rows) == 1:
                raise UserError(
                    f"a single row of {len(batch.rows[0].ids)} tokens does not fit on {self.backbone.device}; "
                    "lower the max length, use bfloat16 or a larger device"
                ) from error
        torch.cuda.empty_cache()
        half = len(batch.rows) // 2
        first, second = batch.part(range(half)), batch.part(range(half, len(batch.rows)))
        return self._run(first, side, words) + self._run(second, side, words)

    @torch.inference_mode()
    def _forward(self, batch: _Window, side: Side, words: WordReader | None) -> list[Encoded]:
        states = self.readout.states(batch.rows, side)
        projected = self.projection(states)
        if side == "passage" and self._allocate is not None:
            vectors = self._allocate(projected)
        else:
            vectors = [own.numpy() for own in self.readout.trim(list(projected.cpu()), batch.rows)]
        if words is None:
            return [Encoded(own, None) for own in vectors]
        return [Encoded(*both) for both in zip(vectors, words.read(states, batch.kept), strict=True)]


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Row indices, longest rows first (a batch that does not fit shows at once), each padded batch within the budget."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        size = max(1, budget // lengths[order[start]])
        yield order[start : start + size]
        start += size


def _windows(texts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """(offset of the first, texts) for each window."""
    iterator, start = iter(texts), 0
    while window := list(islice(iterator, size)):
        yield start, window
        start += len(window)
