"""A small BEIR folder over the fake backbone's words: the queries are cut from documents, a few documents are twins."""

import json
from pathlib import Path

import pytest

from colbert_diffusion.evaluation import Benchmark, read_benchmark

from ..conftest import make_texts

TEXTS = [text for text in make_texts(80) if len(text.split()) > 5]


def write_beir(folder: Path, documents: dict[str, str], queries: dict[str, str], qrels: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = {f"d{i}": text for i, text in enumerate(TEXTS)} | {"twin": TEXTS[3], "another": TEXTS[3]}
    queries = {f"q{i}": " ".join(TEXTS[i].split()[1:5]) for i in range(12)} | {"nobody": "moon"}
    qrels = "".join(f"q{i}\td{i}\t2\nq{i}\td{i + 1}\t1\nq{i}\td{i + 2}\t0\n" for i in range(12)) + "nobody\td0\t0\n"
    return write_beir(tmp_path_factory.mktemp("benchmarks") / "tiny", documents, queries, qrels)


@pytest.fixture(scope="session")
def benchmark_(beir: Path) -> Benchmark:
    return read_benchmark(beir)
