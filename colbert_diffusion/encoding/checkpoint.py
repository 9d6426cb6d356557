"""DiffusionCheckpoint: a checkpoint folder as an encoder. Knows nothing about ColBERT (`seam/adapter.py` does)."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch

from ..backbones.loading import load_backbone
from ..common.errors import CutTextWarning, UserError
from ..common.progress import Progress, progress_bar
from ..config import Side
from ..texts.collection import as_texts
from .encoder import Encoder
from .heads import PredictionHead, load_head
from .identity import identify
from .projection import load_projection
from .scoring import Vectors, maxsim


def default_checkpoint() -> str:
    """Path of the small checkpoint that ships with the package."""
    return str(Path(__file__).parents[1] / "models" / "small")


class DiffusionCheckpoint:
    """A diffusion language model that reads a text once and gives k vectors.

    Args:
        path: checkpoint folder, released DiffRetriever folder, or hub id of either.
        verbose: 0 shows no progress bars where ColBERT asks for them.
        device: None: the GPU if there is one.
        dtype: "float32", "bfloat16" or "float16"; None: the checkpoint's own word, else float32 on CPU and
            bfloat16 on GPU.
        batch_tokens: tokens of one padded batch; None: by device.

    Raises:
        UserError: not a checkpoint, or anything in it that would give wrong vectors.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        verbose: int = 3,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.identity = identify(path, device=device, dtype=dtype)
        self.path, self.config = self.identity.path, self.identity.config
        self.verbose = verbose
        self._told: set[Side] = set()  # that texts are cut
        backbone = load_backbone(
            self.identity.backbone_path,
            family=self.config.family,
            checkpoint=self.path,
            dtype=getattr(torch, self.identity.dtype),
            device=self.identity.device,
        )
        projection = load_projection(self.config, self.path, backbone.hidden_size)
        self.encoder = Encoder(backbone, self.config, projection, batch_tokens)

    def __repr__(self) -> str:
        c = self.config
        return f"DiffusionCheckpoint({str(self.path)!r}, k_query={c.k_query}, k_passage={c.k_passage}, dim={c.dim})"

    @property
    def device(self) -> torch.device:
        return self.encoder.backbone.device

    def encode_query(self, queries: Sequence[str], *, show_progress_bar: bool = False) -> list[Vectors]:
        """Encode queries: one float32 array (k_query, dim) each, L2-normalised, in input order.

        Raises:
            UserError: a single string instead of a list, or an item that is not a string.
        """
        return self._encode_all(queries, "query", show_progress_bar)

    def encode_document(self, documents: Sequence[str], *, show_progress_bar: bool = False) -> list[Vectors]:
        """Encode passages: one float32 array (k_passage, dim) each, L2-normalised, in input order.

        Raises:
            UserError: a single string instead of a list, or an item that is not a string.
        """
        return self._encode_all(documents, "passage", show_progress_bar)

    def iter_document(self, documents: Iterable[str], progress: Progress | None = None) -> Iterator[Vectors]:
        """As `encode_document`, one by one from any iterable and in bounded memory; `cut_documents` tells what was cut."""
        return self.encoder.encode(documents, "passage", progress=progress)

    def cut_documents(self) -> str | None:
        """How many passages so far are longer than what is read of each, and how much of them; None: none is."""
        return self.encoder.cut_texts("passage")

    def _encode_all(self, texts: Sequence[str], side: Side, show_progress_bar: bool) -> list[Vectors]:
        texts = as_texts(texts, "queries" if side == "query" else "passages")
        with progress_bar(len(texts), f"encode {side}", show=show_progress_bar) as progress:
            vectors = list(self.encoder.encode(texts, side, progress=progress))
        if side not in self._told and (cut := self.encoder.cut_texts(side)):
            self._told.add(side)
            warnings.warn(cut, CutTextWarning, stacklevel=3)
        return vectors

    def rerank(self, query: str, passages: Sequence[str]) -> list[tuple[int, float]]:
        """Exact MaxSim (DiffRetriever eq. 1): [(position in `passages`, score), ...], best first, ties in input order.

        The score is the sum over the query's vectors of the largest dot product with a passage vector, not divided
        by k_query and not floored at 0.
        """
        [q] = self.encode_query([query])
        [scores] = maxsim([q], self.encode_document(passages)).tolist()
        return sorted(enumerate(scores), key=lambda pair: -pair[1])

    @cached_property
    def head(self) -> PredictionHead | None:
        """The prediction head: the checkpoint's own, else its backbone's, else None."""
        return load_head(self.encoder.backbone, self.path, self.identity.backbone_path)

    def why_no_words(self) -> str | None:
        """Why its states predict no words, in a sentence for people; None: they do."""
        if not self.encoder.readout.predicts_words:
            return f'The readout "{self.config.readout}" has no masked positions: they predict no words.'
        if self.head is None:
            return "This checkpoint has no prediction head, nor has its backbone: its positions predict no words."
        return None

    def word_head(self) -> PredictionHead:
        """The head that makes words of its states.

        Raises:
            UserError: there is none, or the readout has no masked positions.
        """
        if self.head is None or self.why_no_words():
            raise UserError(f"{self.path}: {self.why_no_words()}")
        return self.head

    def predict_words(self, texts: Sequence[str], side: Side = "passage", top: int = 10) -> list[list[list[str]]]:
        """What the masked positions say: for each text, for each position, the `top` likeliest tokens, best first.

        Raises:
            UserError: there is no prediction head, or the readout has no masked positions.
        """
        head = self.word_head()
        tokenizer = self.encoder.backbone.tokenizer
        predicted = (logits.topk(top).indices.tolist() for logits in self.encoder.logits(texts, side, head))
        return [[[str(tokenizer.decode([token])).strip() for token in position] for position in text] for text in predicted]
