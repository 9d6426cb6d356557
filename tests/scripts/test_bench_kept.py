import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig
from colbert_diffusion.encoding.scoring import maxsim
from colbert_diffusion.evaluation import evaluate, exact_run, read_benchmark

from ..conftest import HIDDEN
from .conftest import file_bytes, load, refusal, rows


@pytest.fixture
def nested(tiny_config: DiffusionConfig, tmp_path: Path) -> Path:
    replace(tiny_config, nested=True, merge_above=0.5).save(tmp_path / "nested")
    return tmp_path / "nested"


def test_every_rule_is_measured_and_the_oracle_is_above_every_prefix(
    nested: Path, beir: Path, tmp_path: Path, encoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = load("bench/kept")
    arguments = [str(nested), str(beir), "--out", str(tmp_path / "out")]
    kept.main(arguments)
    found = {(row[1], row[2]): row[4:] for row in rows(capsys.readouterr().out)}
    prefixes = {setting: cells for (rule, setting), cells in found.items() if rule == "prefix"}
    assert list(prefixes) == ["4", "6", "8"]  # of 8 vectors there are no 10
    assert [cells[0] for cells in prefixes.values()] == ["4.0", "6.0", "8.0"]
    assert float(found["oracle", "by query"][2]) >= max(float(cells[2]) for cells in prefixes.values())
    assert {rule for rule, _ in found} == {*kept.SETTINGS, "oracle"}
    for (rule, _), cells in found.items():
        if rule not in ("prefix", "oracle"):
            assert 1 <= float(cells[0]) <= 8
    assert [float(found["pool", str(n)][0]) <= n for n in (4, 6)] == [True, True]
    config = replace(DiffusionConfig.load(nested), merge_above=None)
    config.prefix(k_passage=6).save(tmp_path / "six")
    benchmark = read_benchmark(beir)
    alone = evaluate(benchmark, {"x": exact_run(DiffusionCheckpoint(tmp_path / "six", verbose=0), benchmark, 100)}, "nDCG@10")
    assert float(prefixes["6"][2]) == pytest.approx(alone.means["x"]["nDCG@10"], abs=6e-4)
    assert float(prefixes["6"][1]) == 6 * (4 + 2 * HIDDEN)
    for kind, begins in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert (tmp_path / "out" / f"kept.{kind}").read_bytes().startswith(begins)

    encoded.clear()
    kept.main(arguments)
    assert not encoded
    assert {(row[1], row[2]): row[4:] for row in rows(capsys.readouterr().out)} == found


def test_through_plaid_bytes_are_those_on_disk(
    nested: Path, beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(nested), str(beir), "--out", str(tmp_path / "out"), "--rules", "cover", "--nbits", "2"]
    load("bench/kept").main(arguments)
    for row in rows(capsys.readouterr().out):
        folder = tmp_path / "out" / "tiny" / f"cover-{float(row[2])}-2"
        index = next(folder.rglob("metadata.json")).parent
        documents = len(json.loads((beir / "corpus.jsonl").read_text().join(["[", "]"]).replace("}\n{", "},{")))
        assert float(row[5]) == round(file_bytes(index, ".codes.pt", ".residuals.pt") / documents)
        assert 0 <= float(row[7]) <= 1


def test_query_vectors_that_agree_are_summed_so_that_maxsim_loses_nothing_where_they_are_equal() -> None:
    agreed = load("bench/kept").agreed
    east, north = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert agreed(np.stack([east, north, east]), 0.9).tolist() == [[2.0, 0.0], [0.0, 1.0]]
    assert agreed(np.stack([east, north]), 0.9).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    passage = np.array([[0.6, 0.8], [0.8, -0.6]], np.float32)
    queries = np.stack([east, north, east])
    assert maxsim([agreed(queries, 0.9)], [passage])[0, 0] == pytest.approx(maxsim([queries], [passage])[0, 0])


def test_a_router_is_fitted_on_the_passages_that_it_does_not_choose_for() -> None:
    routed = load("bench/kept").routed
    first = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    counts = np.clip(np.round(8 + 3 * first[:, 0]), 1, 16).astype(int).tolist()
    assert np.corrcoef(routed(first, counts), counts)[0, 1] > 0.95
    noise = np.random.default_rng(1).integers(1, 16, size=400).tolist()
    assert abs(np.corrcoef(routed(first, noise), noise)[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("word", "content"),
    [("solar", True), ("##etta", True), ("the", False), ("[CLS]", False), (",", False), ("", False), ("naïve", True)],
)
def test_positions_are_kept_for_content_words(word: str, content: bool) -> None:
    assert load("bench/kept").is_content(word) == content


def test_what_is_left_of_a_span_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    spanned = load("bench/kept").spanned
    plane = np.array([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0.8, 0.6, 0]], np.float32)
    assert len(spanned(plane, 0.01)) == 2
    assert len(spanned(np.eye(4, dtype=np.float32), 0.01)) == 4
    assert len(spanned(np.ones((5, 4), np.float32) / 2, 0.01)) == 1


def test_an_unknown_rule_and_another_checkpoints_rows_are_refused(
    nested: Path, tiny_checkpoint: Path, beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, out = load("bench/kept").main, tmp_path / "out"
    assert "choose from prefix" in refusal(main, [nested, beir, "--out", out, "--rules", "best"], capsys)
    main([str(nested), str(beir), "--out", str(out), "--rules", "prefix"])
    assert "another checkpoint" in refusal(main, [tiny_checkpoint, beir, "--out", out, "--rules", "prefix"], capsys)
