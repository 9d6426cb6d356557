"""DiffusionCheckpoint: a checkpoint folder as an encoder. Knows nothing about ColBERT (`seam/adapter.py` does)."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, overload

import torch
from scipy.sparse import csr_array

from ..backbones.loading import load_backbone
from ..common.errors import CutTextWarning, UserError
from ..common.progress import Progress, progress_bar
from ..config import Side
from ..texts.collection import as_texts
from .encoder import Encoded, Encoder
from .heads import PredictionHead, load_head
from .identity import identify
from .lexical import ContentIds, WordReader, as_matrix
from .projection import load_projection
from .scoring import Vectors, maxsim


def default_checkpoint() -> str:
    """Path of the small checkpoint that ships with the package."""
    return str(Path(__file__).parents[1] / "models" / "small")


def named_elsewhere(path: Path) -> str | None:
    """A checkpoint as other machines find it: by its path, or None for the one that ships, wherever that is installed."""
    return None if path == Path(default_checkpoint()) else str(path)


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

    >>> DiffusionCheckpoint(default_checkpoint()).encode_query(["a question"])[0].shape
    (4, 128)
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
        self._load_head = cache(partial(load_head, backbone, self.path, self.identity.backbone_path))
        self.encoder = Encoder(backbone, self.config, projection, batch_tokens, self._load_head)

    def __repr__(self) -> str:
        c = self.config
        return f"DiffusionCheckpoint({str(self.path)!r}, k_query={c.k_query}, k_passage={c.k_passage}, dim={c.dim})"

    @property
    def device(self) -> torch.device:
        return self.encoder.backbone.device

    @overload
    def encode_query(
        self, queries: Sequence[str], *, show_progress_bar: bool = False, lexical: Literal[False] = False
    ) -> list[Vectors]: ...
    @overload
    def encode_query(
        self, queries: Sequence[str], *, show_progress_bar: bool = False, lexical: Literal[True]
    ) -> tuple[list[Vectors], csr_array]: ...
    def encode_query(
        self, queries: Sequence[str], *, show_progress_bar: bool = False, lexical: bool = False
    ) -> list[Vectors] | tuple[list[Vectors], csr_array]:
        """Encode queries: one float32 array (k_query, dim) each, L2-normalised, in input order.

        Args:
            lexical: return their words too, as `lexical_query` does, of the same forward pass.

        Raises:
            UserError: a single string instead of a list, an item that is not a string, or no words where they are asked for.

        >>> checkpoint.encode_query(["capital of France"])[0].shape
        (4, 128)
        """
        encoded: list[Vectors] | tuple[list[Vectors], csr_array] = self._encode_all(
            queries, "query", show_progress_bar, lexical
        )
        return encoded

    @overload
    def encode_document(
        self, documents: Sequence[str], *, show_progress_bar: bool = False, lexical: Literal[False] = False
    ) -> list[Vectors]: ...
    @overload
    def encode_document(
        self, documents: Sequence[str], *, show_progress_bar: bool = False, lexical: Literal[True]
    ) -> tuple[list[Vectors], csr_array]: ...
    def encode_document(
        self, documents: Sequence[str], *, show_progress_bar: bool = False, lexical: bool = False
    ) -> list[Vectors] | tuple[list[Vectors], csr_array]:
        """Encode passages: one float32 array each, L2-normalised, in input order; (k_passage, dim), or fewer vectors where
        near ones are merged.

        Args:
            lexical: return their words too, as `lexical_document` does, of the same forward pass.

        Raises:
            UserError: as `encode_query`.

        >>> vectors, words = checkpoint.encode_document(["Paris is the capital of France."], lexical=True)
        >>> words.shape
        (1, 30522)
        """
        encoded: list[Vectors] | tuple[list[Vectors], csr_array]
        encoded = self._encode_all(documents, "passage", show_progress_bar, lexical)
        return encoded

    def lexical_query(self, queries: Sequence[str], *, content_words: bool = True) -> csr_array:
        """Which words the masked positions predict of queries: float32 (n, vocabulary), DiffRetriever eq. 2.

        The weight of a word is the largest over the k positions of log(1 + ReLU(logit)).

        Args:
            content_words: keep the text's own content words alone, as eq. 2 does; False: every word.

        Raises:
            UserError: as `encode_query`, or the checkpoint has no prediction head or reads no positions that predict words.
        """
        return self._words_of(queries, "query", content_words)

    def lexical_document(self, documents: Sequence[str], *, content_words: bool = True) -> csr_array:
        """The same of passages; the score of a passage for a query is the dot product of their rows."""
        return self._words_of(documents, "passage", content_words)

    def iter_document(self, documents: Iterable[str], progress: Progress | None = None) -> Iterator[Vectors]:
        """As `encode_document`, one by one from any iterable and in bounded memory; `cut_documents` tells what was cut."""
        return self.encoder.encode(documents, "passage", progress=progress)

    def iter_encoded(self, documents: Iterable[str], progress: Progress | None = None) -> Iterator[Encoded]:
        """As `iter_document`, with each passage's words, as `lexical_document` gives them, of the same forward pass."""
        return self.encoder.encode_both(documents, "passage", self._reader(content_words=True), progress=progress)

    def cut_documents(self) -> str | None:
        """How many passages so far are longer than what is read of each, and how much of them; None: none is."""
        return self.encoder.cut_texts("passage")

    @property
    def vocabulary(self) -> int:
        """How many words the prediction head knows. Raises UserError as `lexical_query`."""
        return self.word_head().vocabulary

    def _reader(self, *, content_words: bool) -> WordReader:
        return WordReader(self.word_head(), self._content_ids if content_words else None)

    @cached_property
    def _content_ids(self) -> ContentIds:
        backbone = self.encoder.backbone
        return ContentIds(backbone.tokenize, [*backbone.tokenizer.all_special_ids, backbone.mask_token_id])

    def _words_of(self, texts: Sequence[str], side: Side, content_words: bool) -> csr_array:
        texts = as_texts(texts, "queries" if side == "query" else "passages")
        encoded = self.encoder.encode_both(texts, side, self._reader(content_words=content_words))
        rows = [one.words for one in encoded if one.words is not None]
        self._tell_cut(side)
        return as_matrix(rows, self.vocabulary)

    def _encode_all(self, texts: Sequence[str], side: Side, show_progress_bar: bool, lexical: bool) -> Any:
        texts = as_texts(texts, "queries" if side == "query" else "passages")
        reader = self._reader(content_words=True) if lexical else None
        with progress_bar(len(texts), f"encode {side}", show=show_progress_bar) as progress:
            encoded = list(self.encoder.encode_both(texts, side, reader, progress=progress))
        self._tell_cut(side)
        vectors = [one.vectors for one in encoded]
        return (vectors, as_matrix([one.words for one in encoded if one.words], self.vocabulary)) if lexical else vectors

    def _tell_cut(self, side: Side) -> None:
        if side not in self._told and (cut := self.encoder.cut_texts(side)):
            self._told.add(side)
            warnings.warn(cut, CutTextWarning, stacklevel=4)

    def rerank(self, query: str, passages: Sequence[str]) -> list[tuple[int, float]]:
        """Exact MaxSim (DiffRetriever eq. 1): [(position in `passages`, score), ...], best first, ties in input order.

        The score is the sum over the query's vectors of the largest dot product with a passage vector, not divided
        by k_query and not floored at 0.

        >>> checkpoint.rerank("capital of France", ["Bread is baked.", "Paris is in France."])
        [(1, 2.61), (0, 0.38)]
        """
        [q] = self.encode_query([query])
        [scores] = maxsim([q], self.encode_document(passages)).tolist()
        return sorted(enumerate(scores), key=lambda pair: -pair[1])

    @property
    def head(self) -> PredictionHead | None:
        """The prediction head: the checkpoint's own, else its backbone's, else None."""
        return self._load_head()

    def why_no_words(self) -> str | None:
        """Why its states predict no words, in a sentence for people; None: they do."""
        if not self.encoder.readout.predicts_words:
            return f'The readout "{self.config.readout}" reads no positions that predict words.'
        if self.head is None:
            return "This checkpoint has no prediction head, nor has its backbone: its positions predict no words."
        return None

    def word_head(self) -> PredictionHead:
        """The head that makes words of its states.

        Raises:
            UserError: there is none, or the readout reads no positions that predict words.
        """
        if self.head is None or self.why_no_words():
            raise UserError(f"{self.path}: {self.why_no_words()}")
        return self.head

    def predict_words(self, texts: Sequence[str], side: Side = "passage", top: int = 10) -> list[list[list[str]]]:
        """What the masked positions say: for each text, for each position, the `top` likeliest tokens, best first.

        Raises:
            UserError: there is no prediction head, or the readout reads no positions that predict words.
        """
        head = self.word_head()
        tokenizer = self.encoder.backbone.tokenizer
        predicted = (logits.topk(top).indices.tolist() for logits in self.encoder.logits(texts, side, head))
        return [[[str(tokenizer.decode([token])).strip() for token in position] for position in text] for text in predicted]
