"""ColBERT's Searcher with guards: settings chosen for few vectors on every call, ranks as long as the results."""

import copy
import json
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import colbert
import torch
from colbert.data import Collection
from colbert.infra.config import ColBERTConfig
from colbert.infra.run import Run
from torch import Tensor

from ..backbones.sources import locate
from ..collection import COLLECTION_FILE, Held, Passages, read_collection
from ..config import CHECKPOINT, RELEASED, layout_of
from ..errors import UserError
from ..files import read_json
from ..identity import identify
from ..ids import Ids
from ..manifest import check_sizes, read_manifest
from .binding import install
from .extensions import find_ninja
from .places import Places
from .settings import choose_settings, explicit_settings
from .worker import refuse_unsafe_loading

REMOVED_FILE = "deleted.json"  # {"pids": [...]}: they keep their place in the index's files, so that ids are stable
METADATA_FILE = "passages.jsonl"  # one JSON object per pid
Where = Callable[[Mapping[str, Any]], bool]
Observe = Callable[[str, float], None]  # (stage, seconds)
Ranking = tuple[list[int], list[int], list[float]]  # pids, ranks from 1, scores, best first


class Searcher(colbert.Searcher):  # type: ignore[misc]  # colbert has no types
    """Searches an index. Arguments and results are ColBERT's.

    Only the search settings that `config` (or the run's) carries count as chosen by the caller; the others fit each
    call's k, where ColBERT keeps the first call's for ever (searcher.py:101).

    Raises:
        UserError: there is no complete index.
    """

    def __init__(
        self,
        index: str,
        checkpoint: str | None = None,
        collection: Any = None,
        config: ColBERTConfig | None = None,
        index_root: str | None = None,
        verbose: int = 1,
    ) -> None:
        install()
        find_ninja()
        self._explicit = explicit_settings(config, Run().config)
        refuse_unsafe_loading()
        folder = index_folder(index, index_root, config)
        built_with = index_config(folder)
        collection = open_collection(collection or built_with["collection"], folder)
        check_sizes(folder)
        checkpoint = checkpoint_of(folder, built_with, checkpoint)
        if config is not None and config.load_index_with_mmap:
            raise UserError(
                "load_index_with_mmap reads from a wrong offset on torch 2.13 (residual_embeddings.py:44): leave it out"
            )
        super().__init__(index, checkpoint, collection, config, index_root, verbose)
        self._removed = frozenset(removed_pids(folder))

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
        if k < 1:
            raise UserError(f"k is {k}, expected at least 1")
        if pids is not None:
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
        pids = list(pids)
        passages = len(self.ranker.doclens)
        if bad := [p for p in pids if not 0 <= p < passages]:
            raise UserError(f"{len(bad)} pids are not in the index (first: {bad[0]}), it has pids 0..{passages - 1}")
        return self._ids.of(pids)

    def pids(self, ids: Iterable[str | int]) -> list[int]:
        """The pids of external ids, for the `pids` filter of a search. Raises UserError for an unknown id."""
        return self._ids.pids(ids)

    @cached_property
    def _ids(self) -> Ids:
        return Ids(Path(self.index), len(self.ranker.doclens))

    @cached_property
    def _metadata(self) -> list[dict[str, Any]]:
        """One object per pid, as `Indexer.index(metadata=)` stored them."""
        path = Path(self.index) / METADATA_FILE
        if not path.is_file():
            raise UserError(f"{self.index} stores no metadata to filter by; build it with Indexer.index(..., metadata=[...])")
        with path.open(encoding="utf-8") as file:
            metadata = [json.loads(line) for line in file]
        if len(metadata) != len(self.ranker.doclens):
            raise UserError(f"{self.index} was updated since this searcher opened it; open it again")
        return metadata


def _all(candidates: Tensor) -> Tensor:
    return candidates


def _ranking(k: int, pids: list[int], scores: list[float]) -> Ranking:
    return pids[:k], list(range(1, len(pids[:k]) + 1)), scores[:k]


def index_folder(index: str, index_root: str | None = None, config: ColBERTConfig | None = None) -> Path:
    """Where ColBERT looks for the index of this name (searcher.py:33)."""
    return Path(index_root or ColBERTConfig.from_existing(config, Run().config).index_root_) / index


def checkpoint_of(folder: Path, built_with: dict[str, Any], checkpoint: str | None = None) -> str:
    """The checkpoint to encode with: the one given, else the one that the index was built with.

    Raises:
        UserError: it is gone, or its vectors are not those of the index; scores would look fine and mean nothing.
    """
    there = Path(built_with["checkpoint"])
    if checkpoint is None and there.is_absolute() and not there.exists():
        raise UserError(f"{folder} was built with {there}, which is gone; pass checkpoint= its new place")
    path = built_with["checkpoint"] if checkpoint is None else str(locate(str(checkpoint)))
    expected = (read_manifest(folder) or {}).get("build", {}).get("checkpoint")
    if expected is not None and layout_of(Path(path)) in (CHECKPOINT, RELEASED):
        fingerprint = identify(path).fingerprint
        if fingerprint != expected:
            raise UserError(
                f"{folder} was built with a checkpoint of fingerprint {expected}, {path} has {fingerprint}; "
                "use the checkpoint it was built with, or rebuild it"
            )
    return str(path)


def removed_pids(folder: Path) -> list[int]:
    """The pids whose passages were removed from the index, ascending."""
    path = folder / REMOVED_FILE
    return list(read_json(path)["pids"]) if path.is_file() else []


def index_config(folder: Path) -> dict[str, Any]:
    """The config that the index was built with."""
    Places(folder.absolute()).recover()
    if not (folder / "metadata.json").is_file():
        state = "is incomplete" if folder.is_dir() else "does not exist"
        raise UserError(f"index {folder} {state}; build it with `colbert-diffusion index TEXTS {folder}`")
    config: dict[str, Any] = read_json(folder / "metadata.json")["config"]
    return config


def open_collection(collection: Any, folder: Path) -> Any:
    """What ColBERT takes for a collection; a path that is gone falls back to the copy stored with the index."""
    if isinstance(collection, list) and str(collection[0]).startswith("list with "):  # core_config.py: export
        raise UserError(f"{folder} keeps no copy of the list it was built from; pass collection= the same passages")
    if isinstance(collection, list):
        return Collection(data=Held(collection))
    if isinstance(collection, Passages):
        return Collection(path=str(collection.path), data=collection)
    if not isinstance(collection, str | Path):
        return collection
    path = Path(collection)
    if not path.exists() and (folder / COLLECTION_FILE).is_file():
        path = folder / COLLECTION_FILE
    try:
        return Collection(path=str(path), data=read_collection(path))
    except UserError:
        if path.suffix == ".tsv" and path.exists():
            return str(path)  # a stock index of a TSV that only ColBERT's own, laxer reader takes
        raise
