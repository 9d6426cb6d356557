"""What one client may hold: deadlines, a bound, and others who are answered meanwhile."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from colbert_diffusion.serving import app, connections
from colbert_diffusion.serving.connections import Connections
from colbert_diffusion.serving.index import OpenedIndex

from .conftest import MakeClient, serving


class Transport:
    """What `Connections` needs of one."""

    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def opened(most: int, *steps: str) -> list[int]:
    """Which of the connections were closed: "+" opens one, "2" sends the request of number 2, "2!" is its answer."""

    async def run() -> list[int]:
        bounded, made = Connections(most), list[Any]()
        for step in steps:
            if step == "+":
                made.append(Transport())
                bounded.opened(made[-1])
            elif step.endswith("!"):
                bounded.answered(made[int(step[:-1])])
            else:
                bounded.asked(made[int(step)])
        await asyncio.sleep(0)
        return [number for number, transport in enumerate(made) if transport.aborted]

    return asyncio.run(run())


def test_the_stranger_that_was_awaited_longest_makes_room_then_the_one_that_is_idle_longest() -> None:
    assert opened(2, "+", "+") == []
    assert opened(2, "+", "+", "+", "+") == [0, 1]
    assert opened(2, "+", "0", "+", "+") == [1]
    assert opened(2, "+", "0", "0!", "+", "+") == [1]
    assert opened(2, "+", "0", "+", "1", "1!", "0!", "+") == [1]
    assert opened(2, "+", "0", "+", "1", "+") == [2]


SLOW = b"GET /api/search?query=cat HTTP/1.1\r\nHost: "


def test_more_slow_connections_than_descriptors_keep_nobody_from_an_answer(served_path: Path) -> None:
    with serving(served_path, descriptors=120) as (process, url), ExitStack() as held:
        where = ("127.0.0.1", int(url.rpartition(":")[2]))
        with httpx.Client(base_url=url) as client:
            for _ in range(5):
                for _ in range(60):
                    connection = held.enter_context(closing(socket.create_connection(where)))
                    connection.sendall(SLOW)
                assert client.get("/api/search", params={"query": "cat"}).status_code == 200
            assert httpx.get(f"{url}/api/search", params={"query": "cat"}).status_code == 200
        process.terminate()
        _, log = process.communicate(timeout=60)
        assert log == ""


@pytest.fixture
def url(make_client: MakeClient) -> Iterator[str]:
    """A real socket before an application in this process, so that deadlines can be short."""
    with listening(make_client().app) as url:
        yield url


@contextmanager
def listening(application: Any) -> Iterator[str]:
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, http=connections.protocol(Connections(8)), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def talk(url: str, *parts: bytes, pause: float = 0.05) -> tuple[bytes, float]:
    """What comes back until the server closes the connection, and after how many seconds."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.settimeout(10)
        started, answer = time.perf_counter(), b""
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                break
            time.sleep(pause)
        try:
            while received := connection.recv(1 << 16):
                answer += received
        except ConnectionError:
            pass
        return answer, time.perf_counter() - started


def test_headers_have_a_deadline_that_no_further_byte_moves(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS", 0.4)
    answer, seconds = talk(url, *(SLOW[i : i + 1] for i in range(len(SLOW))))
    assert answer == b""
    assert 0.3 < seconds < 5
    answer, seconds = talk(url, SLOW + b"127.0.0.1\r\n\r\n", *(SLOW[i : i + 1] for i in range(len(SLOW))))
    assert answer.startswith(b"HTTP/1.1 200")
    assert seconds < 5


def test_a_body_has_a_deadline_and_its_client_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.4)
    head = b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n"
    answer, seconds = talk(url, head + b'{"query": "c')
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"the body did not arrive within 0 s" in answer
    assert seconds < 5


def test_an_answer_that_nobody_reads_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READING", 0.4)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        connection.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        connection.settimeout(10)
        asked = b"GET /api/search?query=cat&k=200 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        with pytest.raises((ConnectionError, BrokenPipeError)):
            for _ in range(2000):
                connection.sendall(asked)
                time.sleep(0.005)


def test_only_so_many_large_requests_are_parsed_at_a_time(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    vectors = OpenedIndex.vectors

    def slow(self: OpenedIndex, *arguments: Any) -> Any:
        release.wait(30)
        return vectors(self, *arguments)

    monkeypatch.setattr(OpenedIndex, "vectors", slow)
    monkeypatch.setattr(app, "PATIENCE", 0.3)
    with listening(make_client().app) as url, ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> httpx.Response:
            return httpx.post(f"{url}/api/encode", json={"texts": ["cat"]}, timeout=30)

        waiting = [pool.submit(ask, number) for number in range(app.PARSED + 1)]
        refused = next(as_completed(waiting)).result()
        assert refused.status_code == 429
        assert "requests are being encoded" in refused.json()["error"]
        release.set()
        assert sorted(done.result().status_code for done in waiting) == [200] * app.PARSED + [429]
