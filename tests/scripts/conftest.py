"""Scripts are loaded from their files, as an interpreter runs them; what they print is checked against counts of our own."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.encoding.identity import identify
from colbert_diffusion.encoding.vectors import encode_to
from colbert_diffusion.texts.collection import read_collection

from ..conftest import make_texts
from ..evaluation.conftest import write_beir
from ..training.conftest import make_examples

SCRIPTS = Path(__file__).parents[2] / "scripts"
EXAMPLES = make_examples(60)
TEXTS = [text for text in make_texts(150, seed=5) if len(text.split()) > 3]
QUERIES = [" ".join(text.split()[:4]) for text in TEXTS[::8]]

sys.path.extend(str(SCRIPTS / folder) for folder in ("bench", "pairs"))  # as when one of these runs

Takes = Callable[..., None]


def load(name: str) -> ModuleType:
    path = SCRIPTS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(printed: str) -> list[list[str]]:
    """The cells of a Markdown table's body."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def refusal(main: Callable[[list[str]], None], arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr with which a script ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def best(queries: Any, passages: Sequence[Any], k: int) -> list[list[int]]:
    """The k best pids of each query by MaxSim over float vectors, in numpy alone."""
    scores = [[float((np.asarray(p) @ np.asarray(q).T).max(axis=0).sum()) for p in passages] for q in queries]
    return [sorted(range(len(row)), key=lambda pid: -row[pid])[:k] for row in scores]


def share(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    """Of each query's wanted pids those that were found, as a mean."""
    parts = [len([pid for pid in w if pid in f]) / len(w) for f, w in zip(found, wanted, strict=True)]
    return sum(parts) / len(parts)


def file_bytes(folder: Path, *endings: str) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if not endings or path.name.endswith(endings))


def read_vectors(folder: Path) -> list[npt.NDArray[Any]]:
    """Of each passage float32 (k, dim), from the files alone."""
    found: list[npt.NDArray[Any]] = []
    for shard in sorted(folder.glob("*.safetensors")):
        tensors = load_file(shard)
        found += np.split(tensors["vectors"].astype(np.float32), np.cumsum(tensors["doclens"])[:-1])
    return found


def prefixes(vectors: Sequence[Any], dim: int) -> list[npt.NDArray[Any]]:
    """The first `dim` dimensions, of length 1 again."""
    cut = [np.asarray(v)[:, :dim] for v in vectors]
    return [v / np.linalg.norm(v, axis=1, keepdims=True) for v in cut]


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Takes:
    """Call it with seconds: what is timed from then on takes these, one after the other and again."""
    common = importlib.import_module("common")

    def set_seconds(*seconds: float) -> None:
        def ticks() -> Iterator[float]:
            for one in cycle(seconds):
                yield 1000.0
                yield 1000.0 + one

        monkeypatch.setattr(common, "perf_counter", ticks().__next__)

    return set_seconds


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A query's passage is the one with its words in another order."""
    documents = {f"p{i}": example.passages[0] for i, example in enumerate(EXAMPLES)}
    queries = {f"q{i}": example.query for i, example in enumerate(EXAMPLES)}
    return write_beir(tmp_path / "tiny", documents, queries, "".join(f"q{i}\tp{i}\t1\n" for i in range(len(EXAMPLES))))


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    path = tmp_path / "texts.tsv"
    path.write_text("".join(f"{pid}\t{text}\n" for pid, text in enumerate(TEXTS)))
    return path


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """Cut from every eighth passage."""
    path = tmp_path / "queries.tsv"
    path.write_text("".join(f"q{number}\t{text}\n" for number, text in enumerate(QUERIES)))
    return path


@pytest.fixture
def vectors(tiny_checkpoint: Path, collection: Path, tmp_path: Path) -> Path:
    """What `colbert-diffusion encode` writes of the collection."""
    made_by = identify(tiny_checkpoint)
    encode_to(
        tmp_path / "vectors", made_by, lambda: DiffusionCheckpoint(tiny_checkpoint, verbose=0), read_collection(collection)
    )
    return tmp_path / "vectors"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"query": e.query, "positive": e.passages[0]}) + "\n" for e in EXAMPLES))
    return path
