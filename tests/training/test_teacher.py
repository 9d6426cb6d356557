"""The teacher's words; its vectors are in test_trainer.py."""

import bm25s
import numpy as np
import pytest
import torch

from colbert_diffusion.index.lexical import Stems
from colbert_diffusion.training.teacher import WordTeacher

PASSAGES = [
    "The cat sleeps in the sun, and the other cats sleep in the shade of the wall.",
    "Dogs bark at the cat.",
    "A wall of stone",
    "Rain falls on the stones of the old wall; walls do not sleep.",
]
QUERIES = ["sleeping cats", "old walls of stone", "the of", "nothing else"]


def test_scores_are_bm25s_over_the_querys_best_in_the_batch() -> None:
    stems = Stems()
    library = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    library.index([stems.of(text) for text in PASSAGES], show_progress=False)
    scores = WordTeacher().scores(QUERIES, PASSAGES)
    for query, row in zip(QUERIES[:2], scores[:2].numpy(), strict=True):
        expected = library.get_scores(stems.of(query))
        np.testing.assert_allclose(row, expected / expected.max(), atol=1e-5)
    assert not scores[2:].any()


@pytest.mark.parametrize("passages", [["the", "of"], [""]])
def test_passages_without_words_score_nothing(passages: list[str]) -> None:
    assert torch.equal(WordTeacher().scores(["cat"], passages), torch.zeros(1, len(passages)))
