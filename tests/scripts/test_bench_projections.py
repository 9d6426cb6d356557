"""scripts/bench/projections.py"""

import math
from pathlib import Path

import pytest
import torch

from colbert_diffusion import DiffusionCheckpoint

from .conftest import EXAMPLES, best, load, prefixes, refusal, rows, share


def test_projections_are_compared_with_the_states_themselves_and_each_text_is_encoded_once(
    tiny_checkpoint: Path, beir: Path, encoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("bench/projections")
    script.main([str(tiny_checkpoint), str(beir), "--dim", "4,16"])
    table = rows(capsys.readouterr().out)
    kinds = ["PCA", "random orthogonal", "none, first coordinates"]
    assert [row[1:3] for row in table] == [["none", "16"], *([kind, dim] for dim in ("4", "16") for kind in kinds)]
    kept = {(row[1], row[2]): float(row[3]) for row in table}
    assert kept["PCA", "4"] > kept["random orthogonal", "4"]
    assert all(kept[kind, "16"] > 0.98 for kind in kinds)  # rotations: rounding may turn ties
    assert float(table[0][4]) == pytest.approx(float(table[-1][4]), abs=1e-3)
    assert len(encoded) == 2 * len(EXAMPLES)
    checkpoint = DiffusionCheckpoint(tiny_checkpoint, verbose=0)  # its own vectors are the states
    queries = checkpoint.encode_query([example.query for example in EXAMPLES])
    passages = checkpoint.encode_document([example.passages[0] for example in EXAMPLES])
    whole, first = best(queries, passages, 10), best(prefixes(queries, 4), prefixes(passages, 4), 10)
    assert kept["none", "16"] == 1
    assert kept["none, first coordinates", "4"] == pytest.approx(share(first, whole), abs=5.1e-3)  # near ties may turn
    for row, ranked in ((table[0], whole), (table[3], first)):
        gains = [1 / math.log2(2 + pids.index(number)) if number in pids else 0 for number, pids in enumerate(ranked)]
        assert float(row[4]) == pytest.approx(sum(gains) / len(gains), abs=0.011)
    assert "--dim 32: the backbone has 16 dimensions" in refusal(script.main, [tiny_checkpoint, beir, "--dim", "32"], capsys)


def test_kept_order_is_the_share_of_the_yardsticks_best() -> None:
    yardstick = {"q": [("a", 2.0), ("b", 1.0)], "r": [("c", 1.0), ("d", 0.5)]}
    assert (
        load("bench/projections").kept_order({"q": [("b", 9.0), ("a", 8.0)], "r": [("x", 1.0), ("d", 0.1)]}, yardstick) == 0.75
    )


def test_a_random_projection_is_orthogonal() -> None:
    weight = load("bench/projections").random_orthogonal(8, 20, seed=1).weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(8))
