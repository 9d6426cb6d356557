"""scripts/bench/serving.py and abuse.py, on a server that counts what it is asked."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from .conftest import load, rows

ASKED = [*(f"query {number}" for number in range(40)), *(f"bad {number}" for number in range(7)), "moody 1", "moody 2"]
METRICS = 'colbert_diffusion_stage_seconds_{kind}{{stage="encode"}} {value}\n'


class Server(ThreadingHTTPServer):
    """Answers with one passage; queries that begin with "bad" are errors, "moody" ones have another answer next time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.searches, self.encodes = Counter[str](), 0
        self.looked = 0  # at the metrics

    def handle_error(self, *_: object) -> None:
        """A client that went away is none."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/metrics":  # 20 stages of 30 ms between two looks
            with self.server.lock:
                self.server.looked += 1
                looked = self.server.looked
            values = {"sum": 1 + 0.6 * looked, "count": 10 + 20 * looked}
            return self.answer(200, "".join(METRICS.format(kind=kind, value=value) for kind, value in values.items()))
        query = parse_qs(parts.query)["query"][0]
        with self.server.lock:
            self.server.searches[query] += 1
            again = self.server.searches[query] > 1
        if query.startswith("bad"):
            return self.answer(500, "{}")
        pid = 1 + (again and query.startswith("moody"))
        return self.answer(200, json.dumps({"topk": [{"pid": pid, "score": 2.0 + 0.25 * again}]}))

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["texts"]
        with self.server.lock:
            self.server.encodes += 1
        self.close_connection = True
        self.answer(200 if len(texts) == 64 and max(map(len, texts)) <= 20_000 else 400, "{}")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "queries.tsv"
    path.write_text("".join(f"{number}\t{query}\n" for number, query in enumerate(ASKED)))
    return path


def test_requests_are_as_many_as_the_server_counted(
    server: Server, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{server.url}/api/search"
    script = load("bench/serving")
    script.main([str(asked), url, "--connections", "4", "--repeat", "0.5", "--json", str(tmp_path / "rows.json")])
    total = server.searches.total()
    errors = sum(count for query, count in server.searches.items() if query.startswith("bad"))
    repeated = total - len(server.searches)
    assert set(server.searches) == set(ASKED)
    assert repeated > 10
    [row] = rows(capsys.readouterr().out)
    assert row[:6] == [url, "4", "0", str(total - errors), str(errors), f"{repeated / total:.0%}"]
    assert row[-1] == "encode 30.0"
    p50, p95, p99 = map(float, row[7:10])
    assert p50 <= p95 <= p99
    [kept] = json.loads((tmp_path / "rows.json").read_text())
    assert (kept["answered"], kept["errors"]) == (total - errors, errors)


def test_answers_that_differ_alone_are_counted(server: Server, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{server.url}/api/search"
    load("bench/serving").main([str(asked), url, "--connections", "3", "--check", "1000"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{url}: 42 answers asked again alone, 2 with other pids, scores within 0.25"
    assert Counter(server.searches.values()) == {2: 42, 1: 7}


def test_abusive_clients_are_beside_every_other_round_and_what_they_did_is_counted(
    server: Server, asked: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(asked), f"{server.url}/api/search", "--connections", "1", "--seconds", "1"]
    load("bench/serving").main([*arguments, "--abuse", "2", "--kinds", "large_encodes"])
    printed = capfd.readouterr().out
    table = [row for row in rows(printed) if len(row) == 11]
    assert [row[2] for row in table] == ["0", "2"]
    assert sum(int(cell) for row in table for cell in row[3:5]) == server.searches.total()
    kind, _, did = printed.splitlines()[0].partition(": ")
    count, _, status = did.partition(" x ")
    assert (kind, status) == ("large_encodes", "200")
    assert server.encodes - 2 <= int(count.replace(",", "")) <= server.encodes  # the end cuts answers off
