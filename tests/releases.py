"""The four published DiffRetriever layouts as tiny twins: random adapters and real prompt ids over the parity backbones."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from .conftest import PARITY

RANK, ALPHA = 4, 8
MASK_TOKEN_ID = 904
TARGETS = {
    "dream": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "llada": ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "blocks.0.ff_out", "blocks.2.ff_out"),
}


class Layout(NamedTuple):
    """What tells a published repository from the others."""

    family: str
    model_type: str
    k_query: int
    k_passage: int


LAYOUTS = {
    "dream-7b-single": Layout("dream", "dream", 1, 1),
    "dream-7b-multi-q4-p16": Layout("dream", "dream", 4, 16),
    "llada-8b-single": Layout("llada", "llada15", 1, 1),
    "llada-8b-multi-q4-p4": Layout("llada", "llada1", 4, 4),
}


def base_of(layout: Layout) -> Path:
    return PARITY / f"tiny-{layout.family}"


def write_adapter(folder: Path, targets: Mapping[str, Sequence[int]], base: str = "") -> dict[str, torch.Tensor]:
    """A random LoRA adapter in a new folder, under the published names of its targets, whose weights' shapes are given.

    Returns:
        Each target's update.
    """
    torch.manual_seed(5)
    tensors: dict[str, torch.Tensor] = {}
    updates: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in targets.items():
        a, b = torch.randn(RANK, columns) / 8, torch.randn(rows, RANK) / 8
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        updates[name] = b @ a * ALPHA / RANK
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    leaves = sorted({name.rpartition(".")[2] for name in targets})
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": base, "target_modules": leaves}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return updates


def write_release(folder: Path, layout: Layout, base: str) -> Path:
    """A folder as published: the adapter under the base's own module names, no weights of the base.

    Args:
        base: what the adapter's config calls its base.

    Returns:
        A base with the adapter's updates added to its published weights, which the release must equal.
    """
    published = load_file(base_of(layout) / "model.safetensors")
    weights = {name: tensor.float() for name, tensor in published.items()}  # the sum would lose in bfloat16
    modules = [name.removesuffix(".weight") for name in weights]
    adapted = [name for name in modules if name.endswith(TARGETS[layout.family])]
    updates = write_adapter(folder, {name: weights[f"{name}.weight"].shape for name in adapted}, base)
    for name, update in updates.items():
        weights[f"{name}.weight"] += update
    prompts = json.loads((PARITY / "prompts.json").read_text())
    settings: dict[str, object] = {
        "model_type": layout.model_type,
        "mask_token_id": MASK_TOKEN_ID,
        "hidden_size": 64,
        "max_length": 156,
    }
    settings |= {"n_gen_tokens": layout.k_query, "n_tail": 3, "normalize": True, "num_denoise_steps": 1}
    if layout.k_query > 1:
        settings |= {"n_gen_q_tokens": layout.k_query, "n_gen_p_tokens": layout.k_passage}
    for side in ("query", "passage"):
        prompt = prompts[f"base-{layout.family}.{side[0]}"]
        settings |= {f"{side}_prefix_ids": prompt["prefix_ids"], f"{side}_suffix_ids": prompt["suffix_ids"]}
    (folder / "retriever_config.json").write_text(json.dumps(settings))
    merged = folder.with_name(f"{folder.name}-merged")
    shutil.copytree(base_of(layout), merged)
    save_file(weights, merged / "model.safetensors")
    return merged
