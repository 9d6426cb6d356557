from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from colbert_diffusion.backbones.loading import load_backbone
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.encoding.heads import load_head, new_head

from ..backbones.published import PUBLISHED, publish
from ..conftest import PARITY
from ..releases import write_adapter

IDS = torch.arange(11, 20)[None]
LENGTHS = torch.tensor([9])


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_a_published_head_says_what_the_published_model_says(model_type: str, tmp_path: Path) -> None:
    model: Any = publish(model_type, tmp_path)
    backbone = load_backbone(tmp_path)
    head = load_head(backbone, tmp_path, tmp_path)
    assert head is not None
    with torch.inference_mode():
        states = backbone.states(IDS, LENGTHS)
        causally = not backbone.family.head_transforms  # as the published class of a decoder would run it
        expected = model.lm_head(states) if causally else model(IDS).logits
        torch.testing.assert_close(head(states), expected, atol=2e-5, rtol=1e-5)
        words = torch.tensor([3, 17, 40])
        torch.testing.assert_close(head(states, words), expected[..., words], atol=2e-5, rtol=1e-5)


def test_a_base_without_a_head_has_none_and_gets_a_new_one_tied_to_its_embeddings(tmp_path: Path) -> None:
    publish("bert", tmp_path)
    weights = {name: t for name, t in load_file(tmp_path / "model.safetensors").items() if not name.startswith("cls.")}
    save_file(weights, tmp_path / "model.safetensors")
    backbone = load_backbone(tmp_path)
    assert load_head(backbone, tmp_path, tmp_path) is None
    head = new_head(backbone)
    assert head(backbone.states(IDS, LENGTHS)).shape == (1, 9, 64)
    assert sum(p.numel() for p in head.parameters()) == 32 * 32 + 3 * 32 + 64


def test_a_saved_head_is_loaded_before_the_backbones_own(tmp_path: Path) -> None:
    publish("bert", tmp_path)
    backbone = load_backbone(tmp_path)
    head, checkpoint = new_head(backbone), tmp_path / "checkpoint"
    head.save(checkpoint)
    loaded = load_head(backbone, checkpoint, tmp_path)
    assert loaded is not None
    states = backbone.states(IDS, LENGTHS)
    torch.testing.assert_close(loaded(states), head(states), atol=1e-3, rtol=1e-3)


def test_a_head_of_another_backbone_is_refused(tmp_path: Path) -> None:
    publish("bert", tmp_path)
    save_file({"dense.weight": torch.zeros(8, 8), "norm.weight": torch.zeros(8)}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match="does not fit the backbone"):
        load_head(load_backbone(tmp_path), tmp_path, tmp_path)


@pytest.mark.parametrize(("family", "name"), [("llada", "model.transformer.ff_out"), ("dream", "lm_head")])
def test_an_adapter_of_the_output_matrix_is_merged_into_the_head(family: str, name: str, tmp_path: Path) -> None:
    """LLaDA's releases adapt it; of the vectors it changes nothing."""
    base = PARITY / f"tiny-{family}"
    weights = load_file(base / "model.safetensors")
    [update] = write_adapter(tmp_path / "release", {name: weights[f"{name}.weight"].shape}).values()
    backbone = load_backbone(base)
    plain, adapted = load_head(backbone, base, base), load_head(backbone, tmp_path / "release", base)
    assert plain is not None
    assert adapted is not None
    states = torch.randn(3, backbone.hidden_size)
    torch.testing.assert_close(adapted(states) - plain(states), states @ update.T, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(load_head(backbone, base, base)(states), plain(states))  # type: ignore[misc]
