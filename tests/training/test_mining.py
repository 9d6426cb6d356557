import os
from pathlib import Path

import pytest

from colbert_diffusion import Indexer, Searcher
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.training import mining
from colbert_diffusion.training.data import Example, read_source
from colbert_diffusion.training.mining import mine

from ..conftest import make_texts

TEXTS = list(dict.fromkeys(make_texts(60, seed=5)))
EXAMPLES = [Example(" ".join(text.split()[:3]), (text, "a negative of its own")) for text in TEXTS]


@pytest.fixture(autouse=True)
def _any_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake backbone's queries do not find their positives, so nothing would score below 95 % of them."""
    monkeypatch.setattr(mining, "POSITIVE_SHARE", 2.0)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> str:
    return str(tiny_checkpoint)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(Searcher, "__init__", refuse)
    monkeypatch.setattr(Indexer, "index", refuse)


def test_negatives_are_the_best_ranked_passages_of_other_queries(checkpoint: str, tmp_path: Path) -> None:
    path = mine(checkpoint, iter(EXAMPLES), tmp_path / "out", negatives=3, depth=20)
    searcher = Searcher("index", index_root=str(tmp_path / "out"), verbose=0)
    for example, mined in zip(EXAMPLES, read_source(path), strict=True):
        ranked = [TEXTS[pid] for pid in searcher.search(example.query, k=20)[0]]
        expected = [text for text in ranked if text != example.passages[0]][:3]
        assert mined == Example(example.query, (example.passages[0], *expected))


def test_no_negative_scores_near_the_positive(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "POSITIVE_SHARE", 0.95)
    path = mine(checkpoint, EXAMPLES, tmp_path, negatives=60, depth=60)
    searcher = Searcher("index", index_root=str(tmp_path), verbose=0)
    kept = 0
    for mined in read_source(path):
        pids, _, scores = searcher.search(mined.query, k=60)
        score_of = {TEXTS[pid]: score for pid, score in zip(pids, scores, strict=True)}
        positive, *negatives = (score_of[text] for text in mined.passages)
        assert all(score < 0.95 * positive for score in negatives)
        kept += len(negatives)
    assert 0 < kept < 59 * len(TEXTS)


def test_all_positives_of_a_query_and_their_copies_are_left_out(checkpoint: str, tmp_path: Path) -> None:
    query = "capital of france"
    same = [Example(query, (text,)) for text in TEXTS[:4]]
    copies = [Example("dog", (TEXTS[0].upper(),)), Example("cat", ("  " + TEXTS[1],))]
    path = mine(checkpoint, [*same, *copies, *EXAMPLES[4:]], tmp_path, negatives=60)
    own = {text.lower().strip() for text in TEXTS[:4]}
    for mined in read_source(path):
        if mined.query == query:
            assert len(mined.passages) == 1 + len(TEXTS) - 4
            assert not own & {text.lower().strip() for text in mined.passages[1:]}


def test_the_top_can_be_skipped(checkpoint: str, tmp_path: Path) -> None:
    whole = [e.passages[1:] for e in read_source(mine(checkpoint, EXAMPLES, tmp_path, negatives=5))]
    rest = [e.passages[1:] for e in read_source(mine(checkpoint, EXAMPLES, tmp_path, negatives=3, skip_top=2))]
    assert rest == [negatives[2:] for negatives in whole]


@pytest.mark.usefixtures("refusing")
def test_impossible_settings_are_refused_before_any_work(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 different positives"):
        mine(checkpoint, [EXAMPLES[0], EXAMPLES[0]], tmp_path)
    with pytest.raises(UserError, match="depth=3, skip_top=3"):
        mine(checkpoint, EXAMPLES, tmp_path, depth=3, skip_top=3)
    assert not os.listdir(tmp_path)


def test_what_is_mined_is_returned_and_only_what_changed_is_done_again(
    checkpoint: str, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mine(checkpoint, EXAMPLES, tmp_path)
    first, seen = path.read_bytes(), len(encoded)
    with monkeypatch.context() as patch:
        patch.setattr(Searcher, "__init__", lambda *_, **__: pytest.fail("searched again"))
        assert mine(checkpoint, EXAMPLES, tmp_path) == path
    assert len(encoded) == seen
    mine(checkpoint, EXAMPLES, tmp_path, negatives=2)
    assert len(encoded) == seen + len(EXAMPLES)  # the queries alone: the index stays
    assert path.read_bytes() != first
    mine(checkpoint, EXAMPLES[:30], tmp_path)
    assert len(encoded) == seen + len(EXAMPLES) + 60
    assert len(list(read_source(path))) == 30


def test_interrupted_mining_leaves_no_half_file_and_goes_on_with_its_index(
    checkpoint: str, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Searcher, "dense_search", lambda *_, **__: pytest.fail("interrupted"))
        with pytest.raises(pytest.fail.Exception):
            mine(checkpoint, EXAMPLES, tmp_path)
    assert not (tmp_path / "mined.jsonl").exists()
    encoded.clear()
    assert len(list(read_source(mine(checkpoint, EXAMPLES, tmp_path)))) == len(EXAMPLES)
    assert len(encoded) == len(EXAMPLES)  # queries
