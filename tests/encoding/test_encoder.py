from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from colbert_diffusion.backbones.loading import load_backbone
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import DiffusionConfig, PromptParts, Side
from colbert_diffusion.encoding import encoder as engine
from colbert_diffusion.encoding.encoder import Encoder, batches
from colbert_diffusion.encoding.projection import Projection

from ..conftest import HIDDEN, make_texts

ODD = ["", " ", "cat", "the cat " * 5000, "😀 🤖", "日本語", "\ud800 lone surrogate", "[MASK] [SEP] [CLS]", "\x00\n\t"]


def test_vectors_come_back_in_input_order_whatever_the_lengths(encoder: Encoder) -> None:
    texts = make_texts(100)
    together = list(encoder.encode(texts, "passage"))
    alone = [next(encoder.encode([text], "passage")) for text in texts]
    assert np.allclose(together, alone, atol=1e-5)


def test_windows_and_batches_do_not_change_the_vectors(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = make_texts(50)
    expected = list(encoder.encode(texts, "passage"))
    monkeypatch.setattr(engine, "WINDOW", 7)
    monkeypatch.setattr(encoder, "batch_tokens", 60)
    assert np.allclose(list(encoder.encode(texts, "passage")), expected, atol=1e-5)


@pytest.mark.parametrize(("side", "k"), [("query", 4), ("passage", 8)])
def test_any_string_gives_valid_vectors(encoder: Encoder, side: Side, k: int) -> None:
    for vectors in encoder.encode(ODD, side):
        assert vectors.shape == (k, HIDDEN)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_special_token_strings_inside_a_text_become_their_ids_and_leave_the_positions_alone(encoder: Encoder) -> None:
    tokenizer = encoder.backbone.tokenizer
    for name in ("[MASK]", "[SEP]", "[CLS]", "[PAD]"):
        row = encoder.prompts["query"].row(encoder.backbone.tokenize([f"cat {name} dog"])[0])
        assert row.ids[1:4] == tokenizer.convert_tokens_to_ids(["cat", name, "dog"])
        assert row.first_mask == 5
        assert row.ids[5:9] == [tokenizer.mask_token_id] * 4


def test_texts_are_consumed_lazily(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "cat"

    monkeypatch.setattr(engine, "WINDOW", 8)
    vectors = encoder.encode(endless(), "passage")
    next(vectors)
    vectors.close()  # type: ignore[attr-defined]
    assert taken <= 2 * 8


def test_batches_stay_within_the_token_budget(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "batch_tokens", 100)
    rows = [encoder.prompts["passage"].row(ids) for ids in encoder.backbone.tokenize(make_texts(40))]
    chosen = list(batches([len(row.ids) for row in rows], encoder.batch_tokens))
    assert sorted(i for batch in chosen for i in batch) == list(range(40))
    assert all(len(batch) * max(len(rows[i].ids) for i in batch) <= 100 for batch in chosen)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = make_texts(20)
    expected = list(encoder.encode(texts, "passage"))
    forward, refused = encoder._forward, []

    def small_device(batch: Any, *arguments: Any) -> object:
        if len(batch.rows) > 3:
            refused.append(len(batch.rows))
            raise torch.OutOfMemoryError
        return forward(batch, *arguments)

    monkeypatch.setattr(encoder, "_forward", small_device)
    assert np.allclose(list(encoder.encode(texts, "passage")), expected, atol=1e-5)
    assert refused


def test_a_row_that_never_fits_is_one_clear_error(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_device(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(encoder, "_forward", full_device)
    with pytest.raises(UserError, match="single row"):
        list(encoder.encode(["cat"], "passage"))


def test_an_item_that_is_no_string_is_named_by_position(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="text 1 is None"):
        list(encoder.encode(["cat", None], "passage"))  # type: ignore[list-item]
    monkeypatch.setattr(engine, "WINDOW", 2)
    with pytest.raises(UserError, match="text 5 is 7"):
        list(encoder.encode(["cat"] * 5 + [7], "passage"))  # type: ignore[list-item]


def test_no_texts_give_no_vectors(encoder: Encoder) -> None:
    assert list(encoder.encode([], "passage")) == []


@pytest.mark.parametrize("readout", ["mean", "last"])
def test_single_vector_readouts_append_no_masks(tiny_bert: Path, readout: str) -> None:
    parts = PromptParts("[CLS]", "[SEP]")
    config = DiffusionConfig("b", readout=readout, k_query=1, k_passage=1, query_prompt=parts, query_max_length=16, dim=HIDDEN)
    config = replace(config, passage_max_length=16)
    backbone = load_backbone(tiny_bert)
    encoder = Encoder(backbone, config, Projection())
    ids = torch.tensor([backbone.tokenizer.convert_tokens_to_ids(["[CLS]", "cat", "dog", "[SEP]"])])
    with torch.inference_mode():
        states = backbone.states(ids, torch.tensor([4]))[0]
    expected = torch.nn.functional.normalize(states.mean(0) if readout == "mean" else states[-1], dim=-1)
    [vectors] = encoder.encode(["cat dog"], "query")
    assert np.allclose(vectors[0], expected, atol=1e-5)


def test_a_row_longer_than_the_backbones_positions_is_refused_with_the_numbers(
    tiny_bert: Path, tiny_config: DiffusionConfig
) -> None:
    with pytest.raises(UserError, match="64 positions; lower passage_max_length by 9"):
        Encoder(load_backbone(tiny_bert), replace(tiny_config, passage_max_length=64), Projection())


def test_another_mask_token_than_the_one_trained_with_is_refused(tiny_bert: Path, tiny_config: DiffusionConfig) -> None:
    with pytest.raises(UserError, match="mask_token_id 3"):
        Encoder(load_backbone(tiny_bert), replace(tiny_config, mask_token_id=3), Projection())


def test_a_nested_checkpoint_always_gets_all_its_masks_and_keeps_the_first_vectors(
    tiny_bert: Path, tiny_config: DiffusionConfig
) -> None:
    nested = replace(tiny_config, nested=True)
    backbone = load_backbone(tiny_bert)
    texts = make_texts(5)
    whole = list(Encoder(backbone, nested, Projection()).encode(texts, "passage"))
    first = list(Encoder(backbone, nested.prefix(k_passage=3), Projection()).encode(texts, "passage"))
    for some, every in zip(first, whole, strict=True):
        np.testing.assert_allclose(some, every[:3], atol=1e-6)


def test_a_prefix_of_a_checkpoint_that_is_not_nested_is_refused(tiny_config: DiffusionConfig) -> None:
    with pytest.raises(UserError, match="not nested"):
        tiny_config.prefix(k_passage=3)
    with pytest.raises(UserError, match="need a nested"):
        replace(tiny_config, masks_passage=16)


def test_a_mask_stands_at_its_position_whatever_the_texts_length(tiny_bert: Path, tiny_config: DiffusionConfig) -> None:
    backbone = load_backbone(tiny_bert)
    placed = Encoder(backbone, replace(tiny_config, mask_position=50), Projection())
    ids, positions = torch.tensor([[2, 20, 21, 3, *[4] * 8, 3]]), torch.tensor([[0, 1, 2, 3, *range(50, 59)]])
    with torch.inference_mode():
        states = backbone.states(ids, torch.tensor([13]), positions)[0, 4:12]
    text = " ".join(backbone.tokenizer.convert_ids_to_tokens([20, 21]))
    alone, beside_a_longer_one = (next(placed.encode([text, *more], "passage")) for more in ([], make_texts(3)))
    np.testing.assert_allclose(alone, torch.nn.functional.normalize(states, dim=-1), atol=1e-5)
    np.testing.assert_allclose(alone, beside_a_longer_one, atol=1e-5)
    [following] = Encoder(backbone, tiny_config, Projection()).encode([text], "passage")
    assert np.abs(alone - following).max() > 0.01


def test_masks_beyond_the_last_position_or_inside_the_text_are_refused(tiny_bert: Path, tiny_config: DiffusionConfig) -> None:
    backbone = load_backbone(tiny_bert)
    for position, reason in ((56, "64 positions"), (40, "up to 48 tokens")):
        with pytest.raises(UserError, match=reason):
            Encoder(backbone, replace(tiny_config, mask_position=position), Projection())


def test_readout_tokens_gives_each_text_as_many_vectors_as_it_has_tokens(tiny_bert: Path, tiny_config: DiffusionConfig) -> None:
    frame = PromptParts("[CLS]", "[SEP]")
    config = replace(tiny_config, readout="tokens", query_prompt=frame, passage_prompt=frame, k_query=16, k_passage=48)
    encoder = Encoder(load_backbone(tiny_bert), config, Projection())
    texts = ["cat", "the cat runs", "the red cat sleeps in paris ."]
    together = list(encoder.encode(texts, "passage"))
    assert [len(vectors) for vectors in together] == [3, 5, 9]
    for vectors, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(vectors, next(encoder.encode([text], "passage")), atol=1e-5)
