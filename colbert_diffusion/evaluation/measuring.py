"""Measures by ir_measures, and paired bootstrap between systems. Knows nothing about how the runs were made."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..common.errors import UserError
from ..common.optional import extra, need
from .benchmarks import Benchmark, Qrels
from .runs import Run, without_own

DEFAULT_MEASURES = "nDCG@10 RR@10 R@100 R@1000"
RESAMPLES, SEED = 10_000, 0
REPEATS = 10  # times that queries are halved
BLOCK = 2**22  # drawn queries at a time: 32 MiB

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """A system against the baseline, by one measure: mean difference, its 95 % interval and two-sided p."""

    system: str
    baseline: str
    measure: str
    difference: float
    low: float
    high: float
    p: float


def halves(queries: int) -> Iterator[tuple[Places, Places]]:
    """Which queries choose and which others measure what they chose: both ways round, `REPEATS` times, the same every time."""
    draw = np.random.default_rng(SEED)
    for _ in range(REPEATS):
        order = draw.permutation(queries)
        yield order[: queries // 2], order[queries // 2 :]
        yield order[queries // 2 :], order[: queries // 2]


@dataclass(frozen=True)
class Report:
    """Per system and measure the mean, and the value of each query; every system but the first against the first."""

    means: dict[str, dict[str, float]]
    per_query: dict[str, dict[str, dict[str, float]]]
    comparisons: list[Comparison]


def parse_measures(measures: str) -> list[Any]:
    """ir_measures' measures from their names, separated by spaces.

    Raises:
        UserError: there is no such measure, or no installed package computes it.
        MissingPackageError: ir_measures is not installed.
    """
    ir_measures = need("ir_measures", "measuring", extra("evaluate"))
    parsed = []
    for name in measures.split():
        try:
            measure = ir_measures.parse_measure(name)
            measure.validate_params()
        except (NameError, ValueError, AssertionError, SyntaxError) as error:
            reason = str(error) or "malformed"
            raise UserError(f"measure {name!r}: {reason}; write measures as in {DEFAULT_MEASURES!r}") from error
        if not ir_measures.DefaultPipeline.supports(measure):
            raise UserError(f"measure {name!r}: no installed package computes it, see https://ir-measur.es")
        parsed.append(measure)
    if not parsed:
        raise UserError(f"no measures; write measures as in {DEFAULT_MEASURES!r}")
    return parsed


def evaluate(benchmark: Benchmark, runs: Mapping[str, Run], measures: str = DEFAULT_MEASURES) -> Report:
    """Measure runs by system name; the first is the baseline of the others.

    Each judged query counts, with 0 where a run has nothing for it; queries that are not judged do not count, nor does a
    query's own document where BEIR leaves it out.

    Raises:
        UserError: as `parse_measures`, there are no runs, or one has none of the benchmark's queries.
    """
    if not runs:
        raise UserError("there are no runs to measure")
    ir_measures = need("ir_measures", "measuring", extra("evaluate"))
    parsed = parse_measures(measures)
    evaluator = ir_measures.evaluator(parsed, benchmark.qrels)
    report = Report({}, {}, [])
    for system, run in runs.items():
        asked = {qid: found for qid, found in run.items() if qid in benchmark.queries}
        scored = {qid: dict(found) for qid, found in without_own(asked, benchmark.own).items()}
        if not scored:
            raise UserError(f"run {system} has none of {benchmark.name}'s {len(benchmark.queries)} judged queries")
        result = evaluator.calc(scored)
        report.means[system] = {str(measure): float(result.aggregated[measure]) for measure in parsed}
        values: dict[str, dict[str, float]] = {str(measure): {} for measure in parsed}
        for metric in result.per_query:
            values[str(metric.measure)][metric.query_id] = float(metric.value)
        report.per_query[system] = {
            name: {qid: found[qid] for qid in benchmark.queries if qid in found} for name, found in values.items()
        }
    baseline, *others = runs
    for system in others:
        for name, found in report.per_query[system].items():
            report.comparisons.append(compare(report.per_query[baseline][name], found, system, baseline, name))
    return report


def values_of(measure: Any, qrels: Qrels, run: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """A parsed measure's value of every judged query, 0 where the run has nothing for it."""
    ir_measures = need("ir_measures", "measuring", extra("evaluate"))
    values = dict.fromkeys(qrels, 0.0)
    if qrels:
        values |= {found.query_id: float(found.value) for found in ir_measures.evaluator([measure], qrels).iter_calc(run)}
    return values


def compare(
    baseline: Mapping[str, float],
    other: Mapping[str, float],
    system: str = "other",
    baseline_name: str = "baseline",
    measure: str = "",
) -> Comparison:
    """Paired bootstrap over queries: 10,000 resamples of the per-query differences, with a fixed seed.

    The interval is the middle 95 % of the resampled mean differences. p is twice the smaller share of them on either
    side of 0, and never below 2 / 10,001.

    Args:
        baseline, other: value by query id; of the same queries.

    Raises:
        UserError: they are not of the same queries, or there are none.
    """
    if not baseline or baseline.keys() != other.keys():
        raise UserError(f"a paired comparison needs the same queries, there are {len(baseline)} and {len(other)}")
    differences = np.array([other[qid] - value for qid, value in baseline.items()])
    draw = np.random.default_rng(SEED)
    count = len(differences)
    step = max(1, BLOCK // count)
    means = np.concatenate(
        [
            differences[draw.integers(count, size=(min(step, RESAMPLES - done), count))].mean(axis=1)
            for done in range(0, RESAMPLES, step)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (side + 1) / (RESAMPLES + 1))
    return Comparison(system, baseline_name, measure, float(differences.mean()), float(low), float(high), p)
