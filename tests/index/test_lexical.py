"""Words beside vectors: built, searched by every mode, updated; BM25's against bm25s, predicted ones against the checkpoint."""

import json
import math
import random
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bm25s
import colbert
import numpy as np
import pytest
import torch

from colbert_diffusion import DiffusionCheckpoint, IndexUpdater, build_index, open_index
from colbert_diffusion.cli.app import app
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.encoding.identity import identify
from colbert_diffusion.encoding.vectors import encode_to
from colbert_diffusion.index.fusion import Fusion
from colbert_diffusion.index.lexical import (
    BM25,
    LEXICAL_FILE,
    POSTINGS_FILE,
    WORDS_FILE,
    LexicalIndex,
    Stems,
    Words,
    write_bm25,
)
from colbert_diffusion.index.opening import verify

from ..conftest import TinyIndex, make_texts

QUERIES = ["paris germany moon", "the dog runs", "river sea mountain star five", "is the of", "nothing known here", ""]
SOURCES = ["bm25", "predicted"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*make_texts(150, seed=6), "", *make_texts(50, seed=7)]


@pytest.fixture(scope="module")
def built(texts: list[str], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lexical")
    metadata = [{"n": number} for number in range(len(texts))]
    return {
        source: build_index(folder / source, texts, tiny_checkpoint, lexical=source, metadata=metadata, verbose=0)  # type: ignore[arg-type]
        for source in SOURCES
    }


@pytest.fixture(params=SOURCES)
def index(request: pytest.FixtureRequest, built: dict[str, Path]) -> Path:
    return built[request.param]


def brute(texts: list[str], query: str, removed: Collection[int] = (), **settings: float) -> np.ndarray:
    """BM25 of every text by bm25s, a removed one's 0."""
    stems = Stems()
    live = [pid for pid in range(len(texts)) if pid not in removed]
    index = bm25s.BM25(**{"k1": 0.4, "b": 0.6, **settings}, method="lucene")
    index.index([stems.of(texts[pid]) for pid in live], show_progress=False)
    scores, asked = np.zeros(len(texts)), stems.of(query)
    if asked:
        scores[live] = index.get_scores(asked)
    return scores


def predicted(checkpoint: Path, texts: list[str], query: str) -> np.ndarray:
    model = DiffusionCheckpoint(checkpoint)
    scores: np.ndarray = (model.lexical_document(texts) @ model.lexical_query([query]).T).toarray()[:, 0]
    return scores


def expected_scores(source: str, checkpoint: Path, texts: list[str], query: str) -> np.ndarray:
    return brute(texts, query) if source == "bm25" else predicted(checkpoint, texts, query)


def most_of(source: str, checkpoint: Path, texts: list[str], query: str) -> float:
    """What a passage with all of the query's words could score, from the texts alone."""
    if source == "predicted":
        model = DiffusionCheckpoint(checkpoint)
        largest = model.lexical_document(texts).max(axis=0).toarray().ravel()
        return float(model.lexical_query([query]).toarray()[0] @ largest)
    stems = Stems()
    own = [set(stems.of(text)) for text in texts]
    frequencies = [(sum(word in words for words in own), word) for word in stems.of(query)]
    return sum(math.log(1 + (len(texts) - f + 0.5) / (f + 0.5)) for f, _ in frequencies if f)


def ordered(scores: np.ndarray, k: int) -> list[int]:
    """Best first, ties by pid, nothing of score 0; float32, as the index scores."""
    rounded = np.round(scores, 5)
    return [pid for pid in np.lexsort((np.arange(len(scores)), -rounded)).tolist() if rounded[pid] > 0][:k]


@pytest.mark.parametrize("query", QUERIES)
def test_lexical_search_equals_brute_force(index: Path, texts: list[str], tiny_checkpoint: Path, query: str) -> None:
    pids, ranks, scores = open_index(index).search(query, k=len(texts), mode="lexical")
    expected = expected_scores(index.name, tiny_checkpoint, texts, query)
    np.testing.assert_allclose(scores, expected[pids], atol=1e-5)
    assert sorted(pids) == np.flatnonzero(expected > 0).tolist()
    assert ranks == list(range(1, len(pids) + 1))
    assert [(score, -pid) for score, pid in zip(scores, pids, strict=True)] == sorted(
        ((score, -pid) for score, pid in zip(scores, pids, strict=True)), reverse=True
    )


@pytest.mark.parametrize("query", QUERIES)
def test_hybrid_adds_both_scores_of_every_passage(index: Path, texts: list[str], tiny_checkpoint: Path, query: str) -> None:
    """Where all passages are looked at, it is the rule over all scores: of the dense search, and of the words."""
    searcher, count = open_index(index), len(texts)
    dense = np.zeros(count)
    pids, _, scores = searcher.search(query, k=count, mode="dense", pids=range(count))
    dense[pids] = scores
    lexical = expected_scores(index.name, tiny_checkpoint, texts, query)
    most = most_of(index.name, tiny_checkpoint, texts, query)
    assert most >= lexical.max()
    expected = dense / 4 + (0.3 * (lexical / most) ** 2 if most else 0)
    found, _, fused = searcher.search(query, k=10, mode="hybrid", fusion=Fusion("scaled", 0.3), pids=range(count))
    np.testing.assert_allclose(fused, expected[found], atol=1e-4)
    np.testing.assert_allclose(fused, np.sort(expected)[::-1][:10], atol=1e-4)
    usual, _, again = searcher.search(query, k=10, mode="hybrid", fusion=Fusion("scaled", 0.3))
    np.testing.assert_allclose(again, expected[usual], atol=1e-4)


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
@pytest.mark.parametrize("fusion", [Fusion(), Fusion("minmax", 0.5), Fusion("rrf", 0.5)])
def test_filters_mean_the_same_in_every_mode(index: Path, mode: str, fusion: Fusion) -> None:
    searcher, allowed = open_index(index), set(range(0, 200, 3))
    options: dict[str, Any] = {"k": 30, "mode": mode, "fusion": fusion}
    by_pids = searcher.search(QUERIES[0], pids=sorted(allowed), **options)
    by_where = searcher.search(QUERIES[0], where=lambda about: about["n"] in allowed, **options)
    keep = torch.zeros(201, dtype=torch.bool)
    keep[sorted(allowed)] = True
    by_filter = searcher.search(QUERIES[0], filter_fn=lambda pids: pids[keep[pids.long()]], **options)
    assert len(by_pids[0]) > 3
    for found in (by_pids, by_where, by_filter):
        assert set(found[0]) <= allowed
    if mode != "hybrid" or fusion.rule == "scaled":  # the others' scores depend on the lists
        whole = dict(zip(*(searcher.search(QUERIES[0], **{**options, "k": 201})[i] for i in (0, 2)), strict=True))
        for pid, _, score in zip(*by_pids, strict=True):
            assert score == pytest.approx(whole[pid], abs=1e-4)
    none = searcher.search(QUERIES[0], pids=[], **options)
    assert none == ([], [], [])


@pytest.mark.parametrize("mode", ["lexical", "hybrid"])
def test_many_queries_and_threads_find_what_one_does(index: Path, mode: str) -> None:
    searcher = open_index(index)
    alone = [searcher.search(query, k=5, mode=mode) for query in QUERIES]
    with ThreadPoolExecutor(8) as pool:
        threads = list(pool.map(lambda query: searcher.search(query, k=5, mode=mode), QUERIES * 5))
    together = searcher.search_all({str(i): query for i, query in enumerate(QUERIES)}, k=5, mode=mode).todict()
    for i, (pids, ranks, scores) in enumerate(alone):
        assert threads[i :: len(QUERIES)] == [(pids, ranks, scores)] * 5
        assert [entry[0] for entry in together[str(i)]] == pids
        np.testing.assert_allclose([entry[2] for entry in together[str(i)]], scores, atol=1e-5)


def test_the_default_is_hybrid_where_a_weight_is_recommended(
    built: dict[str, Path], tiny_checkpoint: Path, tiny_index: TinyIndex, tmp_path: Path
) -> None:
    query = QUERIES[0]
    for index in (built["bm25"], tiny_index.path):
        searcher = open_index(index)
        assert searcher.fusion is None
        assert searcher.search(query, k=5) == searcher.search(query, k=5, mode="dense")
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "recommends"))
    about = json.loads((checkpoint / "diffusion.json").read_text())
    (checkpoint / "diffusion.json").write_text(json.dumps({**about, "search": {"nbits": 2, "bm25_weight": 0.7}}))
    searcher = open_index(build_index(tmp_path / "i", make_texts(40), checkpoint, lexical="bm25", verbose=0))
    assert searcher.fusion == Fusion("scaled", 0.7)
    assert searcher.search(query, k=5) == searcher.search(query, k=5, mode="hybrid", fusion=Fusion("scaled", 0.7))
    assert searcher.search(query, k=5) != searcher.search(query, k=5, mode="dense")


def test_modes_that_cannot_be_are_refused_with_the_remedy(
    tiny_index: TinyIndex, tiny_checkpoint: Path, built: dict[str, Path]
) -> None:
    with pytest.raises(UserError, match=r"has no words.*--lexical bm25"):
        tiny_index.searcher().search("paris", mode="hybrid")
    with pytest.raises(UserError, match="expected one of dense, lexical, hybrid"):
        open_index(built["bm25"]).search("paris", mode="sparse")
    with pytest.raises(UserError, match="lexical is 'bm26'"):
        build_index(built["bm25"].with_name("n"), ["a"], tiny_checkpoint, lexical="bm26")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="k1 is -1"):
        BM25(k1=-1)


def test_a_query_is_answered_in_the_mode_that_it_was_asked_in(built: dict[str, Path]) -> None:
    searcher = open_index(built["bm25"])
    asked = {mode: searcher.ask(["paris moon"], mode=mode)[0] for mode in ("dense", "lexical", "hybrid")}
    for mode in asked:
        assert searcher.answer(asked[mode], k=5, mode=mode) == searcher.search("paris moon", k=5, mode=mode)
        assert searcher.answer(asked["hybrid"], k=5, mode=mode) == searcher.search("paris moon", k=5, mode=mode)
    for one, other, missing in (("dense", "lexical", "words"), ("dense", "hybrid", "words"), ("lexical", "hybrid", "vectors")):
        with pytest.raises(UserError, match=f"without the {missing}"):
            searcher.answer(asked[one], k=5, mode=other)


def test_a_stock_searcher_ignores_the_words(index: Path) -> None:
    stock = colbert.Searcher(index.name, index_root=str(index.parent), verbose=0)
    own = open_index(index)
    for name in ("ncells", "centroid_score_threshold", "ndocs"):
        stock.configure(**{name: getattr(own.config, name)})
    assert stock.search(QUERIES[0], k=5)[0] == own.search(QUERIES[0], k=5, mode="dense")[0]


def test_k1_and_b_are_kept(texts: list[str], tmp_path: Path) -> None:
    write_bm25(tmp_path, {"source": "bm25", "k1": 1.6, "b": 0.9}, texts)
    index = LexicalIndex(tmp_path, len(texts), 0)
    for query in QUERIES:
        np.testing.assert_allclose(index.scores(index.of_text(query)), brute(texts, query, k1=1.6, b=0.9), atol=1e-5)


def test_1000_queries_equal_bm25s_after_50_random_adds_and_removes(
    texts: list[str], built: dict[str, Path], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """Idf and mean length are those of the passages there are; the same as an index of them built anew."""
    path, draw, now, removed = tmp_path / "i", random.Random(3), list(texts), set[int]()
    shutil.copytree(built["bm25"], path)
    for round_ in range(5):
        update = IndexUpdater(str(path), str(tiny_checkpoint), verbose=0)
        new = [f"{text} word{round_}" for text in make_texts(draw.randint(1, 9), seed=100 + round_)]
        assert update.add(new) == list(range(len(now), len(now) + len(new)))
        now += new
        gone = draw.sample(sorted(set(range(len(now))) - removed), draw.randint(1, 9))
        update.remove(gone)
        removed |= set(gone)
        update.persist_to_disk()
        assert verify(path) == []
    searcher = open_index(path)
    words = sorted({word for text in now for word in text.split()})
    for _ in range(1000):
        query = " ".join(draw.choices(words, k=draw.randint(1, 6)))
        asked = searcher.lexical.of_text(query) if searcher.lexical else None
        assert asked is not None
        np.testing.assert_allclose(searcher.lexical.scores(asked), brute_of(now, query, removed), atol=1e-5)  # type: ignore[union-attr]
    assert not removed & set(searcher.search(QUERIES[0], k=len(now), mode="hybrid")[0])


_COUNTED: dict[int, Any] = {}


def brute_of(texts: list[str], query: str, removed: set[int]) -> np.ndarray:
    """As `brute`, the index of bm25s kept for these texts."""
    stems, live = Stems(), [pid for pid in range(len(texts)) if pid not in removed]
    if len(texts) not in _COUNTED:
        index = bm25s.BM25(k1=0.4, b=0.6, method="lucene")
        index.index([stems.of(texts[pid]) for pid in live], show_progress=False)
        _COUNTED[len(texts)] = index
    scores, asked = np.zeros(len(texts)), stems.of(query)
    if asked:
        scores[live] = _COUNTED[len(texts)].get_scores(asked)
    return scores


@pytest.mark.parametrize("source", SOURCES)
def test_an_update_gives_the_words_of_a_build_from_all_texts(source: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Byte for byte, where no word of a removed passage is gone from all of them."""
    texts = make_texts(60, seed=9)
    build_index(tmp_path / "i", texts[:40], tiny_checkpoint, lexical=source, verbose=0)
    update = IndexUpdater(str(tmp_path / "i"), verbose=0)
    update.add(texts[40:])
    update.remove([3, 45])
    update.persist_to_disk()
    edited = ["" if pid in (3, 45) else text for pid, text in enumerate(texts)]
    build_index(tmp_path / "whole", edited, tiny_checkpoint, lexical=source, verbose=0)
    for name in (LEXICAL_FILE, POSTINGS_FILE, *([WORDS_FILE] if source == "bm25" else [])):
        one, other = tmp_path / "i" / name, tmp_path / "whole" / name
        if source == "bm25":
            assert one.read_bytes() == other.read_bytes(), name
    query = QUERIES[0]
    found, rebuilt = (open_index(tmp_path / name).search(query, k=60, mode="lexical") for name in ("i", "whole"))
    if source == "predicted":
        assert found[0] == rebuilt[0]
        np.testing.assert_allclose(found[2], rebuilt[2], atol=1e-5)


def test_vector_files_with_words_are_indexed_without_the_model(
    tiny_checkpoint: Path, tmp_path: Path, encoded: list[str]
) -> None:
    texts, identity = make_texts(30), identify(tiny_checkpoint)
    encode_to(tmp_path / "v", identity, lambda: DiffusionCheckpoint(tiny_checkpoint), texts, lexical=True)
    encoded.clear()
    build_index(tmp_path / "i", texts, tmp_path / "v", lexical="predicted", verbose=0)
    assert encoded == []
    found = open_index(tmp_path / "i").search(QUERIES[0], k=30, mode="lexical")
    np.testing.assert_allclose(found[2], predicted(tiny_checkpoint, texts, QUERIES[0])[found[0]], atol=1e-5)


def test_vector_files_without_words_are_refused_before_anything_is_built(tiny_checkpoint: Path, tmp_path: Path) -> None:
    texts = make_texts(10)
    encode_to(tmp_path / "v", identify(tiny_checkpoint), lambda: DiffusionCheckpoint(tiny_checkpoint), texts)
    with pytest.raises(UserError, match="without words"):
        build_index(tmp_path / "i", texts, tmp_path / "v", lexical="predicted", verbose=0)
    assert not (tmp_path / "i").exists()
    assert open_index(build_index(tmp_path / "b", texts, tmp_path / "v", lexical="bm25", verbose=0)).lexical is not None


def test_a_rebuild_without_words_leaves_none_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    build_index(tmp_path / "i", make_texts(20), tiny_checkpoint, lexical="bm25", verbose=0)
    build_index(tmp_path / "i", make_texts(20), tiny_checkpoint, overwrite=True, verbose=0)
    assert not list((tmp_path / "i").glob("lexical*"))
    assert verify(tmp_path / "i") == []


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def other_json(path: Path) -> None:
    path.write_text(path.read_text().replace("passages", "passage"))


@pytest.mark.parametrize(
    ("name", "damage"), [(POSTINGS_FILE, cut_off), (POSTINGS_FILE, emptied), (WORDS_FILE, emptied), (LEXICAL_FILE, other_json)]
)
def test_damaged_words_are_refused_by_name(
    built: dict[str, Path], tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    path = Path(shutil.copytree(built["bm25"], tmp_path / "i"))
    damage(path / name)
    with pytest.raises(UserError, match="lexical"):
        open_index(path)
    manifest = json.loads((path / "index.json").read_text())
    del manifest["files"][name]  # its size is not known then
    (path / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"lexical\."):
        open_index(path)
    assert verify(built["bm25"]) == []


def test_words_are_found_by_bisection(tmp_path: Path) -> None:
    known = sorted({"a", "b", "zebra", "é", "東", "\U0001f600", "ab", "𐐀"}, key=str.encode)
    (tmp_path / "w").write_bytes("".join(f"{word}\n" for word in known).encode())
    words = Words(tmp_path / "w")
    assert list(words) == known
    assert [words.find(word) for word in known] == list(range(len(known)))
    assert [words.find(word) for word in ("", "aa", "zz", "\U0010ffff")] == [None] * 4


def test_matches_add_up_to_the_score(index: Path, texts: list[str]) -> None:
    searcher = open_index(index)
    lexical = searcher.lexical
    assert lexical is not None
    [asked] = searcher.ask([QUERIES[2]], mode="lexical")
    assert asked.words is not None
    scores = lexical.scores(asked.words)
    for pid in range(len(texts)):
        assert sum(score for _, score in lexical.matches(asked.words, pid)) == pytest.approx(scores[pid], abs=1e-5)


def test_the_command_line_builds_searches_and_refuses(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    runner = CliRunner()
    (tmp_path / "t.tsv").write_text("".join(f"{pid}\t{text}\n" for pid, text in enumerate(make_texts(20))))
    made = ["--checkpoint", str(tiny_checkpoint), "--lexical", "bm25", "--k1", "1.2", "--json"]
    done = runner.invoke(app, ["index", str(tmp_path / "t.tsv"), str(tmp_path / "i"), *made])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "i" / LEXICAL_FILE).read_text())["k1"] == 1.2
    for options in (
        ["--mode", "lexical"],
        ["--mode", "hybrid", "--fusion", "minmax=0.5"],
        ["--fusion", "scaled=0.4", "--mode", "hybrid"],
    ):
        done = runner.invoke(app, ["search", str(tmp_path / "i"), "paris moon", "--json", *options])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout.splitlines()[-1])["topk"]
    for options, reason in ((["--fusion", "scaled=x"], "scaled=0.3"), (["--mode", "words"], "expected one of")):
        done = runner.invoke(app, ["search", str(tmp_path / "i"), "paris", *options])
        assert isinstance(done.exception, UserError)
        assert reason in str(done.exception)
    done = runner.invoke(app, ["index", str(tmp_path / "t.tsv"), str(tmp_path / "j"), "--k1", "2"])
    assert "--k1 belong to" in str(done.exception)
