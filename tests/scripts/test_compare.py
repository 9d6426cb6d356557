"""scripts/compare.py"""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from colbert_diffusion import DiffusionConfig
from colbert_diffusion.evaluation import read_benchmark
from colbert_diffusion.evaluation.comparing import compare_systems, read_systems

from ..conftest import write_bert
from .conftest import load, refusal, rows


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    script = load("compare")
    monkeypatch.setattr(script, "RECIPE", replace(script.RECIPE, bf16=False, query_tokens=12, passage_tokens=40))
    monkeypatch.setattr(script, "LENGTHS", {"query_max_length": 16, "passage_max_length": 40})
    return script


def test_the_comparison_has_every_readout_at_its_best_rate_and_is_done_once(
    compare: ModuleType,
    pairs: Path,
    beir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, base = tmp_path / "out", write_bert(tmp_path / "wide", 32)
    fixed = [f"--pairs={pairs}", f"--dev={beir}", f"--out={out}", f"--bases={base}", "--batch=16", "--dim=16"]
    asked = [*fixed, "--rates", "1e-4", "1e-2", "--seeds=1"]
    compare.main([*asked, "--steps=3"])
    table = rows(capsys.readouterr().out)
    assert [row[:2] for row in table] == [[str(base), readout] for readout in compare.READOUTS]
    assert [row.count("-") for row in table] == [0, 0, 2, 3, 2, 3]  # one vector has no words, its own dimensions no index

    kept = json.loads((out / "compare.json").read_text())
    assert len(kept["trials"]) == 2 * len(compare.READOUTS)
    for row, shown in zip(kept["table"], table, strict=True):
        trials = {rate: kept["trials"][compare.Trial(compare.Readout(*shown[:2]), rate, 0).name] for rate in (1e-4, 1e-2)}
        best = max(trials, key=lambda rate: trials[rate]["exact"]["tiny"])
        assert row["rate"] == best
        for system, measured in trials[best].items():
            assert row[f"tiny {system}"] == {"mean": measured["tiny"], "sd": 0, "seeds": [measured["tiny"]]}
        assert re.fullmatch(r"\d\.\d{3} ± 0\.000", shown[3])

    systems = read_systems(out / "systems.json")[1:]
    assert [(one.words, one.exact) for one in systems] == [
        *[("predicted", False)] * 2,
        *[(None, False), (None, True)] * 2,
    ]
    compared = compare_systems(
        read_benchmark(beir), systems, tmp_path / "compared", measures="nDCG@10", baseline=f"{systems[0].name} dense"
    )
    for one, row in zip(systems, kept["table"], strict=True):
        again = compared.report.means[f"{one.name} dense"]["nDCG@10"]
        assert again == pytest.approx(row["tiny exact" if one.exact else "tiny plaid"]["mean"], abs=0.02)  # centroids differ

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    monkeypatch.setattr(compare, "train", never)
    monkeypatch.setattr(compare, "measure_systems", never)
    compare.main([*asked, "--steps=3"])
    assert rows(capsys.readouterr().out) == table
    assert "its steps differs; choose another --out" in refusal(compare.main, [*asked, "--steps=4"], capsys)
    assert "seeds is 0, expected at least 1" in refusal(compare.main, [*asked, "--seeds=0"], capsys)


def test_the_plan_estimates_every_readout_and_trains_no_trial(
    compare: ModuleType, tiny_bert: Path, pairs: Path, beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = [f"--pairs={pairs}", f"--dev={beir}", f"--out={tmp_path / 'out'}", f"--bases={tiny_bert}", "--batch=16", "--dim=8"]
    compare.main([*fixed, "--teacher=mean", "--plan"])
    table = rows(capsys.readouterr().out)
    assert [row[1:4] for row in table] == [[readout, "5", "0"] for readout in compare.READOUTS] + [["", "30", ""]]
    assert not (tmp_path / "out" / "trials").exists()
    (tmp_path / "out" / "trials" / "tiny-bert-mean-pool-native-0.001-0").mkdir(parents=True)
    compare.main([*fixed, "--teacher=mean", "--plan"])
    done = {row[1]: row[3] for row in rows(capsys.readouterr().out)}
    assert (done["mean pool"], done["mean pool, native"]) == ("0", "1")
    assert {DiffusionConfig.load(folder).dim for folder in (tmp_path / "out" / "starts").glob("*-masked-*")} == {8}
