"""scripts/bench/cluster.py"""

from pathlib import Path

import pytest

from colbert_diffusion.encoding import vectors

from .conftest import TEXTS, Takes, load, rows


def test_one_worker_and_many_stand_beside_one_process(
    tiny_checkpoint: Path, tmp_path: Path, takes: Takes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vectors, "SHARD", vectors.SHARD)  # it sets its own
    (tmp_path / "c.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS)))
    cluster = load("bench/cluster")
    takes(4.0, 5.0, 6.0, 3.0)  # one process and the cluster, with two threads and with one
    monkeypatch.setattr(cluster.torch, "set_num_threads", lambda _: None)  # of this process, for all tests
    asked = [str(tmp_path / "c.tsv"), "--checkpoint", str(tiny_checkpoint), "--texts", "30", "--shard", "10"]
    cluster.main([*asked, "--rounds", "1"])
    printed = capsys.readouterr().out
    assert printed.startswith("30 passages in shards of 10")
    assert rows(printed) == [["2", "1", "4.0", "5.0", "0.80"], ["1", "2", "6.0", "3.0", "2.00"]]
