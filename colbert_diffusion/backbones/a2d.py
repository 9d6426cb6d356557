"""Autoregressive models turned into diffusion models (dLLM's A2D Qwen2 and Qwen3, Open-dCoder): the practical small ones.

Some are published under their causal ancestor's model_type: name the family ("a2d") to read those.
"""

from transformers import Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from .family import Family, Native, PublishedConfig, passed_on


def native(published: PublishedConfig) -> Native:
    if published["model_type"].endswith("qwen3"):
        return Qwen3Model, Qwen3Config(**passed_on(published))
    return Qwen2Model, Qwen2Config(**passed_on(published))


A2D = Family(
    name="a2d",
    model_types=("a2d-qwen2", "a2d-qwen3"),
    also=("qwen2", "qwen3"),
    native=native,
    assumed={"use_sliding_window": False},
)
