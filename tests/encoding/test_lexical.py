from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import Side
from colbert_diffusion.encoding.lexical import ContentIds, content_words, words
from colbert_diffusion.encoding.prompts import Row

from ..conftest import WORDS, make_texts

TEXTS = ["the capital of france is paris", "", "dog , cat ?", *make_texts(20, seed=4)]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(tiny_checkpoint)


def test_content_words_are_lower_cased_without_stop_words_and_punctuation() -> None:
    assert content_words("The Cat's hat, and a DOG-house: 42 (x)!") == ["cat", "hat", "dog", "house", "42"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Naïve Café", ["naïve", "café"]),
        ("東京 は日本の首都 犬", ["東京", "は日本の首都", "犬"]),
        ("Столица — Москва", ["столица", "москва"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ελληνικά, ᾿Αθήνα", ["ελληνικά", "αθήνα"]),
        ("עברית العَرَبِيَّة 한국어 ภาษาไทย", ["עברית", "العَرَبِيَّة", "한국어", "ภาษาไทย"]),
        ("5 000 m² in 2_3", ["5", "000", "2", "3"]),
    ],
)
def test_words_of_every_script_stay_whole(text: str, expected: list[str]) -> None:
    found = content_words(text)
    assert [word for word in found if word not in ("m²", "m")] == expected
    assert content_words(normalize("NFD", text)) == found


def test_words_keep_stop_words_and_repeats() -> None:
    assert words("The cat, the CAT") == ["the", "cat", "the", "cat"]


def test_each_word_is_tokenised_alone_and_once() -> None:
    asked: list[str] = []

    def tokenize(words: Sequence[str]) -> list[list[int]]:
        asked.extend(words)
        return [[len(word), 99] for word in words]

    ids = ContentIds(tokenize, never=[99, None])
    assert ids(["cat horse", "the cat", "..."]) == [{3, 5}, {3}, set()]
    assert ids(["horse cat"]) == [{3, 5}]
    assert sorted(asked) == ["cat", "horse"]


def test_remembered_words_are_bounded_and_still_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colbert_diffusion.encoding.lexical.REMEMBERED", 3)
    ids = ContentIds(lambda found: [[len(word)] for word in found], never=[])
    texts = ["cat horse", "zebra elephant", "cat giraffe", "horse cat elephant"]
    assert [ids([text])[0] for text in texts] == [{3, 5}, {5, 8}, {3, 7}, {5, 3, 8}]


@pytest.mark.parametrize("side", ["query", "passage"])
def test_a_weight_is_the_largest_activation_over_the_positions(checkpoint: DiffusionCheckpoint, side: str) -> None:
    """log(1 + ReLU(logit)) of the logits that `Encoder.logits` gives, by another way."""
    lexical = checkpoint.lexical_query if side == "query" else checkpoint.lexical_document
    whole, own = lexical(TEXTS, content_words=False), lexical(TEXTS)
    assert whole.shape == own.shape == (len(TEXTS), len(WORDS))
    assert whole.dtype == own.dtype == np.float32
    head = checkpoint.head
    assert head is not None
    logits = checkpoint.encoder.logits(TEXTS, side, head)  # type: ignore[arg-type]
    expected = np.stack([torch.log1p(one.relu()).amax(dim=0).numpy() for one in logits])
    np.testing.assert_allclose(whole.toarray(), expected, atol=1e-5)
    for row, text in enumerate(TEXTS):
        kept = {WORDS.index(word) for word in content_words(text)}
        filtered = np.where([i in kept for i in range(len(WORDS))], expected[row], 0)
        np.testing.assert_allclose(own.toarray()[row], filtered, atol=1e-5)
    assert (own.data > 0).all()


def test_vectors_and_words_come_from_one_forward_pass(checkpoint: DiffusionCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    readout = checkpoint.encoder.readout
    states = readout.states
    plain, lexical = checkpoint.encode_document(TEXTS), checkpoint.lexical_document(TEXTS)

    def counting(rows: Sequence[Row], side: Side) -> torch.Tensor:
        ran.append(len(rows))
        return states(rows, side)

    monkeypatch.setattr(readout, "states", counting)
    vectors, weights = checkpoint.encode_document(TEXTS, lexical=True)
    assert sum(ran) == len(TEXTS)
    for one, other in zip(vectors, plain, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(weights.toarray(), lexical.toarray())


def test_words_do_not_depend_on_their_batch(checkpoint: DiffusionCheckpoint) -> None:
    together = checkpoint.lexical_document(TEXTS).toarray()
    alone = np.concatenate([checkpoint.lexical_document([text]).toarray() for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_no_texts_have_no_rows_but_the_vocabulary(checkpoint: DiffusionCheckpoint) -> None:
    assert checkpoint.lexical_query([]).shape == (0, len(WORDS))


def test_a_special_token_in_a_text_is_no_word(checkpoint: DiffusionCheckpoint) -> None:
    found = checkpoint.lexical_document(["[MASK] [SEP] paris"]).toarray()[0]
    assert {WORDS[i] for i in np.flatnonzero(found)} <= {"paris"}


def test_without_a_head_or_masks_the_reason_is_one_line(
    checkpoint: DiffusionCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="not one string"):
        checkpoint.lexical_query("paris")
    monkeypatch.setattr(checkpoint, "_load_head", lambda: None)
    with pytest.raises(UserError, match="no prediction head"):
        checkpoint.lexical_query(["paris"])
