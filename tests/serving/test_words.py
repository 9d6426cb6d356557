"""Indexes with words: searched by each mode over HTTP as in process, explained, and never mixed up."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from colbert_diffusion import DiffusionCheckpoint, Searcher, build_index, open_index
from colbert_diffusion.config import DiffusionConfig
from colbert_diffusion.encoding.encoder import Encoder
from colbert_diffusion.serving.server import open_app

from .conftest import TEXTS, MakeClient

MODES = ("dense", "lexical", "hybrid")
SOURCES = ("bm25", "predicted")
QUERIES = ["capital of france", "The dog, the DOGS and the moon", *TEXTS[:6]]


@pytest.fixture(scope="session")
def worded(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An index for each source of words, none of them with a recommended weight."""
    root = tmp_path_factory.mktemp("worded")
    built = {}
    for source in SOURCES:
        built[source] = build_index(root / source, TEXTS, tiny_checkpoint, lexical=source, verbose=0)  # type: ignore[arg-type]
    return built


@pytest.fixture(scope="session")
def tuned_path(tiny_config: DiffusionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index whose checkpoint recommends a weight for BM25's words: hybrid unless asked otherwise."""
    root = tmp_path_factory.mktemp("tuned")
    replace(tiny_config, search={**tiny_config.search, "bm25_weight": 0.7}).save(root / "checkpoint")
    return build_index(root / "tuned", TEXTS, root / "checkpoint", lexical="bm25", verbose=0)


@pytest.fixture(scope="module")
def asking(worded: dict[str, Path], tuned_path: Path, served_path: Path) -> Iterator[TestClient]:
    """Serves "tiny", which has no words, "bm25", "predicted" and "tuned"."""
    app = open_app([served_path, *worded.values(), tuned_path])
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def searchers(worded: dict[str, Path], tuned_path: Path, served_path: Path) -> dict[str, Searcher]:
    return {path.name: open_index(path) for path in (*worded.values(), tuned_path, served_path)}


def lexical_of(searcher: Searcher) -> Any:
    assert searcher.lexical is not None
    return searcher.lexical


def assert_same(topk: list[dict[str, Any]], found: tuple[list[int], list[int], list[float]]) -> None:
    pids, ranks, scores = found
    assert [row["pid"] for row in topk] == pids
    assert [row["rank"] for row in topk] == ranks
    assert [row["score"] for row in topk] == pytest.approx(scores, abs=1e-5)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each run of the model had."""
    seen: list[int] = []
    forward = Encoder._forward

    def counting(self: Encoder, batch: Any, *arguments: Any) -> Any:
        seen.append(len(batch.rows))
        return forward(self, batch, *arguments)

    monkeypatch.setattr(Encoder, "_forward", counting)
    return seen


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_gives_what_the_searcher_gives(
    asking: TestClient, searchers: dict[str, Searcher], source: str, mode: str
) -> None:
    for query in QUERIES:
        found = searchers[source].search(query, k=7, mode=mode)
        asked = {"query": query, "k": 7, "index": source, "mode": mode}
        got = asking.get("/api/search", params=asked)  # type: ignore[arg-type]
        assert got.status_code == 200, got.text
        assert_same(got.json()["topk"], found)
        assert asking.post("/api/search", json=asked).json() == got.json()
        if found[0]:
            assert sum(row["prob"] for row in got.json()["topk"]) == pytest.approx(1)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mode", MODES)
def test_several_queries_and_filters_work_in_each_mode(
    asking: TestClient, searchers: dict[str, Searcher], source: str, mode: str
) -> None:
    body = {"queries": QUERIES, "k": 5, "index": source, "mode": mode}
    wanted = [3, 8, 8, 150, 42, 77]
    for filtered in ({}, {"pids": wanted}, {"ids": list(map(str, wanted))}):
        results = asking.post("/api/search", json=body | filtered).json()["results"]
        for query, answer in zip(QUERIES, results, strict=True):
            assert answer["query"] == query
            assert_same(answer["topk"], searchers[source].search(query, k=5, mode=mode, pids=wanted if filtered else None))
    assert asking.post("/api/search", json={"query": "cat", "pids": [], "index": source, "mode": mode}).json()["topk"] == []
    refused = asking.post("/api/search", json={"query": "cat", "pids": [200], "index": source, "mode": mode})
    assert refused.status_code == 422
    assert "1 pids are not in the index (first: 200)" in refused.json()["error"]


def test_without_a_mode_the_index_decides(asking: TestClient, searchers: dict[str, Searcher]) -> None:
    about = {index["name"]: index for index in asking.get("/api/indexes").json()["indexes"]}
    assert {name: (index["lexical"], index["mode"]) for name, index in about.items()} == {
        "tiny": (None, "dense"),
        "bm25": ("bm25", "dense"),
        "predicted": ("predicted", "dense"),
        "tuned": ("bm25", "hybrid"),
    }
    for name, facts in about.items():
        topk = asking.get("/api/search", params={"query": QUERIES[0], "index": name}).json()["topk"]
        assert_same(topk, searchers[name].search(QUERIES[0], k=10))
        assert_same(topk, searchers[name].search(QUERIES[0], k=10, mode=facts["mode"]))


def test_a_mode_in_the_url_of_a_post_holds_unless_the_body_has_one(asking: TestClient) -> None:
    def post(body: dict[str, Any]) -> Any:
        return asking.post("/api/search", params={"mode": "lexical", "index": "bm25"}, json=body).json()

    asked = {"query": QUERIES[0], "index": "bm25"}
    assert post({"query": QUERIES[0]}) == asking.post("/api/search", json=asked | {"mode": "lexical"}).json()
    assert post(asked | {"mode": "hybrid"}) == asking.post("/api/search", json=asked | {"mode": "hybrid"}).json()


@pytest.mark.parametrize("mode", ["words", "", "Dense", 3, ["dense"]])
def test_an_unknown_mode_is_refused_with_those_that_there_are(asking: TestClient, mode: Any) -> None:
    posted = asking.post("/api/search", json={"query": "cat", "mode": mode})
    for refused in (posted, asking.get("/api/search", params={"query": "cat", "mode": mode})):
        if mode == ["dense"] and refused is not posted:
            assert refused.status_code == 200  # in a URL that is mode=dense
            continue
        assert refused.status_code == 422
        assert "'dense', 'lexical' or 'hybrid'" in refused.json()["error"]


@pytest.mark.parametrize("mode", ["lexical", "hybrid"])
def test_words_asked_of_an_index_without_them_are_refused_with_the_remedy(
    asking: TestClient, served_path: Path, mode: str
) -> None:
    refused = asking.post("/api/search", json={"query": "cat", "mode": mode})
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert f'the index tiny has no words for mode "{mode}"' in error
    assert "--lexical bm25" in error
    assert "\n" not in error
    assert str(served_path.parent) not in error


def test_a_query_without_words_of_the_index_finds_nothing_by_words_and_the_same_by_both(asking: TestClient) -> None:
    for source in SOURCES:
        got = {
            mode: asking.get("/api/search", params={"query": "the of", "index": source, "mode": mode}).json()["topk"]
            for mode in MODES
        }
        assert got["lexical"] == []
        assert [row["pid"] for row in got["hybrid"]] == [row["pid"] for row in got["dense"]]


def test_a_post_runs_the_model_once_for_vectors_and_words_and_never_for_bm25_alone(asking: TestClient, runs: list[int]) -> None:
    for source, mode, expected in (
        ("predicted", "hybrid", [len(QUERIES)]),
        ("predicted", "lexical", [len(QUERIES)]),
        ("bm25", "hybrid", [len(QUERIES)]),
        ("bm25", "lexical", []),
    ):
        runs.clear()
        answer = asking.post("/api/search", json={"queries": QUERIES, "index": source, "mode": mode})
        assert answer.status_code == 200
        assert runs == expected, (source, mode)


def test_waiting_queries_of_different_modes_share_a_run_and_keep_their_answers(
    worded: dict[str, Path], searchers: dict[str, Searcher], runs: list[int]
) -> None:
    import asyncio

    from colbert_diffusion.serving.service import Service

    async def ask(path: Path) -> list[Any]:
        service = Service([path])
        runs.clear()
        found = await asyncio.gather(*(service.search([query], 5, mode=mode) for query in QUERIES for mode in MODES))
        service.close()
        return found

    for source, path in worded.items():
        found = asyncio.run(ask(path))
        assert sum(runs) == len(QUERIES) * (3 if source == "predicted" else 2)
        assert len(runs) == 1
        for (query, mode), [hits] in zip([(query, mode) for query in QUERIES for mode in MODES], found, strict=True):
            pids, _, scores = searchers[source].search(query, k=5, mode=mode)
            assert [hit.pid for hit, _ in hits] == pids
            assert [hit.score for hit, _ in hits] == pytest.approx(scores, abs=1e-4)


def test_the_cache_keeps_modes_apart(make_client: MakeClient, tuned_path: Path, runs: list[int]) -> None:
    client = make_client(tuned_path, cache=10)

    def ask(**mode: str) -> Any:
        return client.get("/api/search", params={"query": QUERIES[0], "k": 3, **mode}).json()

    first = {mode: ask(mode=mode) for mode in MODES}
    runs.clear()
    assert {mode: ask(mode=mode) for mode in MODES} == first
    assert ask() == first["hybrid"]  # its own mode, by name or not
    assert runs == []
    assert len({tuple(row["score"] for row in answer["topk"]) for answer in first.values()}) == 3


def test_a_reload_takes_the_words_up(make_client: MakeClient, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = build_index(tmp_path / "changing", TEXTS[:60], tiny_checkpoint, verbose=0)
    client = make_client(path, allow_reload=True, cache=10)
    asked = {"query": "cat dog", "mode": "lexical"}
    assert client.post("/api/search", json=asked).status_code == 422
    build_index(path, TEXTS[:70], tiny_checkpoint, lexical="bm25", overwrite=True, verbose=0)
    assert client.post("/api/reload", json={}).json()["lexical"] == "bm25"
    assert_same(client.post("/api/search", json=asked).json()["topk"], open_index(path).search("cat dog", mode="lexical"))


@pytest.mark.parametrize("side", ["query", "passage"])
def test_texts_encode_with_their_words_on_demand(asking: TestClient, tiny_checkpoint: Path, side: str) -> None:
    checkpoint = DiffusionCheckpoint(tiny_checkpoint)
    expected = (checkpoint.lexical_query if side == "query" else checkpoint.lexical_document)([*QUERIES, "the of"])
    body = {"texts": [*QUERIES, "the of"], "side": side}
    encoded = asking.post("/api/encode", json=body | {"words": True}).json()
    plain = asking.post("/api/encode", json=body).json()
    assert "words" not in plain
    assert {**encoded, "words": None} == {**plain, "words": None}
    assert encoded["words"][-1] == []
    for row, words in zip(expected.toarray(), encoded["words"], strict=True):
        weights = [word["weight"] for word in words]
        assert weights == sorted(weights, reverse=True)
        tokens = {str(checkpoint.encoder.backbone.tokenizer.decode([i])).strip(): row[i] for i in row.nonzero()[0]}
        assert {word["word"]: word["weight"] for word in words} == pytest.approx(tokens, abs=1e-5)


def test_words_that_the_checkpoint_does_not_predict_are_refused_with_the_reason(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_diffusion.encoding.checkpoint.load_head", lambda *_: None)
    client = make_client()
    refused = client.post("/api/encode", json={"texts": ["cat"], "words": True})
    assert refused.status_code == 422
    assert "no prediction head" in refused.json()["error"]
    assert client.post("/api/encode", json={"texts": ["cat"], "words": False}).status_code == 200


@pytest.mark.parametrize("source", SOURCES)
def test_an_explanation_names_the_words_that_add_up_to_the_lexical_score(
    asking: TestClient, searchers: dict[str, Searcher], source: str
) -> None:
    query = QUERIES[1]
    [asked] = searchers[source].ask([query], mode="lexical")
    scores = lexical_of(searchers[source]).scores(asked.words)
    assert (scores == 0).any()
    assert (scores > 0).any()
    for pid in (int(scores.argmax()), int(scores.argmin()), 9):
        found = asking.post("/api/explain", json={"query": query, "pid": pid, "index": source}).json()
        shared = found["lexical"]
        contributions = [word["contribution"] for word in shared["words"]]
        assert shared["source"] == source
        assert sum(contributions) == pytest.approx(float(scores[pid]), abs=1e-5)
        assert shared["score"] == pytest.approx(float(scores[pid]), abs=1e-5)
        assert contributions == sorted(contributions, reverse=True)
        assert all(word["word"] in TEXTS[pid].split() for word in shared["words"])
        assert len(found["matches"]) == 4  # beside what was there


def test_bm25s_words_are_explained_as_they_were_asked(make_client: MakeClient, tiny_checkpoint: Path, tmp_path: Path) -> None:
    texts = ["Paris has capitals.", "東京都 is far", *TEXTS[:40]]
    client = make_client(build_index(tmp_path / "stems", texts, tiny_checkpoint, lexical="bm25", verbose=0))

    def words(query: str, pid: int) -> list[str]:
        answer = client.post("/api/explain", json={"query": query, "pid": pid}).json()
        return [word["word"] for word in answer["lexical"]["words"]]

    assert sorted(words("the CAPITAL, its capitals: paris?", 0)) == ["capital", "paris"]  # not "capit" nor "pari"
    assert sorted(words("東京", 1)) == sorted("東京")


def test_an_index_without_words_explains_as_before(asking: TestClient) -> None:
    found = asking.post("/api/explain", json={"query": "cat", "pid": 9}).json()
    assert found["lexical"] is None
    assert len(found["matches"]) == 4


def test_the_stage_of_words_is_measured_beside_the_others(make_client: MakeClient, worded: dict[str, Path]) -> None:
    client = make_client(worded["bm25"])

    def counted(stage: str) -> float:
        name = f'colbert_diffusion_stage_seconds_count{{stage="{stage}"}} '
        return sum(float(line.removeprefix(name)) for line in client.get("/metrics").text.splitlines() if line.startswith(name))

    search: Callable[[str], Any] = lambda mode: client.get("/api/search", params={"query": "cat dog", "mode": mode})  # noqa: E731
    search("lexical")
    assert [counted(stage) for stage in ("lexical", "encode", "candidates", "score")] == [1, 0, 0, 0]
    search("dense")
    assert [counted(stage) for stage in ("lexical", "encode", "candidates", "score")] == [1, 1, 1, 1]
    search("hybrid")
    assert [counted(stage) for stage in ("lexical", "encode", "candidates")] == [2, 2, 2]
