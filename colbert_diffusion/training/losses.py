"""The losses, as functions of vectors, activations and scores. They know neither models nor texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize, softmax

from ..encoding.scoring import mean_maxsim, prefix_of_batch
from .recipe import Recipe

QUANTILES = 2**20  # residuals that `coded` sorts; torch.quantile takes 2**24


@dataclass(frozen=True)
class Targets:
    """What a batch's scores are compared with.

    Args:
        positives: int64 (queries,), the column of each query's positive; its own passages follow it.
        excluded: bool (queries, passages): the same text as the query's positive, or the positive of an equal query.
        own: passages per query (the positive and its negatives).
        scores: float (queries, own) from the examples, or None.
        teacher: float (queries, passages) from a teacher, or None.
        covered: the teacher's own vectors of queries and passages, (n, vectors, dim), zeros behind each text's, or None.
    """

    positives: Tensor
    excluded: Tensor
    own: int
    scores: Tensor | None = None
    teacher: Tensor | None = None
    covered: tuple[Tensor, Tensor] | None = None


def infonce(scores: Tensor, targets: Targets, *, symmetric: bool) -> Tensor:
    """Cross entropy of each query's positive among all passages; symmetric: and of each positive's query."""
    scores = scores.masked_fill(targets.excluded, float("-inf"))
    loss = cross_entropy(scores, targets.positives)
    if not symmetric:
        return loss
    among_positives = scores[:, targets.positives].T
    return (loss + cross_entropy(among_positives, torch.arange(len(scores), device=scores.device))) / 2


def distill(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of the rows' softmax from the teacher's, averaged over rows."""
    return kl_div(log_softmax(student, dim=-1), softmax(teacher, dim=-1), reduction="batchmean")


def coverage_loss(vectors: Tensor, teacher: Tensor) -> Tensor:
    """1 - the mean over a text's teacher vectors of the largest cosine with a vector of its own, averaged over texts.

    As k-means does, it sends each vector to its own part of what there is to say: (n, k, dim), (n, t, dim) -> scalar.
    """
    nearest = (teacher @ vectors.transpose(1, 2)).amax(dim=2)
    own = teacher.any(dim=2)
    return 1 - ((nearest * own).sum(dim=1) / own.sum(dim=1)).mean()


def coded(vectors: Tensor, bits: int) -> Tensor:
    """Passages' vectors as an index keeps them, (n, k, dim) normalised -> the same shape; gradients pass straight through.

    ColBERT's code is the nearest centroid and the residual in buckets of equal frequency (collection_indexer.py,
    `_compute_avg_residual`; codecs/residual.py). Here the nearest vector of another text of the batch is the centroid:
    farther away than an index's own, so the error is larger than what it will be.
    """
    count, k, _ = vectors.shape
    if count < 2:
        return vectors
    with torch.no_grad():
        flat = vectors.detach().flatten(0, 1).float()
        text = torch.arange(count, device=vectors.device).repeat_interleave(k)
        cosines = (flat @ flat.T).masked_fill(text[:, None] == text[None, :], -2)
        centroids = flat[cosines.argmax(dim=1)]
        residuals = flat - centroids
        share = torch.arange(2**bits, device=vectors.device) / 2**bits
        sample = residuals.flatten()[:: 1 + residuals.numel() // QUANTILES]
        cutoffs, weights = sample.quantile(share[1:]), sample.quantile(share + 0.5 / 2**bits)
        kept = normalize(centroids + weights[torch.bucketize(residuals, cutoffs)], dim=-1).view_as(vectors)
    return vectors + (kept - vectors.detach())


def dense_losses(queries: Tensor, passages: Tensor, targets: Targets, recipe: Recipe) -> dict[str, Tensor]:
    """The weighted losses of one set of vectors."""
    similarity = mean_maxsim(queries, coded(passages, recipe.codes) if recipe.codes else passages)
    scaled = similarity / recipe.temperature
    losses: dict[str, Tensor] = {}
    if recipe.contrastive:
        losses["contrastive"] = recipe.contrastive * infonce(scaled, targets, symmetric=recipe.symmetric)
    if recipe.scores and targets.scores is not None:
        own = targets.positives[:, None] + torch.arange(targets.own, device=similarity.device)
        losses["scores"] = recipe.scores * distill(scaled.gather(1, own), targets.scores)
    if recipe.teacher_weight and targets.teacher is not None:
        student, teacher = similarity / recipe.teacher_temperature, targets.teacher / recipe.teacher_temperature
        loss = distill(student, teacher)
        if recipe.symmetric:
            loss = (loss + distill(student.T, teacher.T)) / 2
        losses["teacher"] = recipe.teacher_weight * loss
    if recipe.coverage and targets.covered is not None:
        sides = zip((queries, passages), targets.covered, strict=True)
        parts = [coverage_loss(vectors, normalize(theirs[:, :, : vectors.shape[2]], dim=-1)) for vectors, theirs in sides]
        losses["coverage"] = recipe.coverage * (parts[0] + parts[1]) / 2
    return losses


def nested_losses(
    queries: Tensor, passages: Tensor, targets: Targets, recipe: Recipe, cells: Sequence[tuple[int, int, int]]
) -> dict[str, Tensor]:
    """The mean of the losses over the whole vectors and each (k_query, k_passage, dim) prefix."""
    whole = (queries.shape[1], passages.shape[1], queries.shape[2])
    total: dict[str, Tensor] = {}
    for k_query, k_passage, dim in (whole, *cells):
        losses = dense_losses(
            prefix_of_batch(queries, k_query, dim), prefix_of_batch(passages, k_passage, dim), targets, recipe
        )
        for name, loss in losses.items():
            total[name] = total.get(name, loss.new_zeros(())) + loss / (1 + len(cells))
    return total


def sparse_loss(queries: Tensor, passages: Tensor, targets: Targets) -> Tensor:
    """InfoNCE over dot products of word activations (DiffRetriever eq. 2): (q, words), (p, words)."""
    return infonce(queries @ passages.T, targets, symmetric=False)


def diversity_loss(vectors: Tensor) -> Tensor:
    """Mean squared cosine between different vectors of one text: (n, k, dim) normalised -> scalar, 0 for k = 1."""
    k = vectors.shape[1]
    if k == 1:
        return vectors.new_zeros(())
    cosines = vectors @ vectors.transpose(1, 2)
    off_diagonal = cosines.square().sum(dim=(1, 2)) - cosines.diagonal(dim1=1, dim2=2).square().sum(dim=1)
    return (off_diagonal / (k * (k - 1))).mean()


def word_activations(logits: Tensor, present: Tensor) -> Tensor:
    """max over positions of log(1 + ReLU(logit)), for the words that the text itself has: (n, k, w), (n, w) -> (n, w)."""
    return torch.log1p(logits.relu()).amax(dim=1) * present


def diffusion_loss(logits: Tensor, words: Tensor, ratio: Tensor) -> Tensor:
    """Cross entropy at masked text positions, each weighed by 1 / its text's mask ratio (LLaDA, arXiv 2502.09992, eq. 3).

    Args:
        logits: (masked positions, vocabulary).
        words: int64 (masked positions,), what stood there.
        ratio: (masked positions,), the mask ratio of the position's text.

    Returns:
        The weighted sum; divide by the number of text tokens.
    """
    return (cross_entropy(logits.float(), words, reduction="none") / ratio).sum()
