"""ColBERT's Searcher with guards: settings chosen for few vectors on every call, ranks as long as the results; and words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import colbert
import numpy as np
import torch
from colbert.infra.config import ColBERTConfig
from colbert.infra.provenance import Provenance
from colbert.infra.run import Run
from torch import Tensor

from ..common.checks import whole_numbers
from ..common.errors import UserError
from ..encoding.checkpoint import DiffusionCheckpoint, named_elsewhere
from ..seam.adapter import VectorCheckpoint, sharing_at_least
from ..seam.binding import install
from ..seam.extensions import find_ninja
from ..seam.settings import NAMES, explicit_settings
from ..seam.worker import refuse_unsafe_loading
from ..texts.ids import Ids
from ..texts.lines import LineFile
from .dense import DenseSearcher, Ranking, Where, ranking
from .fusion import Both, Fusion, fusion_of
from .layout import METADATA_FILE
from .lexical import BM25_SOURCE, LEXICAL_FILE, LexicalIndex, Query
from .manifest import FUSION, check_sizes, read_manifest
from .opening import checkpoint_of, differences, index_config, index_folder, open_collection, removed_pids
from .places import snapshot
from .postings import Floats, Ints, largest
from .queries import as_queries
from .rows import Replica, Row, SearchCluster, ranked_elsewhere

MODES = ("dense", "lexical", "hybrid")
ASKED = 256  # queries encoded together by `search_all`


class Asked(NamedTuple):
    """A query, encoded: float32 (1, k_query, dim), and its words; None where the mode has no use for them."""

    vectors: Tensor | None
    words: Query | None


class Searcher(DenseSearcher):
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
        passages = self.ranker.passages
        if len(self.collection) != passages:
            raise UserError(
                f"{folder} has {passages} passages, its collection {len(self.collection)}; pass the one it was built from"
            )
        self._removed = frozenset(removed_pids(folder))
        self._ids = Ids(folder, passages)
        self._lexical = LexicalIndex(folder, passages, len(self._removed)) if (folder / LEXICAL_FILE).is_file() else None
        self._fusion = fusion_of((read_manifest(folder) or {}).get(FUSION))
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
        mode: str | None = None,
        fusion: Fusion | None = None,
    ) -> Ranking:
        """The k best passages for a query; with `where`, of those whose stored metadata it accepts.

        Args:
            mode: "dense": by vectors; "lexical": by words alone, and only passages that share one; "hybrid": by both. None:
                hybrid where the index has words with a weight that was tuned, else dense.
            fusion: how both scores become one; None: as the index or its checkpoint recommends.
            filter_fn: ColBERT's: candidate pids, int32 (n,) -> those to keep.
            pids: score only these, and all of them.
            where: metadata of one passage -> whether to consider it. Applied before anything is scored, so that k
                passages come back if there are k. Passages added without metadata have {}.

        Raises:
            UserError: as `dense_search`, or the mode needs words and the index has none.

        >>> searcher.search("capital of France", k=1, mode="hybrid")
        ([0], [1], [1.08])
        """
        if self.mode_of(mode) == "dense":
            q = self.encode(text, full_length_search=full_length_search)
            return self.dense_search(q, k, filter_fn=filter_fn, pids=pids, where=where)
        [asked] = self.ask([text], mode=mode)
        return self.answer(asked, k, filter_fn=filter_fn, pids=pids, where=where, mode=mode, fusion=fusion)

    def search_all(
        self,
        queries: Any,
        k: int = 10,
        filter_fn: Any = None,
        full_length_search: bool = False,
        qid_to_pids: Mapping[Any, Any] | None = None,
        mode: str | None = None,
        fusion: Fusion | None = None,
        cluster: SearchCluster | None = None,
    ) -> Any:
        """ColBERT's `Ranking` of the k best passages for each query; other arguments as `search`.

        Args:
            queries: a dict of texts by id, a file (`collection.read_queries`), ColBERT's `Queries`, or texts in an order, whose
                ids are then 0, 1, 2, ...
            qid_to_pids: for each query's id the pids to score, or None.
            cluster: searches in place of this machine (`distributed.RayCluster`); the index is on each of its machines, at the
                same path. Filters and `qid_to_pids` are not asked of it.

        Raises:
            UserError: as `dense_search`, no queries, or a query without its entry in `qid_to_pids`.
        """
        queries = as_queries(queries)
        if not len(queries):
            raise UserError("there are no queries")
        if qid_to_pids is not None and (absent := [qid for qid in queries.keys() if qid not in qid_to_pids]):  # noqa: SIM118
            raise UserError(f"qid_to_pids has no entry for {len(absent)} of {len(queries)} queries (first: {absent[0]!r:.60})")
        how = self.mode_of(mode)
        if cluster is not None:
            if filter_fn is not None or qid_to_pids is not None:
                raise UserError("filter_fn and qid_to_pids are not asked of a cluster: leave them out, or search here")
            replica = Replica.of(Path(self.index), named_elsewhere(self._model().path))
            return _ranking_of(ranked_elsewhere(cluster, replica, queries, Row(how, fusion), k), queries, k, self.config)
        if how == "dense":
            return super().search_all(queries, k, filter_fn, full_length_search, qid_to_pids)
        qids, texts, data = list(queries.keys()), list(queries.values()), {}
        for start in range(0, len(qids), ASKED):
            part = slice(start, start + ASKED)
            for qid, asked in zip(qids[part], self.ask(texts[part], mode=mode), strict=True):
                own = None if qid_to_pids is None else qid_to_pids[qid]
                found = self.answer(asked, k, filter_fn=filter_fn, pids=own, mode=mode, fusion=fusion)
                data[qid] = list(zip(*found, strict=True))
        return _ranking_of(data, queries, k, self.config)

    # Words ----------------------------------------------------------------------------------------------------------

    @property
    def lexical(self) -> LexicalIndex | None:
        """The index's words; None: it was built without."""
        return self._lexical

    @property
    def fusion(self) -> Fusion | None:
        """How this index's two scores become one, as it was tuned or its checkpoint recommends; None: nobody did."""
        return self._fusion

    @property
    def default_fusion(self) -> Fusion:
        """What mode "hybrid" uses where no fusion is given."""
        return self._fusion or Fusion()

    def mode_of(self, mode: str | None) -> str:
        """The mode of a search that asks for this one. Raises UserError for an unknown one, or words where there are none."""
        if mode is None:
            return "dense" if self._lexical is None or self._fusion is None else "hybrid"
        if mode not in MODES:
            raise UserError(f"mode is {mode!r:.40}, expected one of {', '.join(MODES)}")
        if mode != "dense" and self._lexical is None:
            raise UserError(
                f'{self.index} has no words for mode "{mode}"; build it with `colbert-diffusion index ... --lexical bm25` (or '
                'predicted), Indexer.index(..., lexical="bm25"), or search by mode "dense"'
            )
        return mode

    def ask(self, texts: Sequence[str], *, mode: str | None = None) -> list[Asked]:
        """Queries as `answer` takes them: encoded together, vectors and words of one forward pass.

        Raises:
            UserError: as `search`.
        """
        mode = self.mode_of(mode)
        if mode == "dense" or self._lexical is None:
            return [Asked(q, None) for q in self.encode(list(texts)).split(1)]
        if self._lexical.source == BM25_SOURCE:
            words = [self._lexical.of_text(text) for text in texts]
            return (
                [Asked(None, own) for own in words]
                if mode == "lexical"
                else [Asked(q, own) for q, own in zip(self.encode(list(texts)).split(1), words, strict=True)]
            )
        vectors, matrix = self._model().encode_query(texts, lexical=True)
        if matrix.shape[1] != self._lexical.vocabulary:
            raise UserError(
                f"{self.index} has words of a vocabulary of {self._lexical.vocabulary}, the checkpoint's has {matrix.shape[1]}"
            )
        rows = [slice(*matrix.indptr[i : i + 2]) for i in range(len(texts))]
        words = [Query(matrix.indices[row].astype(np.int64), matrix.data[row]) for row in rows]
        return [Asked(torch.from_numpy(q)[None], own) for q, own in zip(vectors, words, strict=True)]

    def _model(self) -> DiffusionCheckpoint:
        checkpoint = self.checkpoint
        model: DiffusionCheckpoint = checkpoint.model if isinstance(checkpoint, VectorCheckpoint) else checkpoint
        return model

    def answer(
        self,
        asked: Asked,
        k: int = 10,
        *,
        filter_fn: Any = None,
        pids: Sequence[int] | None = None,
        where: Where | None = None,
        mode: str | None = None,
        fusion: Fusion | None = None,
    ) -> Ranking:
        """The k best passages for what `ask` returned in the same mode; other arguments as `search`.

        Raises:
            UserError: as `search`.
        """
        mode = self.mode_of(mode)
        if (mode != "lexical" and asked.vectors is None) or (mode != "dense" and asked.words is None):
            missing = "vectors" if asked.vectors is None else "words"
            raise UserError(
                f'this query was asked without the {missing} that mode "{mode}" needs; ask it in the mode of the answer'
            )
        if mode == "dense" or self._lexical is None or asked.words is None:
            return self.dense_search(asked.vectors, k, filter_fn=filter_fn, pids=pids, where=where)  # type: ignore[arg-type]
        k, pids = self._checked(k, pids)
        if mode == "lexical":
            started = perf_counter()
            allowed = self._restricted(self._lexical.scores(asked.words), where, filter_fn, pids)
            found = largest(allowed, k)
            self._observe("lexical", perf_counter() - started)
            return ranking(k, found.tolist(), allowed[found].tolist())
        fusion = fusion or self.default_fusion
        both = self.both(asked, k, fusion.depth(k), filter_fn=filter_fn, pids=pids, where=where)
        return ranking(k, *both.best(fusion, k))

    def both(
        self,
        asked: Asked,
        k: int,
        depth: int,
        *,
        filter_fn: Any = None,
        pids: Sequence[int] | None = None,
        where: Where | None = None,
    ) -> Both:
        """The `depth` best passages of the vectors and those of the words, each with both scores, for any fusion.

        Args:
            asked: as `ask` gives it in mode "hybrid".
            k: ColBERT's settings are those for this many; other arguments as `search`.

        Raises:
            UserError: as `search`.
        """
        self.mode_of("hybrid")
        if asked.vectors is None or asked.words is None or self._lexical is None:
            raise UserError('this query lacks its vectors or its words; ask it in mode "hybrid"')
        k, pids = self._checked(k, pids)
        started = perf_counter()
        lexical = self._lexical.scores(asked.words)
        depth = depth if pids is None else max(1, len(pids))
        by_words = largest(self._restricted(lexical, where, filter_fn, pids), depth)
        self._observe("lexical", perf_counter() - started)
        by_vectors, scores = self._dense(asked.vectors, k, depth, filter_fn, pids, where)
        union, dense = self._completed(asked.vectors, by_vectors[:depth], scores[:depth], by_words, k)
        first = np.arange(len(union)) < len(by_vectors[:depth])
        most = self._lexical.most(asked.words)
        return Both(union, dense, lexical[union], _own(asked.vectors), most, first, np.isin(union, by_words))

    def _completed(self, q: Tensor, pids: Sequence[int], scores: Sequence[float], others: Ints, k: int) -> tuple[Ints, Ints]:
        """Passages that have been scored and others, which are scored now: pids and MaxSim, the first ones first."""
        missing = others[~np.isin(others, pids)].tolist()
        more = dict(zip(*self._rank(self._settings(k), q, pids=missing), strict=True))
        return np.array([*pids, *missing], np.int64), np.array([*scores, *(more[pid] for pid in missing)])

    def _restricted(self, lexical: Floats, where: Where | None, filter_fn: Any, pids: Sequence[int] | None) -> Floats:
        """The scores of the passages that may be returned, the others' 0."""
        if where is None and filter_fn is None and pids is None:
            return lexical
        if where is not None:
            allowed: Any = self._allowed(where, filter_fn, pids)
        else:
            allowed = np.flatnonzero(lexical) if pids is None else pids
            if filter_fn is not None and len(allowed):
                allowed = filter_fn(torch.as_tensor(allowed, dtype=torch.int32)).tolist()
        restricted = np.zeros_like(lexical)
        places = np.asarray(allowed, np.int64)
        restricted[places] = lexical[places]
        return restricted

    def ids(self, pids: Iterable[int]) -> list[str]:
        """The external ids of pids: those of the collection's file, else the pids themselves.

        Raises:
            UserError: a pid that the index does not have.
        """
        pids = whole_numbers("pid", pids)
        passages = self.ranker.passages
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


def _ranking_of(data: dict[Any, Any], queries: Any, k: int, config: Any) -> Any:
    """ColBERT's `Ranking`, as its own search_all makes it (searcher.py:89)."""
    provenance = Provenance()
    provenance.source, provenance.queries, provenance.k = "Searcher::search_all", queries.provenance(), k
    provenance.config = config.export()
    return colbert.data.Ranking(data=data, provenance=provenance)


def _own(q: Tensor) -> int:
    """k_query: readout "tokens" pads with zeros."""
    return int(q.any(dim=2).sum())


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
