"""scripts/bench/parts.py"""

from pathlib import Path

import pytest

from colbert_diffusion.seam import building

from .conftest import TEXTS, load, rows


def test_answers_that_differ_are_counted(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(building, "CHUNK", 10)  # and as it was afterwards: it sets its own
    (tmp_path / "c.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS)))
    parts = load("bench/parts")
    monkeypatch.setattr(parts.torch, "set_num_threads", lambda _: None)  # of this process, for all tests
    asked = [str(tmp_path / "c.tsv"), "--checkpoint", str(tiny_checkpoint), "--texts", "40", "--chunk", "10", "--queries", "5"]
    parts.main([*asked, "--parts", "3"])
    printed = capsys.readouterr().out
    assert "\n40 passages in chunks of 10, 5 queries, k 10\n" in printed
    whole, parted = rows(printed)
    assert (whole[0], whole[4]) == ("whole", "1.00")
    assert parted[:2] == ["3 parts here", "0"]

    answers = iter([([1, 2], [1, 2], [3.0, 2.0]), ([2, 1], [1, 2], [3.0, 2.5]), ([1], [1], [3.0])])
    first = next(answers)
    assert parts.differ(first, first) == (False, 0.0)
    assert parts.differ(first, next(answers)) == (True, 0.5)
    assert parts.differ(first, next(answers))[0]
