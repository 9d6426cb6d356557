"""Dream 7B, Dream-Coder, DiffuCoder: Qwen2 with bidirectional attention; logits shifted by one."""

from transformers import Qwen2Config, Qwen2Model

from .family import Family, passed_on

DREAM = Family(
    name="dream",
    model_types=("Dream",),
    native=lambda published: (Qwen2Model, Qwen2Config(**passed_on(published))),
    assumed={"use_sliding_window": False, "hidden_act": "silu"},
    shifted=True,
    tokenizer="Qwen2TokenizerFast",  # the published DreamTokenizer is remote code; same vocabulary, same ids
)
