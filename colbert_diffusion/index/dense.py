"""Searching by vectors: ColBERT's own, with settings that fit each call and filters that come before scoring."""

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from time import perf_counter
from typing import Any

import colbert
import numpy as np
import torch
from torch import Tensor

from ..common.checks import whole_number, whole_numbers
from ..common.errors import UserError
from ..common.files import parse_json
from ..seam.settings import choose_settings
from ..texts.lines import LineFile
from .layout import METADATA_FILE

Where = Callable[[Mapping[str, Any]], bool]
Observe = Callable[[str, float], None]  # (stage, seconds)
Ranking = tuple[list[int], list[int], list[float]]  # pids, ranks from 1, scores, best first


def _nobody(stage: str, seconds: float) -> None:
    """Until somebody asks to be told."""


class DenseSearcher(colbert.Searcher):  # type: ignore[misc]  # colbert has no types
    """What `Searcher` does with vectors. It sets `_explicit`, `_removed` and `_metadata_lines` when it opens an index."""

    _explicit: dict[str, Any]
    _removed: frozenset[int]
    _metadata_lines: LineFile | None
    _observe: Observe = staticmethod(_nobody)

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
        k, pids = self._checked(k, pids)
        return ranking(k, *self._dense(Q, k, k, filter_fn, pids, where))

    def _checked(self, k: int, pids: Sequence[int] | None) -> tuple[int, list[int] | None]:
        """k, at most as many as there are; pids, each once. Raises UserError for what is out of bounds."""
        k = min(whole_number("k", k), self.ranker.passages)
        if k < 1:
            raise UserError(f"k is {k}, expected at least 1")
        if pids is None:
            return k, None
        pids = list(dict.fromkeys(whole_numbers("pid", pids)))
        self._check_pids(pids)
        return k, pids

    def _settings(self, k: int) -> Any:
        config = copy.copy(self.config)  # shallow: ColBERT's own copies would copy the collection
        for name, value in (choose_settings(k, self.ranker.partitions)._asdict() | self._explicit).items():
            setattr(config, name, value)
        return config

    def _dense(
        self, q: Tensor, k: int, depth: int, filter_fn: Any, pids: Sequence[int] | None, where: Where | None
    ) -> tuple[list[int], list[float]]:
        """All that were scored with the settings for k, best first; at least `depth` of those that `where` allows."""
        config = self._settings(k)
        if where is None:
            return self._rank(config, q, filter_fn, pids)
        allowed = self._allowed(where, filter_fn, pids)
        if pids is None and len(allowed) > config.ndocs // 4:  # more than ColBERT would score
            keep = torch.zeros(self.ranker.passages, dtype=torch.bool)
            keep[allowed] = True
            found, scores = self._rank(config, q, lambda candidates: candidates[keep.to(candidates.device)[candidates.long()]])
            if len(found) >= min(depth, len(allowed)):
                return found, scores
        return self._rank(config, q, None, allowed)

    def _rank(
        self, config: Any, q: Tensor, filter_fn: Any = None, pids: Sequence[int] | None = None
    ) -> tuple[list[int], list[float]]:
        if pids is not None and not len(pids):
            return [], []
        found: tuple[list[int], list[float]] = self.ranker.rank(config, q, filter_fn=filter_fn, pids=pids)
        return found

    def _check_pids(self, pids: Sequence[int]) -> None:
        passages = self.ranker.passages
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
        """Be told how long each step takes: "lexical", the words' scores, and ColBERT's two (index_storage.py): "candidates",
        which passages to look at, and "score"."""
        self._observe = observe

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

    @cached_property
    def _metadata(self) -> list[dict[str, Any]]:
        """One object per pid, as `Indexer.index(metadata=)` stored them."""
        lines = self._metadata_lines
        if lines is None:
            raise UserError(f"{self.index} stores no metadata to filter by; build it with Indexer.index(..., metadata=[...])")
        if len(lines) != self.ranker.passages:
            raise UserError(f"{lines.path} has {len(lines)} entries for {self.ranker.passages} passages; rebuild the index")
        return [self._about(pid, line) for pid, line in enumerate(lines)]

    def _about(self, pid: int, line: bytes) -> dict[str, Any]:
        try:
            about: dict[str, Any] = parse_json(line.decode("utf-8"))
        except ValueError as error:
            raise UserError(f"{METADATA_FILE}, line {pid + 1}: not JSON ({error}); restore it or rebuild the index") from error
        return about


def ranking(k: int, pids: list[int], scores: list[float]) -> Ranking:
    """The k best, ties by pid: ColBERT's own sort leaves them in no order."""
    order = np.lexsort((np.array(pids), -np.array(scores)))[:k].tolist()
    return [pids[i] for i in order], list(range(1, len(order) + 1)), [scores[i] for i in order]
