"""One small served index; requests go to the application in this process."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from colbert.infra import Run, RunConfig
from fastapi.testclient import TestClient

from colbert_diffusion import Indexer
from colbert_diffusion.serving.server import open_app

from ..conftest import make_texts

TEXTS = make_texts(200, seed=3)

MakeClient = Callable[..., TestClient]


@pytest.fixture(scope="session")
def served_path(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    with Run().context(RunConfig(index_root=str(root))):
        return Path(Indexer(str(tiny_checkpoint), verbose=0).index("tiny", TEXTS))


@pytest.fixture
def make_client(served_path: Path) -> Iterator[MakeClient]:
    """Clients of applications with options of `open_app`; all on one event loop each, as in a process."""
    opened: list[TestClient] = []

    def make(*paths: Path, **options: object) -> TestClient:
        client = TestClient(open_app(paths or [served_path], **options), raise_server_exceptions=False)  # type: ignore[arg-type]
        opened.append(client.__enter__())
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def client(served_path: Path) -> Iterator[TestClient]:
    with TestClient(open_app([served_path]), raise_server_exceptions=False) as client:
        yield client


@contextmanager
def serving(*arguments: object, descriptors: int | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL, on a free port; `descriptors`: how many files it may open."""
    command = [sys.executable, "-m", "colbert_diffusion", "serve", *map(str, arguments), "--port", "0"]

    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit) as process:
        try:
            if process.stderr is None:
                raise RuntimeError
            line = process.stderr.readline()
            assert line.startswith("serving on http://127.0.0.1:"), line + process.stderr.read()
            yield process, line.split()[-1]
        finally:
            process.kill()
