"""LoRA adapters (PEFT) under a family's published module names, merged into the weights for inference."""

import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from ..config import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from ..errors import UserError
from ..files import read_json
from .family import Family

PEFT_PREFIX = "base_model.model."


def merge_adapter(model: PreTrainedModel, folder: Path, family: Family) -> PreTrainedModel:
    """The model with the adapter's update added to its weights. Adapters on a set-aside head are left out.

    Raises:
        UserError: not a LoRA adapter, damaged, or it names modules that the backbone does not have.
    """
    tuned = attach_adapter(model, folder, family)
    merged: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)
    return merged


def attach_adapter(model: PreTrainedModel, folder: Path, family: Family) -> PeftModel:
    """The model with the adapter beside its weights, for further training; errors as `merge_adapter`."""
    weights = _read_adapter(folder, family)
    targets = sorted({name.rsplit(".lora_", 1)[0] for name in weights})
    unknown = set(targets) - {name for name, _ in model.named_modules()}
    if unknown:
        raise UserError(
            f"{folder / ADAPTER_FILE}: {len(unknown)} of {len(targets)} adapted modules do not exist in this "
            f"{family.name} backbone (first: {sorted(unknown)[0]}); is it the adapter's own base?"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a renamed attribute
        tuned: PeftModel = get_peft_model(model, _lora_config(folder, family, targets))
    result: Any = set_peft_model_state_dict(tuned, {PEFT_PREFIX + name: tensor for name, tensor in weights.items()})
    absent = [name for name in result.missing_keys if ".lora_" in name]
    if absent or result.unexpected_keys:
        names = sorted(absent) + sorted(result.unexpected_keys)
        raise UserError(f"{folder / ADAPTER_FILE}: {len(names)} adapter tensors do not fit (first: {names[0]})")
    return tuned


def _read_adapter(folder: Path, family: Family) -> dict[str, Tensor]:
    path = folder / ADAPTER_FILE
    try:
        published = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); pickled adapters (.bin) are never loaded") from error
    renamed = {family.rename(name.removeprefix(PEFT_PREFIX)): tensor for name, tensor in published.items()}
    return {name: tensor for name, tensor in renamed.items() if not family.is_set_aside(name)}


def _lora_config(folder: Path, family: Family, targets: list[str]) -> LoraConfig:
    """The published settings, with the modules that the tensors themselves name as targets."""
    published: dict[str, Any] = read_json(folder / ADAPTER_CONFIG_FILE)
    if published.get("peft_type") != "LORA":
        raise UserError(f"{folder / ADAPTER_CONFIG_FILE}: peft_type {published.get('peft_type')} is not supported, only LORA")

    def renamed(pattern: str) -> dict[str, int]:
        return {family.rename(key): value for key, value in (published.get(pattern) or {}).items()}

    return LoraConfig(
        r=published["r"],
        lora_alpha=published["lora_alpha"],
        lora_dropout=published.get("lora_dropout", 0.0),
        use_rslora=published.get("use_rslora", False),
        use_dora=published.get("use_dora", False),
        target_modules=targets,
        rank_pattern=renamed("rank_pattern"),
        alpha_pattern=renamed("alpha_pattern"),
    )
