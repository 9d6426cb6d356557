from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig, Indexer, Searcher
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import read_json
from colbert_diffusion.encoding.allocation import cover, merge, vectors_per_text
from colbert_diffusion.encoding.identity import identify

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


def covered(vectors: np.ndarray, above: float) -> np.ndarray:
    """The definition of `cover`, one vector at a time; the rows in any order."""
    cosines = vectors @ vectors.T
    kept: list[int] = []
    while not kept or (cosines[:, kept].max(axis=1).mean() < above and len(kept) < len(vectors)):
        left = [i for i in range(len(vectors)) if i not in kept]
        kept.append(max(left, key=lambda i: cosines[:, [*kept, i]].max(axis=1).mean()))
    nearest = cosines[:, kept].argmax(axis=1)
    groups = [vectors[nearest == place].sum(axis=0) for place in range(len(kept))]
    return np.stack([group / np.linalg.norm(group) for group in groups])


@pytest.mark.parametrize("above", [0.2, 0.6, 0.9, 0.99])
def test_covering_is_greedy_by_what_a_vector_adds(above: float) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(20, 8, 3, generator=generator), dim=-1)
    found = cover(vectors, above)
    for ours, text in zip(found, vectors.numpy(), strict=True):
        expected = covered(text, above)
        assert len(ours) == len(expected)
        assert (ours @ expected.T).max(axis=1).min() > 1 - 1e-6
    assert len({len(ours) for ours in found}) > 1 or above == 0.2  # texts differ in what they need


def test_equal_vectors_are_covered_by_one_and_none_is_of_zeros() -> None:
    repeated = normalize(torch.ones(1, 5, 4), dim=-1)
    assert [len(own) for own in cover(repeated, 0.99)] == [1]
    pairs = torch.eye(4).repeat_interleave(2, dim=0)[None]
    for above in (0.99, 1.0):
        [own] = cover(pairs, above)
        np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1, atol=1e-6)
        assert len(own) == 4


def test_nothing_is_lost_where_nothing_is_close() -> None:
    vectors = torch.eye(6)[None]
    for [kept] in (merge(vectors, 0.5), cover(vectors, 1.0)):
        np.testing.assert_allclose(kept, np.eye(6))
    [merged] = merge(vectors, 0.5)
    assert vectors_per_text([merged]) == 6


@pytest.mark.parametrize("kept", [{"merge_above": 0.9}, {"cover_above": 0.9}])
def test_passages_get_fewer_vectors_and_queries_do_not(
    kept: dict[str, float], tiny_config: DiffusionConfig, tmp_path: Path
) -> None:
    replace(tiny_config, **kept).save(tmp_path)  # type: ignore[arg-type]
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
    for name in ("merge_above", "cover_above"):
        with pytest.raises(UserError, match=name):
            replace(tiny_config, **{name: 1.5})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="set one of them to null"):
        replace(tiny_config, merge_above=0.9, cover_above=0.9)


def test_a_checkpoint_that_does_not_cover_is_written_and_hashed_as_before_there_was_covering(
    tiny_config: DiffusionConfig, tmp_path: Path
) -> None:
    """Or every index made until then would be of another checkpoint, and earlier versions would refuse new ones."""
    tiny_config.save(tmp_path / "plain")
    assert "cover_above" not in read_json(tmp_path / "plain" / "diffusion.json")
    replace(tiny_config, cover_above=0.9).save(tmp_path / "covering")
    assert DiffusionConfig.load(tmp_path / "covering").cover_above == 0.9
    assert identify(tmp_path / "plain").fingerprint != identify(tmp_path / "covering").fingerprint
