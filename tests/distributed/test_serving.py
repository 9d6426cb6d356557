"""Replicas on a real Ray cluster of this machine: what they answer while one dies, and while an index is replaced."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_diffusion import build_index, open_index
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.distributed import deploying
from colbert_diffusion.distributed.deploying import Size, deploy
from colbert_diffusion.distributed.replicas import APPLICATION, Served
from colbert_diffusion.index.opening import index_state
from colbert_diffusion.seam import building

from ..cli.test_cli import run
from ..conftest import TinyIndex, make_texts

QUERIES = ["red dog", "the cat", "a star of the sea", "paris", "sun moon", "green apple in france"]
CALLERS = 6
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
Answer = tuple[tuple[int, ...], tuple[float, ...]]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    import ray

    ray.init(address="local", num_cpus=12, log_to_driver=False, logging_level=logging.ERROR)  # of which there are fewer here
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    yield number
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "CHUNK", 100)


class Load:
    """Callers that ask all the time, and what they were told."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.statuses, self.answers = Counter[int](), dict[str, set[Answer]]()
        self._stop = threading.Event()
        self._callers = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(CALLERS)]

    def __enter__(self) -> "Load":
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for caller in self._callers:
            caller.join()

    def ask(self, query: str) -> Answer:
        with urllib.request.urlopen(f"{self.address}/api/search?k=5&query={query.replace(' ', '+')}", timeout=60) as answer:
            topk = json.load(answer)["topk"]
        return tuple(hit["pid"] for hit in topk), tuple(round(hit["score"], 3) for hit in topk)

    def _ask_on(self, number: int) -> None:
        while not self._stop.is_set():
            query = QUERIES[number % len(QUERIES)]
            number += 1
            try:
                self.answers.setdefault(query, set()).add(self.ask(query))
                self.statuses[200] += 1
            except urllib.error.HTTPError as error:
                self.statuses[error.code] += 1
                error.close()

    @property
    def failed(self) -> int:
        return self.statuses.total() - self.statuses[200]


def expected(index: Path, mode: str | None = None) -> dict[str, Answer]:
    searcher = open_index(index)
    found = {query: searcher.search(query, k=5, mode=mode) for query in QUERIES}
    return {query: (tuple(pids), tuple(round(score, 3) for score in scores)) for query, (pids, _, scores) in found.items()}


def assert_right(answers: dict[str, set[Answer]], allowed: Sequence[dict[str, Answer]]) -> None:
    assert answers.keys() == set(QUERIES)
    for query, found in answers.items():
        for pids, scores in found:
            assert any(pids == own[query][0] and np.allclose(scores, own[query][1], atol=2e-3) for own in allowed), query


def served(index: Path) -> Served:
    return Served((index,), (index_state(index),), {})


def replicas(what: str) -> dict[int, str]:
    """Ray's processes by their ids."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode()
            except OSError:
                continue
            if command.startswith("ray::ServeReplica") and what in command:
                found[int(entry.name)] = command
    return found


def wait_for(count: int, what: str) -> None:
    deadline = time.monotonic() + 120
    while len(replicas(what)) != count:
        assert time.monotonic() < deadline, replicas("")
        time.sleep(0.2)


def asked_while_one_dies(port: int, what: str) -> Load:
    with Load(port) as load:
        time.sleep(3)
        os.kill(min(replicas(what)), signal.SIGKILL)
        time.sleep(6)
    return load


def test_a_replica_that_dies_costs_what_it_was_asked_and_a_new_build_costs_nothing(
    port: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    index = build_index(tmp_path / "i", make_texts(300, seed=1), tiny_checkpoint, verbose=0)
    size = Size(replicas=(2, 2))
    assert deploy(served(index), size, "127.0.0.1", port) == f"http://127.0.0.1:{port}"
    first = expected(index)
    load = asked_while_one_dies(port, "Whole")
    assert_right(load.answers, [first])
    assert load.failed <= CALLERS
    assert load.statuses[200] > 5 * CALLERS
    wait_for(2, "Whole")

    build_index(index, make_texts(350, seed=2), tiny_checkpoint, overwrite=True, verbose=0)
    second = expected(index)
    with Load(port) as load:
        deploy(served(index), size, "127.0.0.1", port)
        time.sleep(2)
        assert_right({query: {load.ask(query)} for query in QUERIES}, [second])
    assert load.failed == 0
    assert_right(load.answers, [first, second])

    before = replicas("Whole")
    deploy(served(index), size, "127.0.0.1", port)
    assert replicas("Whole").keys() == before.keys()  # nothing had changed


def test_parts_behind_replicas_answer_as_one_index_through_a_death_and_a_new_build(
    port: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    index = build_index(tmp_path / "i", make_texts(300, seed=3), tiny_checkpoint, lexical="bm25", verbose=0)
    size = Size(parts=2)
    deploy(served(index), size, "127.0.0.1", port)
    wait_for(1, "Whole")
    first = expected(index)
    load = asked_while_one_dies(port, "Part")
    assert_right(load.answers, [first])
    assert load.failed <= 2 * CALLERS
    wait_for(2, "Part")
    both = expected(index, "hybrid")
    body = json.dumps({"queries": QUERIES, "k": 5, "mode": "hybrid"}).encode()
    request = urllib.request.Request(f"{load.address}/api/search", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        for found in json.load(answer)["results"]:
            assert tuple(hit["pid"] for hit in found["topk"]) == both[found["query"]][0]

    build_index(index, make_texts(350, seed=4), tiny_checkpoint, lexical="bm25", overwrite=True, verbose=0)
    with Load(port) as load:
        deploy(served(index), Size(parts=3), "127.0.0.1", port)  # and divided otherwise
    assert load.failed == 0
    assert_right(load.answers, [first, expected(index)])
    wait_for(3, "Part")  # the old build's are gone


def test_another_build_on_a_machine_is_refused_and_the_old_replicas_serve_on(
    port: int, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve

    monkeypatch.setitem(deploying.COMMON, "max_constructor_retry_count", 1)
    index = build_index(tmp_path / "i", make_texts(300, seed=5), tiny_checkpoint, verbose=0)
    wrong = Served((index,), ("0" * 32,), {})
    with pytest.raises(
        UserError, match=r"could not start: .*: .* is another build on this machine \(.*, not 00000000\); copy it"
    ):
        deploy(wrong, Size(), "127.0.0.1", port)
    assert APPLICATION in serve.status().applications
    assert Load(port).ask(QUERIES[0])  # the build of before


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (Size(replicas=(0, 1)), "0 to 1 replicas"),
        (Size(replicas=(3, 2)), "3 to 2 replicas"),
        (Size(parts=-1), "-1 parts"),
        (Size(parts=4), "has 3 chunks, so 1 to 3 parts"),
        (Size(replicas=(1, 1), cpus=100_000), "want 100000 CPUs"),
    ],
)
def test_what_cannot_run_is_refused_at_once(size: Size, said: str, port: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    index = build_index(tmp_path / "i", make_texts(300, seed=6), tiny_checkpoint, verbose=0)
    with pytest.raises(UserError, match=said):
        deploy(served(index), size, "127.0.0.1", port)


def test_an_address_that_ray_serve_would_ignore_is_refused(port: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    index = build_index(tmp_path / "i", make_texts(300, seed=6), tiny_checkpoint, verbose=0)
    with pytest.raises(UserError, match=f"listens on 127.0.0.1, port {port}; take those"):
        deploy(served(index), Size(), "127.0.0.1", port + 1)


def test_parts_are_those_of_one_index(port: int) -> None:
    several: Any = (Path("a"), Path("b"))
    with pytest.raises(UserError, match="parts are those of one index, there are 2"):
        deploy(Served(several, ("", ""), {}), Size(parts=2), "127.0.0.1", port)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replicas", "2"], "--replicas and --parts belong to --ray"),
        (["--ray", "local", "--replicas", "two"], "--replicas 'two': expected a number, or two as in 2-8"),
        (["--ray", "local", "--allow-reload"], "--allow-reload would reach one replica of several"),
        (["--ray", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_the_command_says_in_a_line_what_it_cannot_do(
    options: list[str], said: str, tiny_index: TinyIndex, tmp_path: Path
) -> None:
    done = run("serve", tiny_index.path, *options)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


def test_the_command_serves_until_it_is_told_to_stop(tiny_index: TinyIndex, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "colbert_diffusion", "serve", str(tiny_index.path), "--ray", "local", "--port", str(port)]
    with (tmp_path / "said").open("w") as said:
        serving = subprocess.Popen(command, stdout=said, stderr=said)
    deadline = time.monotonic() + 120
    while f"serving on http://127.0.0.1:{port}" not in (tmp_path / "said").read_text():
        assert time.monotonic() < deadline
        assert serving.poll() is None
        time.sleep(0.2)
    pids = [hit["pid"] for hit in asked(port, "/api/search?query=red+dog&k=3")["topk"]]
    assert pids == tiny_index.searcher().search("red dog", k=3)[0]
    assert asked(port, "/api/indexes")["default"] == "tiny"
    with pytest.raises(urllib.error.HTTPError, match="422"):
        asked(port, "/api/search?query=red+dog&k=0")
    stranger = urllib.request.Request(f"http://127.0.0.1:{port}/api/indexes", headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(stranger, timeout=60)
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(60) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def asked(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return json.load(answer)
