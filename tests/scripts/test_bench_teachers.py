"""scripts/bench/teachers.py"""

import math
from pathlib import Path

import bm25s
import numpy as np
import pytest

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.config import DiffusionConfig
from colbert_diffusion.encoding.conversion import convert
from colbert_diffusion.index.lexical import Stems

from .conftest import EXAMPLES, load, rows

QUERIES = [example.query for example in EXAMPLES]
PASSAGES = [example.passages[0] for example in EXAMPLES]


def mean_maxsim(checkpoint: Path) -> np.ndarray:
    encoder = DiffusionCheckpoint(checkpoint, verbose=0)
    queries, passages = encoder.encode_query(QUERIES), encoder.encode_document(PASSAGES)
    return np.array([[(np.asarray(q) @ np.asarray(p).T).max(axis=1).mean() for p in passages] for q in queries])


def ndcg(scores: np.ndarray) -> float:
    """Each query has one passage, of its own number."""
    ranks = [int((row > row[number]).sum()) for number, row in enumerate(scores)]
    return sum(1 / math.log2(2 + rank) for rank in ranks if rank < 10) / len(ranks)


def test_figures_are_those_of_the_weighted_sum_of_scores(
    tiny_checkpoint: Path, tiny_config: DiffusionConfig, beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(tiny_config.backbone, tmp_path / "second", readout="mean", dim=16)
    stems = Stems()
    library = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    library.index([stems.of(text) for text in PASSAGES], show_progress=False)
    words = np.array([library.get_scores(stems.of(query)) for query in QUERIES])
    parts = mean_maxsim(tiny_checkpoint), mean_maxsim(tmp_path / "second"), words / words.max(axis=1, keepdims=True)

    script = load("bench/teachers")
    given = ["--second", str(tmp_path / "second"), "--second-weight", "0,0.5", "--words", "0,0.2"]
    script.main([str(tiny_checkpoint), str(beir), *given])
    table = rows(capsys.readouterr().out)
    assert [row[:2] for row in table] == [["0", "0"], ["0", "0.2"], ["0.5", "0"], ["0.5", "0.2"]]
    for second, word, value in table:
        expected = ndcg(parts[0] + float(second) * parts[1] + float(word) * parts[2])
        assert float(value) == pytest.approx(expected, abs=0.011)  # near ties may turn
    assert len({row[2] for row in table}) > 1

    script.main([str(tiny_checkpoint), str(beir), "--words", "0"])
    assert rows(capsys.readouterr().out) == [["0", "0", table[0][2]]]
