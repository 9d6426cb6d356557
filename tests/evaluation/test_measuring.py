import sys
from pathlib import Path

import ir_measures
import numpy as np
import pytest

from colbert_diffusion.common.errors import MissingPackageError, UserError
from colbert_diffusion.evaluation import Benchmark, Run, compare, evaluate, write_run

BENCHMARK = Benchmark(
    "b", "test", {"a": "", "b": "", "c": ""}, {"1": "", "2": "", "3": ""}, {"1": {"a": 1}, "2": {"b": 2, "c": 1}, "3": {"c": 1}}
)  # fmt: skip
RUN: Run = {"1": [("b", 3.0), ("a", 2.0)], "2": [("b", 3.0), ("a", 2.0), ("c", 1.0)]}


def test_means_are_those_of_ir_measures_on_the_run_file(tmp_path: Path) -> None:
    write_run(tmp_path / "r.trec", RUN, "t")
    names = "nDCG@10 RR@10 R@2 P(rel=2)@1"
    measures = [ir_measures.parse_measure(name) for name in names.split()]
    expected = ir_measures.calc_aggregate(measures, BENCHMARK.qrels, ir_measures.read_trec_run(str(tmp_path / "r.trec")))
    report = evaluate(BENCHMARK, {"r": RUN}, names)
    assert report.means["r"] == {str(measure): value for measure, value in expected.items()}
    assert all(np.mean(list(values.values())) == report.means["r"][name] for name, values in report.per_query["r"].items())


def test_a_query_without_results_counts_zero_and_an_unjudged_one_not_at_all() -> None:
    report = evaluate(BENCHMARK, {"r": RUN | {"unjudged": [("a", 1.0)]}}, "RR@10 nDCG@10")
    assert report.per_query["r"]["RR@10"] == {"1": 0.5, "2": 1.0, "3": 0.0}
    assert report.means["r"]["RR@10"] == 0.5
    assert report.per_query["r"]["nDCG@10"]["3"] == 0.0


def test_every_system_is_compared_with_the_first() -> None:
    better: Run = {**RUN, "3": [("c", 1.0)]}
    report = evaluate(BENCHMARK, {"base": RUN, "same": RUN, "better": better}, "RR@10 R@2")
    assert [(c.system, c.baseline, c.measure) for c in report.comparisons] == [
        ("same", "base", "RR@10"),
        ("same", "base", "R@2"),
        ("better", "base", "RR@10"),
        ("better", "base", "R@2"),
    ]
    assert report.comparisons[2].difference == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("nDCG10", "measure 'nDCG10': measure not found"),
        ("RR@10 P", "measure 'P': invalid param cutoff"),
        ("nDCG@", "measure 'nDCG@': problem parsing"),
        ("RBP(foo=1)", "measure 'RBP(foo=1)': unsupported params"),
        ("alpha_nDCG@20", "measure 'alpha_nDCG@20': no installed package computes it"),
        (" ", "no measures; write measures as in"),
    ],
)
def test_unknown_measures_are_refused_in_one_line(names: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(BENCHMARK, {"r": RUN}, names)
    assert message in str(caught.value)


def test_a_run_of_another_benchmark_is_refused() -> None:
    with pytest.raises(UserError, match="run r has none of b's 3 judged queries"):
        evaluate(BENCHMARK, {"r": {"x": [("a", 1.0)]}})
    with pytest.raises(UserError, match="no runs"):
        evaluate(BENCHMARK, {})


def test_missing_ir_measures_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingPackageError, match=r'pip install "colbert-diffusion\[evaluate\]"'):
        evaluate(BENCHMARK, {"r": RUN})


def test_identical_values_differ_by_nothing_with_p_one() -> None:
    values = {str(i): i / 7 for i in range(50)}
    found = compare(values, dict(reversed(values.items())))  # paired by id, not by order
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_interval_is_that_of_the_mean_and_the_seed_is_fixed() -> None:
    draw = np.random.default_rng(1)
    first = {str(i): float(value) for i, value in enumerate(draw.normal(size=400))}
    second = {qid: value + float(draw.normal(0.1, 1)) for qid, value in first.items()}
    found = compare(first, second)
    differences = np.array([second[qid] - first[qid] for qid in first])
    half = 1.96 * differences.std() / 20
    assert found == compare(first, second)
    assert found.difference == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.01)
    other_way = compare(second, first)
    assert (other_way.low, other_way.high) == pytest.approx((-found.high, -found.low))
    assert other_way.p == pytest.approx(found.p)


def test_a_difference_on_every_query_has_the_least_p() -> None:
    assert compare({"1": 0.0, "2": 0.1}, {"1": 0.5, "2": 0.5}).p == pytest.approx(2 / 10_001)


def test_values_of_different_queries_are_not_compared() -> None:
    with pytest.raises(UserError, match="needs the same queries, there are 1 and 2"):
        compare({"1": 0.0}, {"1": 0.0, "2": 0.0})
