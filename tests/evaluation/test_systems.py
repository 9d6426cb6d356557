import json
import math
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import Stemmer

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig
from colbert_diffusion.common.errors import MissingPackageError, UserError
from colbert_diffusion.evaluation import (
    Benchmark,
    Cell,
    bm25_run,
    build_index,
    cell_runs,
    evaluate,
    exact,
    exact_run,
    plaid_run,
    prefix,
    read_benchmark,
    read_run,
)
from colbert_diffusion.evaluation.exact import check_cells
from colbert_diffusion.evaluation.systems import VECTORS, Systems, measure_systems

from .conftest import write_beir


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(tiny_checkpoint)


def brute_force(checkpoint: DiffusionCheckpoint, benchmark: Benchmark, cell: Cell) -> dict[str, dict[str, float]]:
    def cut(vectors: np.ndarray, k: int) -> np.ndarray:
        part = vectors[:k, : cell.dim]
        normalised: np.ndarray = part / np.linalg.norm(part, axis=1, keepdims=True)
        return normalised

    documents = [cut(d, cell.k) for d in checkpoint.encode_document(benchmark.texts)]
    return {
        qid: {
            document: float((cut(q, len(q)) @ d.T).max(axis=1).sum())
            for document, d in zip(benchmark.documents, documents, strict=True)
        }
        for qid, q in zip(benchmark.queries, checkpoint.encode_query(list(benchmark.queries.values())), strict=True)
    }


def test_exact_is_brute_force_in_any_blocks(
    checkpoint: DiffusionCheckpoint, benchmark_: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = brute_force(checkpoint, benchmark_, Cell(8, 16))
    run = exact_run(checkpoint, benchmark_)
    for qid, found in run.items():
        assert dict(found) == pytest.approx(expected[qid], abs=2e-5)
        scores = [score for _, score in found]
        assert scores == sorted(scores, reverse=True)
    monkeypatch.setattr(exact, "CELLS", 300)  # a few queries by one document
    monkeypatch.setattr(exact, "ENCODED", 7)
    small = exact_run(checkpoint, benchmark_)
    assert {qid: dict(found) for qid, found in small.items()} == {
        qid: pytest.approx(dict(found), abs=2e-5) for qid, found in run.items()
    }
    assert {qid: found[:5] for qid, found in small.items()} == exact_run(checkpoint, benchmark_, depth=5)


def test_equal_passages_come_in_the_collections_order(checkpoint: DiffusionCheckpoint, benchmark_: Benchmark) -> None:
    for found in exact_run(checkpoint, benchmark_).values():
        order = [document for document, _ in found if document in ("d3", "twin", "another")]
        assert order == ["d3", "twin", "another"]
        assert len({score for document, score in found if document in order}) == 1


def test_exact_needs_two_methods_and_keeps_negative_scores() -> None:
    class Axes:
        def encode_query(self, queries: list[str]) -> list[np.ndarray]:
            return [np.array([[1, 0], [0, 1]], np.float32) for _ in queries]

        def encode_document(self, documents: list[str]) -> list[np.ndarray]:
            given = {"one": [[-0.6, -0.8]], "two": [[-1, 0], [0, -1]], "none": []}
            return [np.array(given[text], np.float32).reshape(-1, 2) for text in documents]

    benchmark = Benchmark("b", "", {"a": "one", "b": "two"}, {"1": ""}, {"1": {"a": 1}})
    assert exact_run(Axes(), benchmark) == {"1": [("b", 0.0), ("a", -1.4)]}
    with pytest.raises(UserError, match="encode documents: text 1 has no vectors"):
        exact_run(Axes(), replace(benchmark, documents={"a": "one", "b": "none"}))


def test_cells_are_cuts_of_vectors_that_are_encoded_once(
    checkpoint: DiffusionCheckpoint, benchmark_: Benchmark, encoded: list[str]
) -> None:
    cells = [Cell(8, 16), Cell(1, 16), Cell(4, 8)]
    runs = cell_runs(checkpoint, benchmark_, cells)
    assert len(encoded) == len(benchmark_.documents) + len(benchmark_.queries)
    for cell in cells:
        expected = brute_force(checkpoint, benchmark_, cell)
        for qid, found in runs[cell].items():
            assert dict(found) == pytest.approx(expected[qid], abs=2e-5)
    assert runs[Cell(8, 16)] == exact_run(checkpoint, benchmark_)


def test_prefix_cuts_and_normalises_only_what_it_cuts() -> None:
    vectors = [np.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]], np.float32), np.array([[0.0, 0.0, 1.0]], np.float32)]
    assert [v.tolist() for v in prefix(vectors, k=1)] == [vectors[0][:1].tolist(), vectors[1].tolist()]
    first, second = prefix(vectors, dim=2)
    assert first.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert second.tolist() == [[0.0, 0.0]]  # nothing left to normalise
    assert first.dtype == np.float32


def test_cells_that_were_not_trained_are_refused(tiny_config: DiffusionConfig) -> None:
    check_cells(tiny_config, [Cell(8, 16)])
    with pytest.raises(UserError, match=r"k-passage 4 x dim 16: the checkpoint is not nested, it was trained for 8 x 16"):
        check_cells(tiny_config, [Cell(8, 16), Cell(4, 16)])
    nested = replace(tiny_config, nested=True)
    check_cells(nested, [Cell(4, 8)])
    for cell in (Cell(9, 16), Cell(0, 16), Cell(8, 17)):
        with pytest.raises(UserError, match="the checkpoint gives at most 8 x 16"):
            check_cells(nested, [cell])


def independent_bm25(benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """Lucene's BM25, as the formula is written."""
    stem = Stemmer.Stemmer("english").stemWord
    words = {key: [stem(word) for word in re.findall(r"\w+", text.lower())] for key, text in benchmark.documents.items()}
    mean = sum(map(len, words.values())) / len(words)
    containing = Counter(word for found in words.values() for word in set(found))
    run = {}
    for qid, text in benchmark.queries.items():
        scores: dict[str, float] = {}
        for word in re.findall(r"\w+", text.lower()):
            n = containing[stem(word)]
            idf = math.log(1 + (len(words) - n + 0.5) / (n + 0.5))
            for key, found in words.items():
                if tf := found.count(stem(word)):
                    score = idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(found) / mean))
                    scores[key] = scores.get(key, 0) + score
        run[qid] = scores
    return run


def test_bm25_is_an_independent_bm25(benchmark_: Benchmark) -> None:
    expected = independent_bm25(benchmark_)
    run = bm25_run(benchmark_)
    for qid, found in run.items():
        assert dict(found) == pytest.approx(expected[qid], rel=1e-4)
    theirs = {qid: sorted(scores.items(), key=lambda pair: -pair[1]) for qid, scores in expected.items()}
    report = evaluate(benchmark_, {"ours": run, "theirs": theirs}, "nDCG@10")
    assert abs(report.comparisons[0].difference) < 0.005


def test_bm25_finds_nothing_for_unknown_words_and_keeps_to_the_depth() -> None:
    benchmark = Benchmark("b", "", {"a": "a sun", "b": "C moons", "c": "c"}, {"1": "unheard", "2": "...", "3": "c moon"}, {})
    run = bm25_run(benchmark, depth=1)
    assert (run["1"], run["2"]) == ([], [])
    assert [document for document, _ in run["3"]] == ["b"]  # stemmed, and a single letter is a word


def test_missing_bm25s_names_the_extra(benchmark_: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingPackageError, match=r'BM25 needs bm25s.*pip install "colbert-diffusion\[evaluate\]"'):
        bm25_run(benchmark_)


@pytest.fixture(scope="module")
def index(tiny_checkpoint: Path, benchmark_: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(str(tiny_checkpoint), benchmark_, tmp_path_factory.mktemp("indexes") / "index", nbits=2)


def test_plaid_gives_what_the_searcher_gives(index: Path, benchmark_: Benchmark) -> None:
    from colbert_diffusion import Searcher

    searcher = Searcher(index.name, index_root=str(index.parent))
    run = plaid_run(index, benchmark_, depth=10)
    for qid, text in benchmark_.queries.items():
        pids, _, scores = searcher.search(text, k=10)
        assert [score for _, score in run[qid]] == pytest.approx(scores, abs=1e-4)
        assert {benchmark_.document_ids[pid] for pid in pids[:5]} <= {document for document, _ in run[qid]}


def test_an_index_of_other_documents_is_refused_before_searching(index: Path, benchmark_: Benchmark, tmp_path: Path) -> None:
    fewer = replace(benchmark_, documents=dict(list(benchmark_.documents.items())[:-1]))
    with pytest.raises(
        UserError, match=rf"has {len(benchmark_.documents)} passages, tiny has {len(fewer.documents)}; index it"
    ):
        plaid_run(index, fewer)
    turned = replace(benchmark_, documents=dict(reversed(list(benchmark_.documents.items()))))
    with pytest.raises(UserError, match="other texts or another order"):
        plaid_run(index, turned)
    with pytest.raises(UserError, match="does not exist; build it with"):
        plaid_run(tmp_path / "absent", benchmark_)


def test_all_systems_are_written_down_and_measure_the_same_from_their_files(
    index: Path, tiny_checkpoint: Path, benchmark_: Benchmark, tmp_path: Path
) -> None:
    systems = Systems(index=index, exact=True, bm25=True, depth=20, measures="nDCG@10 R@20")
    report, about = measure_systems(benchmark_, systems, tmp_path)
    assert list(report.means) == ["bm25", "exact", "plaid"]
    written = json.loads((tmp_path / "measures.json").read_text())
    assert written["means"] == report.means
    assert written["per_query"] == report.per_query
    assert written["checkpoint"]["path"] == str(tiny_checkpoint) == about["checkpoint"]["path"]
    assert written["benchmark"] | {"documents": 0} == {
        "name": "tiny", "split": "test", "documents": 0, "queries": 12, "judgements": 36, "queries_left_out": 1,
        "judged_documents_missing": 0,
        "queries_without_their_own_document": 0,
    }  # fmt: skip
    runs = {name: read_run(tmp_path / f"{name}.trec") for name in report.means}
    assert evaluate(benchmark_, runs, "nDCG@10 R@20") == report


def test_a_nested_checkpoint_gets_a_row_for_each_combination(
    tiny_config: DiffusionConfig, benchmark_: Benchmark, tmp_path: Path, encoded: list[str]
) -> None:
    replace(tiny_config, nested=True).save(tmp_path / "nested")
    systems = Systems(checkpoint=str(tmp_path / "nested"), exact=True, k_passage=(1, 8), dim=(8, 16), measures="RR@10")
    report, _ = measure_systems(benchmark_, systems)
    assert list(report.means) == ["exact", "exact-k1-dim8", "exact-k1-dim16", "exact-k8-dim8", "exact-k8-dim16"]
    assert report.per_query["exact"] == report.per_query["exact-k8-dim16"]
    assert len(encoded) == len(benchmark_.documents) + len(benchmark_.queries)


def test_passages_are_encoded_once_for_exact_search_and_for_an_index(
    tiny_checkpoint: Path, benchmark_: Benchmark, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    systems = Systems(str(tiny_checkpoint), exact=True, plaid=True, lexical="predicted", hybrid=True, measures="RR@10")

    def failing(*_: object) -> None:
        raise UserError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk is full"):
        patch.setattr("colbert_diffusion.evaluation.systems.build_index", failing)
        measure_systems(benchmark_, systems, tmp_path / "out")
    report, _ = measure_systems(benchmark_, systems, tmp_path / "out")
    assert list(report.means) == ["exact", "plaid", "lexical", "hybrid"]
    assert [encoded.count(text) for text in benchmark_.texts] == [benchmark_.texts.count(text) for text in benchmark_.texts]
    assert not (tmp_path / "out" / VECTORS).exists()
    apart, _ = measure_systems(benchmark_, replace(systems, exact=False), tmp_path / "apart")
    assert all(report.means[name] == apart.means[name] for name in apart.means)
    assert (
        report.means["exact"]
        == measure_systems(benchmark_, Systems(str(tiny_checkpoint), exact=True, measures="RR@10"))[0].means["exact"]
    )


def test_runs_are_on_disk_when_a_later_system_fails(
    index: Path, benchmark_: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("colbert_diffusion.evaluation.systems.index_runs", failing)
    with pytest.raises(UserError, match="the disk is full"):
        measure_systems(benchmark_, Systems(index=index, bm25=True), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bm25.trec"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"index": Path("i"), "nbits": 4}, "leave --nbits 4 or --index out"),
        ({"runs": (Path("a/x.trec"), Path("b/x.trec"))}, "run file named x would be mistaken"),
        ({"runs": (Path("bm25.trec"),), "bm25": True}, "run file named bm25 would be mistaken"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Systems(**settings)  # type: ignore[arg-type]


def test_a_measure_deeper_than_the_runs_is_refused(benchmark_: Benchmark) -> None:
    with pytest.raises(UserError, match="R@40 looks deeper than the 20 passages per query; raise --depth"):
        measure_systems(benchmark_, Systems(bm25=True, depth=20, measures="nDCG@10 R@40"))


def test_plaid_runs_when_nothing_else_is_named() -> None:
    assert Systems().runs_plaid
    assert Systems(exact=True, index=Path("i")).runs_plaid
    assert not Systems(bm25=True).runs_plaid
    assert not Systems(k_passage=(1,)).runs_plaid
    assert not Systems(runs=(Path("x"),)).runs_plaid


@pytest.fixture
def own_queries(tmp_path: Path) -> Path:
    """As in ArguAna: every query is a document of the same id, and its counterpart is what should be found."""
    documents = {
        "a": "the red cat sleeps",
        "b": "the red cat runs",
        "c": "a blue river of berlin",
        "d": "a blue river of paris",
    }
    queries = {name: documents[name] for name in "ac"} | {"d": documents["d"]}
    return write_beir(tmp_path / "own", documents, queries, "a\tb\t1\nc\td\t1\nd\td\t1\n")


def test_a_querys_own_document_is_left_out_as_beir_does_unless_it_is_judged_relevant(
    own_queries: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    benchmark = read_benchmark(own_queries)
    assert benchmark.own == {"a", "c"}
    systems = Systems(str(tiny_checkpoint), bm25=True, exact=True, plaid=True, depth=1, measures="nDCG@1 R@1")
    report, about = measure_systems(benchmark, systems, tmp_path / "out")
    assert report.means["bm25"] == {"nDCG@1": 1.0, "R@1": 1.0}
    assert about["benchmark"]["queries_without_their_own_document"] == 2
    for name in ("bm25", "exact", "plaid"):
        run = read_run(tmp_path / "out" / f"{name}.trec")
        assert {qid: len(found) for qid, found in run.items()} == {"a": 1, "c": 1, "d": 1}
        assert all(hit != qid for qid in ("a", "c") for hit, _ in run[qid])
    with_own = {qid: [(qid, 9.0), (other, 1.0)] for qid, other in (("a", "b"), ("c", "d"), ("d", "c"))}
    assert evaluate(benchmark, {"theirs": with_own}, "nDCG@10").means["theirs"]["nDCG@10"] == 1.0
