from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from colbert_diffusion.backbones import FAMILIES, loading
from colbert_diffusion.backbones.backbone import Backbone
from colbert_diffusion.backbones.family import passed_on
from colbert_diffusion.backbones.loading import load_backbone
from colbert_diffusion.backbones.probe import prove_attention
from colbert_diffusion.common.errors import UserError

from ..conftest import PARITY


@pytest.fixture
def dream() -> Backbone:
    return load_backbone(PARITY / "tiny-dream")


def set_causal(backbone: Backbone, *, config: bool, modules: bool) -> None:
    backbone.model.config.is_causal = config
    for module in backbone.model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = modules  # type: ignore[assignment]


@pytest.mark.parametrize("modules", [True, False])
def test_half_a_recipe_is_refused_as_a_causal_one_is(dream: Backbone, modules: bool) -> None:
    prove_attention(dream)
    set_causal(dream, config=True, modules=modules)
    with pytest.raises(UserError, match="attention is causal without a mask"):
        prove_attention(dream)


def test_attention_that_turns_causal_with_padding_is_refused(dream: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Backbone.states

    def wrong_with_padding(self: Backbone, ids: Tensor, lengths: Tensor) -> Tensor:
        set_causal(self, config=bool(lengths.min() < ids.shape[1]), modules=False)
        return right(self, ids, lengths)

    monkeypatch.setattr(Backbone, "states", wrong_with_padding)
    with pytest.raises(UserError, match="causal in a padded batch"):
        prove_attention(dream)


def test_a_causal_family_that_sees_the_future_is_refused(dream: Backbone) -> None:
    with pytest.raises(UserError, match="must be causal"):
        prove_attention(replace(dream, family=FAMILIES["causal"]))


def test_attention_to_padding_is_refused(dream: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mask(self: Backbone, ids: Tensor, lengths: Tensor) -> Tensor:
        states: Tensor = self.model(input_ids=ids).last_hidden_state
        return states

    monkeypatch.setattr(Backbone, "states", without_mask)
    with pytest.raises(UserError, match="padding changes"):
        prove_attention(dream)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["tiny-dream", "tiny-llada"])
def test_rounding_of_half_precision_is_not_taken_for_a_leak(name: str, dtype: torch.dtype) -> None:
    prove_attention(load_backbone(PARITY / name, dtype=dtype))


class DeafConfig(Qwen2Config):
    """What transformers < 5.2 amounts to: `is_causal` is set and ignored."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "is_causal":
            super().__setattr__(name, value)


def test_the_probe_runs_at_every_load(monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = replace(FAMILIES["dream"], native=lambda published: (Qwen2Model, DeafConfig(**passed_on(published))))
    monkeypatch.setattr(loading, "find_family", lambda *_: deaf)
    with pytest.raises(UserError, match="attention is causal"):
        load_backbone(PARITY / "tiny-dream")
