from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import random_array

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.index import postings as engine
from colbert_diffusion.index.postings import Piece, Postings, largest, write_postings

PASSAGES, TERMS = 500, 40


def matrix(seed: int = 0, passages: int = PASSAGES) -> np.ndarray:
    """Few different values, so that there are ties."""
    sparse = random_array((passages, TERMS), density=0.15, random_state=np.random.default_rng(seed))
    values: np.ndarray = np.ceil(sparse.toarray() * 4).astype(np.float32)
    return values


def pieces_of(values: np.ndarray, size: int = 64) -> Iterator[Piece]:
    for first in range(0, len(values), size):
        pids, terms = np.nonzero(values[first : first + size])
        yield Piece(terms.astype(np.int32), (pids + first).astype(np.int32), values[first + pids, terms])


def written(path: Path, values: np.ndarray) -> Postings:
    write_postings(path, lambda: pieces_of(values), TERMS, None, np.float32)
    return Postings(path, len(values), valued="float32", measured=False)


def test_postings_score_as_the_matrix_does(tmp_path: Path) -> None:
    values, draw = matrix(), np.random.default_rng(1)
    index = written(tmp_path / "p", values)
    for _ in range(1000):
        terms = np.sort(draw.choice(TERMS, size=draw.integers(0, 8), replace=False))
        weights = draw.random(len(terms)).astype(np.float32)
        scores = index.scores(terms, weights)
        expected = values[:, terms].astype(np.float64) @ weights
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        order = [pid for pid in np.lexsort((np.arange(PASSAGES), -scores)) if scores[pid] > 0]
        assert largest(scores, 10).tolist() == order[:10]
        assert largest(scores, PASSAGES).tolist() == order


@pytest.mark.parametrize("scores", [np.zeros(0), np.zeros(1), np.ones(1), np.zeros(1000), np.ones(1000)])
@pytest.mark.parametrize("k", [1, 3, 1000])
def test_the_largest_of_equal_or_no_scores_are_the_first(scores: np.ndarray, k: int) -> None:
    assert largest(scores.astype(np.float32), k).tolist() == list(range(min(k, int(scores.sum()))))


def test_a_norm_saturates_the_values(tmp_path: Path) -> None:
    values = matrix()
    norms = np.linspace(0.1, 2, PASSAGES).astype(np.float32)
    terms = np.array([3, 7])
    scores = written(tmp_path / "p", values).scores(terms, np.array([1.5, 2.0], np.float32), norms)
    expected = sum(w * values[:, t] / (values[:, t] + norms) for t, w in zip(terms, (1.5, 2.0), strict=True))
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_values_are_found_by_term_and_passage(tmp_path: Path) -> None:
    values = matrix()
    index = written(tmp_path / "p", values)
    assert all(index.value(t, p) == values[p, t] for t in range(TERMS) for p in (0, 7, PASSAGES - 1))
    assert [index.frequency(term) for term in range(TERMS)] == (values > 0).sum(axis=0).tolist()


@pytest.mark.parametrize("held", [engine.SLICE, 50])
def test_rewritten_without_some_and_with_more_it_is_the_same_as_written_at_once(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SLICE", held)
    old, new = matrix(), matrix(seed=2, passages=60)
    index, gone = written(tmp_path / "old", old), np.array([0, 17, PASSAGES - 1])
    whole = np.concatenate([old, new])
    whole[gone] = 0
    renumbered = np.arange(TERMS)[::-1].copy()

    def both() -> Iterator[Piece]:
        yield from index.pieces(gone, renumbered)
        yield from (p._replace(pids=p.pids + PASSAGES, terms=TERMS - 1 - p.terms) for p in pieces_of(new))

    write_postings(tmp_path / "merged", both, TERMS, None, np.float32)
    write_postings(tmp_path / "whole", lambda: pieces_of(whole[:, ::-1]), TERMS, None, np.float32)
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "whole").read_bytes()


def test_postings_of_another_index_are_refused(tmp_path: Path) -> None:
    values = matrix()
    write_postings(tmp_path / "p", lambda: pieces_of(values), TERMS, np.ones(PASSAGES, np.uint32), np.float32)
    with pytest.raises(UserError, match=f"{PASSAGES} passages, the index 7"):
        Postings(tmp_path / "p", 7, valued="float32", measured=True)
    short = Postings(tmp_path / "p", 7, valued="float32", measured=False)
    with pytest.raises(UserError, match="damaged"):
        short.scores(np.arange(TERMS), np.ones(TERMS, np.float32))


def test_terms_that_do_not_divide_the_postings_are_refused(tmp_path: Path) -> None:
    index = written(tmp_path / "p", matrix())
    content = (tmp_path / "p").read_bytes()
    where = content.index(index.starts.tobytes()[8:24])
    (tmp_path / "p").write_bytes(content[:where] + (2**40).to_bytes(8, "little") + content[where + 8 :])
    with pytest.raises(UserError, match="do not divide"):
        Postings(tmp_path / "p", PASSAGES, valued="float32", measured=False)
