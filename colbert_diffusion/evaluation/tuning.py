"""The weight of an index's words beside its vectors, chosen on judged queries, and an honest account of what it gains.

Both scores are computed once for each query; what is swept is arithmetic and `ir_measures`. A weight that was chosen where it
is measured looks better than it is, so what counts is measured on queries that did not choose it.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..common.errors import UserError
from ..common.progress import progress_bar
from ..config import DiffusionConfig
from ..index.fusion import Both, Fusion, found_words
from ..index.manifest import read_manifest
from .benchmarks import Benchmark, read_judged
from .measuring import REPEATS, Comparison, compare, halves, parse_measures, values_of

if TYPE_CHECKING:
    from ..index.searching import Searcher

GRID = tuple(i / 100 for i in range(101))
BEYOND = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0, 1000.0)  # where the best of the grid is its end
ASKED = 128  # queries encoded together
BLOCK = 10_000  # ids read together
NOISE = 1.96  # standard errors of a paired difference

Values = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tuned:
    """What was found out about rule "scaled".

    Args:
        dense, lexical: mean of the vectors alone and of the words alone.
        curve: (weight, mean) of each weight tried.
        weight, mean: the best of them; of several that are equally good the middle.
        plateau: the weights around it whose paired difference to it is within 1.96 standard errors.
        over_dense, over_better: its gain over dense and over the better of both alone, by paired bootstrap. It was chosen on
            these queries: `validated` was not.
        validated: gain over dense where the weight is chosen on one half of the queries and measured on the other, 10 times.
        chosen: the least and the largest weight that the halves chose.
        helps: whether the validated gain is above 0, by a weight above 0.
        index: what it was found out about: an index, or a checkpoint.
        written: whether it is written there now.
    """

    index: str
    measure: str
    depth: int
    queries: int
    queries_left_out: int
    judged_passages_missing: int
    dense: float
    lexical: float
    curve: tuple[tuple[float, float], ...]
    weight: float
    mean: float
    plateau: tuple[float, float]
    over_dense: Comparison
    over_better: Comparison
    validated: Comparison
    chosen: tuple[float, float]
    helps: bool
    written: bool


def tune_fusion(
    index: str | Path,
    queries: str | Path,
    qrels: str | Path,
    *,
    measure: str = "nDCG@10",
    depth: int = 100,
    write: bool = True,
    checkpoint: str | None = None,
    collection: Any = None,
) -> Tuned:
    """Find the weight of an index's words and, where it helps, write it into the index: searches are hybrid from then on.

    Args:
        queries: as `read_queries` takes them. In a BEIR folder a query's own document is left out of its results.
        qrels: TREC's four columns or BEIR's three; of ids of the index. Measure on other queries afterwards.
        measure: a name of ir_measures.
        depth: how many passages of each side are looked at.
        write: False: only find out.
        checkpoint, collection: where those of the index are now, if they moved.

    Raises:
        UserError: the index has no words, the files are malformed or of another collection, or it changed meanwhile.
    """
    from ..index.by_path import open_index
    from ..index.tuned import keep_fusion

    parsed = _measure(measure, depth)
    manifest = read_manifest(Path(index))
    searcher = open_index(index, checkpoint=checkpoint, collection=collection, verbose=1)
    if searcher.lexical is None or manifest is None:
        raise UserError(
            f"{index} has no words to weigh; build it with `colbert-diffusion index ... --lexical bm25` or predicted"
        )
    judged = read_judged(Path(index).absolute().name, queries, qrels, _OfIndex(searcher))
    if len(judged.queries) < 2:
        raise UserError(f"{qrels} judges 1 query; a weight is chosen on one half of the queries and measured on the other")
    tuned = _tuned(str(index), parsed, judged, _Lists(searcher, judged, depth), depth)
    if not (write and tuned.helps):
        return tuned
    keep_fusion(Path(index), Fusion("scaled", tuned.weight), manifest)
    return replace(tuned, written=True)


def tune_words(
    checkpoint: str | Path,
    collection: str | Path,
    queries: str | Path,
    qrels: str | Path,
    lexical: Literal["bm25", "predicted"],
    *,
    measure: str = "nDCG@10",
    write: bool = True,
) -> Tuned:
    """As `tune_fusion` before there is an index: one is built for the occasion, and the weight is the checkpoint's.

    Where it helps, indexes that are built of the checkpoint with these words from then on are searched by both; where it
    does not, a weight that the checkpoint recommended is taken back.

    Args:
        checkpoint: a folder.
        collection: a .tsv, a .jsonl or a BEIR folder.
        lexical: which words.

    Raises:
        UserError: as `build_index` and `tune_fusion`.
    """
    from ..index.by_path import build_index

    with tempfile.TemporaryDirectory() as temporary:
        index = build_index(Path(temporary, "index"), str(collection), checkpoint, lexical=lexical)
        tuned = replace(tune_fusion(index, queries, qrels, measure=measure, write=False), index=str(checkpoint))
    if not write:
        return tuned
    config, name = DiffusionConfig.load(Path(checkpoint)), f"{lexical}_weight"
    others = {key: value for key, value in config.search.items() if key != name}
    replace(config, search=others | ({name: tuned.weight} if tuned.helps else {})).save(Path(checkpoint))
    return replace(tuned, written=tuned.helps)


def _measure(name: str, depth: int) -> Any:
    parsed = parse_measures(name)
    if len(parsed) != 1:
        raise UserError(f"{len(parsed)} measures; a weight is chosen by one, for example nDCG@10")
    if depth < max(1, parsed[0].params.get("cutoff", 1)):
        raise UserError(f"{name} looks deeper than the {depth} passages of each side; raise --depth")
    return parsed[0]


class _OfIndex(Mapping[str, str]):
    """An index's passages by their ids, those that were removed left out. Their texts are nobody's concern here."""

    def __init__(self, searcher: "Searcher") -> None:
        self._searcher = searcher
        self._passages: int = searcher.ranker.passages

    def __contains__(self, identifier: object) -> bool:
        try:
            [pid] = self._searcher.pids([str(identifier)])
        except UserError:
            return False
        return pid not in self._searcher.removed

    def __getitem__(self, identifier: str) -> str:
        raise KeyError(identifier)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, self._passages, BLOCK):
            pids = range(start, min(start + BLOCK, self._passages))
            yield from self._searcher.ids(pid for pid in pids if pid not in self._searcher.removed)

    def __len__(self) -> int:
        return self._passages - len(self._searcher.removed)


class _Lists:
    """What vectors and words found for each query, side by side: (queries, width), each row by pid, -1 where it is shorter."""

    def __init__(self, searcher: "Searcher", judged: Benchmark, depth: int) -> None:
        found = list(_searched(searcher, judged, depth))
        self.qids = list(judged.queries)
        shape = len(found), max(1, *(len(both.pids) for both in found))
        self._pids = np.full(shape, -1)
        self._dense, self._vectors, self._words = (np.full(shape, -np.inf) for _ in range(3))
        lexical = np.zeros(shape)
        for i, both in enumerate(found):
            order = np.argsort(both.pids)
            row = i, slice(len(order))
            self._pids[row] = both.pids[order]
            self._dense[row] = both.dense[order].astype(np.float64) / both.k_query
            lexical[row] = both.lexical[order].astype(np.float64)
            self._vectors[row] = np.where(both.by_vectors[order], self._dense[row], -np.inf)
            self._words[row] = np.where(both.by_words[order], lexical[row], -np.inf)
        self._found = found_words(lexical, np.array([[both.most] for both in found]))
        there = np.unique(self._pids[self._pids >= 0]).tolist()
        self.ids = dict(zip(there, searcher.ids(there), strict=True))

    def fused(self, weight: float) -> Values:
        """As `Fusion` has it."""
        scores: Values = self._dense + weight * self._found
        return scores

    @property
    def dense(self) -> Values:
        return self._vectors

    @property
    def lexical(self) -> Values:
        return self._words

    def best(self, scores: Values, cutoff: int | None) -> Ints:
        """(queries, cutoff): each query's best pids, ties by pid; -1 where there are no more."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :cutoff]
        pids = np.take_along_axis(self._pids, order, axis=1)
        return np.where(np.take_along_axis(scores, order, axis=1) > -np.inf, pids, -1)


def _searched(searcher: "Searcher", judged: Benchmark, depth: int) -> Iterator[Both]:
    queries = list(judged.queries.items())
    with progress_bar(len(queries), "search") as progress:
        for start in range(0, len(queries), ASKED):
            part = queries[start : start + ASKED]
            for (qid, _), asked in zip(part, searcher.ask([text for _, text in part], mode="hybrid"), strict=True):
                others = _without(searcher.pids([qid])[0]) if qid in judged.own else None
                yield searcher.both(asked, depth, depth, filter_fn=others)
                progress.update(1)


def _without(pid: int) -> Callable[[Any], Any]:
    return lambda candidates: candidates[candidates != pid]


class _Measured:
    """Values of rankings, (queries,). A query whose best passages are those of the last ranking is not measured again."""

    def __init__(self, measure: Any, judged: Benchmark, lists: _Lists) -> None:
        self._measure, self._judged, self._lists = measure, judged, lists
        self._cutoff = measure.params.get("cutoff")
        self._last: Ints | None = None
        self._values = np.zeros(len(lists.qids))

    def __call__(self, scores: Values) -> Values:
        best = self._lists.best(scores, self._cutoff)
        changed = range(len(best)) if self._last is None else np.flatnonzero((best != self._last).any(axis=1)).tolist()
        qids, ids = self._lists.qids, self._lists.ids
        run = {qids[i]: {ids[pid]: -float(rank) for rank, pid in enumerate(best[i].tolist()) if pid >= 0} for i in changed}
        judged = {qid: self._judged.qrels[qid] for qid in run}
        found = values_of(self._measure, judged, {qid: hits for qid, hits in run.items() if hits})
        self._values = self._values.copy()
        self._values[list(changed)] = [found[qids[i]] for i in changed]
        self._last = best
        return self._values


def _tuned(index: str, measure: Any, judged: Benchmark, lists: _Lists, depth: int) -> Tuned:
    measured = _Measured(measure, judged, lists)
    dense, lexical = measured(lists.dense), measured(lists.lexical)
    weights = list(GRID)
    with progress_bar(len(weights), "weigh") as progress:
        rows = []
        for weight in weights:
            rows.append(measured(lists.fused(weight)))
            progress.update(1)
    if _tied(np.array(rows))[-1] == len(rows) - 1:
        weights += BEYOND
        rows += [measured(lists.fused(weight)) for weight in BEYOND]
    values = np.array(rows)
    best = _choice(values)
    low, high = _plateau(values, best)
    held, by_halves = _held_out(values)

    def over(base: Values, name: str, system: str, other: Values) -> Comparison:
        one, two = (dict(zip(lists.qids, row.tolist(), strict=True)) for row in (base, other))
        return compare(one, two, system, name, str(measure))

    better = ("lexical", lexical) if lexical.mean() > dense.mean() else ("dense", dense)
    validated = over(dense, "dense", "validated", held)
    return Tuned(
        index=index,
        measure=str(measure),
        depth=depth,
        queries=len(judged.queries),
        queries_left_out=judged.left_out,
        judged_passages_missing=judged.missing,
        dense=float(dense.mean()),
        lexical=float(lexical.mean()),
        curve=tuple(zip(weights, values.mean(axis=1).tolist(), strict=True)),
        weight=weights[best],
        mean=float(values[best].mean()),
        plateau=(weights[low], weights[high]),
        over_dense=over(dense, "dense", "hybrid", values[best]),
        over_better=over(better[1], better[0], "hybrid", values[best]),
        validated=validated,
        chosen=(weights[min(by_halves)], weights[max(by_halves)]),
        helps=validated.difference > 0 and weights[best] > 0,
        written=False,
    )


def _tied(values: Values) -> Ints:
    """The rows with the best mean."""
    means = values.mean(axis=1)
    return np.flatnonzero(means >= means.max() - 1e-9)


def _choice(values: Values) -> int:
    """The row with the best mean; of the first run of equal ones the middle, which is farthest from doing worse."""
    tied = _tied(values)
    run = tied[: int(np.argmax(np.diff(tied, append=-1) != 1)) + 1]
    return int(run[(len(run) - 1) // 2])


def _plateau(values: Values, best: int) -> tuple[int, int]:
    worse = values[best] - values
    error = worse.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    within = worse.mean(axis=1) <= NOISE * error + 1e-9
    low = high = best
    while low > 0 and within[low - 1]:
        low -= 1
    while high < len(values) - 1 and within[high + 1]:
        high += 1
    return low, high


def _held_out(values: Values) -> tuple[Values, list[int]]:
    """Each query's value by the weights of halves that it is not in, and the rows that the halves chose."""
    queries = values.shape[1]
    held, chosen = np.zeros(queries), list[int]()
    for own, other in halves(queries):
        chosen.append(_choice(values[:, own]))
        held[other] += values[chosen[-1], other] / REPEATS
    return held, chosen
