"""An index whose vectors lie in parts answers as the whole one: pids and scores, also where PLAID throws passages out."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colbert.infra import ColBERTConfig

from colbert_diffusion import IndexUpdater, Searcher, build_index, open_index
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.index.parts import LocalParts, PartsRanker, divide
from colbert_diffusion.seam import building
from colbert_diffusion.seam.parts import ChunkScorer
from colbert_diffusion.seam.settings import SearchSettings

from ..conftest import make_texts

TIGHT = {"ncells": 8, "centroid_score_threshold": 0.75, "ndocs": 64}  # 16 of 1,000 passages are scored


@pytest.fixture(scope="module")
def index(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "CHUNK", 150)
        folder = tmp_path_factory.mktemp("parts") / "i"
        yield build_index(folder, make_texts(1000, seed=3), tiny_checkpoint, lexical="bm25", verbose=0)


def in_parts(index: Path, parts: int) -> Searcher:
    return open_index(index, parts=lambda folder: LocalParts(folder, parts))


def assert_same_answers(whole: Searcher, parted: Searcher, queries: list[str], mode: str, k: int = 10) -> None:
    for one, other in zip(whole.ask(queries, mode=mode), parted.ask(queries, mode=mode), strict=True):
        pids, ranks, scores = whole.answer(one, k, mode=mode)
        found, places, also = parted.answer(other, k, mode=mode)
        assert ranks == places
        np.testing.assert_allclose(also, scores, rtol=0, atol=1e-5)
        if found != pids:  # nothing but passages whose scores a float cannot tell apart have changed places
            assert sorted(found) == sorted(pids) or abs(scores[-1] - also[-1]) < 1e-5
            assert len(set(np.round(scores, 4))) < len(scores)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_two_or_more_parts_answer_as_one_index(index: Path, parts: int) -> None:
    whole, parted = open_index(index), in_parts(index, parts)
    for searcher in (whole, parted):
        searcher.configure(**TIGHT)
    queries = make_texts(1000 if parts == 2 else 100, seed=11)
    assert_same_answers(whole, parted, queries, "dense")
    assert_same_answers(whole, parted, queries[:50], "hybrid")
    assert_same_answers(whole, parted, queries[:20], "dense", k=100)


def test_the_same_passages_are_thrown_out_as_by_colberts_own_code(index: Path) -> None:
    whole, parts = open_index(index), LocalParts(index, 3)
    settings = ColBERTConfig(**TIGHT, query_maxlen=4)
    few = 0
    for query in make_texts(200, seed=5):
        q = whole.encode([query])
        candidates, centroid_scores = whole.ranker.retrieve(settings, q)
        with torch.inference_mode():
            _, kept = whole.ranker.score_pids(settings, q, candidates, centroid_scores)
        ours = PartsRanker(index, parts).retrieve(settings, q)
        assert sorted(ours.tolist()) == sorted(kept.tolist())
        few += len(candidates) > 64
    assert few > 150  # the first estimate decided, too


def test_searches_by_pids_by_metadata_and_for_more_than_there_are(index: Path) -> None:
    whole, parted = open_index(index), in_parts(index, 2)
    given: list[dict[str, Any]] = [{"pids": [999, 0, 149, 150]}, {"k": 1000}, {"pids": []}]
    for options in given:
        one, other = (searcher.search("a red dog", **options) for searcher in (whole, parted))
        assert one[0] == other[0]
        np.testing.assert_allclose(other[2], one[2], atol=1e-5)
    even: dict[str, Any] = {"pids": [0, 149, 150, 998], "filter_fn": lambda candidates: candidates[candidates % 2 == 0]}
    assert sorted(parted.search("a red dog", **even)[0]) == sorted(whole.search("a red dog", **even)[0]) == [0, 150, 998]
    with pytest.raises(UserError, match="takes no filter of candidates"):
        parted.search("a red dog", filter_fn=lambda candidates: candidates)


def test_removed_passages_stay_away_even_a_whole_part_of_them(index: Path, tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "i")
    updater = IndexUpdater(str(tmp_path / "i"), verbose=0)
    updater.remove([*range(150), 400])
    updater.persist_to_disk()
    whole, parted = open_index(tmp_path / "i"), in_parts(tmp_path / "i", 7)
    queries = make_texts(50, seed=12)
    assert_same_answers(whole, parted, queries, "dense")
    assert_same_answers(whole, parted, queries, "dense", k=900)


def test_a_part_reads_no_vectors_but_its_own(index: Path, tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "i")
    for path in (*(tmp_path / "i").glob("[3-6].residuals.pt"), *(tmp_path / "i").glob("[3-6].codes.pt")):
        path.unlink()
    part = ChunkScorer(str(tmp_path / "i"), range(3))
    assert part.span == range(450)
    assert len(part.embeddings.codes) - 512 == part.num_embeddings == int(part.doclens.sum())  # ColBERT pads by 512
    q = open_index(index).encode(["the cat"])
    found = part.candidates(q, SearchSettings(8, 0.3, 64))
    assert len(found.pids)
    assert found.pids.max() < 450


@pytest.mark.parametrize("parts", [0, 8])
def test_no_more_parts_than_chunks(index: Path, parts: int) -> None:
    with pytest.raises(UserError, match=f"has 7 chunks, so 1 to 7 parts; {parts} were asked for"):
        divide(index, parts)


def test_parts_of_another_index_are_refused(index: Path) -> None:
    parts = LocalParts(index, 2)
    for spans in (parts.spans[:1], [range(450), range(451, 1000)], [range(1, 450), range(450, 1000)]):
        parts.spans = spans
        with pytest.raises(UserError, match="the parts have the passages"):
            PartsRanker(index, parts)
