"""BERT-family masked language models: one diffusion step is what they were trained for. Absolute positions: pad right."""

from typing import Any

from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PretrainedConfig,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from .family import Family, Native, PublishedConfig, passed_on

CLASSES: dict[str, tuple[Any, Any]] = {
    "bert": (BertModel, BertConfig),
    "distilbert": (DistilBertModel, DistilBertConfig),
    "roberta": (RobertaModel, RobertaConfig),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig),
    "mpnet": (MPNetModel, MPNetConfig),
}


def native(published: PublishedConfig) -> Native:
    model_class, config_class = CLASSES[published["model_type"]]
    return model_class, config_class(**passed_on(published))


def first_position(config: PretrainedConfig) -> int:
    """RoBERTa counts from the position behind its padding id, MPNet behind 1."""
    if config.model_type == "mpnet":
        return 2
    return int(config.pad_token_id) + 1 if config.model_type in ("roberta", "xlm-roberta") else 0


BERT = Family(
    name="bert",
    model_types=tuple(CLASSES),
    native=native,
    renames=(
        (r"^(bert|distilbert|roberta|mpnet)\.", ""),
        (r"\bLayerNorm\.gamma$", "LayerNorm.weight"),  # TensorFlow-era checkpoints
        (r"\bLayerNorm\.beta$", "LayerNorm.bias"),
    ),
    set_aside=r"^(cls|lm_head|pooler|vocab_\w+)\.|^embeddings\.position_ids$",
    head=(
        (r"^(cls\.predictions\.transform\.dense|lm_head\.dense|vocab_transform)\.", "dense."),
        (r"^(cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm|vocab_layer_norm)\.", "norm."),
        (r"^(cls\.predictions|lm_head|vocab_projector)\.bias$", "bias"),
        (r"^(cls\.predictions\.decoder|lm_head\.decoder|vocab_projector)\.weight$", "output"),
    ),
    head_transforms=True,
    required=("vocab_size",),  # distilbert's other names differ; tensors' shapes are compared for all
    assumed={"is_decoder": False, "position_embedding_type": "absolute"},
    first_position=first_position,
)
