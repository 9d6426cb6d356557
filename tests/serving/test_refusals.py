"""Nothing that a client sends is answered by 5xx, and every refusal says why."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colbert_diffusion.serving.app import MAX_BODY

from .conftest import MakeClient


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"query": "cat", "k": 0}, 422, "k is 0, expected 1 to 1000"),
        ({"query": "cat", "k": 1001}, 422, "k is 1001, expected 1 to 1000"),
        ({"query": "cat", "k": "many"}, 422, "body.k"),
        ({"query": "  "}, 422, "queries[0] is empty"),
        ({"query": "x" * 2001}, 422, "queries[0] has 2001 characters, at most 2000"),
        ({"queries": []}, 422, "0 queries, expected 1 to 64"),
        ({"queries": ["cat"] * 65}, 422, "65 queries, expected 1 to 64"),
        ({"query": "cat", "queries": ["dog"]}, 422, 'give "query" or "queries"'),
        ({}, 422, 'give "query" or "queries"'),
        ({"query": "cat", "pid": [3]}, 422, "body.pid: Extra inputs"),
        ({"query": "cat", "pids": [200]}, 422, "1 pids are not in the index (first: 200)"),
        ({"query": "cat", "pids": [-1]}, 422, "body.pids.0"),
        ({"query": "cat", "pids": [2**70]}, 422, "body.pids.0"),
        ({"query": "cat", "index": "absent"}, 404, "there is no index 'absent'; there are: tiny"),
        ([], 422, "expected a JSON object"),
        (None, 422, "body"),
    ],
)
def test_a_search_that_cannot_be_answered_is_refused_with_the_reason(
    client: TestClient, body: Any, status: int, message: str
) -> None:
    refused = client.post("/api/search", json=body)
    assert refused.status_code == status, refused.text
    assert message in refused.json()["error"]
    assert "\n" not in refused.json()["error"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/passages/200", 404),
        ("/api/passages/-1", 422),
        ("/api/passages/99999999999999999999", 422),
        ("/api/passages/0?index=absent", 404),
        ("/api/search", 422),
        ("/api/search?query=cat&k=x", 422),
        ("/api/search?query=cat&k=", 422),
        ("/api/none", 404),
        ("/api/encode", 405),
        ("/static/..%2f..%2fapp.py", 404),
        ("/static/absent.js", 404),
    ],
)
def test_what_is_not_there_is_refused(client: TestClient, path: str, status: int) -> None:
    refused = client.get(path)
    assert refused.status_code == status
    assert refused.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/api/encode", {"texts": ["a"] * 65}, "65 texts"),
        ("/api/encode", {"texts": ["x" * 20_001]}, "texts[0] has 20001 characters"),
        ("/api/encode", {"texts": ["a"], "side": "both"}, "body.side"),
        ("/api/explain", {"query": "cat", "pid": 200}, "there is no passage 200; the index has pids 0..199"),
        ("/api/explain", {"query": "", "pid": 2}, "is empty"),
    ],
)
def test_other_posts_are_refused_with_the_reason(client: TestClient, path: str, body: Any, message: str) -> None:
    refused = client.post(path, json=body)
    assert refused.status_code in (404, 422)
    assert message in refused.json()["error"]


def test_a_body_above_the_limit_is_refused_however_it_is_sent(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    whole = client.post("/api/search", content=b" " * (MAX_BODY + 1), headers=headers)
    pieces = client.post("/api/search", content=(b" " * 1000 for _ in range(MAX_BODY // 1000 + 1)), headers=headers)
    assert (whole.status_code, pieces.status_code) == (413, 413)
    assert str(MAX_BODY) in whole.json()["error"]


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"query": "cat", "k": ' + b"9" * 5000 + b"}", b"NaN"])
def test_bytes_that_are_no_request_are_refused(client: TestClient, raw: bytes) -> None:
    assert client.post("/api/search", content=raw, headers={"Content-Type": "application/json"}).status_code in (400, 422)


def test_lone_surrogates_are_answered(client: TestClient) -> None:
    raw = b'{"query": "cat \\ud800", "k": 2}'
    answer = client.post("/api/search", content=raw, headers={"Content-Type": "application/json"})
    assert answer.json()["query"] == "cat ?"
    for path, body in (
        ("/api/encode", b'{"texts": ["\\udfff"]}'),
        ("/api/explain", b'{"query": "\\udfff", "pid": 1}'),
        ("/api/search", b'{"query": "a", "index": "\\udfff"}'),
        ("/api/search", b'{"query": "a", "\\udfff": 1}'),
    ):
        assert client.post(path, content=body, headers={"Content-Type": "application/json"}).status_code in (200, 404, 422)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("query", "queries", "k", "pids", "index", "texts", "side", "pid", "mode", "words")
LIKELY = (
    st.text()
    | st.integers(-2, 2100)
    | st.lists(st.text() | st.integers(-2, 300), max_size=4)
    | st.sampled_from(["tiny", "query", "dense", "hybrid", True])
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(["/api/search", "/api/encode", "/api/explain"]),
    body=st.dictionaries(st.sampled_from(FIELDS), LIKELY | JSON, max_size=5) | JSON,
)
def test_no_json_body_is_a_server_error(client: TestClient, path: str, body: Any) -> None:
    import json

    answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 404, 422), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]


def test_with_a_token_nothing_answers_without_it(make_client: MakeClient, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    client = make_client(token_file=tmp_path / "token")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": b"Bearer \xe9"}):
        for path in ("/api/search?query=cat", "/api/indexes", "/metrics"):
            refused = client.get(path, headers=headers)  # type: ignore[arg-type]
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
    right = {"Authorization": "bearer secret"}
    assert client.get("/api/search?query=cat", headers=right).status_code == 200
    assert client.get("/metrics", headers=right).status_code == 200
    assert client.get("/healthz").status_code == client.get("/").status_code == 200


def test_other_origins_are_let_in_only_when_named(client: TestClient, make_client: MakeClient) -> None:
    origin = {"Origin": "https://a.example"}
    assert "access-control-allow-origin" not in client.get("/api/search?query=cat", headers=origin).headers
    open_to = make_client(cors=["https://a.example"])
    assert open_to.get("/api/search?query=cat", headers=origin).headers["access-control-allow-origin"] == "https://a.example"
    other = open_to.get("/api/search?query=cat", headers={"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_misspelt_name_in_a_url_is_refused_as_in_a_body(client: TestClient, method: str) -> None:
    if method == "GET":
        refused = client.get("/api/search?query=cat&pid=3")
    else:
        refused = client.post("/api/search?pid=3", json={"query": "cat"})
    assert refused.status_code == 422
    assert "unknown in the URL: pid; expected i" in refused.json()["error"]


@pytest.mark.parametrize("asked", ["pids=3&pids=4", "pids=3,4", "pids=[3,4]", "pids=[3]&pids=4", "pids=%5B3, 4%5D"])
def test_pids_in_a_url_are_taken_in_every_usual_form(client: TestClient, asked: str) -> None:
    found = client.get(f"/api/search?query=cat&{asked}").json()["topk"]
    assert {hit["pid"] for hit in found} == {3, 4}


@pytest.mark.parametrize("asked", ["pids=", "pids=[]"])
def test_no_pids_in_a_url_are_no_passages(client: TestClient, asked: str) -> None:
    assert client.get(f"/api/search?query=cat&{asked}").json()["topk"] == []


@pytest.mark.parametrize("asked", ["pids=x", "pids=3,x", "pids=-1", "pids=[[3]]", "pids=3.5", "pids=99999999999"])
def test_what_is_no_pid_in_a_url_is_refused(client: TestClient, asked: str) -> None:
    assert client.get(f"/api/search?query=cat&{asked}").status_code == 422


def test_a_name_that_is_not_this_machines_is_refused_on_the_loopback_alone(make_client: MakeClient) -> None:
    """Else a page from anywhere could have its own name resolve to this machine (DNS rebinding)."""
    here = make_client(hosts=("127.0.0.1", "search.lan"))
    for host, status in (("127.0.0.1:8893", 200), ("localhost", 200), ("search.lan", 200), ("evil.example", 400), ("", 400)):
        assert here.get("/api/search?query=cat", headers={"host": host}).status_code == status, host
    everywhere = make_client(hosts=("0.0.0.0",))
    assert everywhere.get("/api/search?query=cat", headers={"host": "anything"}).status_code == 200


def test_a_redirect_never_leads_to_the_host_that_the_request_gave(client: TestClient) -> None:
    answer = client.get("/api/search/?query=cat", headers={"host": "evil.example"}, follow_redirects=False)
    assert answer.headers.get("location", "/").startswith("/")
    assert "evil" not in answer.headers.get("location", "")
