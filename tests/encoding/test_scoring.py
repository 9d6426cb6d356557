"""MaxSim is one number, however its vectors are held."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from colbert_diffusion.encoding.scoring import maxsim, mean_maxsim, mean_maxsim_padded, prefix, prefix_of_batch

generator = torch.Generator().manual_seed(0)


def unit(*shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=generator), dim=-1)


def test_lists_of_any_lengths_score_as_eq_1_says() -> None:
    queries = [unit(k, 8).numpy() for k in (1, 4, 2)]
    passages = [unit(k, 8).numpy() for k in (3, 1, 7, 2)]
    scores = maxsim(queries, passages)
    for i, query in enumerate(queries):
        for j, passage in enumerate(passages):
            assert scores[i, j] == pytest.approx(sum(max(float(q @ p) for p in passage) for q in query), abs=1e-6)
    assert maxsim([], passages).shape == (0, 4)
    assert maxsim(queries, []).shape == (3, 0)


def test_a_score_below_zero_stays_below_zero() -> None:
    assert maxsim([np.array([[1.0, 0.0]], np.float32)], [np.array([[-1.0, 0.0]], np.float32)])[0, 0] == -1


def test_lists_padded_and_full_batches_agree() -> None:
    queries, passages = unit(3, 4, 8), unit(5, 6, 8)
    expected = maxsim(list(queries.numpy()), list(passages.numpy())) / 4
    assert np.allclose(mean_maxsim(queries, passages), expected, atol=1e-6)
    assert np.allclose(mean_maxsim_padded(queries, passages), expected, atol=1e-6)


def test_prefixes_of_lists_and_batches_agree() -> None:
    vectors = unit(3, 6, 8)
    assert np.allclose(prefix_of_batch(vectors, 2, 4), np.stack(prefix(list(vectors.numpy()), 2, 4)), atol=1e-6)


def test_maxsim_is_the_mean_over_query_vectors_of_the_best_passage_vector() -> None:
    queries, passages = unit(3, 4, 8), unit(5, 6, 8)
    scores = mean_maxsim(queries, passages)
    for i in range(3):
        for j in range(5):
            best = [max(float(a @ b) for b in passages[j]) for a in queries[i]]
            assert float(scores[i, j]) == pytest.approx(sum(best) / 4, abs=1e-6)


def test_a_prefix_is_cut_and_normalised_again() -> None:
    cut = prefix_of_batch(unit(3, 8, 16), 2, 4)
    assert cut.shape == (3, 2, 4)
    torch.testing.assert_close(cut.norm(dim=-1), torch.ones(3, 2))


def test_vectors_that_a_text_does_not_have_never_score() -> None:
    queries, passages = [unit(2, 8), unit(4, 8)], [-unit(1, 8).abs(), unit(6, 8), unit(3, 8)]
    scores = mean_maxsim_padded(pad_sequence(queries, batch_first=True), pad_sequence(passages, batch_first=True))
    for i, query in enumerate(queries):
        for j, passage in enumerate(passages):
            assert float(scores[i, j]) == pytest.approx(float(mean_maxsim(query[None], passage[None])), abs=1e-6)
    assert float(mean_maxsim_padded(queries[0].abs()[None], passages[0][None])) < 0


@pytest.mark.parametrize(("k", "dim"), [(4, 6), (6, 4), (4, 4), (8, 4), (4, 8), (8, 8)])
def test_a_prefix_of_fewer_dimensions_is_normalised_whatever_the_number_of_vectors(k: int, dim: int) -> None:
    for cut in prefix([unit(8, 8).numpy(), unit(4, 8).numpy()], k, dim):
        assert cut.shape[1] == dim
        np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)


def test_a_vector_with_zeros_in_it_is_a_vector() -> None:
    """Only one of zeros alone is padding."""
    one_hot = torch.eye(4)[None, :3]
    assert float(mean_maxsim_padded(one_hot, one_hot)) == 1
    assert float(mean_maxsim_padded(torch.cat([one_hot, torch.zeros(1, 2, 4)], dim=1), one_hot)) == 1
