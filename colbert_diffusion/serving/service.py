"""Indexes by name, searched by many at once: micro-batches, bounded pools, a cache, reloading. Knows nothing about HTTP.

One event loop owns all state. Models run in one thread, searches in a few, and asyncio's own threads read texts and ids
from a disk that may be slow. More than `Limits.pending` queries at a time are refused, so that nothing grows and whoever is
accepted is answered soon. Texts to encode wait apart, by their tokens, and run slice by slice behind the queries.
"""

import asyncio
import hashlib
import math
from array import array
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch

from ..common.errors import UserError
from ..config import Side
from ..index.parts import Parts
from ..index.searching import Asked
from ..seam.adapter import Models
from .batching import Background, Batcher
from .index import Encoded, Explanation, Hit, OpenedIndex, Question, UnknownError

SLICE = 1024  # tokens that are encoded at a time while queries wait: 60 ms of the small checkpoint on one core
Key = tuple[int, Question, int, bytes | None]  # generation of the index, query and mode, k, digest of pids


class OverloadedError(UserError):
    """More is waiting than is answered soon; the same request succeeds later."""


class BusyEncodingError(UserError):
    """More tokens wait to be encoded than may; the same request succeeds later, searches do now."""


@dataclass(frozen=True)
class Limits:
    """What one caller may ask for.

    max_k: passages per query.
    query_characters, text_characters: length of a query, of a text to encode; models read far less of both.
    texts: queries of a search, texts to encode, in one request.
    pending: queries accepted and not answered; about what is answered within the 10 s that clients wait.
    tokens: of texts to encode that are accepted and not encoded, as many as the model may read of them.
    """

    max_k: int = 1000
    query_characters: int = 2_000
    text_characters: int = 20_000
    texts: int = 64
    pending: int = 512
    tokens: int = 65_536


class Observer(Protocol):
    """Is told what happens; called from any thread."""

    def stage(self, name: str, seconds: float) -> None: ...
    def cached(self, hit: bool) -> None: ...


class Unobserved:
    def stage(self, name: str, seconds: float) -> None: ...
    def cached(self, hit: bool) -> None: ...


@dataclass(frozen=True)
class _Served:
    index: OpenedIndex
    encode: Batcher[Question, Asked]
    generation: int


class Service:
    """Several indexes, the first of them the default.

    Args:
        paths: index folders; their names are the indexes' names.
        cache: answers kept, 0 for none.
        checkpoint, collection: where an index's are now; None: where they were.
        parts: an index's folder -> where its vectors are; None: in this process.

    Raises:
        UserError: an index cannot be opened, or two have one name.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        limits: Limits | None = None,
        cache: int = 0,
        observer: Observer | None = None,
        *,
        checkpoint: str | None = None,
        collection: Path | None = None,
        parts: Callable[[Path], Parts] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.pending = self.tokens = 0
        self._observer = observer or Unobserved()
        self._moved: dict[str, Any] = {"checkpoint": checkpoint, "collection": collection, "parts": parts}
        self._generation = 0
        self._reloading = asyncio.Lock()
        self._models: Models = WeakValueDictionary()  # indexes of one checkpoint share it, a reloaded one too
        self._cache = LRU(cache)
        # Half the cores encode while the others search: on two busy cores, 8 callers, 72 to 80 queries/s against 45 to 76
        # with all of them for encoding. ColBERT's scorers hold the interpreter's lock, so that two searches at once
        # overlap a little, more would not, and threads inside one search do.
        half = max(1, torch.get_num_threads() // 2)
        self._encoding = ThreadPoolExecutor(1, "encode", _use_threads, (half,))
        self._searching = ThreadPoolExecutor(2, "search", _use_threads, (half,))
        self._background = Background(self._encoding, lambda: self.pending > 0)
        self._served: dict[str, _Served] = {}
        for path in paths:
            if (name := path.absolute().name) in self._served:
                raise UserError(f"two indexes are named {name}; rename one of the folders")
            index = self._open(path)
            index.warm_up()
            self._serve(name, index)
        self.default = next(iter(self._served))

    def _open(self, path: Path) -> OpenedIndex:
        return OpenedIndex(path, self._models, self._observer.stage, **self._moved)

    def _serve(self, name: str, index: OpenedIndex) -> None:
        self._generation += 1
        self._served[name] = _Served(index, Batcher(index.encode, self._encoding), self._generation)

    def close(self) -> None:
        """Finish what runs; nothing is accepted afterwards."""
        self._encoding.shutdown()
        self._searching.shutdown()

    def about(self) -> list[dict[str, Any]]:
        """Name and sizes of every index."""
        return [{"name": name, **served.index.about()} for name, served in self._served.items()]

    def _find(self, name: str | None) -> _Served:
        served = self._served.get(self.default if name is None else name)
        if served is None:
            raise UnknownError(f"there is no index {name!r:.80}; there are: {', '.join(self._served)}")
        return served

    async def search(
        self,
        queries: Sequence[str],
        k: int,
        pids: Sequence[int] | None = None,
        index: str | None = None,
        mode: str | None = None,
    ) -> list[list[tuple[Hit, str]]]:
        """For each query the k best passages with their texts; with `pids`, of those. Mode None: the index's own.

        Raises:
            UnknownError: there is no such index.
            OverloadedError: try again.
            UserError: a limit is exceeded, a pid is not in the index, or the index does not search by the mode.
        """
        served = self._find(index)
        mode = served.index.mode(mode)
        if not 1 <= k <= self.limits.max_k:
            raise UserError(f"k is {k}, expected 1 to {self.limits.max_k}")
        self._check(queries, "queries", self.limits.query_characters)
        wanted = None if pids is None else list(dict.fromkeys(pids))
        digest = None if wanted is None else hashlib.blake2b(array("q", wanted).tobytes()).digest()
        with self._admitted(len(queries)):
            found = await _together([self._search(served, Question(query, mode), k, wanted, digest) for query in queries])
        return await asyncio.to_thread(_with_texts, served.index, found)

    async def pids(self, ids: Sequence[str], index: str | None = None) -> list[int]:
        """The pids of a collection's own ids. Raises UnknownError for an index or an id that is not there."""
        return await asyncio.to_thread(self._find(index).index.pids, ids)

    async def _search(
        self, served: _Served, question: Question, k: int, pids: list[int] | None, digest: bytes | None
    ) -> list[Hit]:
        key = (served.generation, question, k, digest)
        if self._cache.size:
            hits = self._cache.get(key)
            self._observer.cached(hits is not None)
            if hits is not None:
                return hits
        asked = await served.encode(question) if served.index.runs_model(question.mode) else None
        loop = asyncio.get_running_loop()
        hits = await loop.run_in_executor(self._searching, served.index.search, question, asked, k, pids)
        self._cache.put(key, hits)
        return hits

    async def encode(self, texts: Sequence[str], side: Side, index: str | None = None, *, words: bool = False) -> list[Encoded]:
        """Each text's vectors, and on demand its words. Raises as `search`, BusyEncodingError instead of OverloadedError, and
        UserError where the checkpoint predicts no words."""
        served = self._find(index)
        self._check(texts, "texts", self.limits.text_characters)
        tokens = served.index.tokens(texts, side)
        with self._admitted_tokens(sum(tokens)):
            slices = [partial(served.index.vectors, texts[a:b], side, words) for a, b in _slices(tokens)]
            return [vectors for part in await self._background(slices) for vectors in part]

    async def explain(self, query: str, pid: int, index: str | None = None) -> Explanation:
        """Why this passage. Raises as `search`, and UnknownError when there is no such passage."""
        served = self._find(index)
        self._check([query], "queries", self.limits.query_characters)
        with self._admitted_tokens(served.index.longest):
            [explained] = await self._background([partial(served.index.explain, query, pid)])
        return explained

    async def passage(self, pid: int, index: str | None = None) -> str:
        """A passage's text. Raises UnknownError when there is none."""
        return await asyncio.to_thread(self._find(index).index.passage, pid)

    async def reload(self, index: str | None = None) -> dict[str, Any]:
        """Open the index's folder anew and serve that from now on; requests under way finish on the old one.

        Raises:
            UnknownError: there is no such index.
            UserError: the folder cannot be opened; the old index is served on.
        """
        path = self._find(index).index.path
        async with self._reloading:
            opening = partial(self._open, path)
            opened = await asyncio.get_running_loop().run_in_executor(None, opening)
            await asyncio.get_running_loop().run_in_executor(self._encoding, opened.warm_up)
            self._serve(path.name, opened)
        return {"name": path.name, **opened.about()}

    def _check(self, texts: Sequence[str], what: str, characters: int) -> None:
        if not 1 <= len(texts) <= self.limits.texts:
            raise UserError(f"{len(texts)} {what}, expected 1 to {self.limits.texts} in one request")
        for i, text in enumerate(texts):
            if len(text) > characters:
                raise UserError(f"{what}[{i}] has {len(text)} characters, at most {characters} are allowed")
            if what == "queries" and not text.strip():
                raise UserError(f"{what}[{i}] is empty")

    @contextmanager
    def _admitted(self, texts: int) -> Iterator[None]:
        if self.pending + texts > self.limits.pending:
            raise OverloadedError(f"{self.pending} texts are waiting, at most {self.limits.pending} may; try again")
        self.pending += texts
        try:
            yield
        finally:
            self.pending -= texts

    @contextmanager
    def _admitted_tokens(self, tokens: int) -> Iterator[None]:
        most = self.limits.tokens
        if tokens > most:
            raise UserError(
                f"the texts have up to {tokens:,} tokens that are read, at most {most:,} in one request; send fewer"
            )
        if self.tokens + tokens > most:
            raise BusyEncodingError(
                f"{self.tokens:,} tokens wait to be encoded, at most {most:,} may, this request has up to {tokens:,}; try again"
            )
        self.tokens += tokens
        try:
            yield
        finally:
            self.tokens -= tokens


def _slices(tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where to cut texts into parts of at most SLICE tokens, one text at least in each."""
    start, taken = 0, 0
    for place, count in enumerate(tokens):
        if place > start and taken + count > SLICE:
            yield start, place
            start, taken = place, 0
        taken += count
    yield start, len(tokens)


class LRU:
    """The answers asked for last."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: OrderedDict[Key, list[Hit]] = OrderedDict()

    def get(self, key: Key) -> list[Hit] | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Key, hits: list[Hit]) -> None:
        self._kept[key] = hits
        self._kept.move_to_end(key)
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)


def _with_texts(index: OpenedIndex, found: Sequence[Sequence[Hit]]) -> list[list[tuple[Hit, str]]]:
    return [[(hit, index.passage(hit.pid)) for hit in hits] for hits in found]


def probabilities(scores: Sequence[float]) -> list[float]:
    """Softmax over the scores, which may be of any size."""
    largest = max(scores, default=0.0)
    weights = [math.exp(score - largest) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


async def _together(searches: Iterable[Coroutine[Any, Any, list[Hit]]]) -> list[list[Hit]]:
    """All results, or the first error when every search is done: none goes on unseen."""
    results = []
    for result in await asyncio.gather(*searches, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


def _use_threads(count: int) -> None:
    """Torch counts threads for each thread that calls it."""
    torch.get_num_threads()  # the first call would overwrite what is set before
    torch.set_num_threads(count)
