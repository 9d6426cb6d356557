"""scripts/bench/lexical.py"""

from pathlib import Path

import pytest

from colbert_diffusion import DiffusionCheckpoint, open_index

from .conftest import TEXTS, Takes, load, rows


def test_modes_are_timed_on_the_same_queries_and_bytes_are_the_files(
    collection: Path, queries: Path, tmp_path: Path, takes: Takes, capsys: pytest.CaptureFixture[str]
) -> None:
    takes(2.0, 1.0, 3.0)  # the build; then dense, lexical and hybrid of each query
    out = tmp_path / "out"
    asked = [str(collection), str(queries), "--out", str(out), "--passages", "80", "--length", "12", "--queries", "3"]
    load("bench/lexical").main(["search", *asked])
    printed = capsys.readouterr().out
    expected = [("dense", 1000, 1), ("lexical", 3000, 3), ("hybrid", 2000, 2)]
    assert rows(printed) == [[mode, f"{ms:.2f}", f"{ms:.2f}", f"{ratio:.2f}"] for mode, ms, ratio in expected]
    words = sum(file.stat().st_size for file in (out / "index").glob("lexical*")) / 80
    packed = sum(file.stat().st_size for name in ("codes", "residuals") for file in (out / "index").glob(f"*.{name}.pt")) / 80
    assert "80 passages, k = 10, 3 queries" in printed
    assert f"bytes a passage: words {words:.0f}, vectors {packed:.0f}" in printed
    searcher = open_index(out / "index")
    vocabulary = {word for text in TEXTS for word in text.split()}
    assert {word for text in searcher.collection for word in text.split()} <= vocabulary
    assert len(set(searcher.collection)) > 70


def test_the_ratio_is_that_of_the_medians(
    collection: Path, tiny_checkpoint: Path, takes: Takes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bool]] = []
    encode = DiffusionCheckpoint.encode_document

    def counting(self: DiffusionCheckpoint, texts: list[str], lexical: bool = False) -> object:
        asked.append((len(texts), lexical))
        return encode(self, texts, lexical=lexical)  # type: ignore[call-overload]

    monkeypatch.setattr(DiffusionCheckpoint, "encode_document", counting)
    takes(2.0, 3.0)
    load("bench/lexical").main(["encode", str(collection), "--checkpoint", str(tiny_checkpoint), "--texts", "20"])
    assert rows(capsys.readouterr().out) == [["vectors", "10.0", "1.000"], ["vectors and words", "6.7", "1.500"]]
    assert asked == [(20, False), (20, True)] * 4
