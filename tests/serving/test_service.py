"""Many at once: batches, the cache, overload, reloading."""

import asyncio
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from colbert.infra import Run, RunConfig
from fastapi.testclient import TestClient

from colbert_diffusion import Indexer, UserError
from colbert_diffusion.serving.app import create_app
from colbert_diffusion.serving.batching import REST, Background, Batcher
from colbert_diffusion.serving.index import OpenedIndex, Question
from colbert_diffusion.serving.metrics import Metrics
from colbert_diffusion.serving.service import BusyEncodingError, Limits, OverloadedError, Service
from colbert_diffusion.serving.service import _slices as slices_of

from ..conftest import make_texts
from .conftest import TEXTS, MakeClient


def test_items_that_wait_together_run_together_in_order() -> None:
    runs: list[list[int]] = []

    def double(items: list[int]) -> list[int]:
        runs.append(items)
        return [2 * item for item in items]

    async def ask() -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(double, pool, largest=8)
            first = await asyncio.gather(*(batcher(i) for i in range(20)))
            return [*first, await batcher(20)]

    assert asyncio.run(ask()) == [2 * i for i in range(21)]
    assert runs == [list(range(8)), list(range(8, 16)), list(range(16, 20)), [20]]


def test_a_failed_batch_fails_its_items_and_no_later_ones() -> None:
    def fail_once(items: list[int]) -> Sequence[int]:
        if 0 in items:
            raise UserError("no")
        return items

    async def ask() -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(fail_once, pool)
            failed = await asyncio.gather(batcher(0), batcher(1), return_exceptions=True)
            return [*failed, await batcher(2)]

    first, second, third = asyncio.run(ask())
    assert isinstance(first, UserError)
    assert isinstance(second, UserError)
    assert third == 2


def test_long_work_runs_in_slices_by_turns_and_leaves_waiting_short_work_nine_parts_of_ten() -> None:
    async def ask(busy: bool) -> tuple[list[str], float]:
        runs: list[str] = []

        def work(name: str) -> str:
            runs.append(name)
            time.sleep(0.01)
            return name

        with ThreadPoolExecutor(1) as pool:
            background = Background(pool, lambda: busy)
            started = perf_counter()
            jobs = [background([partial(work, f"{name}{i}") for i in range(3)]) for name in "ab"]
            assert await asyncio.gather(*jobs) == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]
            return runs, perf_counter() - started

    turns = ["a0", "b0", "a1", "b1", "a2", "b2"]
    runs, alone = asyncio.run(ask(busy=False))
    assert runs == turns
    runs, beside = asyncio.run(ask(busy=True))
    assert runs == turns
    assert beside > 6 * 0.01 * (1 + REST) > alone


def test_a_slice_that_fails_fails_its_own_caller_alone() -> None:
    def fail() -> None:
        raise UserError("no")

    async def ask() -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            background = Background(pool, lambda: False)
            return list(await asyncio.gather(background([fail, fail]), background([lambda: 1]), return_exceptions=True))

    failed, found = asyncio.run(ask())
    assert isinstance(failed, UserError)
    assert found == [1]


@pytest.mark.parametrize(
    ("tokens", "parts"),
    [
        ([10], [(0, 1)]),
        ([512, 512, 1], [(0, 2), (2, 3)]),
        ([2000, 2000], [(0, 1), (1, 2)]),
        ([300] * 7, [(0, 3), (3, 6), (6, 7)]),
    ],
)
def test_slices_hold_every_text_once_and_more_than_one_only_within_the_bound(
    tokens: list[int], parts: list[tuple[int, int]]
) -> None:
    assert list(slices_of(tokens)) == parts


def test_texts_to_encode_wait_by_their_tokens_and_apart_from_searches(
    served_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    vectors = OpenedIndex.vectors

    def slow(self: OpenedIndex, *arguments: Any) -> Any:
        release.wait(30)
        return vectors(self, *arguments)

    async def ask() -> None:
        service = Service([served_path], Limits(pending=4, tokens=400))
        with pytest.raises(UserError, match="tokens that are read, at most 400 in one request"):
            await service.encode(["word " * 100] * 64, "passage")
        waiting = asyncio.create_task(service.encode(["word " * 100] * 6, "passage"))
        await asyncio.sleep(0.05)
        held = service.tokens
        assert 6 * 40 < held <= 400
        with pytest.raises(BusyEncodingError, match=f"{held} tokens wait to be encoded, at most 400 may"):
            await service.encode(["word " * 100] * 6, "passage")
        assert service.pending == 0
        searching = asyncio.create_task(service.search(TEXTS[:4], 3))
        release.set()
        assert len(await searching) == 4
        assert [text.shape for text in await waiting] == [(8, 16)] * 6
        assert service.tokens == 0
        service.close()

    monkeypatch.setattr(OpenedIndex, "vectors", slow)
    asyncio.run(ask())


def test_busy_encoding_is_429_with_the_limit_and_retry_after(served_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "tokens", property(lambda self: 65_500, lambda self, value: None), raising=False)
    with TestClient(create_app(Service([served_path]), Metrics())) as client:
        refused = client.post("/api/encode", json={"texts": ["cat " * 50]})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "65,500 tokens wait to be encoded, at most 65,536 may" in refused.json()["error"]
        assert client.get("/api/search", params={"query": "cat"}).status_code == 200


def test_answers_under_load_equal_the_same_answers_alone(served_path: Path, encoded: list[str]) -> None:
    async def ask() -> tuple[list[Any], list[Any]]:
        service = Service([served_path])
        together = await asyncio.gather(*(service.search([text], 5) for text in TEXTS))
        alone = [await service.search([text], 5) for text in TEXTS]
        service.close()
        return together, alone

    together, alone = asyncio.run(ask())
    for a, b in zip(together, alone, strict=True):
        assert [hit.pid for hit, _ in a[0]] == [hit.pid for hit, _ in b[0]]
        assert [hit.score for hit, _ in a[0]] == pytest.approx([hit.score for hit, _ in b[0]], abs=1e-4)


def test_repeated_queries_are_encoded_once_with_a_cache_and_again_without(make_client: MakeClient, encoded: list[str]) -> None:
    for cache, times in ((0, 2), (10, 1)):
        client = make_client(cache=cache)
        encoded.clear()
        first, second = (client.get("/api/search", params={"query": "cat", "k": 3}).json() for _ in range(2))
        assert first == second
        assert encoded == ["cat"] * times
    for other in ({"k": 4}, {"pids": [1, 2]}, {"pids": [1, 3]}):  # each decides the answer
        client.get("/api/search", params={"query": "cat", "k": 3, **other})
    assert encoded == ["cat"] * 4
    for i in range(10):
        client.get("/api/search", params={"query": TEXTS[i], "k": 3})
    encoded.clear()
    client.get("/api/search", params={"query": "cat", "k": 3})
    assert encoded == ["cat"]  # the oldest made room


def test_more_than_may_wait_is_refused_at_once_and_answered_later(served_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    encode = OpenedIndex.encode

    def slow(self: OpenedIndex, questions: Sequence[Question]) -> Any:
        release.wait(30)
        return encode(self, questions)

    async def ask() -> None:
        service = Service([served_path], Limits(pending=4))
        waiting = asyncio.create_task(service.search(TEXTS[:4], 3))
        await asyncio.sleep(0.05)
        assert service.pending == 4
        with pytest.raises(OverloadedError, match="4 texts are waiting, at most 4 may"):
            await service.search(["cat"], 3)
        release.set()
        assert len(await waiting) == 4
        assert service.pending == 0
        assert len(await service.search(["cat"], 3)) == 1
        service.close()

    monkeypatch.setattr(OpenedIndex, "encode", slow)
    asyncio.run(ask())


def test_overload_is_503_with_retry_after(served_path: Path) -> None:
    with TestClient(create_app(Service([served_path], Limits(pending=2)), Metrics())) as client:
        refused = client.post("/api/search", json={"queries": ["cat", "dog", "sun"]})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert client.post("/api/search", json={"queries": ["cat", "dog"]}).status_code == 200


def test_reload_serves_the_rebuilt_index_and_keeps_the_old_one_when_it_cannot(
    make_client: MakeClient, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def build(texts: list[str]) -> Path:
        with Run().context(RunConfig(index_root=str(tmp_path))):
            return Path(Indexer(str(tiny_checkpoint), verbose=0).index("changing", texts, overwrite=True))

    old, new = make_texts(60, seed=7), make_texts(70, seed=8)
    client = make_client(build(old), allow_reload=True, cache=10)
    asked = {"query": "cat", "k": 60}
    assert all(row["text"] == old[row["pid"]] for row in client.post("/api/search", json=asked).json()["topk"])
    build(new)
    assert client.get("/api/passages/3").json()["text"] == old[3]
    assert client.post("/api/reload", json={}).json()["passages"] == 70
    assert all(row["text"] == new[row["pid"]] for row in client.post("/api/search", json=asked).json()["topk"])
    centroids, manifest = tmp_path / "changing" / "centroids.pt", tmp_path / "changing" / "index.json"
    size = centroids.stat().st_size
    for damage, message in (
        (lambda: centroids.write_bytes(bytes(size)), "is damaged (centroids.pt: changed"),
        (centroids.unlink, "is damaged (centroids.pt: missing"),
        (manifest.unlink, "cannot be opened (FileNotFoundError"),  # as one that ColBERT built
    ):
        damage()
        refused = client.post("/api/reload", json={"index": "changing"})
        assert refused.status_code == 422
        assert message in refused.json()["error"]
        assert client.get("/api/passages/3").json()["text"] == new[3]
    assert client.post("/api/reload", json={"index": "absent"}).status_code == 404


def test_indexes_of_one_checkpoint_share_it_and_a_reloaded_one_too(served_path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(served_path)

    async def ask() -> None:
        service = Service([served_path, tmp_path / "other"])
        first, second = (service._find(name).index for name in ("tiny", "other"))
        assert first.model is second.model
        old, model = weakref.ref(first._searcher.ranker), second.model
        del first
        await service.reload("tiny")
        assert service._find("tiny").index.model is model
        assert old() is None, "the replaced index stays in memory"
        service.close()

    asyncio.run(ask())


def test_every_request_is_answered_while_indexes_are_reloaded(served_path: Path) -> None:
    async def ask() -> None:
        service = Service([served_path])
        expected = [hit.pid for hit, _ in (await service.search(["cat dog"], 5))[0]]
        reloaded = asyncio.Event()

        async def caller() -> int:
            answered = 0
            while not reloaded.is_set():
                [hits] = await service.search(["cat dog"], 5)
                assert [hit.pid for hit, _ in hits] == expected
                answered += 1
            return answered

        callers = [asyncio.create_task(caller()) for _ in range(8)]
        for _ in range(3):
            await service.reload()
        reloaded.set()
        assert all(await asyncio.gather(*callers))
        service.close()

    asyncio.run(ask())


def test_reloading_is_off_unless_enabled(make_client: MakeClient) -> None:
    assert make_client().post("/api/reload", json={}).status_code == 404


def test_two_indexes_of_one_name_are_refused(served_path: Path) -> None:
    with pytest.raises(UserError, match="two indexes are named tiny"):
        Service([served_path, served_path])
