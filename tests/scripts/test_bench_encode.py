"""scripts/bench/encode.py"""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from colbert_diffusion import DiffusionCheckpoint

from .conftest import TEXTS, Takes, load


def test_speeds_are_the_tokenizers_tokens_over_the_median_seconds(
    tiny_checkpoint: Path, tiny_bert: Path, tmp_path: Path, takes: Takes, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [*TEXTS[:40], " ".join(TEXTS[:10]), "more than is asked for"]  # one is longer than the checkpoint reads
    collection = tmp_path / "texts.tsv"
    collection.write_text("".join(f"{pid}\t{text}\n" for pid, text in enumerate(texts)))
    takes(1.0, 30.0, 2.0, 9.0, 2.5, 4.0)  # the engine 1, 2 and 2.5 s, the loop 30, 9 and 4
    load("bench/encode").main([str(collection), "--checkpoint", str(tiny_checkpoint), "--texts", "41", "--rounds", "3"])

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    words = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts[:41]]
    assert max(words) > 48
    tokens = sum(min(48, 1 + count + 1) + 8 + 1 for count in words)  # [CLS] text [SEP], then 8 x [MASK] [SEP]
    first, *speeds, ratio = capsys.readouterr().out.splitlines()
    assert first == f"41 passages, {tokens:,} tokens, cpu, torch.float32"
    assert [re.split(r"\s{2,}", line.strip()) for line in speeds] == [
        ["engine:", f"{tokens / 2:,.0f} tokens/s", f"{41 / 2:.1f} passages/s", "(1.0-2.5 s)"],
        ["plain loop:", f"{tokens / 9:,.0f} tokens/s", f"{41 / 9:.1f} passages/s", "(4.0-30.0 s)"],
    ]
    assert ratio == "ratio engine / plain loop: 4.50"


def test_the_plain_loop_computes_what_the_engine_does(tiny_checkpoint: Path) -> None:
    checkpoint = DiffusionCheckpoint(tiny_checkpoint, verbose=0)
    plain = load("bench/encode").plain_loop(checkpoint, TEXTS, 16)
    ours = torch.stack([torch.from_numpy(vectors) for vectors in checkpoint.encode_document(TEXTS)])
    torch.testing.assert_close(plain, ours, atol=1e-5, rtol=0)
