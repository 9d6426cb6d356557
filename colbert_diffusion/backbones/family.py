"""What a family file states: how published weights become one of transformers' own classes. Data, no loading."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from ..common.checks import is_number
from ..common.errors import UserError

PublishedConfig = Mapping[str, Any]  # a backbone's config.json, as published
Native = tuple[type[PreTrainedModel], PretrainedConfig]

# Bookkeeping of the publisher's own stack; a backbone's torch_dtype never decides ours.
# Nor does it choose what code computes attention: transformers fetches kernels from a hub by that name.
NOT_PASSED_ON = frozenset(
    {"architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
    | {"attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation"}
    | {"quantization_config", "use_kernels", "_commit_hash", "custom_pipelines"}
)
# Fields of a native config that decide what is allocated, and the most that any model here has by far.
BOUNDS = {
    "hidden_size": 2**16,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "intermediate_size": 2**19,
    "vocab_size": 2**22,
    "max_position_embeddings": 2**24,
    "head_dim": 2**12,
}


@dataclass(frozen=True)
class Family:
    """One family of published models.

    Args:
        name: the registry's key, and what `diffusion.json` and `--family` say.
        model_types: the `model_type`s that select this family by themselves.
        also: further `model_type`s it reads when named explicitly (the same layout published under another meaning).
        native: published config.json -> transformers' class and its config.
        bidirectional: what the attention must prove to be at every load.
        renames: (pattern, replacement) in order, applied to weight and adapter names alike.
        set_aside: published tensors that an encoder has no use for (heads, poolers).
        head: (pattern, replacement) from native names to `heads.PredictionHead`'s.
        head_transforms: whether the head has a dense layer; without one it is the output matrix, or tied.
        shifted: whether the state before a position predicts it (models that began autoregressive).
        required: published config fields without which the native class would fall back to its own defaults.
        assumed: published config fields the native class takes for granted, with the only value it reproduces.
        tokenizer: transformers' tokenizer class; None: AutoTokenizer decides.
        mask_token: the mask's string where the published tokenizer does not declare it.
        first_position: config -> the position of a row's first token in its table of positions.
    """

    name: str
    model_types: tuple[str, ...]
    native: Callable[[PublishedConfig], Native]
    bidirectional: bool = True
    also: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ((r"^model\.", ""),)
    set_aside: str = r"^lm_head\."
    head: tuple[tuple[str, str], ...] = ((r"^lm_head\.weight$", "output"),)
    head_transforms: bool = False
    shifted: bool = False
    required: tuple[str, ...] = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    assumed: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    mask_token: str | None = None
    first_position: Callable[[PretrainedConfig], int] = lambda config: 0

    def rename(self, published: str) -> str:
        """The native module or tensor name of a published one."""
        for pattern, replacement in self.renames:
            published = re.sub(pattern, replacement, published)
        return published

    def head_name(self, native: str) -> str | None:
        """What the prediction head calls this tensor; None: it is not the head's."""
        return next((re.sub(pattern, ours, native) for pattern, ours in self.head if re.search(pattern, native)), None)

    def is_set_aside(self, native_name: str) -> bool:
        return re.match(self.set_aside, native_name) is not None

    def check_assumptions(self, published: PublishedConfig) -> None:
        """Raises UserError when a field is missing or has a value that the native class would silently compute otherwise."""
        if absent := [name for name in self.required if published.get(name) is None]:
            raise UserError(
                f"this backbone's config.json has no {', '.join(absent)}, which family {self.name} needs: another model "
                "under the same model_type? It needs a family of its own in colbert_diffusion/backbones"
            )
        for name, value in self.assumed.items():
            if name in published and published[name] != value:
                raise UserError(
                    f"family {self.name} reproduces {name}={value!r} only, this backbone's config.json says "
                    f"{published[name]!r}; it needs a family of its own in colbert_diffusion/backbones"
                )


def check_bounds(config: PretrainedConfig, source: str) -> None:
    """Raises UserError for a size that is no whole number in its range, before anything is allocated by it."""
    for name, most in BOUNDS.items():
        value = getattr(config, name, None)
        if value is not None and not is_number(value, 1, most, whole=True):
            raise UserError(f"{source} gives {name} {value!r:.40}, expected a whole number from 1 to {most:,}")


def passed_on(published: PublishedConfig, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The fields for a native config: with `names` (published -> native) only those, else all but bookkeeping."""
    if names is not None:
        return {native: published[name] for name, native in names.items() if published.get(name) is not None}
    return {name: value for name, value in published.items() if name not in NOT_PASSED_ON}
