"""How many vectors a query and a passage need: exact MaxSim for every pair of k, and the cheapest pair that is good enough.

DiffRetriever chooses k on training queries over {1, 2, 4, 8, 16}^2 (arXiv 2605.07210, section 4). A nested checkpoint's
pairs are prefixes of one encoding; any other is asked again for each k, with as many masks and, where its prompt is the
default one, with the number in words. The two protocols give different numbers, so a grid is of one of them and says which.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..common.errors import UserError
from ..common.progress import note, progress_bar
from ..config import DiffusionConfig, Side
from ..encoding.checkpoint import DiffusionCheckpoint
from ..encoding.encoder import Encoder
from ..encoding.readouts import find_readout
from ..encoding.scoring import Vectors, maxsim
from .benchmarks import Benchmark
from .exact import CELLS, DECIMALS
from .measuring import REPEATS, Comparison, compare, halves, parse_measures, values_of
from .runs import best

KS = (1, 2, 4, 8, 16)
TOLERANCE = 0.005
DEPTH = 1000  # documents per query that a measure without a cutoff sees

Values = npt.NDArray[np.float64]


class Pair(NamedTuple):
    """Vectors per query and per passage."""

    k_query: int
    k_passage: int

    def __str__(self) -> str:
        return f"{self.k_query}/{self.k_passage}"

    @property
    def cost(self) -> tuple[int, int]:
        """What a passage keeps on disk comes first, then what a query adds to a search."""
        return self.k_passage, self.k_query


@dataclass(frozen=True)
class Transfer:
    """The choice on another collection: what it loses there against that collection's own best pair."""

    collection: str
    queries: int
    grid: tuple[tuple[Pair, float], ...]
    best: Pair
    loss: Comparison


@dataclass(frozen=True)
class Chosen:
    """What was found out.

    Args:
        protocol: "prefixes" of one encoding, or "encoded" anew for each k.
        grid: mean of each pair.
        best: the pair with the best mean.
        chosen: the cheapest pair whose mean is within `tolerance` of it.
        loss: of the chosen pair against the best, on the queries that chose both, by paired bootstrap.
        regret: the same where one half of the queries chooses and the other half measures, against the pair that is best
            there, 10 times. It is against an optimum that was picked on its own queries, so 0 is out of reach.
        halves: how often the halves chose which pair.
        transfers: the choice on other collections.
    """

    checkpoint: str
    collection: str
    measure: str
    queries: int
    protocol: str
    tolerance: float
    grid: tuple[tuple[Pair, float], ...]
    best: Pair
    chosen: Pair
    loss: Comparison
    regret: Comparison
    halves: tuple[tuple[Pair, int], ...]
    transfers: tuple[Transfer, ...]


def choose_k(
    checkpoint: str | Path,
    benchmark: Benchmark,
    *,
    ks: Sequence[int] = KS,
    measure: str = "nDCG@10",
    tolerance: float = TOLERANCE,
    transfer: Sequence[Benchmark] = (),
) -> Chosen:
    """Measure every pair of k on judged queries and choose one.

    Args:
        ks: for both sides; of a nested checkpoint those up to its own k.
        measure: a name of ir_measures.
        tolerance: how much worse than the best pair a cheaper one may be, in units of the measure.
        transfer: other collections to measure the choice on.

    Raises:
        UserError: the checkpoint's readout has no choice, or fewer than two queries are judged.
    """
    parsed = parse_measures(measure)
    if len(parsed) != 1:
        raise UserError(f"{len(parsed)} measures; k is chosen by one, for example nDCG@10")
    if len(benchmark.queries) < 2:
        raise UserError(f"{benchmark.name} judges 1 query; k is chosen on one half of the queries and measured on the other")
    model = DiffusionCheckpoint(checkpoint, verbose=0)
    sides = _Sides(model, ks)
    values = _measured(sides, benchmark, parsed[0])
    pairs = list(values)
    rows = np.array([values[pair] for pair in pairs])
    top, taken = _best(rows), _choice(pairs, rows, tolerance)

    def against(base: Values, other: Values, of: Benchmark, names: tuple[str, str]) -> Comparison:
        one, two = (dict(zip(of.queries, row.tolist(), strict=True)) for row in (base, other))
        return compare(one, two, names[1], names[0], str(parsed[0]))

    held_best, held, by_halves = _held_out(pairs, rows, tolerance)
    transfers = []
    for other in transfer:
        there = _measured(sides, other, parsed[0])
        own = pairs[_best(np.array(list(there.values())))]
        names = (f"{own}, the best there", str(pairs[taken]))
        loss = against(there[own], there[pairs[taken]], other, names)
        transfers.append(Transfer(other.name, len(other.queries), _means(there), own, loss))
    return Chosen(
        checkpoint=str(checkpoint),
        collection=benchmark.name,
        measure=str(parsed[0]),
        queries=len(benchmark.queries),
        protocol="prefixes" if sides.nested else "encoded",
        tolerance=tolerance,
        grid=_means(values),
        best=pairs[top],
        chosen=pairs[taken],
        loss=against(rows[top], rows[taken], benchmark, (f"{pairs[top]}, the best", str(pairs[taken]))),
        regret=against(held_best, held, benchmark, ("the best of a half", "the other half's choice")),
        halves=tuple((pairs[i], count) for i, count in Counter(by_halves).most_common()),
        transfers=tuple(transfers),
    )


class _Sides:
    """A checkpoint's vectors for each k: prefixes of one encoding, or encoded anew."""

    def __init__(self, model: DiffusionCheckpoint, ks: Sequence[int]) -> None:
        config, probe = model.config, DiffusionConfig(model.config.backbone, k_query=2, k_passage=2)
        if find_readout(config.readout).fitted(probe).k_passage != 2:
            raise UserError(f'readout "{config.readout}" has no choice of k: it gives what it reads')
        if min(ks, default=0) < 1:
            raise UserError(f"k is {min(ks, default=0)}, expected at least 1")
        self.nested, self._model = config.nested, model
        most = (config.k_query, config.k_passage) if config.nested else (max(ks), max(ks))
        self.queries, self.passages = (sorted({min(k, of_side) for k in ks if k <= of_side} or {of_side}) for of_side in most)

    @property
    def pairs(self) -> list[Pair]:
        return [Pair(*both) for both in product(self.queries, self.passages)]

    def query_vectors(self, texts: Sequence[str]) -> dict[int, list[Vectors]]:
        return self._vectors(texts, "query", self.queries)

    def passage_vectors(self, texts: Sequence[str]) -> dict[int, list[Vectors]]:
        return self._vectors(texts, "passage", self.passages)

    def _vectors(self, texts: Sequence[str], side: Side, ks: Sequence[int]) -> dict[int, list[Vectors]]:
        if self.nested:
            whole = self._encode(texts, side, max(ks))
            return {k: [own[:k] for own in whole] for k in ks}
        return {k: self._encode(texts, side, k) for k in ks}

    def _encode(self, texts: Sequence[str], side: Side, k: int) -> list[Vectors]:
        """All k vectors of each text: fewer are no other pair of k."""
        own = self._model.encoder
        config = replace(self._model.config, merge_above=None, cover_above=None)
        if not self.nested:
            config = self._asked(config, side, k)
        encoder = Encoder(own.backbone, config, own.projection, own.batch_tokens, own.readout.head)
        note(f"encoding {len(texts):,} {'queries' if side == 'query' else 'passages'}, k {k}")
        with progress_bar(len(texts), f"encode {side}") as progress:
            return list(encoder.encode(texts, side, progress=progress))

    def _asked(self, config: DiffusionConfig, side: Side, k: int) -> DiffusionConfig:
        """Of a checkpoint that is not nested, the one that asks for k on this side."""
        readout, tokenizer = find_readout(config.readout), self._model.encoder.backbone.tokenizer
        changed: dict[str, Any] = {f"k_{side}": k, f"masks_{side}": None}
        if config.prompt(side) == readout.default_prompt(tokenizer, side, config.k(side)):
            changed[f"{side}_prompt"] = readout.default_prompt(tokenizer, side, k)
        return replace(config, **changed)


def _measured(sides: _Sides, benchmark: Benchmark, measure: Any) -> dict[Pair, Values]:
    """Each pair's value of every query, in the benchmark's order."""
    asked = sides.query_vectors(list(benchmark.queries.values()))
    kept = sides.passage_vectors(benchmark.texts)
    runs: dict[Pair, dict[str, dict[str, float]]] = {pair: {} for pair in sides.pairs}
    depth = measure.params.get("cutoff", DEPTH) + 1  # one of them may be the query itself
    block = max(1, CELLS // (max(asked) * max(kept) * len(benchmark.documents)))
    with progress_bar(len(benchmark.queries), "score") as progress:
        for start in range(0, len(benchmark.queries), block):
            qids = list(benchmark.queries)[start : start + block]
            for pair, scores in _scores(asked, kept, slice(start, start + block), nested=sides.nested):
                for qid, row in zip(qids, np.round(scores, DECIMALS), strict=True):
                    found = best(row, benchmark.document_ids, depth)
                    runs[pair][qid] = {key: score for key, score in found if not (qid in benchmark.own and key == qid)}
            progress.update(len(qids))
    values = {pair: values_of(measure, benchmark.qrels, run) for pair, run in runs.items()}
    return {pair: np.array([of_pair[qid] for qid in benchmark.queries]) for pair, of_pair in values.items()}


def _scores(
    asked: dict[int, list[Vectors]], kept: dict[int, list[Vectors]], block: slice, *, nested: bool
) -> Iterator[tuple[Pair, npt.NDArray[Any]]]:
    """MaxSim divided by k_query of each pair; of prefixes the sums over a query's vectors are running ones."""
    for k_passage, passages in kept.items():
        if nested:
            queries = asked[max(asked)][block]
            each = maxsim([vector[None] for own in queries for vector in own], passages)
            running = each.reshape(len(queries), max(asked), -1).cumsum(axis=1)
            yield from ((Pair(k, k_passage), running[:, k - 1] / k) for k in asked)
        else:
            for k, queries in asked.items():
                yield Pair(k, k_passage), maxsim(queries[block], passages) / k


def _means(values: dict[Pair, Values]) -> tuple[tuple[Pair, float], ...]:
    return tuple((pair, float(of_pair.mean())) for pair, of_pair in values.items())


def _best(rows: Values) -> int:
    return int(rows.mean(axis=1).argmax())


def _choice(pairs: Sequence[Pair], rows: Values, tolerance: float) -> int:
    """The cheapest pair within the tolerance of the best."""
    means = rows.mean(axis=1)
    near = [i for i in range(len(pairs)) if means[i] >= means.max() - tolerance - 1e-9]
    return min(near, key=lambda i: pairs[i].cost)


def _held_out(pairs: Sequence[Pair], rows: Values, tolerance: float) -> tuple[Values, Values, list[int]]:
    """Each query's value by its half's best pair, by the pair that the other half chooses, and what the halves chose."""
    queries = rows.shape[1]
    optimum, held, chosen = np.zeros(queries), np.zeros(queries), list[int]()
    for own, other in halves(queries):
        chosen.append(_choice(pairs, rows[:, own], tolerance))
        held[other] += rows[chosen[-1], other] / REPEATS
        optimum[other] += rows[_best(rows[:, other]), other] / REPEATS
    return optimum, held, chosen


def as_json(chosen: Chosen) -> dict[str, Any]:
    """As an object: pairs are lists, and grids lists of [k_query, k_passage, mean]."""
    content = asdict(chosen)
    for grid in (content, *content["transfers"]):
        grid["grid"] = [[*pair, mean] for pair, mean in grid["grid"]]
    return content


def draw_grid(chosen: Chosen, path: Path) -> None:
    """A heat map for each collection, PNG or SVG by the name's end; the lightness alone tells the values apart."""
    from matplotlib.figure import Figure

    from ..common.files import written_aside

    panels = [(chosen.collection, chosen.grid), *((other.collection, other.grid) for other in chosen.transfers)]
    figure = Figure(figsize=(1 + 4 * len(panels), 3.8), layout="constrained")
    for axes, (name, grid) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        means = dict(grid)
        rows, columns = (sorted({pair[side] for pair in means}) for side in (0, 1))
        table = [[means[Pair(row, column)] for column in columns] for row in rows]
        axes.imshow(table, cmap="Greys_r", origin="lower")
        axes.set(title=name, xlabel="k passage", ylabel="k query")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        middle = (min(means.values()) + max(means.values())) / 2
        for (y, row), (x, column) in product(enumerate(rows), enumerate(columns)):
            value, mark = table[y][x], "*" if Pair(row, column) == chosen.chosen else ""
            axes.text(x, y, f"{value:.3f}{mark}", ha="center", va="center", color="black" if value > middle else "white")
    with written_aside(path) as aside:
        figure.savefig(aside, format=path.suffix.removeprefix(".") or "png")
