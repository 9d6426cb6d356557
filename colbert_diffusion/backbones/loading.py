"""Files of a published backbone -> a Backbone. Safetensors and JSON only: nothing is unpickled or executed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..common.errors import UserError
from ..config import ADAPTER_CONFIG_FILE
from . import find_family
from .adapters import attach_adapter, merge_adapter
from .backbone import Backbone
from .family import Family, PublishedConfig, check_bounds
from .probe import prove_attention
from .sources import WEIGHTS_FILE, published_config, read_from, tokenizer_files, weight_files


def load_backbone(
    folder: Path,
    *,
    family: str | None = None,
    checkpoint: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    merge: bool = True,
) -> Backbone:
    """Load a published backbone into transformers' own class, merge its adapter, prove its attention.

    Args:
        folder: the published files: config.json, safetensors (sharded or not), tokenizer.
        family: name in FAMILIES; None: by the config's model_type.
        checkpoint: folder whose LoRA adapter is merged, whose weights replace the backbone's and whose tokenizer is
            preferred, each if it is there.
        dtype: of the weights; RoPE frequencies stay float32.
        merge: False leaves the adapter beside the weights, for further training.

    Raises:
        UserError: unsupported model, missing or damaged files, mask tokens that disagree, or attention that does
            not run the way the family says.
    """
    published = published_config(folder)
    chosen = find_family(str(published.get("model_type")), family)
    chosen.check_assumptions(published)
    own = checkpoint or folder
    model = _load_model(chosen, published, read_from(weight_files, own, folder), dtype)
    if checkpoint is not None and (checkpoint / ADAPTER_CONFIG_FILE).is_file():
        if merge:
            model = merge_adapter(model, checkpoint, chosen)
        else:
            attach_adapter(model, checkpoint, chosen)  # in place
    module: torch.nn.Module = model  # transformers' own .to() is typed for a model argument
    module.requires_grad_(False).to(device)

    tokenizer_folder = read_from(tokenizer_files, own, folder)
    tokenizer = _load_tokenizer(chosen, tokenizer_folder)
    _check_vocabulary(tokenizer, model, tokenizer_folder)
    backbone = Backbone(chosen, model, tokenizer, _mask_token_id(chosen, published, tokenizer, folder), _filler_id(tokenizer))
    prove_attention(backbone)
    return backbone


def _load_model(family: Family, published: PublishedConfig, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    model_class, config = native(family, published, folder)
    config.use_cache = False
    if family.bidirectional:
        config.is_causal = False  # transformers >= 5.2 then builds bidirectional masks
    weights = _read_weights(family, folder)
    _check_shapes(family, model_class, config, weights, folder)
    with _quiet_transformers(), torch.random.fork_rng(devices=[]):  # BERT's unused pooler is drawn at random
        loaded: Any = model_class.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
        )
    model: PreTrainedModel = loaded[0]
    report: dict[str, set[Any]] = loaded[1]
    problems = {
        "missing": sorted(name for name in report["missing_keys"] if not family.is_set_aside(name)),
        "unknown": sorted(report["unexpected_keys"]),
        "of another shape": sorted(str(entry[0]) for entry in report["mismatched_keys"]),
    }
    if any(problems.values()):
        raise _misfit(family, folder, problems)
    if family.bidirectional:
        for module in model.modules():
            if hasattr(module, "is_causal"):
                setattr(module, "is_causal", False)  # noqa: B010 - without padding there is no mask: sdpa asks the module
    return model


def native(family: Family, published: PublishedConfig, folder: Path) -> Any:
    try:
        model_class, config = family.native(published)
    except Exception as error:  # transformers checks types and values in many ways
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / 'config.json'} is not that of a {family.name} model ({reason})") from error
    check_bounds(config, str(folder / "config.json"))
    return model_class, config


def _check_shapes(family: Family, model_class: Any, config: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """The tensors that the config asks for are there in their shapes: told before memory is taken for any of them."""
    try:
        with _quiet_transformers(), torch.device("meta"), torch.random.fork_rng(devices=[]):
            wanted = model_class(config).state_dict()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / 'config.json'} describes no model that can be built ({reason})") from error
    wanted = {name: tensor.shape for name, tensor in wanted.items() if not family.is_set_aside(name)}
    missing = sorted(name for name in wanted if name not in weights)
    other = sorted(name for name in wanted if name in weights and weights[name].shape != wanted[name])
    unknown = sorted(set(weights) - set(wanted))
    if missing or other:
        raise _misfit(family, folder, {"missing": missing, "unknown": unknown, "of another shape": other})


def _misfit(family: Family, folder: Path, problems: dict[str, list[str]]) -> UserError:
    found = [f"{len(names)} {what} (first: {names[0]})" for what, names in problems.items() if names]
    return UserError(f"{folder}: tensors do not fit family {family.name}: {', '.join(found)}; is the download complete?")


def _read_weights(family: Family, folder: Path) -> dict[str, Tensor]:
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} has no {WEIGHTS_FILE}; pickled weights are never loaded: convert them to safetensors")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors = load_file(file)  # memory-mapped: a shard takes memory only as it is copied
        except (SafetensorError, FileNotFoundError) as error:
            raise UserError(f"{file} is missing or damaged ({error}); download it again") from error
        weights.update((family.rename(name), tensor) for name, tensor in tensors.items())
    return {name: tensor for name, tensor in weights.items() if not family.is_set_aside(name)}


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its loading report and bar: what is missing or unknown raises here."""
    untyped: Any = logging
    verbosity, bars = untyped.get_verbosity(), untyped.is_progress_bar_enabled()
    untyped.set_verbosity_error()
    untyped.disable_progress_bar()
    try:
        yield
    finally:
        untyped.set_verbosity(verbosity)
        if bars:
            untyped.enable_progress_bar()


def _load_tokenizer(family: Family, folder: Path) -> PreTrainedTokenizerBase:
    tokenizer_class: Any = getattr(transformers, family.tokenizer or "AutoTokenizer")
    with _quiet_transformers():
        try:
            tokenizer: PreTrainedTokenizerBase = tokenizer_class.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{folder}: its tokenizer does not load ({reason}); are the tokenizer files there?") from error
    if family.mask_token is not None and tokenizer.mask_token is None:
        tokenizer.mask_token = family.mask_token
    return tokenizer


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, folder: Path) -> None:
    """Raises UserError when the tokenizer has tokens that the embedding has no row for: reading one would fail later."""
    embedding: Any = model.get_input_embeddings()
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if last >= embedding.num_embeddings:
        raise UserError(
            f"{folder}: its tokenizer has {token!r:.40} as token {last}, the embedding {embedding.num_embeddings} rows; was a "
            "token added without the model? Take the tokenizer that was published with these weights"
        )


def _mask_token_id(family: Family, published: PublishedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> int | None:
    """From the tokenizer and from config.json: one may be silent, they may not differ."""
    if not family.bidirectional:
        return None
    by_config, by_tokenizer = published.get("mask_token_id"), tokenizer.mask_token_id
    if by_config is None and by_tokenizer is None:
        raise UserError(f"{folder}: neither config.json nor the tokenizer names a mask token; add mask_token_id to config.json")
    if by_config is not None and by_tokenizer is not None and by_config != by_tokenizer:
        raise UserError(
            f"{folder}: config.json says mask_token_id {by_config}, the tokenizer's {tokenizer.mask_token} is "
            f"{by_tokenizer}; they must agree: correct the wrong one"
        )
    return int(by_config if by_config is not None else by_tokenizer)


def _filler_id(tokenizer: PreTrainedTokenizerBase) -> int:
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(token_id) for token_id in known if token_id is not None), 0)
