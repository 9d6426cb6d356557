"""Every cell of a grid of k is what a checkpoint of that k gives by itself; the choice is the cheapest that is good enough."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig, convert
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.evaluation import Benchmark, evaluate, exact_run, tuning
from colbert_diffusion.evaluation.grid import Chosen, Pair, _choice, _held_out, as_json, choose_k, draw_grid
from colbert_diffusion.evaluation.tuning import tune_fusion
from colbert_diffusion.index.by_path import build_index

from ..cli.test_cli import run

MEASURE = "nDCG@10"


@pytest.fixture(scope="module")
def nested(tiny_config: DiffusionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its passages are merged too, which a grid must not see."""
    folder = tmp_path_factory.mktemp("grid") / "nested"
    replace(tiny_config, nested=True, merge_above=0.9).save(folder)
    return folder


@pytest.fixture(scope="module")
def chosen(nested: Path, benchmark_: Benchmark) -> Chosen:
    return choose_k(nested, benchmark_, ks=(1, 2, 4, 8), transfer=[benchmark_])


def alone(folder: Path, benchmark: Benchmark) -> float:
    """By a checkpoint of its own."""
    exact = exact_run(DiffusionCheckpoint(folder, verbose=0), benchmark)
    return evaluate(benchmark, {"exact": exact}, MEASURE).means["exact"][MEASURE]


def test_a_nested_grid_is_of_prefixes_up_to_its_own_k(
    chosen: Chosen, nested: Path, benchmark_: Benchmark, tmp_path: Path
) -> None:
    grid = dict(chosen.grid)
    assert chosen.protocol == "prefixes"
    assert list(grid) == [Pair(*both) for both in product((1, 2, 4), (1, 2, 4, 8))]
    assert len(set(grid.values())) > 3
    for pair, mean in grid.items():
        folder = tmp_path / str(pair).replace("/", "-")
        made = convert(str(nested), folder, k_query=pair.k_query, k_passage=pair.k_passage)
        replace(made.config, merge_above=None).save(folder)
        assert alone(folder, benchmark_) == pytest.approx(mean, abs=1e-9)


def test_each_text_is_encoded_once_for_all_prefixes(nested: Path, benchmark_: Benchmark, encoded: list[str]) -> None:
    choose_k(nested, benchmark_, ks=(1, 2, 4, 8))
    assert sorted(encoded) == sorted([*benchmark_.queries.values(), *benchmark_.texts])


def test_any_other_checkpoint_is_asked_again_for_each_k(
    tiny_config: DiffusionConfig, tiny_checkpoint: Path, benchmark_: Benchmark, tmp_path: Path
) -> None:
    found = choose_k(tiny_checkpoint, benchmark_, ks=(1, 3))
    assert found.protocol == "encoded"
    for pair, mean in found.grid:
        folder = tmp_path / str(pair).replace("/", "-")
        replace(tiny_config, k_query=pair.k_query, k_passage=pair.k_passage).save(folder)
        assert alone(folder, benchmark_) == pytest.approx(mean, abs=1e-9)


def test_the_summary_agrees_with_the_grid(chosen: Chosen) -> None:
    grid = dict(chosen.grid)
    assert grid[chosen.best] == max(grid.values())
    assert chosen.loss.difference == pytest.approx(grid[chosen.chosen] - grid[chosen.best])
    assert chosen.loss.difference >= -chosen.tolerance - 1e-9
    cheaper = [pair for pair in grid if pair.cost < chosen.chosen.cost]
    assert all(grid[pair] < grid[chosen.best] - chosen.tolerance for pair in cheaper)
    assert chosen.regret.difference <= 0
    assert sum(count for _, count in chosen.halves) == 20
    [transfer] = chosen.transfers
    assert (transfer.grid, transfer.best) == (chosen.grid, chosen.best)
    assert transfer.loss.difference == chosen.loss.difference
    assert json.loads(json.dumps(as_json(chosen)))["grid"][0] == [1, 1, grid[Pair(1, 1)]]


PAIRS = [Pair(*both) for both in product((1, 4), (1, 16))]  # 1/1, 1/16, 4/1, 4/16


@pytest.mark.parametrize(
    ("means", "tolerance", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.5], 0.005, Pair(4, 16)),
        ([0.1, 0.497, 0.3, 0.5], 0.005, Pair(1, 16)),  # as good, fewer query vectors
        ([0.1, 0.5, 0.497, 0.5], 0.005, Pair(4, 1)),  # as good, fewer passage vectors
        ([0.1, 0.2, 0.497, 0.5], 0.001, Pair(4, 16)),
        ([0.5, 0.5, 0.5, 0.5], 0.0, Pair(1, 1)),
    ],
)
def test_the_cheapest_within_the_tolerance_is_chosen(means: list[float], tolerance: float, expected: Pair) -> None:
    assert PAIRS[_choice(PAIRS, np.array(means)[:, None].repeat(6, axis=1), tolerance)] == expected


def test_what_is_measured_on_a_half_was_chosen_by_the_other() -> None:
    """Two pairs are equally good in truth: what a half prefers is worse on the other, and each half's optimum is better."""
    rows = np.zeros((4, 400))
    rows[0], rows[1] = 0.5, np.arange(400) % 2
    optimum, held, halves = _held_out(PAIRS, rows, 0.0)
    assert set(halves) <= {0, 1}
    assert held.mean() < optimum.mean()
    assert optimum.mean() >= rows[1].mean() - 1e-9


@pytest.mark.parametrize("readout", ["mean", "last", "tokens"])
def test_a_readout_without_a_choice_is_refused(
    readout: str, tiny_config: DiffusionConfig, benchmark_: Benchmark, tmp_path: Path
) -> None:
    from colbert_diffusion.encoding.readouts import find_readout

    find_readout(readout).fitted(replace(tiny_config, readout=readout)).save(tmp_path)
    with pytest.raises(UserError, match="has no choice of k"):
        choose_k(tmp_path, benchmark_)


@pytest.mark.parametrize(("options", "wrong"), [({"measure": "nDCG@10 RR@10"}, "2 measures"), ({"ks": (0, 4)}, "k is 0")])
def test_what_cannot_be_chosen_by_is_refused(options: dict[str, Any], wrong: str, nested: Path, benchmark_: Benchmark) -> None:
    with pytest.raises(UserError, match=wrong):
        choose_k(nested, benchmark_, **options)


@pytest.mark.parametrize(("name", "begins"), [("grid.png", b"\x89PNG"), ("grid.svg", b"<?xml")])
def test_the_heat_map_is_written_in_the_format_of_its_name(name: str, begins: bytes, chosen: Chosen, tmp_path: Path) -> None:
    draw_grid(chosen, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_the_command_shows_the_grid_and_writes_the_choice(nested: Path, beir: Path, tmp_path: Path) -> None:
    asked = ["--collection", beir, "--queries", beir, "--qrels", beir / "qrels" / "test.tsv", "--k", "1,4,8"]
    done = run("tune", nested, *asked, "--write", tmp_path / "small", "--plot", tmp_path / "g.png", "--transfer", beir)
    assert done.returncode == 0, done.stderr
    written = DiffusionConfig.load(tmp_path / "small")
    choice = Pair(written.k_query, written.k_passage)
    assert f"chosen {choice}, the cheapest within 0.005" in done.stdout
    assert done.stdout.count("k query / passage") == 2
    assert (tmp_path / "g.png").exists()
    again = run("tune", nested, *asked, "--write", tmp_path / "small")
    assert (again.returncode, "exists; choose another folder" in again.stderr) == (2, True)
    plain = json.loads(run("tune", nested, *asked, "--json").stdout)
    assert plain["chosen"] == list(choice)


def test_the_weight_of_words_is_found_for_the_chosen_k_and_written_where_it_helps(
    nested: Path, beir: Path, tmp_path: Path
) -> None:
    asked = ["--collection", beir, "--queries", beir, "--qrels", beir / "qrels" / "test.tsv", "--k", "4,8", "--json"]
    done = run("tune", nested, *asked, "--lexical", "predicted", "--write", tmp_path / "small")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    written = DiffusionConfig.load(tmp_path / "small")
    assert found["chosen"] == [written.k_query, written.k_passage]
    fusion = found["fusion"]
    assert fusion["written"] == fusion["helps"]
    assert written.search.get("predicted_weight") == (fusion["weight"] if fusion["helps"] else None)
    index = build_index(tmp_path / "index", str(beir), tmp_path / "small", lexical="predicted")
    again = tune_fusion(index, beir, beir / "qrels" / "test.tsv", write=False)
    assert (again.weight, again.mean, again.dense) == (fusion["weight"], fusion["mean"], fusion["dense"])
    only = run("tune", nested, *asked[:-1], "--lexical", "bm25")
    assert (only.returncode, "both, by the weight of the words" in only.stdout) == (0, True)
    refused = run("tune", nested, *asked, "--lexical", "tfidf")
    assert (refused.returncode, "expected bm25 or predicted" in refused.stderr) == (2, True)


def test_a_weight_that_does_not_help_is_taken_back(
    nested: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    replace(DiffusionConfig.load(nested), search={"nbits": 2, "bm25_weight": 0.3}).save(folder)
    real = tuning.tune_fusion
    for helps in (True, False):
        monkeypatch.setattr(tuning, "tune_fusion", lambda *a, helps=helps, **o: replace(real(*a, **o), helps=helps))
        found = tuning.tune_words(folder, beir, beir, beir / "qrels" / "test.tsv", "bm25")
        kept = {"nbits": 2} | ({"bm25_weight": found.weight} if helps else {})
        assert (found.written, DiffusionConfig.load(folder).search) == (helps, kept)


def test_the_choice_of_a_checkpoint_that_is_not_nested_is_not_written(
    tiny_checkpoint: Path, beir: Path, tmp_path: Path
) -> None:
    asked = ["--collection", beir, "--queries", beir, "--qrels", beir / "qrels" / "test.tsv"]
    done = run("tune", tiny_checkpoint, *asked, "--write", tmp_path / "small")
    assert done.returncode == 2
    assert "is not nested" in done.stderr.splitlines()[-1]
