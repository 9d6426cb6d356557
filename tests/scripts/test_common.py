"""scripts/bench/common.py"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from colbert_diffusion import UserError

from .conftest import Takes, load, refusal

common: Any = load("bench/common")


def test_a_table_is_markdown_whatever_is_in_a_cell(capsys: pytest.CaptureFixture[str]) -> None:
    common.print_table(("a", "", "c"), [(1, "", "x|y"), (0, None, 2.5)])
    assert capsys.readouterr().out == "| a | | c |\n|---|---|---|\n| 1 | | x\\|y |\n| 0 | None | 2.5 |\n"


@pytest.mark.parametrize("error", [UserError("k is 0\nexpected more"), FileNotFoundError("nothing there")])
def test_what_a_user_can_put_right_is_a_line_and_status_2(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    @common.errors_in_a_line()  # type: ignore[untyped-decorator]
    def main(_: list[str]) -> None:
        raise error

    assert refusal(main, [], capsys) == "error: " + str(error).replace("\n", " ")


def test_another_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), common.errors_in_a_line():
        _ = 1 / 0


def test_memory_is_the_processs_own_and_the_peak_stays() -> None:
    code = "kept = bytes(1) * (200 << 20); {}; print('there', flush=True); input()"
    peaks, residents = [], []
    for then in ("pass", "del kept"):
        command = [sys.executable, "-c", code.format(then)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            resident, peak = common.memory(process.pid)
            residents.append(resident / 2**20)
            peaks.append(peak / 2**20)
            process.communicate("\n")
    assert all(200 <= peak < 240 for peak in peaks)
    assert residents[0] >= 200 > 40 > residents[1]
    assert common.memory() == pytest.approx(common.memory(os.getpid()), rel=0.05)


def test_kept_rows_are_found_by_their_values_and_after_a_restart(tmp_path: Path) -> None:
    kept = common.KeptRows(tmp_path / "rows.json", of="this")
    kept.add({"k": 1, "above": None, "value": 5})
    kept.add({"k": 2, "above": 0.5, "value": 6})
    again = common.KeptRows(tmp_path / "rows.json", of="another")
    assert again.content["of"] == "this"
    assert again.find(k=2, above=0.5)["value"] == 6
    assert again.find(k=1, above=None)["value"] == 5
    assert again.find(k=2, above=None) is None


def test_runs_take_turns(takes: Takes) -> None:
    shared: Any = sys.modules["common"]
    order: list[str] = []
    takes(1, 10, 2, 20)
    times = shared.in_turns({name: lambda name=name: order.append(name) for name in ("a", "b")}, rounds=2)
    assert order == ["a", "b", "a", "b"]
    assert times == {"a": [1, 2], "b": [10, 20]}


def test_files_that_several_patterns_match_count_once(tmp_path: Path) -> None:
    for name, size in (("0.codes.pt", 5), ("0.residuals.pt", 70), ("ivf.pid.pt", 900)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert common.packed_bytes(tmp_path) == 75
    assert common.bytes_of(tmp_path, "*", "0.*") == 975
