import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from colbert_diffusion.backbones import FAMILIES
from colbert_diffusion.backbones.loading import load_backbone
from colbert_diffusion.common.errors import UserError

from ..conftest import PARITY
from .published import PUBLISHED, bidirectional_states, copy_backbone, publish, write_tokenizer

IDS = torch.tensor([[7, 11, 13, 17, 19, 23], [29, 31, 37, 41, 43, 47]])
FULL = torch.tensor([6, 6])
DIFFUSION = [name for name in PUBLISHED if name not in ("qwen2", "qwen3", "llama")]


@pytest.mark.parametrize("model_type", DIFFUSION)
def test_every_diffusion_family_computes_what_full_attention_computes(model_type: str, tmp_path: Path) -> None:
    model = publish(model_type, tmp_path)
    with torch.inference_mode():
        states = load_backbone(tmp_path).states(IDS, FULL)
    assert torch.allclose(states, bidirectional_states(model, model_type, IDS), atol=1e-5)


@pytest.mark.parametrize("model_type", [*DIFFUSION, "qwen2", "qwen3", "llama"])
def test_padding_changes_no_state(model_type: str, tmp_path: Path) -> None:
    publish(model_type, tmp_path)
    backbone = load_backbone(tmp_path)
    padded = IDS.clone()
    padded[1, 4:] = backbone.filler_id
    with torch.inference_mode():
        alone = backbone.states(IDS[1:, :4], torch.tensor([4]))[0]
        together = backbone.states(padded, torch.tensor([6, 4]))[1, :4]
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_causal_backbones_compute_what_transformers_computes(model_type: str, tmp_path: Path) -> None:
    model = publish(model_type, tmp_path)
    with torch.inference_mode():
        states = load_backbone(tmp_path).states(IDS, FULL)
        expected = model.base_model(input_ids=IDS).last_hidden_state  # type: ignore[operator]
    assert torch.allclose(states, expected, atol=1e-5)


def test_a_diffusion_model_published_as_qwen2_is_read_bidirectionally_when_named(tmp_path: Path) -> None:
    model = publish("qwen2", tmp_path)
    with torch.inference_mode():
        states = load_backbone(tmp_path, family="a2d").states(IDS, FULL)
    assert torch.allclose(states, bidirectional_states(model, "qwen2", IDS), atol=1e-5)


def test_a_causal_load_of_a_diffusion_backbone_is_refused() -> None:
    with pytest.raises(UserError, match='family "causal" reads model_type'):
        load_backbone(PARITY / "tiny-dream", family="causal")


def test_sharded_weights_load_as_one_file_does(tmp_path: Path) -> None:
    publish("a2d-qwen3", tmp_path / "one")
    publish("a2d-qwen3", tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = (load_backbone(tmp_path / name) for name in ("one", "many"))
    with torch.inference_mode():
        assert torch.equal(one.states(IDS, FULL), many.states(IDS, FULL))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["tiny-dream", "tiny-llada"])
def test_rope_frequencies_stay_float32_whatever_the_weights(name: str, dtype: torch.dtype) -> None:
    model = load_backbone(PARITY / name, dtype=dtype).model
    assert {p.dtype for p in model.parameters()} == {dtype}
    rope = {n: b.dtype for n, b in model.named_buffers() if "inv_freq" in n}
    assert rope
    assert set(rope.values()) == {torch.float32}


def test_a_backbones_own_torch_dtype_never_decides() -> None:
    assert json.loads((PARITY / "tiny-dream" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_backbone(PARITY / "tiny-dream").dtype == torch.float32


def test_an_unsupported_model_type_lists_what_is_supported_and_where_to_add_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "illada"}')
    with pytest.raises(UserError, match="illada") as error:
        load_backbone(tmp_path)
    assert all(name in str(error.value) for family in FAMILIES.values() for name in family.model_types)
    assert "colbert_diffusion/backbones" in str(error.value)


def test_a_config_that_the_native_class_would_compute_otherwise_is_refused(tmp_path: Path) -> None:
    folder = copy_backbone(PARITY / "tiny-llada", tmp_path / "b")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_type": "low_precision"}))
    with pytest.raises(UserError, match="layer_norm_type"):
        load_backbone(folder)


def test_mask_tokens_that_disagree_are_refused(tmp_path: Path) -> None:
    folder = copy_backbone(PARITY / "tiny-dream", tmp_path / "b")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mask_token_id": 7}))
    with pytest.raises(UserError, match="mask_token_id 7"):
        load_backbone(folder)


def test_a_diffusion_backbone_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    publish("a2d-qwen2", tmp_path)
    write_tokenizer(tmp_path, mask=None)
    with pytest.raises(UserError, match="names a mask token"):
        load_backbone(tmp_path)


def test_a_missing_tensor_is_named_instead_of_left_random(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = copy_backbone(PARITY / "tiny-dream", tmp_path / "b")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing \(first: layers.1.mlp.up_proj.weight\)"):
        load_backbone(folder)


def test_damaged_or_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = copy_backbone(PARITY / "tiny-dream", tmp_path / "b")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        load_backbone(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="never loaded"):
        load_backbone(folder)


def test_a_folder_without_config_or_tokenizer_says_which(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_backbone(tmp_path)
    folder = copy_backbone(PARITY / "tiny-llada", tmp_path / "b")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load_backbone(folder)
