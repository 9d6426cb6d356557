"""ColBERT's Searcher with guards: settings chosen for few vectors on every call, ranks as long as the results."""

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import colbert
import torch
from colbert.data import Queries
from colbert.infra.config import ColBERTConfig
from colbert.infra.run import Run
from torch import Tensor

from ..common.checks import whole_number, whole_numbers
from ..common.errors import UserError
from ..common.files import parse_json
from ..seam.adapter import sharing_at_least
from ..seam.binding import install
from ..seam.extensions import find_ninja
from ..seam.settings import NAMES, choose_settings, explicit_settings
from ..seam.worker import refuse_unsafe_loading
from ..texts.collection import as_texts, read_queries
from ..texts.ids import Ids
from ..texts.lines import LineFile
from .layout import METADATA_FILE
from .manifest import check_sizes, read_manifest
from .opening import checkpoint_of, differences, index_config, index_folder, open_collection, removed_pids
from .places import snapshot

Where = Callable[[Mapping[str, Any]], bool]
Observe = Callable[[str, float], None]  # (stage, seconds)
Ranking = tuple[list[int], list[int], list[float]]  # pids, ranks from 1, scores, best first


class Searcher(colbert.Searcher):  # type: ignore[misc]  # colbert has no types
    """Searches an index. Arguments and results are ColBERT's.

    Only the search settings that `config` (or the run's) carries count as chosen by the caller; the others fit each
    call's k, where ColBERT keeps the first call's for ever (searcher.py:101).

    An open searcher is one index until it is closed: rebuilt, moved or deleted meanwhile, it answers as when it was opened.

    Args:
        verify: hash every file first (about a second per gigabyte); else sizes are compared, and what ColBERT's C++ trusts.

    Raises:
        UserError: there is no complete index, it is damaged, or its texts or checkpoint are not those it was built with.
    """

    def __init__(
        self,
        index: str,
        checkpoint: str | None = None,
        collection: Any = None,
        config: ColBERTConfig | None = None,
        index_root: str | None = None,
        verbose: int = 1,
        *,
        verify: bool = False,
    ) -> None:
        install()
        find_ninja()
        self._explicit = explicit_settings(config, Run().config)
        refuse_unsafe_loading()
        if config is not None and config.load_index_with_mmap:
            raise UserError(
                "load_index_with_mmap reads from a wrong offset on torch 2.13 (residual_embeddings.py:44): leave it out"
            )
        with sharing_at_least({}):  # opened once more, the index finds its model loaded
            snapshot(
                index_folder(index, index_root, config).absolute(),
                lambda folder: self._open(folder, checkpoint, collection, config, verbose, verify),
            )

    def _open(
        self, folder: Path, checkpoint: str | None, collection: Any, config: ColBERTConfig | None, verbose: int, verify: bool
    ) -> None:
        """Everything that a search will need is read here: the folder may be another index a moment later."""
        built_with = index_config(folder)
        if verify and read_manifest(folder) is not None and (found := differences(folder, collection)):
            raise UserError(f"{folder} is damaged ({'; '.join(found[:3])}); restore the files or rebuild the index")
        check_sizes(folder)
        texts = open_collection(collection, folder)
        checkpoint = checkpoint_of(folder, built_with, checkpoint)
        with as_user_errors(folder):
            super().__init__(folder.name, checkpoint, texts, config, str(folder.parent), verbose)
        passages = len(self.ranker.doclens)
        if len(self.collection) != passages:
            raise UserError(
                f"{folder} has {passages} passages, its collection {len(self.collection)}; pass the one it was built from"
            )
        self._removed = frozenset(removed_pids(folder))
        self._ids = Ids(folder, passages)
        path = folder / METADATA_FILE
        self._metadata_lines = LineFile(path) if path.is_file() else None

    def configure(self, **settings: Any) -> None:
        """ColBERT's. Search settings count as chosen by the caller from now on; None leaves one to each call's k again."""
        super().configure(**settings)
        chosen = self._explicit | {name: settings[name] for name in NAMES if name in settings}
        self._explicit = {name: value for name, value in chosen.items() if value is not None}

    def search(
        self,
        text: str,
        k: int = 10,
        filter_fn: Any = None,
        full_length_search: bool = False,
        pids: Sequence[int] | None = None,
        where: Where | None = None,
    ) -> Ranking:
        """The k best passages for a query; with `where`, of those whose stored metadata it accepts.

        Args:
            filter_fn: ColBERT's: candidate pids, int32 (n,) -> those to keep.
            pids: score only these, and all of them.
            where: metadata of one passage -> whether to consider it. Applied before anything is scored, so that k
                passages come back if there are k. Passages added without metadata have {}.

        Raises:
            UserError: as `dense_search`.
        """
        q = self.encode(text, full_length_search=full_length_search)
        return self.dense_search(q, k, filter_fn=filter_fn, pids=pids, where=where)

    def search_all(
        self,
        queries: Any,
        k: int = 10,
        filter_fn: Any = None,
        full_length_search: bool = False,
        qid_to_pids: Mapping[Any, Any] | None = None,
    ) -> Any:
        """ColBERT's `Ranking` of the k best passages for each query; other arguments as `search`.

        Args:
            queries: a dict of texts by id, a file (`collection.read_queries`), ColBERT's `Queries`, or texts in an order, whose
                ids are then 0, 1, 2, ...
            qid_to_pids: for each query's id the pids to score, or None.

        Raises:
            UserError: as `dense_search`, no queries, or a query without its entry in `qid_to_pids`.
        """
        queries = _as_queries(queries)
        if not len(queries):
            raise UserError("there are no queries")
        if qid_to_pids is not None and (absent := [qid for qid in queries.keys() if qid not in qid_to_pids]):  # noqa: SIM118
            raise UserError(f"qid_to_pids has no entry for {len(absent)} of {len(queries)} queries (first: {absent[0]!r:.60})")
        return super().search_all(queries, k, filter_fn, full_length_search, qid_to_pids)

    def dense_search(
        self,
        Q: Tensor,  # noqa: N803 - ColBERT's name
        k: int = 10,
        filter_fn: Any = None,
        pids: Sequence[int] | None = None,
        where: Where | None = None,
    ) -> Ranking:
        """The k best passages for one query's vectors, float32 (1, k_query, dim); other arguments as `search`.

        Raises:
            UserError: k below 1, a pid that the index does not have (ColBERT would read out of bounds) or that was
                removed, or `where` without metadata stored.
        """
        if Q.ndim != 3 or len(Q) != 1 or Q.shape[2] != self.config.dim:
            raise UserError(
                f"Q is of shape {tuple(Q.shape)}, expected one query's vectors (1, k_query, {self.config.dim}); for several "
                "queries call search_all"
            )
        passages = len(self.ranker.doclens)
        k = min(whole_number("k", k), passages)
        if k < 1:
            raise UserError(f"k is {k}, expected at least 1")
        if pids is not None:
            pids = list(dict.fromkeys(whole_numbers("pid", pids)))
            self._check_pids(pids)
        config = copy.copy(self.config)  # shallow: ColBERT's own copies would copy the collection
        for name, value in (choose_settings(k, len(self.ranker.codec.centroids))._asdict() | self._explicit).items():
            setattr(config, name, value)
        if where is None:
            return _ranking(k, *self._rank(config, Q, filter_fn, pids))
        allowed = self._allowed(where, filter_fn, pids)
        if pids is None and len(allowed) > config.ndocs // 4:  # more than ColBERT would score
            keep = torch.zeros(len(self.ranker.doclens), dtype=torch.bool)
            keep[allowed] = True
            found, scores = self._rank(config, Q, lambda candidates: candidates[keep.to(candidates.device)[candidates.long()]])
            if len(found) >= min(k, len(allowed)):
                return _ranking(k, found, scores)
        return _ranking(k, *self._rank(config, Q, None, allowed))

    def _rank(
        self, config: Any, q: Tensor, filter_fn: Any = None, pids: Sequence[int] | None = None
    ) -> tuple[list[int], list[float]]:
        """ColBERT's, which fails on no candidates at all unless a filter has seen them (index_storage.py:100)."""
        if pids is not None and not len(pids):
            return [], []
        found: tuple[list[int], list[float]] = self.ranker.rank(config, q, filter_fn=filter_fn or _all, pids=pids)
        return found

    def _check_pids(self, pids: Sequence[int]) -> None:
        passages = len(self.ranker.doclens)
        if bad := [p for p in pids if not 0 <= p < passages]:
            raise UserError(f"{len(bad)} pids are not in the index (first: {bad[0]}), it has pids 0..{passages - 1}")
        if bad := [p for p in pids if p in self._removed]:
            raise UserError(f"{len(bad)} pids were removed from the index (first: {bad[0]})")

    def _allowed(self, where: Where, filter_fn: Any, pids: Sequence[int] | None) -> list[int]:
        """The pids that a search may return."""
        metadata = self._metadata
        asked = (p for p in range(len(metadata)) if p not in self._removed) if pids is None else pids
        allowed = [p for p in asked if where(metadata[p])]
        if filter_fn is not None and allowed:
            allowed = filter_fn(torch.tensor(allowed, dtype=torch.int32)).tolist()
        return allowed

    def observe(self, observe: Observe) -> None:
        """Be told how long each of ColBERT's two steps takes (index_storage.py): "candidates", which passages to look
        at, and "score"."""

        ranker = weakref.proxy(self.ranker)  # a cycle would keep an index in memory that nobody uses any more

        def timed(stage: str, step: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                started = perf_counter()
                result = step(ranker, *arguments)
                observe(stage, perf_counter() - started)
                return result

            return run

        self.ranker.retrieve = timed("candidates", type(self.ranker).retrieve)
        self.ranker.score_pids = timed("score", type(self.ranker).score_pids)

    def ids(self, pids: Iterable[int]) -> list[str]:
        """The external ids of pids: those of the collection's file, else the pids themselves.

        Raises:
            UserError: a pid that the index does not have.
        """
        pids = whole_numbers("pid", pids)
        passages = len(self.ranker.doclens)
        if bad := [p for p in pids if not 0 <= p < passages]:
            raise UserError(f"{len(bad)} pids are not in the index (first: {bad[0]}), it has pids 0..{passages - 1}")
        return self._ids.of(pids)

    def pids(self, ids: Iterable[str | int]) -> list[int]:
        """The pids of external ids, for the `pids` filter of a search. Raises UserError for an unknown id."""
        return self._ids.pids(ids)

    @property
    def removed(self) -> frozenset[int]:
        """The pids whose passages were removed: no search returns them."""
        return self._removed

    @cached_property
    def _metadata(self) -> list[dict[str, Any]]:
        """One object per pid, as `Indexer.index(metadata=)` stored them."""
        lines = self._metadata_lines
        if lines is None:
            raise UserError(f"{self.index} stores no metadata to filter by; build it with Indexer.index(..., metadata=[...])")
        if len(lines) != len(self.ranker.doclens):
            raise UserError(f"{lines.path} has {len(lines)} entries for {len(self.ranker.doclens)} passages; rebuild the index")
        return [self._about(pid, line) for pid, line in enumerate(lines)]

    def _about(self, pid: int, line: bytes) -> dict[str, Any]:
        try:
            about: dict[str, Any] = parse_json(line.decode("utf-8"))
        except ValueError as error:
            raise UserError(f"{METADATA_FILE}, line {pid + 1}: not JSON ({error}); restore it or rebuild the index") from error
        return about


def _as_queries(queries: Any) -> Any:
    """ColBERT's Queries, by its own reader where that reads them: ids are numbers then (evaluation/loaders.py:22)."""
    if isinstance(queries, Queries):
        return queries
    if isinstance(queries, str | Path):
        path = str(queries)
        try:
            return Queries(path=path)
        except (ValueError, AssertionError, OSError):
            read = Queries(data=read_queries(path))
        read.path = path
        return read
    if isinstance(queries, Mapping):
        return Queries(data=dict(queries))
    return Queries(data=dict(enumerate(as_texts(queries, "queries"))))


def _all(candidates: Tensor) -> Tensor:
    return candidates


def _ranking(k: int, pids: list[int], scores: list[float]) -> Ranking:
    return pids[:k], list(range(1, len(pids[:k]) + 1)), scores[:k]


@contextmanager
def as_user_errors(folder: Path) -> Iterator[None]:
    """Whatever ColBERT or torch raise over damaged files is a user's matter."""
    try:
        yield
    except (UserError, MemoryError, ImportError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"{folder} cannot be opened ({type(error).__name__}: {reason}); "
            f"`colbert-diffusion verify {folder}` names damaged files"
        ) from error
