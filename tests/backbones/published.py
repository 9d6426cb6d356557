"""Tiny random models written the way each family publishes them, and what they compute by an independent recipe."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
DECODER = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {**SIZES, "max_position_embeddings": 48}
DISTIL: dict[str, Any] = {
    "vocab_size": 64,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 48,
}
MODERN = {**ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}

# published model_type -> (the class it is saved from, its config)
PUBLISHED: dict[str, tuple[Any, Any]] = {
    "a2d-qwen2": (Qwen2ForCausalLM, Qwen2Config(**DECODER, tie_word_embeddings=True)),
    "a2d-qwen3": (Qwen3ForCausalLM, Qwen3Config(**DECODER, head_dim=8, tie_word_embeddings=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**DECODER)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**DECODER, head_dim=8)),
    "llama": (LlamaForCausalLM, LlamaConfig(**DECODER)),
    "bert": (BertForMaskedLM, BertConfig(**ENCODER)),
    "distilbert": (DistilBertForMaskedLM, DistilBertConfig(**DISTIL, initializer_range=0.2)),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**ENCODER, pad_token_id=0)),
    "xlm-roberta": (XLMRobertaForMaskedLM, XLMRobertaConfig(**ENCODER, pad_token_id=0)),
    "mpnet": (MPNetForMaskedLM, MPNetConfig(**ENCODER, pad_token_id=0)),
    "modernbert": (ModernBertForMaskedLM, ModernBertConfig(**MODERN)),
}
NATURALLY_BIDIRECTIONAL = frozenset({"bert", "distilbert", "roberta", "xlm-roberta", "mpnet", "modernbert"})


def publish(model_type: str, folder: Path, **save: Any) -> torch.nn.Module:
    """Write a tiny random model of this type as published, with a tokenizer; return the model it was saved from."""
    torch.manual_seed(1)
    model_class, config = PUBLISHED[model_type]
    model: torch.nn.Module = model_class(config).eval()
    model.save_pretrained(folder, **save)  # type: ignore[operator]
    written = json.loads((folder / "config.json").read_text())
    written.update(model_type=model_type, auto_map={"AutoModel": "modeling_remote.Remote"}, torch_dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(written))
    write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path, mask: str | None = "<mask>") -> None:
    """A word-level tokenizer: <pad> 0, <s> 1, </s> 2, <unk> 3, <mask> 4, then w5 .. w63."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<mask>"])}
    vocabulary |= {f"w{i}": i for i in range(5, 64)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token=mask
    ).save_pretrained(folder)


def bidirectional_states(model: torch.nn.Module, model_type: str, ids: Tensor) -> Tensor:
    """Last-layer states without padding: natively, or for decoders with eager attention and a zero additive 4D mask."""
    base: Any = model.base_model
    with torch.inference_mode():
        if model_type in NATURALLY_BIDIRECTIONAL:
            states: Tensor = base(input_ids=ids).last_hidden_state
            return states
        base.set_attn_implementation("eager")
        nothing_hidden = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1])
        states = base(input_ids=ids, attention_mask=nothing_hidden, use_cache=False).last_hidden_state
        return states


def copy_backbone(source: Path, folder: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(source, folder)
    return folder
