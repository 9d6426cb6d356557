import json
import math
from pathlib import Path

import pytest
import torch

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.training.model import autocasts
from colbert_diffusion.training.recipe import PRESETS, Recipe, read_recipe


def test_the_papers_preset_is_the_papers_recipe() -> None:
    paper = PRESETS["paper"]
    assert (paper.lora_rank, paper.lora_alpha, paper.lora_dropout) == (16, 64, 0.05)
    assert (paper.batch, paper.negatives, paper.learning_rate, paper.temperature) == (128, 15, 1e-4, 0.01)
    assert (paper.contrastive, paper.sparse, paper.query_tokens, paper.passage_tokens) == (1, 1, 32, 156)
    assert paper.bf16
    assert paper.cached
    assert paper.gradient_checkpointing


def test_a_file_goes_over_the_preset_and_single_settings_over_both(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"steps": 7, "batch": 8, "nested_k_passage": [1, 4]}))
    settings = {"batch": "16", "learning_rate": "1", "sparse": ".2", "teacher": "folder", "cached": "true"}
    recipe = read_recipe("small", path, settings)
    assert (recipe.steps, recipe.batch, recipe.nested_k_passage) == (7, 16, (1, 4))
    assert (recipe.learning_rate, recipe.sparse, recipe.teacher, recipe.cached) == (1.0, 0.2, "folder", True)
    assert recipe.nested


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stepz": "3"}, "unknown"),
        ({"steps": "many"}, "steps"),
        ({"steps": "1.5"}, "expected int"),
        ({"bf16": "1"}, "expected bool"),
        ({"nested_dim": "[0]"}, "positive integers"),
        ({"nested_dim": "4"}, "positive integers"),
        ({"sparse": "half"}, "sparse: 'half' is no float"),
        ({"learning_rate": "NaN"}, "learning_rate is nan, expected a finite number"),
        ({"learning_rate": math.nan}, "learning_rate is nan, expected a finite number"),
        ({"sparse": 10**400}, "sparse is inf, expected a finite number"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_recipe("small", settings=settings)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="paper"):
        read_recipe("big")


@pytest.mark.parametrize(
    ("asked", "device", "processor", "mixed"),
    [
        (True, "cpu", "AVX512", True),
        (True, "cpu", "AVX2", False),  # it emulates bfloat16, some 80 times slower than float32
        (True, "cpu", "DEFAULT", False),
        (True, "cuda", "AVX2", True),
        (False, "cuda", "AVX512", False),
    ],
)
def test_bfloat16_is_used_where_it_is_asked_for_and_fast(
    asked: bool, device: str, processor: str, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    assert autocasts(Recipe(bf16=asked), torch.device(device)) is mixed
