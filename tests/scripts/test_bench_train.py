"""scripts/bench/train.py"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from colbert_diffusion.training.model import autocasts

from .conftest import EXAMPLES, Takes, load

BATCH = 8


def test_speeds_are_a_batch_over_the_median_step_and_both_train_on_the_files_pairs(
    tiny_checkpoint: Path, pairs: Path, takes: Takes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script: Any = load("bench/train")
    small = replace(script.PRESETS["small"], batch=BATCH, query_tokens=12, passage_tokens=40)
    monkeypatch.setattr(script, "PRESETS", {"small": small})
    monkeypatch.setattr(script, "Accelerator", lambda **_: Accelerator())  # it has one precision for the rest of a process
    seen: dict[str, list[list[str]]] = {}
    losses: dict[str, list[float]] = {}
    for name in ("our_step", "plain_step"):

        def counting(*arguments: Any, make: Callable[..., Any], name: str) -> Any:
            step = make(*arguments)

            def run(batch: list[Any]) -> float:
                seen.setdefault(name, []).append([example.query for example in batch])
                losses.setdefault(name, []).append(step(batch))
                return losses[name][-1]

            return run

        monkeypatch.setattr(script, name, partial(counting, make=getattr(script, name), name=name))
    takes(*[0.5] * 7, 0.25, 4, 2, 1, 8, 9, 10, 1, 1, 5)  # of products, and of three steps each
    script.main([str(pairs), "--steps", "3", "--start", str(tiny_checkpoint)])

    matmul, first, plain, warm, ratio = capsys.readouterr().out.splitlines()
    dtype = "bfloat16" if autocasts(small, torch.device("cpu")) else "float32"
    assert matmul.startswith(f"matmul, {dtype}: {2 * 2048**3 / 0.25 / 1e9:.0f} GFLOP/s on {torch.get_num_threads()}")
    assert first.startswith("ours, first epoch: 4.0 pairs/s, ")
    assert plain.startswith("plain loop: 0.9 pairs/s, ")
    assert warm.startswith("ours, teacher known: 8.0 pairs/s, ")
    assert ratio == "ratio to the plain loop: 9.00 (first epoch 4.50)"
    batches = [[e.query for e in EXAMPLES[start : start + BATCH]] for start in range(0, 4 * BATCH, BATCH)]
    of_each = [*batches, batches[1]]  # the first warms up, the operations are counted in the second
    assert seen == {"our_step": 2 * of_each, "plain_step": of_each}
    assert losses["our_step"][0] == pytest.approx(losses["plain_step"][0], rel=0.02)


def test_operations_are_the_second_batchs_over_its_seconds(takes: Takes, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = torch.ones(1000, 500)

    def products(batch: list[int]) -> None:  # a GFLOP each
        for _ in range(sum(batch)):
            torch.mm(matrix, matrix.T)

    takes(2.0, 8.0, 4.0)
    pairs = load("bench/train").measure("x", products, [[1, 0], [2, 1], [0, 1], [1, 1]], rate=3e9)
    assert capsys.readouterr().out == "x: 0.5 pairs/s, 3 GFLOP a step, 50% of the matmul rate\n"
    assert pairs == 2 / 4
