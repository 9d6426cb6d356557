"""Pairs over the fake backbone's words: a query is its passage's words in another order."""

import json
import random
from pathlib import Path

import pytest

from colbert_diffusion.training.data import Example

from ..conftest import WORDS


def make_examples(count: int, negatives: int = 0) -> list[Example]:
    draw = random.Random(0)
    examples = []
    for _ in range(count):
        own = tuple(" ".join(draw.sample(WORDS[8:], 4)) for _ in range(1 + negatives))
        query = " ".join(draw.sample(own[0].split(), 4))
        examples.append(Example(query, own, tuple(draw.random() for _ in own)))
    return examples


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """200 pairs in a file."""
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"query": e.query, "positive": e.passages[0]}) for e in make_examples(200)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def benchmark_folder(tmp_path: Path) -> Path:
    """The same pairs as a BEIR folder: each query's own passage is relevant."""
    folder = tmp_path / "benchmark"
    (folder / "qrels").mkdir(parents=True)
    examples = make_examples(200)
    write = {
        "corpus.jsonl": [json.dumps({"_id": f"p{i}", "text": e.passages[0]}) for i, e in enumerate(examples)],
        "queries.jsonl": [json.dumps({"_id": f"q{i}", "text": e.query}) for i, e in enumerate(examples)],
        "qrels/test.tsv": ["query-id\tcorpus-id\tscore", *(f"q{i}\tp{i}\t1" for i in range(len(examples)))],
    }
    for name, lines in write.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder
