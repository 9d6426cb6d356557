"""scripts/index_msmarco.sh and scripts/msmarco.py"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from colbert_diffusion.evaluation import read_run

from ..conftest import make_texts
from .conftest import SCRIPTS, load


@pytest.fixture
def msmarco(tmp_path: Path) -> Path:
    """A tiny folder as MS MARCO publishes it: queries q0, q1, ... are cut from passages 0, 5, ...; q1 has another one, 55."""
    texts = make_texts(60, seed=3)
    folder = tmp_path / "msmarco"
    folder.mkdir()
    (folder / "collection.tsv").write_text("".join(f"{pid}\t{text}\n" for pid, text in enumerate(texts)))
    queries = [f"q{i}\t{' '.join(texts[5 * i].split()[:8])}\n" for i in range(12)]
    (folder / "queries.dev.small.tsv").write_text("".join(queries))
    (folder / "qrels.dev.small.tsv").write_text("".join(f"q{i}\t0\t{5 * i}\t1\n" for i in range(12)) + "q1\t0\t55\t1\n")
    return folder


def index_msmarco(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    variables = {**os.environ, "PYTHON": sys.executable, "DATA": str(folder), **environment}
    command = ["bash", str(SCRIPTS / "index_msmarco.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


def test_ms_marco_is_planned_indexed_and_measured_on_the_queries_it_can_answer(msmarco: Path, tiny_checkpoint: Path) -> None:
    done = index_msmarco(msmarco, "--limit", "50", CHECKPOINT=str(tiny_checkpoint))
    assert done.returncode == 0, done.stderr
    assert "of 12 judged queries 9 have all relevant passages among the first 50" in done.stderr
    assert "50 passages x 8 vectors x 16 dimensions at 2 bits" in done.stdout
    for measure in ("RR@10", "R@50", "R@1000"):
        assert measure in done.stdout
    found = read_run(msmarco / "first-50.index.dev" / "plaid.trec")
    assert list(found) == ["q0", *(f"q{i}" for i in range(2, 10))]
    assert {int(pid) for ranking in found.values() for pid, _ in ranking} <= set(range(50))
    means = json.loads((msmarco / "first-50.index.dev" / "measures.json").read_text())["means"]["plaid"]
    assert means["RR@10"] > 0.3  # the queries are the passages' first words

    again = index_msmarco(msmarco, "--limit", "50", CHECKPOINT=str(tiny_checkpoint))
    assert "dimensions" not in again.stdout  # neither planned nor indexed again
    assert read_run(msmarco / "first-50.index.dev" / "plaid.trec") == found


def test_a_folder_that_is_not_ms_marcos_is_refused_without_a_limit(msmarco: Path) -> None:
    done = index_msmarco(msmarco)
    assert done.returncode == 2
    assert "collection.tsv has 60 lines, MS MARCO's has 8,841,823" in done.stderr
    for limit, message in (("100", "has 60 passages; lower --limit 100"), ("0", "no query can be answered")):
        done = index_msmarco(msmarco, "--limit", limit)
        assert done.returncode == 2
        assert message in done.stderr
    assert sorted(path.suffix for path in msmarco.iterdir() if not path.name.startswith(".")) == [".tsv"] * 3


def test_absent_files_are_written_as_ms_marco_publishes_them(
    msmarco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fields(name: str) -> list[list[str]]:
        return [line.split("\t") for line in (msmarco / name).read_text().splitlines()]

    dataset = SimpleNamespace(
        docs_iter=lambda: [SimpleNamespace(doc_id=pid, text=text) for pid, text in fields("collection.tsv")],
        queries_iter=lambda: [SimpleNamespace(query_id=qid, text=text) for qid, text in fields("queries.dev.small.tsv")],
        qrels_iter=lambda: [
            SimpleNamespace(query_id=qid, doc_id=pid, relevance=int(grade))
            for qid, _, pid, grade in fields("qrels.dev.small.tsv")
        ],
    )
    monkeypatch.setitem(sys.modules, "ir_datasets", SimpleNamespace(load=lambda name: dataset))
    script, out = load("msmarco"), tmp_path / "fetched"
    script.main([str(out), "--limit", "60"])
    for name in script.LINES:
        assert (out / name).read_text() == (msmarco / name).read_text()
    assert set(script.LINES) == {path.name for path in (out / "first-60").iterdir()}
