"""scripts/bench/index.py"""

import json
from pathlib import Path

import pytest
import torch

from .conftest import Takes, file_bytes, load, rows


def test_counts_and_sizes_are_those_of_the_files_and_shares_are_of_the_whole_time(
    tiny_checkpoint: Path,
    collection: Path,
    tmp_path: Path,
    takes: Takes,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script, found, out = load("bench/index"), {}, tmp_path / "bench"
    seconds_of = script.seconds_of

    def fixed(profile: object) -> dict[str, float]:
        found.update(seconds_of(profile))
        return {"encoding": 6.0, "k-means": 2.0, "compression": 1.0, "inverted list": 0.25}

    monkeypatch.setattr(script, "seconds_of", fixed)
    takes(10.0)
    script.main([str(collection), "--out", str(out), "--passages", "60", "--checkpoint", str(tiny_checkpoint), "--nbits", "1"])
    assert set(found) == set(script.STAGES)
    assert all(seconds > 0 for seconds in found.values()), "ColBERT calls that function otherwise"

    printed, index = capsys.readouterr().out, out / "index"
    printed = printed[printed.index("60 passages, ") :]  # ColBERT prints before; without capsys to its log
    lines = [line for line in printed.splitlines() if not line.startswith("|")]
    passages = len((out / "passages.tsv").read_text().splitlines())
    vectors = sum(map(sum, (json.loads(path.read_text()) for path in index.glob("doclens.*.json"))))
    partitions = len(torch.load(index / "centroids.pt"))
    assert (passages, vectors) == (60, 60 * 8)
    assert lines[0] == f"60 passages, 480 vectors, {partitions} partitions"
    assert rows(printed) == [
        ["encoding", "6.0", "60.0%"],
        ["k-means", "2.0", "20.0%"],
        ["compression", "1.0", "10.0%"],
        ["inverted list", "0.2", "2.5%"],
        ["everything else", "0.8", "7.5%"],
        ["all", "10.0", "overhead 1.111"],
    ]
    packed = file_bytes(index, ".codes.pt", ".residuals.pt")
    assert packed >= 480 * (4 + 16 // 8)  # a code and 16 dimensions of a bit
    assert lines[1] == f"index {file_bytes(index) / 1000:.1f} KB, codes and residuals {packed / 60:.0f} bytes a passage"
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    number, unit = lines[2].removeprefix("peak resident memory ").split()
    assert float(number) * {"MB": 1e6, "GB": 1e9}[unit] == pytest.approx(peak, rel=0.1)


def test_passages_are_windows_of_the_texts_of_ms_marcos_length() -> None:
    texts = [" ".join(f"{number}.{place}" for place in range(500)) for number in range(5)]
    windows = list(load("bench/index").windows(texts, 2000))
    assert len(windows) == 2000
    assert all(any(window in text for text in texts) for window in windows[:50])
    assert sum(len(window.split()) for window in windows) / 2000 == pytest.approx(56, rel=0.05)
