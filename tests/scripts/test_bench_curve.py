"""scripts/bench/curve.py"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig
from colbert_diffusion.encoding.vectors import VectorFiles

from ..conftest import HIDDEN
from .conftest import EXAMPLES, best, file_bytes, load, read_vectors, refusal, rows


def test_the_curve_has_every_cell_and_keeping_less_never_adds_bytes(
    tiny_config: DiffusionConfig, beir: Path, tmp_path: Path, encoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    curve = load("bench/curve")
    replace(tiny_config, nested=True, merge_above=0.5).save(tmp_path / "nested")
    arguments = [str(tmp_path / "nested"), str(beir), "--out", str(tmp_path / "out"), "--k-passage", "1,8", "--nbits", "1,2"]
    curve.main([*arguments, "--merge-above", "none,0.8", "--cover-above", "0.9"])
    found = {tuple(row[1:5]): [float(cell) for cell in row[5:9]] for row in rows(capsys.readouterr().out)}
    cells = [("1", "all"), ("8", "all"), ("8", "merge 0.8"), ("8", "cover 0.9")]
    assert list(found) == [(k, str(HIDDEN), above, nbits) for k, above in cells for nbits in ("1", "2")]
    for nbits in ("1", "2"):
        one, whole, merged, covered = (found[k, str(HIDDEN), above, nbits] for k, above in cells)
        for some in (merged, covered):
            assert one[0] == 1 < some[0] < whole[0] == 8
            assert one[1] < some[1] < whole[1]
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    passages = {example.passages[0] for example in EXAMPLES} - {example.query for example in EXAMPLES}
    assert sum(text in passages for text in encoded) == len(passages)
    for (k, _, kept, nbits), (_, size, exact, _) in found.items():
        name = f"k{k}-dim{HIDDEN}" + ("" if kept == "all" else "-" + kept.replace(" ", ""))
        index = next((tmp_path / "out" / "tiny" / name / f"nbits{nbits}").rglob("metadata.json")).parent
        assert size == round(file_bytes(index, ".codes.pt", ".residuals.pt") / len(EXAMPLES))
        checkpoint = DiffusionCheckpoint(tmp_path / "out" / "cells" / name, verbose=0)
        queries = checkpoint.encode_query([example.query for example in EXAMPLES])
        ranked = best(queries, read_vectors(tmp_path / "out" / "tiny" / name / "vectors"), 10)
        gains = [1 / math.log2(2 + pids.index(number)) if number in pids else 0 for number, pids in enumerate(ranked)]
        assert exact == pytest.approx(sum(gains) / len(gains), abs=0.011)  # vectors are rounded on disk: near ties may turn

    encoded.clear()
    curve.main([*arguments, "--merge-above", "none,0.8", "--cover-above", "0.9"])
    assert not encoded
    assert len(rows(capsys.readouterr().out)) == 8

    for name in ("k8-dim16-merge0.8", "k8-dim16-cover0.9"):
        expected = DiffusionCheckpoint(tmp_path / "out" / "cells" / name).encode_document([e.passages[0] for e in EXAMPLES])
        stored = VectorFiles(tmp_path / "out" / "tiny" / name / "vectors").read(range(len(EXAMPLES)))
        for ours, theirs in zip(stored, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(theirs), atol=1e-3, rtol=0)


def test_the_front_is_what_nothing_smaller_equals() -> None:
    sizes = [(10, 0.5), (20, 0.5), (20, 0.7), (30, 0.6), (40, 0.8)]
    found = load("bench/curve").front([{"bytes": size, "plaid": value} for size, value in reversed(sizes)])
    assert [(row["bytes"], row["plaid"]) for row in found] == [(10, 0.5), (20, 0.7), (40, 0.8)]


def test_a_curve_of_a_checkpoint_without_prefixes_or_of_another_one_is_refused(
    tiny_checkpoint: Path, beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_checkpoint), str(beir), "--out", str(tmp_path)]
    main = load("bench/curve").main
    assert "error: the checkpoint is not nested" in refusal(main, [*arguments, "--k-passage", "1,8"], capsys)
    (tmp_path / "curve.json").write_text('{"checkpoint": "another", "collections": {}, "rows": []}')
    assert "is of another checkpoint; choose another --out" in refusal(main, [*arguments, "--k-passage", "8"], capsys)
