"""The search API as ColBERT's server and DSPy's client know it, and ours around it."""

from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from colbert_diffusion import DiffusionCheckpoint, Searcher
from colbert_diffusion.serving.service import probabilities

from .conftest import TEXTS, MakeClient


def test_get_and_post_give_what_the_searcher_gives(client: TestClient, served_path: Path) -> None:
    searcher = Searcher(served_path.name, index_root=str(served_path.parent), verbose=0)
    pids, ranks, scores = searcher.search(TEXTS[5], k=7)
    got = client.get("/api/search", params={"query": TEXTS[5], "k": 7})
    assert got.status_code == 200
    assert got.json() == client.post("/api/search", json={"query": TEXTS[5], "k": 7}).json()
    topk = got.json()["topk"]
    assert got.json()["query"] == TEXTS[5]
    assert [row["pid"] for row in topk] == pids
    assert [row["rank"] for row in topk] == ranks
    assert [row["score"] for row in topk] == pytest.approx(scores, abs=1e-4)
    assert all(row["text"] == row["long_text"] == TEXTS[row["pid"]] for row in topk)
    assert sum(row["prob"] for row in topk) == pytest.approx(1)
    assert "error" not in got.json()


def test_the_requests_of_dspys_client_are_answered_as_it_reads_them(client: TestClient) -> None:
    """dspy/dsp/colbertv2.py, 3.4: GET with params, POST with this header; `topk`, `text`, `long_text`, a falsy `error`."""
    payload: dict[str, str | int] = {"query": "capital of france", "k": 3}
    got = client.get("/api/search", params=payload)
    posted = client.post("/api/search", json=payload, headers={"Content-Type": "application/json; charset=utf-8"})
    for answer in (got, posted):
        answer.raise_for_status()
        content = answer.json()
        assert not content.get("error")
        assert [passage["long_text"] for passage in content["topk"][:3]] == [d["text"] for d in content["topk"]]
    refused = client.get("/api/search", params={"query": "cat", "k": 0})
    assert (refused.json()["error"], refused.json()["message"]) == ("k is 0, expected 1 to 1000",) * 2


def test_many_queries_in_one_post_are_answered_like_single_ones(client: TestClient) -> None:
    queries = TEXTS[:20]
    results = client.post("/api/search", json={"queries": queries, "k": 4}).json()["results"]
    assert [answer["query"] for answer in results] == queries
    for query, answer in zip(queries, results, strict=True):
        alone = client.post("/api/search", json={"query": query, "k": 4}).json()
        assert [row["pid"] for row in answer["topk"]] == [row["pid"] for row in alone["topk"]]
        assert [row["score"] for row in answer["topk"]] == pytest.approx([row["score"] for row in alone["topk"]], abs=1e-4)


def test_only_passages_of_the_filter_come_back(client: TestClient) -> None:
    wanted = [3, 8, 8, 150]
    posted = client.post("/api/search", json={"query": "cat", "pids": wanted}).json()["topk"]
    assert sorted(row["pid"] for row in posted) == [3, 8, 150]
    got = client.get("/api/search", params={"query": "cat", "pids": [3, 8, 150], "k": 2}).json()["topk"]
    assert got[0]["pid"] == posted[0]["pid"]
    assert len(got) == 2
    by_id = client.post("/api/search", json={"query": "cat", "ids": ["3", "8", "150"]}).json()["topk"]
    assert by_id == posted
    assert all(row["id"] == str(row["pid"]) for row in posted)  # this collection has no ids of its own
    assert client.get("/api/search", params={"query": "cat", "ids": ["3", "8", "150"]}).json()["topk"] == posted
    for unknown in ("no", "-1", "200", "9" * 5000):
        assert client.post("/api/search", json={"query": "cat", "ids": [unknown]}).status_code == 404
    assert client.post("/api/search", json={"query": "cat", "ids": ["3"], "pids": [3]}).status_code == 422
    assert client.get("/api/search", params={"query": "cat", "ids": ["3"], "pids": [3]}).status_code == 422
    assert client.post("/api/search", json={"query": "cat", "pids": []}).json()["topk"] == []


def test_fewer_passages_than_k_come_back_when_there_are_no_more(client: TestClient) -> None:
    topk = client.get("/api/search", params={"query": "cat", "k": 1000}).json()["topk"]
    assert [row["rank"] for row in topk] == list(range(1, len(topk) + 1))
    assert len({row["pid"] for row in topk}) == len(topk) <= len(TEXTS)


def test_probabilities_sum_to_one_for_scores_of_any_size() -> None:
    assert sum(probabilities([1e6, 1e6 - 1, -1e6])) == pytest.approx(1)
    assert probabilities([1e300, 0.0]) == [1.0, 0.0]
    assert probabilities([]) == []


def test_texts_encode_as_the_checkpoint_encodes_them(client: TestClient, tiny_checkpoint: Path) -> None:
    checkpoint = DiffusionCheckpoint(tiny_checkpoint)
    expected = {"query": checkpoint.encode_query(TEXTS[:3]), "passage": checkpoint.encode_document(TEXTS[:3])}
    for side, k in (("query", 4), ("passage", 8)):
        encoded = client.post("/api/encode", json={"texts": TEXTS[:3], "side": side}).json()
        assert encoded["shapes"] == [[k, 16]] * 3
        assert encoded["dim"] == 16
        assert np.allclose(encoded["vectors"], expected[side], atol=1e-5)


def test_an_explanation_adds_up_and_names_the_predicted_words(client: TestClient, tiny_checkpoint: Path) -> None:
    found = client.post("/api/explain", json={"query": "capital of france", "pid": 9}).json()
    assert found["text"] == TEXTS[9]
    similarities = np.array(found["similarities"])
    assert similarities.shape == (4, 8)
    assert [match["passage"] for match in found["matches"]] == similarities.argmax(axis=1).tolist()
    [(_, score)] = DiffusionCheckpoint(tiny_checkpoint).rerank("capital of france", [TEXTS[9]])
    assert found["score"] == pytest.approx(score, abs=1e-4)
    assert sum(match["similarity"] for match in found["matches"]) == pytest.approx(score, abs=1e-4)
    [words] = DiffusionCheckpoint(tiny_checkpoint).predict_words(["capital of france"], "query", 8)
    assert found["query_words"] == words
    assert len(found["passage_words"]) == 8
    assert found["note"] is None


def test_without_a_prediction_head_the_explanation_says_so_and_keeps_the_matches(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_diffusion.encoding.checkpoint.load_head", lambda *_: None)
    client = make_client()
    found = client.post("/api/explain", json={"query": "cat", "pid": 9}).json()
    assert "no prediction head" in found["note"]
    assert found["query_words"] is None
    assert len(found["matches"]) == 4


def test_several_indexes_go_by_their_folders_names(make_client: MakeClient, served_path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(served_path)
    client = make_client(served_path, tmp_path / "other")
    about = client.get("/api/indexes").json()
    assert about["default"] == "tiny"
    assert [(index["name"], index["passages"], index["vectors"]) for index in about["indexes"]] == [
        ("tiny", 200, 1600),
        ("other", 200, 1600),
    ]
    for index in ("tiny", "other"):
        assert client.get("/api/passages/7", params={"index": index}).json() == {"pid": 7, "text": TEXTS[7]}
        assert client.get("/api/search", params={"query": "cat", "index": index}).status_code == 200
        assert client.post("/api/search", params={"index": index}, json={"query": "cat"}).status_code == 200
    assert client.post("/api/search", params={"index": "absent"}, json={"query": "cat"}).status_code == 404


def test_health_metrics_and_the_description_are_there(client: TestClient) -> None:
    client.get("/api/search", params={"query": "cat"})
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.head("/healthz").status_code == client.head("/readyz").status_code == 200
    numbers = client.get("/metrics").text
    assert 'colbert_diffusion_requests_total{method="GET",route="/api/search",status="200"}' in numbers
    for stage in ("encode", "candidates", "score"):
        assert f'colbert_diffusion_stage_seconds_count{{stage="{stage}"}}' in numbers
    described = client.get("/openapi.json").json()["paths"]
    assert set(described) == {"/api/search", "/api/encode", "/api/explain", "/api/passages/{pid}", "/api/indexes"}
