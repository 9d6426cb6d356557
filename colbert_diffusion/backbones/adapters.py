"""LoRA adapters (PEFT) under a family's published module names, merged into the weights for inference."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Linear
from transformers import PreTrainedModel

from ..config import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from ..errors import UserError
from ..files import read_json, write_json, written_aside
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


def new_adapter(model: PreTrainedModel, family: Family, *, rank: int, alpha: int, dropout: float) -> dict[str, Any]:
    """Put a new adapter on all attention and MLP projections, in place; it changes nothing until it is trained.

    Returns:
        What goes into `adapter_config.json`.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    targets = [name for name in linear if not family.is_set_aside(name + ".weight")]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(model, config)
    leaves = sorted({name.rpartition(".")[2] for name in targets})
    return {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": leaves}


def save_adapter(model: PreTrainedModel, config: Mapping[str, Any], folder: Path) -> None:
    """Write the adapter that is in the model: `adapter_model.safetensors` (float16) and its config."""
    weights = {
        PEFT_PREFIX + name.replace(".default.", "."): parameter.detach().half().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }
    with written_aside(folder / ADAPTER_FILE) as aside:
        save_file(weights, aside)
    write_json(folder / ADAPTER_CONFIG_FILE, config)


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
