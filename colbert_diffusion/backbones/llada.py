"""LLaDA 8B and 1.5: Llama with bidirectional attention under OLMo's names; rotate-half RoPE, no permutation."""

from transformers import LlamaConfig, LlamaModel

from .family import Family, Native, PublishedConfig, passed_on

CONFIG_NAMES = {
    "d_model": "hidden_size",
    "embedding_size": "vocab_size",  # the embedding's rows; the published vocab_size is smaller
    "mlp_hidden_size": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "max_sequence_length": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "pad_token_id": "pad_token_id",
    "eos_token_id": "eos_token_id",
}

RENAMES = (
    (r"^model\.transformer\.ff_out", "lm_head"),  # before the blocks' own ff_out
    (r"^model\.transformer\.wte", "embed_tokens"),
    (r"^model\.transformer\.ln_f", "norm"),
    (r"^model\.transformer\.blocks\.", "layers."),
    (r"^(layers\.\d+)\.(q_proj|k_proj|v_proj)", r"\1.self_attn.\2"),
    (r"^(layers\.\d+)\.attn_out", r"\1.self_attn.o_proj"),
    (r"^(layers\.\d+)\.ff_proj", r"\1.mlp.gate_proj"),
    (r"^(layers\.\d+)\.up_proj", r"\1.mlp.up_proj"),
    (r"^(layers\.\d+)\.ff_out", r"\1.mlp.down_proj"),
    (r"^(layers\.\d+)\.attn_norm", r"\1.input_layernorm"),
    (r"^(layers\.\d+)\.ff_norm", r"\1.post_attention_layernorm"),
)


def native(published: PublishedConfig) -> Native:
    return LlamaModel, LlamaConfig(tie_word_embeddings=False, **passed_on(published, CONFIG_NAMES))


LLADA = Family(
    name="llada",
    model_types=("llada",),
    native=native,
    renames=RENAMES,
    required=("d_model", "embedding_size", "mlp_hidden_size", "n_layers", "n_heads"),
    assumed={
        "block_type": "llama",
        "layer_norm_type": "rms",
        "activation_type": "silu",
        "rope": True,
        "alibi": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "bias_for_layer_norm": False,
        "attention_layer_norm": False,
        "input_emb_norm": False,
    },
    tokenizer="PreTrainedTokenizerFast",
    mask_token="<|mdm_mask|>",  # noqa: S106 - of a tokenizer
)
