"""The command as a process, with a real client over a socket."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from .conftest import TEXTS, serving


def test_every_accepted_request_is_answered_when_the_process_is_told_to_stop(served_path: Path) -> None:
    callers, queries = 8, TEXTS[:64]
    with serving(served_path) as (process, url):
        answers: list[httpx.Response] = []
        together = threading.Barrier(callers + 1)

        def ask() -> None:
            with httpx.Client(timeout=60) as client:
                client.get(f"{url}/readyz").raise_for_status()
                together.wait()
                answers.append(client.post(f"{url}/api/search", json={"queries": queries, "k": 200}))

        threads = [threading.Thread(target=ask) for _ in range(callers)]
        for thread in threads:
            thread.start()
        with httpx.Client() as client:
            together.wait()
            accepted = pending = 0.0
            while accepted < callers:
                numbers = client.get(f"{url}/metrics").text
                pending = _number(numbers, "colbert_diffusion_pending") / len(queries)
                accepted = pending + _number(numbers, 'requests_total{method="POST",route="/api/search",status="200"}')
            assert pending, "all were answered before the process was told to stop"
            process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * callers
        assert "close" in [answer.headers.get("connection") for answer in answers], "their clients would ask again in vain"
        assert all(len(answer.json()["results"]) == len(queries) for answer in answers)
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")


def _number(metrics: str, name: str) -> float:
    found = [line for line in metrics.splitlines() if name in line and not line.startswith("#")]
    return float(found[0].split()[-1]) if found else 0.0


@pytest.mark.parametrize("damage", ["missing", "incomplete", "truncated", "nonsense", "flipped"])
def test_an_index_that_cannot_be_served_is_one_line_and_exit_code_two(served_path: Path, tmp_path: Path, damage: str) -> None:
    index = tmp_path / "i"
    if damage != "missing":
        shutil.copytree(served_path, index)
    if damage == "incomplete":
        (index / "metadata.json").unlink()
    if damage == "truncated":
        (index / "0.residuals.pt").write_bytes((index / "0.residuals.pt").read_bytes()[:-100])
    if damage == "nonsense":
        (index / "centroids.pt").write_bytes(bytes((index / "centroids.pt").stat().st_size))
    if damage == "flipped":  # such codes point outside of the centroids
        codes = (index / "0.codes.pt").read_bytes()
        (index / "0.codes.pt").write_bytes(bytes(b ^ 255 if 2000 < i < 3000 else b for i, b in enumerate(codes)))
    command = [sys.executable, "-m", "colbert_diffusion", "serve", str(index), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_taken_port_and_an_empty_token_are_one_line_and_exit_code_two(served_path: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    command = [sys.executable, "-m", "colbert_diffusion", "serve", str(served_path)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, message in (
            (["--port", port], "in use"),
            (["--token-file", str(tmp_path / "token")], "must hold one token"),
        ):
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
            assert done.returncode == 2
            assert message in done.stderr
            assert done.stderr.count("\n") == 1


def test_help_imports_no_web_framework() -> None:
    check = (
        "import sys\nsys.argv = ['colbert-diffusion', 'serve', '--help']\nfrom colbert_diffusion.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "import json\nprint(json.dumps(sorted({'fastapi', 'uvicorn', 'torch'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
