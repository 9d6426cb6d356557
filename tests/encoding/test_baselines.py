"""The baselines' vectors, from `convert` on, equal a few lines of plain transformers over the same ids."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from colbert_diffusion import DiffusionCheckpoint, convert
from colbert_diffusion.backbones.loading import load_backbone

from ..backbones.published import bidirectional_states, publish
from .test_decoding import CAUSAL, TEXTS, write_tokenizer


def published(model_type: str, folder: Path, *, begins: bool = False) -> Any:
    """A tiny model with letters for tokens; `begins`: its tokenizer puts <s> before every text."""
    model = publish(model_type, folder)
    write_tokenizer(folder, begins=begins)
    return model


@pytest.mark.parametrize("begins", [False, True])
def test_mean_is_diffembed_no_prompt_and_the_mean_of_all_states(begins: bool, tmp_path: Path) -> None:
    model = published("a2d-qwen3", tmp_path / "backbone", begins=begins)
    convert(str(tmp_path / "backbone"), tmp_path / "c", readout="mean", dim=32)
    tokenizer = load_backbone(tmp_path / "backbone").tokenizer
    texts = [text for text in TEXTS if text]
    for text, [own] in zip(texts, DiffusionCheckpoint(tmp_path / "c").encode_document(texts), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        assert ids.shape[1] == len(text) + begins
        expected = normalize(bidirectional_states(model, "a2d-qwen3", ids)[0].mean(dim=0), dim=0)
        assert torch.allclose(torch.from_numpy(own), expected, atol=1e-5)


@pytest.mark.parametrize("model_type", CAUSAL)
def test_last_is_repllama_a_sides_name_before_the_text_and_the_state_at_the_end_token(model_type: str, tmp_path: Path) -> None:
    model = published(model_type, tmp_path / "backbone")
    convert(str(tmp_path / "backbone"), tmp_path / "c", readout="last", dim=32)
    checkpoint = DiffusionCheckpoint(tmp_path / "c")
    tokenizer = checkpoint.encoder.backbone.tokenizer
    for side, vectors in (("query", checkpoint.encode_query(TEXTS)), ("passage", checkpoint.encode_document(TEXTS))):
        for text, [own] in zip(TEXTS, vectors, strict=True):
            ids = [*tokenizer(f"{side}: {text}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                expected = normalize(model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1], dim=0)
            assert torch.allclose(torch.from_numpy(own), expected, atol=1e-5)
