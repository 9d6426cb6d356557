import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from colbert_diffusion.backbones.loading import load_backbone
from colbert_diffusion.errors import UserError

from ..conftest import PARITY
from ..releases import write_adapter

# LLaDA's published names; the last is the head, which an adapter on `ff_out` matches too
TARGETS = {
    "model.transformer.blocks.0.attn_out": (64, 64),
    "model.transformer.blocks.1.ff_proj": (160, 64),
    "model.transformer.blocks.2.ff_out": (64, 160),
    "model.transformer.ff_out": (1024, 64),
}


def test_an_adapter_under_published_names_is_merged_into_the_native_weights(tmp_path: Path) -> None:
    updates = write_adapter(tmp_path / "adapter", TARGETS)
    published = load_file(PARITY / "tiny-llada" / "model.safetensors")
    merged = load_backbone(PARITY / "tiny-llada", checkpoint=tmp_path / "adapter").model.state_dict()
    for native, name in (
        ("layers.0.self_attn.o_proj.weight", "model.transformer.blocks.0.attn_out"),
        ("layers.1.mlp.gate_proj.weight", "model.transformer.blocks.1.ff_proj"),
        ("layers.2.mlp.down_proj.weight", "model.transformer.blocks.2.ff_out"),
    ):
        assert torch.allclose(merged[native], published[f"{name}.weight"] + updates[name], atol=1e-5)
    untouched = "model.transformer.blocks.0.ff_proj.weight"
    assert torch.equal(merged["layers.0.mlp.gate_proj.weight"], published[untouched])


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", {"model.transformer.blocks.9.attn_out": (64, 64)})
    with pytest.raises(UserError, match=r"do not exist.*layers\.9\.self_attn\.o_proj"):
        load_backbone(PARITY / "tiny-llada", checkpoint=tmp_path / "adapter")


def test_anything_but_lora_in_safetensors_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", TARGETS)
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(UserError, match="only LORA"):
        load_backbone(PARITY / "tiny-llada", checkpoint=tmp_path / "adapter")
    shutil.move(tmp_path / "adapter" / "adapter_model.safetensors", tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match="never loaded"):
        load_backbone(PARITY / "tiny-llada", checkpoint=tmp_path / "adapter")


def test_full_weights_in_the_checkpoint_replace_the_backbones(tmp_path: Path) -> None:
    weights = load_file(PARITY / "tiny-dream" / "model.safetensors")
    tuned = {name: tensor * 1.5 for name, tensor in weights.items()}
    save_file(tuned, tmp_path / "model.safetensors")
    loaded = load_backbone(PARITY / "tiny-dream", checkpoint=tmp_path).model.state_dict()
    assert torch.equal(loaded["norm.weight"], tuned["model.norm.weight"])
