import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig, default_checkpoint
from colbert_diffusion.common.errors import CutTextWarning, UserError

from ..conftest import HIDDEN, PARITY, make_texts

TEXTS = make_texts(12)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(tiny_checkpoint)


def test_encoders_return_one_array_per_text_in_the_shape_the_checkpoint_says(checkpoint: DiffusionCheckpoint) -> None:
    assert {v.shape for v in checkpoint.encode_query(TEXTS)} == {(4, HIDDEN)}
    assert {v.shape for v in checkpoint.encode_document(TEXTS)} == {(8, HIDDEN)}
    assert checkpoint.encode_query([]) == []


def test_a_single_string_is_refused_instead_of_read_letter_by_letter(checkpoint: DiffusionCheckpoint) -> None:
    with pytest.raises(UserError, match="list of texts"):
        checkpoint.encode_query("cat")


def test_rerank_is_exact_maxsim_best_first(checkpoint: DiffusionCheckpoint) -> None:
    [query] = checkpoint.encode_query(["the cat"])
    scores = [float((query @ d.T).max(1).sum()) for d in checkpoint.encode_document(TEXTS)]
    ranking = checkpoint.rerank("the cat", TEXTS)
    assert [position for position, _ in ranking] == np.argsort(-np.array(scores), kind="stable").tolist()
    assert [score for _, score in ranking] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert checkpoint.rerank("the cat", []) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close(checkpoint: DiffusionCheckpoint, tiny_checkpoint: Path, dtype: str) -> None:
    half = DiffusionCheckpoint(tiny_checkpoint, dtype=dtype).encode_document(TEXTS)
    cosines = [(a * b).sum(1).min() for a, b in zip(half, checkpoint.encode_document(TEXTS), strict=True)]
    assert min(cosines) > 0.98


def test_an_unknown_dtype_lists_the_known(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="bfloat16"):
        DiffusionCheckpoint(tiny_checkpoint, dtype="int3")


def test_the_shipped_checkpoint_answers() -> None:
    checkpoint = DiffusionCheckpoint(default_checkpoint())
    passages = ["Berlin is the capital of Germany.", "Bread is baked from flour.", "Paris is the capital of France."]
    assert checkpoint.rerank("What is the capital of France?", passages)[0][0] == 2
    assert checkpoint.config.dim == 240
    assert checkpoint.encode_query([""])[0].shape == (8, 240)
    assert all(vectors.shape == (3, 240) for vectors in checkpoint.encode_document([*passages, ""]))
    predicted = checkpoint.predict_words(passages, top=10)
    assert any("bread" in position for position in predicted[1])


def test_a_released_folder_encodes_as_it_is() -> None:
    checkpoint = DiffusionCheckpoint(PARITY / "released-dream")
    assert checkpoint.encode_document(["cat"])[0].shape == (16, 64)


def test_positions_predict_what_the_published_head_says(tiny_checkpoint: Path) -> None:
    checkpoint = DiffusionCheckpoint(tiny_checkpoint)
    texts = make_texts(20)
    words = checkpoint.predict_words(texts, "passage", top=3)
    assert [len(positions) for positions in words] == [8] * 20
    published = BertForMaskedLM.from_pretrained(checkpoint.identity.backbone_path).eval()
    row = checkpoint.encoder.rows([texts[7]], "passage")[0]
    with torch.inference_mode():
        logits = published(torch.tensor([row.ids])).logits[0, row.first_mask : row.first_mask + 8]
    expected = [[checkpoint.encoder.backbone.tokenizer.decode([i]) for i in ids] for ids in logits.topk(3).indices.tolist()]
    assert words[7] == expected


def test_without_a_head_or_masks_words_are_refused_in_one_line(tiny_config: DiffusionConfig, tmp_path: Path) -> None:
    replace(tiny_config, readout="mean", k_query=1, k_passage=1).save(tmp_path)
    with pytest.raises(UserError, match="reads no positions that predict words"):
        DiffusionCheckpoint(tmp_path).predict_words(["a"])
    base = replace(DiffusionConfig.load(default_checkpoint()), projection="none", dim=384)  # MiniLM is published without one
    base.save(tmp_path / "base")
    with pytest.raises(UserError, match="no prediction head"):
        DiffusionCheckpoint(tmp_path / "base").predict_words(["a"])


def test_texts_that_are_cut_are_told_of_once_with_how_many_and_how_much(tiny_checkpoint: Path) -> None:
    checkpoint = DiffusionCheckpoint(tiny_checkpoint)
    room = checkpoint.encoder.prompts["passage"].room
    short, long = " ".join(["cat"] * room), " ".join(["cat"] * 4 * room)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.encode_document([short])
    told = rf"1 of 3 passages are longer than the {room} tokens that are read of each: the last 75% of their text"
    with pytest.warns(CutTextWarning, match=told):
        cut = checkpoint.encode_document([short, long])[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.allclose(checkpoint.encode_document([long])[0], cut, atol=1e-6)
    assert checkpoint.cut_documents() is not None
    assert np.allclose(checkpoint.encode_document([short])[0], cut, atol=1e-6)
    with pytest.warns(CutTextWarning, match="1 of 1 queries"):
        checkpoint.encode_query([long])
