"""One opened index: encoding, searching, passages, and why a passage was found. Blocking; knows neither names nor loops."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.errors import UserError
from ..config import Side
from ..encoding.checkpoint import DiffusionCheckpoint
from ..encoding.lexical import words as words_of
from ..index.by_path import open_index
from ..index.dense import Observe
from ..index.lexical import BM25_SOURCE, LexicalIndex
from ..index.parts import Parts
from ..index.searching import Asked, as_user_errors
from ..seam.adapter import Models, VectorCheckpoint, sharing

WORDS = 8  # predicted words shown per position


class UnknownError(UserError):
    """A name or number that stands for nothing here."""


class Hit(NamedTuple):
    pid: int
    id: str
    score: float


class Question(NamedTuple):
    """A query and the mode in which it searches."""

    text: str
    mode: str


class Encoded(NamedTuple):
    """A text's vectors, L2-normalised: as JSON, made where they are so that nobody waits for it, and their shape; and its
    words as JSON, where they were asked for."""

    json: str
    shape: tuple[int, int]
    words: str | None


class Contribution(NamedTuple):
    """A word that a query and a passage share, and what it adds to the passage's score."""

    word: str
    contribution: float


class SharedWords(NamedTuple):
    """source: where the words are from; score: the passage's by them; words: what adds up to it, most first."""

    source: str
    score: float
    words: list[Contribution]


class Explanation(NamedTuple):
    """Why a passage matches a query.

    similarities: cosine of each query position with each passage position, (k_query, k_passage).
    matches: for each query position the passage position that it matched best.
    score: exact MaxSim, the sum of those cosines; the index's own score is that of compressed vectors.
    text: the passage that was explained.
    query_words, passage_words: likeliest words per position, best first; None: `note` says why.
    lexical: which words matched; None: the index has none.
    """

    score: float
    matches: list[int]
    similarities: list[list[float]]
    query_words: list[list[str]] | None
    passage_words: list[list[str]] | None
    note: str | None
    text: str
    lexical: SharedWords | None


class OpenedIndex:
    """An index in memory, with its checkpoint.

    `search` may run in several threads at once: our Searcher copies the settings for each call and ColBERT's scorer
    only reads the index. The methods that run the model are called from one thread.

    Args:
        models: checkpoints that are open already; one of them is used where it is the index's own, another is added.
        checkpoint, collection, parts: as `Service`.
        observe: is told the seconds of each stage: encode (of a batch), lexical, candidates and score (of a query).

    Raises:
        UserError: there is no complete index, it is damaged, or its checkpoint is gone.
    """

    def __init__(
        self,
        path: Path,
        models: Models,
        observe: Observe = lambda stage, seconds: None,
        *,
        checkpoint: str | None = None,
        collection: Path | None = None,
        parts: Callable[[Path], Parts] | None = None,
    ) -> None:
        self.path = path.absolute()
        with sharing(models), as_user_errors(path):
            # Hashing costs about as much as loading; a wrong byte would be a wrong answer long after the start.
            self._searcher = open_index(self.path, checkpoint=checkpoint, collection=collection, verify=True, parts=parts)
            if isinstance(self._searcher.checkpoint, VectorCheckpoint):
                self._searcher.checkpoint.model  # noqa: B018 - loaded now, not at the first query
        self._removed = self._searcher.removed
        self._observe = observe
        self.passages = len(self._searcher.collection)

    def warm_up(self) -> None:
        """The first search, which is slow, and shows what cannot be searched; runs the model."""
        with as_user_errors(self.path):
            self._searcher.search("ready", k=1, mode="dense" if self._searcher.lexical is None else "hybrid")
        self._searcher.observe(self._observe)

    def mode(self, asked: str | None) -> str:
        """The mode of a search that asks for this one; None: for none.

        Raises:
            UserError: an unknown one, or one that needs words where there are none.
        """
        if asked in ("lexical", "hybrid") and self._searcher.lexical is None:
            raise UserError(
                f'the index {self.path.name} has no words for mode "{asked}": search by mode "dense", or build it with '
                "`colbert-diffusion index ... --lexical bm25` (or predicted)"
            )
        return self._searcher.mode_of(asked)

    def encode(self, questions: Sequence[Question]) -> list[Asked]:
        """Queries as `search` takes them, all of one forward pass, whatever their modes."""
        started = perf_counter()
        mode = "dense" if all(question.mode == "dense" for question in questions) else "hybrid"
        asked = self._searcher.ask([question.text for question in questions], mode=mode)
        self._observe("encode", perf_counter() - started)
        return asked

    def runs_model(self, mode: str) -> bool:
        """Whether a search by this mode is encoded first; BM25's words alone need no model."""
        lexical = self._searcher.lexical
        return mode != "lexical" or lexical is None or lexical.source != BM25_SOURCE

    def search(self, question: Question, asked: Asked | None, k: int, pids: Sequence[int] | None = None) -> list[Hit]:
        """The k best for one query; with `pids`, of those.

        Args:
            asked: as `encode` gave it; None where no model runs.

        Raises:
            UserError: a pid that the index does not have.
        """
        if asked is None:
            [asked] = self._searcher.ask([question.text], mode=question.mode)
        found, _, scores = self._searcher.answer(asked, k, pids=pids, mode=question.mode)
        return [Hit(*hit) for hit in zip(found, self._searcher.ids(found), scores, strict=True)]

    def pids(self, ids: Sequence[str]) -> list[int]:
        """Raises UnknownError for an id that the index does not have."""
        try:
            return self._searcher.pids(ids)
        except UserError as error:
            raise UnknownError(str(error)) from error

    def passage(self, pid: int) -> str:
        """Raises UnknownError when there is no such passage."""
        if not 0 <= pid < self.passages:
            raise UnknownError(f"there is no passage {pid}; the index has pids 0..{self.passages - 1}")
        if pid in self._removed:
            raise UnknownError(f"passage {pid} was removed from the index")
        return str(self._searcher.collection[pid])

    @cached_property
    def model(self) -> DiffusionCheckpoint:
        """What encoded the index. Raises UserError when that was one of ColBERT's own checkpoints."""
        checkpoint = self._searcher.checkpoint
        if isinstance(checkpoint, VectorCheckpoint):
            checkpoint = checkpoint.model
        if not isinstance(checkpoint, DiffusionCheckpoint):
            raise UserError("this index was made with a ColBERT checkpoint; only diffusion checkpoints do this")
        return checkpoint

    def vectors(self, texts: Sequence[str], side: Side, words: bool = False) -> list[Encoded]:
        """Each text's vectors as the checkpoint encodes that side, and on demand its words.

        Raises:
            UserError: the checkpoint predicts no words.
        """
        encode = self.model.encode_query if side == "query" else self.model.encode_document
        if not words:
            return [Encoded(_json(vectors.tolist()), vectors.shape, None) for vectors in encode(texts)]
        if reason := self.model.why_no_words():
            raise UserError(reason)
        found, matrix = encode(texts, lexical=True)
        rows = [slice(*matrix.indptr[i : i + 2]) for i in range(len(texts))]
        weighed = [self._by_weight(matrix.indices[row].tolist(), matrix.data[row].tolist()) for row in rows]
        return [Encoded(_json(own.tolist()), own.shape, _json(those)) for own, those in zip(found, weighed, strict=True)]

    def _by_weight(self, ids: Sequence[int], weights: Sequence[float]) -> list[dict[str, Any]]:
        pairs = sorted(zip(ids, weights, strict=True), key=lambda pair: -pair[1])
        return [{"word": self._token(own), "weight": weight} for own, weight in pairs]

    def _token(self, own: int) -> str:
        return str(self.model.encoder.backbone.tokenizer.decode([own])).strip()

    def tokens(self, texts: Sequence[str], side: Side) -> list[int]:
        """The most tokens that the model reads for each text, its prompt included: no token is less than a byte."""
        prompt = self.model.encoder.prompts[side]
        around = prompt.max_row - prompt.room
        return [around + min(prompt.room, 4 * len(text)) for text in texts]

    @property
    def longest(self) -> int:
        """The most tokens that the model reads for a query and a passage."""
        return sum(prompt.max_row for prompt in self.model.encoder.prompts.values())

    def explain(self, query: str, pid: int) -> Explanation:
        """Raises UnknownError when there is no such passage, UserError as `model`."""
        passage = self.passage(pid)
        similarities = self._positions(query, "query") @ self._positions(passage, "passage").T
        best = similarities.max(dim=1)
        note = self.model.why_no_words()
        return Explanation(
            score=float(best.values.sum()),
            matches=best.indices.tolist(),
            similarities=similarities.tolist(),
            query_words=None if note else self._words(query, "query"),
            passage_words=None if note else self._words(passage, "passage"),
            note=note,
            text=passage,
            lexical=self._shared(query, pid),
        )

    def _shared(self, query: str, pid: int) -> SharedWords | None:
        lexical = self._searcher.lexical
        if lexical is None:
            return None
        [asked] = self._searcher.ask([query], mode="lexical")
        matches = [] if asked.words is None else lexical.matches(asked.words, pid)
        named = _as_asked(lexical, query) if lexical.source == BM25_SOURCE else {}
        found = [Contribution(named.get(term) or lexical.word(term) or self._token(term), adds) for term, adds in matches]
        return SharedWords(lexical.source, sum(adds for _, adds in matches), found)

    @torch.inference_mode()
    def _positions(self, text: str, side: Side) -> Tensor:
        """One vector for each position, (k, dim): before similar ones are merged, so that they stand beside the words."""
        encoder = self.model.encoder
        rows = encoder.rows([text], side)
        [states] = encoder.readout.trim(list(encoder.readout.states(rows, side)), rows)
        return encoder.projection(states).float().cpu()

    def _words(self, text: str, side: Side) -> list[list[str]]:
        [positions] = self.model.predict_words([text], side, WORDS)
        return positions

    def about(self) -> dict[str, Any]:
        """Facts for people: sizes, where its words are from, how it is searched unless a mode is asked."""
        config, lexical = self._searcher.config, self._searcher.lexical
        return {
            "passages": self.passages - len(self._removed),
            "vectors": self._searcher.ranker.vectors,
            "dim": int(config.dim),
            "nbits": int(config.nbits),
            "lexical": None if lexical is None else lexical.source,
            "mode": self.mode(None),
        }


def _as_asked(lexical: LexicalIndex, query: str) -> dict[int, str]:
    """BM25's terms by the query's own words, which people know better than stems; the first of those with one stem."""
    found = dict[int, str]()
    for word in words_of(query):
        terms = lexical.of_text(word).terms.tolist()
        if len(terms) == 1:  # a word of several characters that are words each is none of them
            found.setdefault(terms[0], word)
    return found


def _json(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))
