from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig, Indexer, Searcher
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import read_json
from colbert_diffusion.encoding.allocation import merge, vectors_per_text

from ..conftest import make_texts


def greedily(vectors: np.ndarray, above: float) -> np.ndarray:
    """The definition, one vector at a time."""
    left, groups = list(range(len(vectors))), []
    while left:
        first, *others = left
        group = [first, *(i for i in others if vectors[first] @ vectors[i] > above)]
        groups.append(vectors[group].sum(axis=0))
        left = [i for i in left if i not in group]
    return np.stack([group / np.linalg.norm(group) for group in groups])


@pytest.mark.parametrize("above", [0.2, 0.6, 0.9])
def test_merging_is_greedy_in_the_vectors_order(above: float) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(20, 8, 3, generator=generator), dim=-1)
    for ours, text in zip(merge(vectors, above), vectors.numpy(), strict=True):
        np.testing.assert_allclose(ours, greedily(text, above), atol=1e-6)


def test_nothing_is_lost_where_nothing_is_close() -> None:
    vectors = torch.eye(6)[None]
    [merged] = merge(vectors, 0.5)
    np.testing.assert_allclose(merged, np.eye(6))
    assert vectors_per_text([merged]) == 6


def test_passages_are_merged_and_queries_are_not(tiny_config: DiffusionConfig, tmp_path: Path) -> None:
    replace(tiny_config, merge_above=0.9).save(tmp_path)
    checkpoint = DiffusionCheckpoint(tmp_path)
    texts = make_texts(30)
    assert all(len(v) == tiny_config.k_query for v in checkpoint.encode_query(texts))
    passages = checkpoint.encode_document(texts)
    assert vectors_per_text(passages) < tiny_config.k_passage
    assert all(0 < len(v) <= tiny_config.k_passage for v in passages)
    for v in passages:
        np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, atol=1e-5)


def test_lists_of_varying_length_go_through_the_index(tiny_config: DiffusionConfig, tmp_path: Path, index_root: str) -> None:
    replace(tiny_config, merge_above=0.9).save(tmp_path / "checkpoint")
    texts = make_texts(120)
    indexer = Indexer(str(tmp_path / "checkpoint"))
    index = Path(indexer.index("merged", texts))
    passages = DiffusionCheckpoint(tmp_path / "checkpoint").encode_document(texts)
    assert read_json(index / "metadata.json")["num_embeddings"] == sum(map(len, passages)) < 120 * tiny_config.k_passage
    searcher = Searcher("merged")
    found = [searcher.search(text, k=10)[0] for text in texts[:20]]
    queries = DiffusionCheckpoint(tmp_path / "checkpoint").encode_query(texts[:20])
    exact = [max(range(120), key=lambda i: float((q @ passages[i].T).max(axis=1).sum())) for q in queries]
    assert sum(best in pids for best, pids in zip(exact, found, strict=True)) >= 18


def test_a_threshold_that_is_no_cosine_is_refused(tiny_config: DiffusionConfig) -> None:
    with pytest.raises(UserError, match="merge_above"):
        replace(tiny_config, merge_above=1.5)
