"""Our encoders against the published reference implementation's own outputs (fixtures/parity)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig
from colbert_diffusion.config import PromptParts, Side

from ..conftest import PARITY

EXPECTED = load_file(PARITY / "expected.safetensors")
TEXTS: list[str] = json.loads((PARITY / "texts.json").read_text())
PROMPTS = json.loads((PARITY / "prompts.json").read_text())
SIDES: dict[str, Side] = {"q": "query", "p": "passage"}


def base_checkpoint(family: str, folder: Path) -> DiffusionCheckpoint:
    """A checkpoint over a bare backbone with the reference's zero-shot prompt ids."""

    def parts(side: str) -> PromptParts:
        p = PROMPTS[f"base-{family}.{side}"]
        return PromptParts(tuple(p["prefix_ids"]), tuple(p["suffix_ids"]), tuple(p["tail_ids"]))

    prompt = PROMPTS[f"base-{family}.q"]
    DiffusionConfig(
        backbone=str(PARITY / f"tiny-{family}"),
        k_query=prompt["k"],
        k_passage=prompt["k"],
        query_prompt=parts("q"),
        passage_prompt=parts("p"),
        query_max_length=prompt["max_length"],
        passage_max_length=prompt["max_length"],
        mask_token_id=prompt["mask_token_id"],
        dim=64,
    ).save(folder)
    return DiffusionCheckpoint(folder)


@pytest.fixture(scope="module", params=["base-dream", "base-llada", "released-dream"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, DiffusionCheckpoint]:
    name: str = request.param
    if name == "released-dream":
        return name, DiffusionCheckpoint(PARITY / name)
    return name, base_checkpoint(name.removeprefix("base-"), tmp_path_factory.mktemp(name))


@pytest.mark.parametrize("side", ["q", "p"])
def test_input_ids_equal_the_reference_exactly(encoder: tuple[str, DiffusionCheckpoint], side: str) -> None:
    name, checkpoint = encoder
    prompt = checkpoint.encoder.prompts[SIDES[side]]
    rows = [prompt.row(ids).ids for ids in checkpoint.encoder.backbone.tokenize(TEXTS)]
    real = EXPECTED[f"{name}.{side}.attention_mask"].bool()
    expected = [ids[mask].tolist() for ids, mask in zip(EXPECTED[f"{name}.{side}.input_ids"], real, strict=True)]
    assert rows == expected


@pytest.mark.parametrize("side", ["q", "p"])
def test_vectors_equal_the_reference(encoder: tuple[str, DiffusionCheckpoint], side: str) -> None:
    name, checkpoint = encoder
    encode = checkpoint.encode_query if side == "q" else checkpoint.encode_document
    vectors = torch.from_numpy(np.stack(encode(TEXTS)))
    expected = EXPECTED[f"{name}.{side}.repr_hidden"]
    assert vectors.shape == expected.shape
    tolerance = 2e-5 if name == "released-dream" else 1e-5  # the reference ran its adapter unmerged
    assert (vectors - expected).abs().max() <= tolerance


def test_read_offset_minus_one_starts_at_the_state_before_the_first_mask(tmp_path: Path) -> None:
    config = DiffusionConfig.load(base_checkpoint("dream", tmp_path / "zero").path)
    from dataclasses import replace

    replace(config, read_offset=-1, k_query=1, k_passage=1).save(tmp_path / "one")
    checkpoint = DiffusionCheckpoint(tmp_path / "one")
    # The quotation state sees all masks, so it equals the reference's only with as many masks as the reference had.
    replace(config, read_offset=-1).save(tmp_path / "four")
    four = DiffusionCheckpoint(tmp_path / "four")
    quotation = torch.from_numpy(np.stack([v[0] for v in four.encode_query(TEXTS)]))
    expected = torch.nn.functional.normalize(EXPECTED["base-dream.q.quotation_emb"], dim=-1)
    assert (quotation - expected).abs().max() <= 1e-5
    assert checkpoint.encode_query(TEXTS[:1])[0].shape == (1, 64)


@pytest.mark.parametrize("side", ["q", "p"])
def test_predicted_words_equal_the_reference(encoder: tuple[str, DiffusionCheckpoint], side: str) -> None:
    """Its 32 largest weights before the content-word filter, on all texts."""
    name, checkpoint = encoder
    lexical = checkpoint.lexical_query if side == "q" else checkpoint.lexical_document
    weights = lexical(TEXTS, content_words=False).toarray()
    expected = EXPECTED[f"{name}.{side}.sparse_top32_val"].numpy()
    there = np.take_along_axis(weights, EXPECTED[f"{name}.{side}.sparse_top32_idx"].numpy(), axis=1)
    np.testing.assert_allclose(there, expected, atol=1e-4)
    np.testing.assert_allclose(-np.sort(-weights, axis=1)[:, :32], expected, atol=1e-4)


def test_dream_predicts_a_masks_word_at_the_position_before_it(tmp_path: Path) -> None:
    """Dream began autoregressive: its logits are shifted by one. The reference reads words at the masks themselves (offset 0);
    offset -1 reads the first state where Dream predicts the first mask's word, and the next k - 1."""
    config = DiffusionConfig.load(base_checkpoint("dream", tmp_path / "zero").path)
    from dataclasses import replace

    replace(config, read_offset=-1).save(tmp_path / "shifted")
    zero, shifted = DiffusionCheckpoint(tmp_path / "zero"), DiffusionCheckpoint(tmp_path / "shifted")
    assert zero.head is not None
    assert shifted.head is not None
    for text in TEXTS[:3]:
        [at_masks], [before] = (one.encoder.logits([text], "query", one.head) for one in (zero, shifted) if one.head)
        torch.testing.assert_close(before[1:], at_masks[:-1], atol=1e-5, rtol=1e-5)
        [row] = zero.encoder.rows([text], "query")
        states = zero.encoder.backbone.states(torch.tensor([row.ids]), torch.tensor([len(row.ids)]))
        first = zero.head(states[0, row.first_mask - 1])
        torch.testing.assert_close(before[0], first.detach(), atol=1e-5, rtol=1e-5)
    assert abs(zero.lexical_query(TEXTS, content_words=False) - shifted.lexical_query(TEXTS, content_words=False)).max() > 0.01
