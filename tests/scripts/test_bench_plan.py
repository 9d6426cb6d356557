"""scripts/bench/plan.py"""

import json
from pathlib import Path

import pytest

from colbert_diffusion.index import planning

from .conftest import Takes, file_bytes, load, refusal, rows


def test_planned_and_measured_are_a_plans_and_the_files_and_a_cell_is_built_once(
    tmp_path: Path, takes: Takes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "probe", lambda shape, checkpoint, **_: (planning.Rates(None, 1e6, 1e3), 0))
    script, out = load("bench/plan"), tmp_path / "out"
    takes(6.0)
    arguments = ["--out", str(out), "--cells", "300:2:16:2"]
    script.main([*arguments, "--keep"])
    stored = file_bytes(out / "300-2-16-2") - file_bytes(out / "300-2-16-2", "collection.tsv")
    assert stored > 600 * (4 + 16 * 2 // 8)
    plan = planning.make_plan(300, 2, 16, 2, index=tmp_path)
    planned, seconds = sum(plan.index.values()), 3600 * sum((plan.hours or {}).values())
    assert planned == pytest.approx(stored, rel=0.1)

    kept = json.loads((out / "plan.json").read_text())
    [row] = kept["rows"]
    assert (row["bytes"], row["planned_bytes"], row["planned_seconds"], row["seconds"]) == (stored, planned, seconds, 6.0)
    sizes = [f"{planned / 1000:.1f} KB", f"{stored / 1000:.1f} KB", f"{stored / planned:.2f}"]
    table = [["300", "2", "16", "2", *sizes, f"{seconds:.1f}", "6.0", f"{6 / seconds:.2f}"]]
    assert rows(capsys.readouterr().out) == table

    takes(7.0)
    script.main(arguments)
    assert json.loads((out / "plan.json").read_text()) == kept
    assert rows(capsys.readouterr().out) == table
    assert "'300:2' is no cell" in refusal(script.main, ["--out", out, "--cells", "300:2"], capsys)
