import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

from colbert_diffusion.backbones.loading import load_backbone
from colbert_diffusion.common.errors import UserError

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


PATTERNS = [
    {},
    {"query": 6},
    {r"^bert\.encoder\.layer\.0\.attention\.self\.query": 2},
    {r"layer\.1\..*\.(query|key)": 8},
    {"bert.encoder.layer.1.output.dense": 3, "dense": 5},
    {"encoder.layer.0.attention.self.value": 7},
]
INEXACT: list[dict[str, Any]] = [
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"lora_bias": True},
    {"modules_to_save": ["cls"]},
    {"alora_invocation_tokens": [3, 4]},
    {"layer_replication": [[0, 2], [1, 2]]},
    {"trainable_token_indices": [1, 2]},
    {"use_qalora": True},
    {"a_field_of_tomorrow": {"x": 1}},
]


TARGET_MODULES: list[Any] = [["query", "value"], ["dense"], r".*layer\.1.*(query|key)", ["key", "output.dense"]]


def random_config(draw: random.Random) -> LoraConfig:
    return LoraConfig(
        r=draw.choice([1, 4, 8]),
        lora_alpha=draw.choice([2, 8, 16]),
        lora_dropout=draw.choice([0.0, 0.1]),
        use_rslora=draw.random() < 0.3,
        use_dora=draw.random() < 0.3,
        init_lora_weights=draw.choice([True, False, "gaussian"]),
        target_modules=draw.choice(TARGET_MODULES),
        rank_pattern=draw.choice(PATTERNS),
        alpha_pattern=draw.choice(PATTERNS),
    )


def saved_by_peft(base: Path, config: LoraConfig, folder: Path) -> dict[str, torch.Tensor]:
    """Random weights under a config of PEFT's, saved by it; what it makes of the base when it merges them."""
    tuned = get_peft_model(BertForMaskedLM.from_pretrained(base), config)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(str(folder))
    merged: dict[str, torch.Tensor] = tuned.merge_and_unload().state_dict()
    return merged


@pytest.mark.parametrize("seed", range(int(os.environ.get("ADAPTERS", "20"))))
def test_an_adapter_is_merged_as_peft_merges_it(seed: int, tiny_bert: Path, tmp_path: Path) -> None:
    """ADAPTERS=60 is the long form."""
    torch.manual_seed(seed)
    expected = saved_by_peft(tiny_bert, random_config(random.Random(seed)), tmp_path)
    for name, tensor in load_backbone(tiny_bert, checkpoint=tmp_path).model.state_dict().items():
        if not name.startswith("pooler"):
            torch.testing.assert_close(tensor, expected[f"bert.{name}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("field", INEXACT, ids=lambda field: next(iter(field)))
def test_a_setting_that_would_be_reproduced_otherwise_is_refused_by_name(
    field: dict[str, Any], tiny_bert: Path, tmp_path: Path
) -> None:
    saved_by_peft(tiny_bert, LoraConfig(r=4, target_modules=["query"]), tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(about | field))
    [name] = field
    with pytest.raises(UserError, match=rf"{name}=.*merge the adapter into its base with PEFT first"):
        load_backbone(tiny_bert, checkpoint=tmp_path)


@pytest.mark.parametrize(
    "field",
    [
        {"r": 10**9},
        {"r": "8"},
        {"r": True},
        {"r": 0},
        {"r": None},
        {"lora_alpha": float("inf")},
        {"lora_dropout": 2},
        {"rank_pattern": [1]},
        {"rank_pattern": {"query": 10**9}},
        {"alpha_pattern": {"query": "x"}},
        {"rank_pattern": {"(": 4}},
        {"r": 5},
        {"peft_type": "LOHA"},
    ],
    ids=str,
)
def test_a_number_out_of_its_range_is_refused_before_anything_is_allocated(
    field: dict[str, Any], tiny_bert: Path, tmp_path: Path
) -> None:
    saved_by_peft(tiny_bert, LoraConfig(r=4, target_modules=["query"]), tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(about | field))
    with pytest.raises(UserError) as caught:
        load_backbone(tiny_bert, checkpoint=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_saved_module_is_refused_with_what_it_is(tiny_bert: Path, tmp_path: Path) -> None:
    saved_by_peft(tiny_bert, LoraConfig(r=4, target_modules=["query"]), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["base_model.model.bert.embeddings.word_embeddings.weight"] = torch.zeros(3, 16)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="a saved module, a bias or a token row"):
        load_backbone(tiny_bert, checkpoint=tmp_path)
