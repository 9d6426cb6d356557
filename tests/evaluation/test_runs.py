from pathlib import Path

import numpy as np
import pytest

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.evaluation import Run, read_run, write_run
from colbert_diffusion.evaluation.runs import best


def test_a_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    run: Run = {"q2": [("b", 1 / 3), ("a", 1 / 3), ("c", -1e-9)], "q1": [("a", float(np.float32(0.1)))]}
    write_run(tmp_path / "r.trec", run, "mine")
    assert read_run(tmp_path / "r.trec") == run
    assert (tmp_path / "r.trec").read_text().splitlines()[0] == f"q2 Q0 b 1 {1 / 3!r} mine"


def test_the_order_is_by_score_whatever_the_ranks_say(tmp_path: Path) -> None:
    (tmp_path / "r.trec").write_text("q Q0 a 1 0.5 t\nq\tQ0\tb\t2\t9e1\tt\nq Q0 c 3 -1 t\n")
    assert read_run(tmp_path / "r.trec") == {"q": [("b", 90.0), ("a", 0.5), ("c", -1.0)]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q Q0 a 1 2.0 t\nq Q0 b 2 1.0\n", "r.trec, line 2: 5 columns, expected 6: qid Q0 docid rank score tag"),
        ("q Q0 a 1 good t\n", "r.trec, line 1: score 'good', expected a finite number"),
        ("q Q0 a 1 nan t\n", "r.trec, line 1: score 'nan', expected a finite number"),
        ("q Q0 a 1 1_0 t\n", "r.trec, line 1: score '1_0', expected a finite number"),
        ("q Q0 \xff 1 1 t\n", "r.trec, line 1: not UTF-8"),
        ("q Q0 a 1 2 t\nq Q0 a 2 1 t\n", "r.trec, line 2: document a occurs twice for query q"),
        ("\n", "r.trec, line 1: 0 columns"),
        ("", "r.trec is empty"),
    ],
)
def test_malformed_runs_are_refused_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.trec").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_run(tmp_path / "r.trec")
    assert message in str(caught.value)


def test_the_best_are_a_stable_sorts_first() -> None:
    draw = np.random.default_rng(0)
    ids = [str(i) for i in range(200)]
    for depth in (1, 7, 50, 199, 200, 1000):
        scores = draw.integers(0, 12, size=200).astype(np.float32)  # many ties, also across the cut
        expected = sorted(range(200), key=lambda i: -scores[i])[:depth]
        assert best(scores, ids, depth) == [(ids[i], scores[i]) for i in expected]
