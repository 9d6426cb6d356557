"""scripts/bench/words.py"""

import shutil
from pathlib import Path

import pytest

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.encoding.lexical import content_words

from .conftest import load, refusal, rows


def test_a_head_that_says_the_same_of_every_passage_knows_nothing_of_any(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "rigged")
    checkpoint = DiffusionCheckpoint(folder)
    assert checkpoint.head is not None
    assert checkpoint.head.bias is not None
    checkpoint.head.bias[checkpoint.encoder.backbone.tokenize(["france paris the"])[0]] += 1000
    checkpoint.head.save(folder)
    passages = tmp_path / "passages.tsv"
    passages.write_text("".join(f"{i}\tthe {'dog' if i % 4 else 'city of Paris'} {i}\n" for i in range(20)))
    load("bench/words").main([str(folder), str(passages), "--top", "3", "--show", "1"])
    summary, *first = rows(capsys.readouterr().out)
    assert summary == ["20", "8 x 3", "0.250", "0.250", "1.00"]
    positions = [row for row in first if row[0].isdigit()]
    assert [set(row[1].split()) for row in positions] == [{"france", "paris", "the"}] * 8


def test_a_head_that_says_each_passages_own_words_scores_1(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def own_words(_: object, texts: list[str], top: int) -> list[list[list[str]]]:
        return [[content_words(text)[:top]] for text in texts]

    monkeypatch.setattr(DiffusionCheckpoint, "predict_words", own_words)
    passages = tmp_path / "passages.tsv"
    passages.write_text("".join(f"{i}\tthe {word}\n" for i, word in enumerate(["dog", "cat", "cat", "sun", "moon"])))
    load("bench/words").main([str(tiny_checkpoint), str(passages)])
    assert rows(capsys.readouterr().out)[0] == ["5", "8 x 10", "1.000", "0.100", "10.00"]  # 2 of 20 pairs share the cat
    passages.write_text("0\tthe dog\n")
    line = refusal(load("bench/words").main, [tiny_checkpoint, passages], capsys)
    assert line == "error: 1 passages: another passage to compare with needs at least 2"
