import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.encoding.scoring import mean_maxsim, prefix_of_batch
from colbert_diffusion.training.losses import (
    Targets,
    coded,
    coverage_loss,
    dense_losses,
    diffusion_loss,
    distill,
    diversity_loss,
    infonce,
    nested_losses,
    word_activations,
)
from colbert_diffusion.training.recipe import Recipe

generator = torch.Generator().manual_seed(0)


def unit(*shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=generator), dim=-1)


def in_batch(queries: int, own: int = 1) -> Targets:
    positives = torch.arange(queries) * own
    return Targets(positives, torch.zeros(queries, queries * own, dtype=torch.bool), own)


def test_coverage_is_what_the_nearest_vector_lacks_of_each_of_the_teachers() -> None:
    vectors, teacher = unit(2, 3, 8), [unit(5, 8), unit(2, 8)]
    parts = [1 - float((t @ v.T).amax(dim=1).mean()) for v, t in zip(vectors, teacher, strict=True)]
    assert float(coverage_loss(vectors, pad_sequence(teacher, batch_first=True))) == pytest.approx(sum(parts) / 2, abs=1e-6)
    assert float(coverage_loss(torch.stack([teacher[1]]), teacher[1][None])) == pytest.approx(0, abs=1e-6)


def test_a_prefix_covers_the_teachers_prefix() -> None:
    queries, passages = unit(2, 4, 8), unit(2, 6, 8)
    targets = replace(in_batch(2), covered=(queries, passages))
    recipe = Recipe(contrastive=0, coverage=2, teacher="t")
    cut = dense_losses(prefix_of_batch(queries, 4, 4), prefix_of_batch(passages, 6, 4), targets, recipe)
    assert float(cut["coverage"]) == pytest.approx(0, abs=1e-6)
    first = dense_losses(queries, passages[:, :1], targets, recipe)
    assert float(first["coverage"]) == pytest.approx(float(coverage_loss(passages[:, :1], passages)), abs=1e-6)


def test_a_coded_vector_is_another_texts_nearest_plus_its_residuals_buckets() -> None:
    vectors = unit(6, 3, 8)
    flat, bits = vectors.flatten(0, 1).numpy(), 2
    own = np.arange(18) // 3
    cosines = np.where(own[:, None] == own[None, :], -2, flat @ flat.T)
    centroids = flat[cosines.argmax(axis=1)]
    residuals = flat - centroids
    cutoffs = np.quantile(residuals, np.arange(1, 4) / 4)
    weights = np.quantile(residuals, (np.arange(4) + 0.5) / 4)
    expected = centroids + weights[np.searchsorted(cutoffs, residuals)]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(coded(vectors, bits).flatten(0, 1).numpy(), expected, atol=1e-5)


def test_finer_codes_lose_less_and_one_text_has_none() -> None:
    vectors = unit(6, 3, 8)
    lost = [float((coded(vectors, bits) - vectors).norm()) for bits in (1, 2, 4, 8)]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < lost[0] / 10
    assert torch.equal(coded(vectors[:1], 1), vectors[:1])


def test_gradients_pass_codes_as_if_there_were_none() -> None:
    vectors, direction = unit(4, 3, 8).requires_grad_(), torch.randn(4, 3, 8, generator=generator)
    [gradient] = torch.autograd.grad((coded(vectors, 1) * direction).sum(), vectors)
    assert torch.equal(gradient, direction)


def test_scores_are_of_coded_passages_where_the_recipe_says_so() -> None:
    queries, passages = unit(4, 2, 8), unit(4, 3, 8)
    plain = Recipe(contrastive=1, temperature=0.05)
    there = dense_losses(queries, passages, in_batch(4), replace(plain, codes=1))
    assert float(there["contrastive"]) == pytest.approx(
        float(dense_losses(queries, coded(passages, 1), in_batch(4), plain)["contrastive"]), abs=1e-6
    )
    assert float(there["contrastive"]) != pytest.approx(
        float(dense_losses(queries, passages, in_batch(4), plain)["contrastive"])
    )


def test_infonce_is_the_cross_entropy_of_the_positive_among_what_is_not_excluded() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.5], [0.0, 3.0, 1.0]])
    excluded = torch.tensor([[False, False, True], [False, False, False]])
    targets = Targets(torch.tensor([0, 1]), excluded, 1)
    first = math.log(1 + math.exp(-1))
    second = math.log(1 + math.exp(-3) + math.exp(-2))
    assert float(infonce(scores, targets, symmetric=False)) == pytest.approx((first + second) / 2, abs=1e-6)


def test_symmetric_infonce_also_finds_each_positives_query() -> None:
    scores = torch.randn(4, 4, generator=generator)
    there = infonce(scores, in_batch(4), symmetric=False)
    back = infonce(scores.T, in_batch(4), symmetric=False)
    assert float(infonce(scores, in_batch(4), symmetric=True)) == pytest.approx(float(there + back) / 2, abs=1e-6)


def test_distillation_vanishes_where_student_and_teacher_agree_up_to_a_constant() -> None:
    teacher = torch.randn(3, 5, generator=generator)
    assert float(distill(teacher + 7, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(distill(-teacher, teacher)) > 0.1


def test_distillation_from_scores_looks_at_a_querys_own_passages_alone() -> None:
    queries, passages = unit(2, 2, 4), unit(6, 3, 4)
    recipe = Recipe(contrastive=0, scores=1, negatives=2, temperature=1)
    own = torch.stack([mean_maxsim(queries, passages)[0, :3], mean_maxsim(queries, passages)[1, 3:]])
    targets = in_batch(2, own=3)
    agreed = Targets(targets.positives, targets.excluded, 3, scores=own)
    assert float(dense_losses(queries, passages, agreed, recipe)["scores"]) == pytest.approx(0, abs=1e-6)


def test_nested_losses_are_the_mean_over_the_whole_and_its_prefixes() -> None:
    queries, passages, recipe = unit(4, 4, 8), unit(4, 6, 8), Recipe(temperature=0.1)
    whole = dense_losses(queries, passages, in_batch(4), recipe)["contrastive"]
    cut = dense_losses(prefix_of_batch(queries, 2, 4), prefix_of_batch(passages, 1, 4), in_batch(4), recipe)["contrastive"]
    both = nested_losses(queries, passages, in_batch(4), recipe, [(2, 1, 4)])["contrastive"]
    assert float(both) == pytest.approx(float(whole + cut) / 2, abs=1e-6)


def test_diversity_is_nothing_for_orthogonal_vectors_and_one_for_equal_ones() -> None:
    assert float(diversity_loss(torch.eye(4)[None])) == pytest.approx(0, abs=1e-6)
    assert float(diversity_loss(torch.ones(2, 4, 1))) == pytest.approx(1)
    assert float(diversity_loss(torch.ones(2, 1, 1))) == 0


def test_words_that_a_text_does_not_have_get_no_activation() -> None:
    logits = torch.tensor([[[1.0, 5.0, -1.0], [2.0, 0.0, -2.0]]])
    activations = word_activations(logits, torch.tensor([[True, False, True]]))
    torch.testing.assert_close(activations, torch.tensor([[math.log(3), 0.0, 0.0]]))


def test_masked_words_weigh_one_over_their_texts_mask_ratio() -> None:
    logits, words = torch.zeros(2, 10), torch.tensor([3, 4])
    assert float(diffusion_loss(logits, words, torch.tensor([0.5, 0.25]))) == pytest.approx(math.log(10) * 6, rel=1e-5)


def test_a_recipe_that_trains_nothing_or_contradicts_itself_is_refused() -> None:
    taught: list[dict[str, float]] = [
        {"teacher_weight": 1.0},
        {"coverage": 1.0},
        {"grouped": 4},
        {"teacher_words": 0.2},
        {"second_weight": 1.0},
        {"codes": 3},
    ]
    for wrong in (*taught, {"contrastive": 0.0}, {"scores": 1.0}, {"temperature": 0.0}, {"steps": 0}):
        with pytest.raises(UserError):
            Recipe(**wrong)  # type: ignore[arg-type]
