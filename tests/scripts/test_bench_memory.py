"""scripts/bench/memory.py"""

from pathlib import Path
from typing import Any

import pytest

from ..conftest import TinyIndex
from .conftest import file_bytes, load, rows


def megabytes(row: list[str]) -> tuple[int, int]:
    resident, peak = (int(cell.removesuffix(" MB")) for cell in row[3:5])
    return resident, peak


def test_memory_is_measured_for_every_step_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script: Any = load("bench/memory")
    steps = {name: script.STEPS[name] for name in ("imports alone", "open, read all in order")}
    steps["100 MiB more"] = steps["imports alone"] + "kept = bytes(1) * (100 << 20)\n"
    steps["100 MiB for a while"] = steps["100 MiB more"] + "del kept\n"
    script.STEPS = steps
    script.main(["--lines", "10,20000", "--folder", str(tmp_path)])
    table = rows(capsys.readouterr().out)
    script.write(tmp_path / "again", 20_000)
    size = (tmp_path / "again").stat().st_size
    assert size > 20_000 * 300
    assert [row[:3] for row in table] == [
        [lines, size, step] for lines, size in (("10", "0 MB"), ("20,000", f"{size / 1e6:.0f} MB")) for step in steps
    ]
    alone, read, more, freed = (megabytes(row) for row in table[:4])
    for cell in (0, 1):
        assert 95 < more[cell] - alone[cell] < 115
        assert alone[cell] <= read[cell] + 1 < alone[cell] + 20
    assert abs(freed[0] - alone[0]) < 10
    assert 95 < freed[1] - alone[1] < 115
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_memory_of_a_searcher_is_measured_beside_its_checkpoints(
    tiny_index: TinyIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    script: Any = load("bench/memory")
    script.SEARCHER_STEPS["searcher"] += "kept = bytes(1) * (200 << 20)\n"
    script.main(["--index", str(tiny_index.path)])
    table = rows(capsys.readouterr().out)
    size = (file_bytes(tiny_index.path) - file_bytes(tiny_index.path, "collection.tsv")) / 1e6
    assert [row[:3] for row in table] == [
        [str(len(tiny_index.texts)), f"{size:.0f} MB", step] for step in ("its checkpoint alone", "searcher")
    ]
    alone, searcher = (megabytes(row) for row in table)
    assert alone[0] > 100  # torch alone
    assert 200 <= searcher[0] - alone[0] < 400
