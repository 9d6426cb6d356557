"""Causal language models, for the baselines that read them (last token: RepLLaMA)."""

from typing import Any

from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from .family import Family, Native, PublishedConfig, passed_on

CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaModel, LlamaConfig),
    "qwen2": (Qwen2Model, Qwen2Config),
    "qwen3": (Qwen3Model, Qwen3Config),
}


def native(published: PublishedConfig) -> Native:
    model_class, config_class = CLASSES[published["model_type"]]
    return model_class, config_class(**passed_on(published))


CAUSAL = Family(
    name="causal",
    model_types=tuple(CLASSES),
    native=native,
    bidirectional=False,
    assumed={"use_sliding_window": False},
)
