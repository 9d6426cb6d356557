from typing import Any

import numpy as np
import pytest

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.index.fusion import Fusion, fusion_of

DENSE, LEXICAL = np.array([3.0, 2.0, 1.0, 2.5]), np.array([0.0, 8.0, 4.0, 2.0])
BOTH = np.ones(4, bool), np.ones(4, bool)


def fused(fusion: Fusion, retrieved: tuple[np.ndarray, np.ndarray] = BOTH, most: float = 10.0) -> list[float]:
    return np.round(fusion.fuse(DENSE, LEXICAL, 4, most, retrieved), 6).tolist()  # type: ignore[no-any-return]


def test_scaled_adds_the_squared_share_of_the_words_to_the_mean_maxsim() -> None:
    assert fused(Fusion("scaled", 0.2)) == [0.75, 0.628, 0.282, 0.633]


def test_scaled_is_dense_where_no_word_matches() -> None:
    assert fused(Fusion("scaled", 0.2), most=0.0) == [0.75, 0.5, 0.25, 0.625]


def test_minmax_scales_both_over_the_union() -> None:
    """Equal weights order as DiffRetriever eq. 3, which adds them."""
    assert fused(Fusion("minmax", 0.5)) == [0.5, 0.75, 0.25, 0.5]


def test_minmax_of_one_passage_or_equal_scores_is_zero() -> None:
    assert Fusion("minmax", 0.5).fuse(np.array([2.0]), np.array([1.0]), 4, 1.0, (np.ones(1), np.ones(1))).tolist() == [0.0]


def test_rrf_counts_ranks_in_each_list_alone() -> None:
    lists = np.array([True, True, False, True]), np.array([False, True, True, False])
    expected = [0.5 / 61, 0.5 / 63 + 0.5 / 61, 0.5 / 62, 0.5 / 62]
    np.testing.assert_allclose(Fusion("rrf", 0.5).fuse(DENSE, LEXICAL, 4, 10.0, lists), expected)


@pytest.mark.parametrize(("rule", "k", "depth"), [("scaled", 10, 20), ("scaled", 1, 20), ("scaled", 100, 200), ("rrf", 9, 100)])
def test_both_sides_are_looked_at_deeper_than_asked(rule: str, k: int, depth: int) -> None:
    assert Fusion(rule).depth(k) == depth  # type: ignore[arg-type]


WRONG = [("mean", 0.5), ("scaled", -0.1), ("minmax", 1.5), ("scaled", float("nan")), ("rrf", "x")]


@pytest.mark.parametrize(("rule", "weight"), WRONG)
def test_what_is_no_fusion_is_refused(rule: str, weight: float) -> None:
    with pytest.raises(UserError, match=r"unknown|expected 0 to"):
        Fusion(rule, weight)  # type: ignore[arg-type]


def test_a_manifests_fusion_is_read_back() -> None:
    assert fusion_of(Fusion("rrf", 0.25).as_json()) == Fusion("rrf", 0.25)
    assert fusion_of(None) is None
    damaged: Any
    for damaged in ([], {"rule": "rrf", "code": 1}, {"weight": True}):
        with pytest.raises(UserError):
            fusion_of(damaged)
