"""LoRA adapters (PEFT) under a family's published module names, merged into the weights for inference."""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Linear, Module, ModuleDict
from transformers import PreTrainedModel

from ..common.checks import is_number
from ..common.errors import UserError
from ..common.files import read_json, save_tensors, write_json, written_aside
from ..config import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from .family import Family

PEFT_PREFIX = "base_model.model."
MERGE = "merge the adapter into its base with PEFT first"
MOST = 2**16  # of a rank and an alpha
KNOWN = frozenset(  # reproduced, or without a bearing on what a given set of tensors computes
    {"peft_type", "peft_version", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules"}
    | {"rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform", "layers_pattern", "task_type"}
    | {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "megatron_core", "qalora_group_size"}
    | {"runtime_config"}
)
DECIDING = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")  # what is computed
ONLY: Mapping[str, tuple[Any, ...]] = {  # fields that are seldom empty, and what of them changes nothing
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # others change the base's weights too
}


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
    return _attach(model, folder, family, *_read_adapter(folder, family))


def merge_into_head(tensors: dict[str, Tensor], folder: Path, family: Family) -> None:
    """Add the adapter's updates of a set-aside head to its matrices, in place: LLaDA's releases adapt the output too.

    Args:
        tensors: the head's, by `heads.PredictionHead`'s names.

    Raises:
        UserError: as `merge_adapter`.
    """
    weights, targets = _read_adapter(folder, family, of_head=True)
    for native, published in targets.items():
        ours = family.head_name(f"{native}.weight")
        if ours is None or ours not in tensors:
            continue
        rows, columns = tensors[ours].shape
        matrix = Linear(columns, rows, bias=False, dtype=tensors[ours].dtype)
        matrix.weight.data = tensors[ours].clone()
        own = {f"head{name.removeprefix(native)}": weights[name] for name in weights if name.startswith(f"{native}.lora_")}
        tuned = _attach(ModuleDict({"head": matrix}), folder, family, own, {"head": published})
        merged: Any = tuned.merge_and_unload(safe_merge=True)
        tensors[ours] = merged["head"].weight.data


def _attach(model: Module, folder: Path, family: Family, weights: dict[str, Tensor], targets: dict[str, str]) -> PeftModel:
    unknown = set(targets) - {name for name, _ in model.named_modules()}
    if unknown:
        raise UserError(
            f"{folder / ADAPTER_FILE}: {len(unknown)} of {len(targets)} adapted modules do not exist in this "
            f"{family.name} backbone (first: {sorted(unknown)[0]}); is it the adapter's own base?"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a renamed attribute
        tuned: PeftModel = get_peft_model(model, lora_config(folder, targets))
    try:
        result: Any = set_peft_model_state_dict(tuned, {PEFT_PREFIX + name: tensor for name, tensor in weights.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / ADAPTER_FILE}: its tensors have other shapes than its config says ({reason})") from error
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
        save_tensors(weights, aside)
    write_json(folder / ADAPTER_CONFIG_FILE, config)


def _read_adapter(folder: Path, family: Family, *, of_head: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under native names, and the adapted modules: native name -> published name; the encoder's, or the head's."""
    path = folder / ADAPTER_FILE
    try:
        published = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); pickled adapters (.bin) are never loaded") from error
    weights: dict[str, Tensor] = {}
    targets: dict[str, str] = {}
    for name, tensor in published.items():
        own = name.removeprefix(PEFT_PREFIX)
        native = family.rename(own)
        if family.is_set_aside(native) != of_head:
            continue
        module, lora, _ = native.rpartition(".lora_")
        if not lora:
            kind = f"{path}: {own} is no LoRA matrix (a saved module, a bias or a token row)"
            raise UserError(f"{kind}; {MERGE}")
        weights[native] = tensor
        targets[module] = own.rpartition(".lora_")[0]
    return weights, targets


def lora_config(folder: Path, targets: Mapping[str, str]) -> LoraConfig:
    """The published settings, with the modules that the tensors themselves name as targets.

    Args:
        targets: native name -> published name, by which the patterns are resolved as PEFT resolves them.
    """
    published: dict[str, Any] = read_json(folder / ADAPTER_CONFIG_FILE)
    for fault in _faults(published):
        raise UserError(f"{folder / ADAPTER_CONFIG_FILE}: {fault}")

    def resolved(pattern: str, default: float) -> dict[str, Any]:
        given: dict[str, Any] = published.get(pattern) or {}
        keys = {native: get_pattern_key(list(given), name) for native, name in targets.items()}
        return {re.escape(native): given.get(key, default) for native, key in keys.items()} if given else {}

    try:
        return LoraConfig(
            r=published["r"],
            lora_alpha=published["lora_alpha"],
            lora_dropout=published.get("lora_dropout") or 0.0,
            use_rslora=published.get("use_rslora") or False,
            use_dora=published.get("use_dora") or False,
            target_modules=list(targets),
            rank_pattern=resolved("rank_pattern", published["r"]),
            alpha_pattern=resolved("alpha_pattern", published["lora_alpha"]),
        )
    except re.error as error:
        raise UserError(f"{folder / ADAPTER_CONFIG_FILE}: a pattern is no regular expression ({error})") from error


def _faults(published: Mapping[str, Any]) -> Iterator[str]:
    """Every setting that would be reproduced otherwise than PEFT does, by name; what is off or empty changes nothing."""
    if published.get("peft_type") != "LORA":
        yield f"peft_type {published.get('peft_type')!r:.40} is not supported, only LORA"
    for name, whole in {"r": True, "lora_alpha": False}.items():
        yield from _out_of_range(name, published.get(name), whole)
    for name, whole in {"rank_pattern": True, "alpha_pattern": False}.items():
        patterns = published.get(name) or {}
        if not isinstance(patterns, dict):
            yield f"{name} is no object"
            continue
        for key, value in patterns.items():
            yield from _out_of_range(f"{name}[{key!r:.40}]", value, whole)
    dropout = published.get("lora_dropout") or 0.0
    if not is_number(dropout, 0, 1) or dropout == 1:
        yield f"lora_dropout {dropout!r:.40} is out of its range, 0 to below 1"
    for name, allowed in ONLY.items():
        if published.get(name) not in allowed:
            yield f"{name}={published.get(name)!r:.60} is not reproduced exactly, only {allowed[0]!r}; {MERGE}"
    for name, value in published.items():
        if name not in KNOWN and name not in ONLY and value not in (None, False, "", [], {}):
            yield f"{name}={value!r:.60} is not reproduced exactly; {MERGE}"


def _out_of_range(name: str, value: object, whole: bool) -> Iterator[str]:
    if not is_number(value, 0, MOST, whole=whole) or value == 0:
        yield f"{name} {value!r:.40} is out of its range, above 0 and up to {MOST}"
