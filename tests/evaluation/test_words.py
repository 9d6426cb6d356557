"""Rows of an index's words and of both: those that the Searcher gives; and the remedies where there are no words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from colbert_diffusion import open_index
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.evaluation import Benchmark, build_index, read_benchmark, read_run
from colbert_diffusion.evaluation.plaid import index_runs
from colbert_diffusion.evaluation.systems import Systems, measure_systems
from colbert_diffusion.index.fusion import Fusion
from colbert_diffusion.index.rows import Row

from ..cli.test_cli import run
from .conftest import write_beir

FUSIONS = (Fusion("scaled", 0.5), Fusion("minmax", 0.5), Fusion("rrf", 0.25))
NAMES = ["plaid", "lexical", "hybrid", "hybrid-scaled-0.5", "hybrid-minmax-0.5", "hybrid-rrf-0.25"]


@pytest.fixture(scope="module")
def indexes(tiny_checkpoint: Path, benchmark_: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, checkpoint = tmp_path_factory.mktemp("indexes"), str(tiny_checkpoint)
    return {
        "bm25": build_index(checkpoint, benchmark_, folder / "bm25", 2, "bm25"),
        "predicted": build_index(checkpoint, benchmark_, folder / "predicted", 2, "predicted"),
        "none": build_index(checkpoint, benchmark_, folder / "none", 2),
    }


@pytest.mark.parametrize("source", ["bm25", "predicted"])
@pytest.mark.parametrize("depth", [5, 1000])
def test_rows_are_what_the_searcher_gives(indexes: dict[str, Path], benchmark_: Benchmark, source: str, depth: int) -> None:
    systems = Systems(index=indexes[source], lexical=source, hybrid=True, fusions=FUSIONS)  # type: ignore[arg-type]
    assert list(systems.rows) == NAMES
    runs = index_runs(indexes[source], benchmark_, systems.rows, depth)
    searcher, k = open_index(indexes[source]), min(depth, len(benchmark_.documents))
    for name, row in systems.rows.items():
        for qid, text in benchmark_.queries.items():
            pids, _, scores = searcher.search(text, k=k, mode=row.mode, fusion=row.fusion)
            assert [score for _, score in runs[name][qid]] == pytest.approx(scores, abs=1e-4)
            # a batch's float32 sums differ in the last place, so near ties may be the other way round
            theirs = dict(zip((benchmark_.document_ids[pid] for pid in pids), scores, strict=True))
            for document, score in runs[name][qid]:
                assert theirs.get(document, scores[-1]) == pytest.approx(score, abs=1e-4)


def test_every_query_is_encoded_once_for_all_rows(
    indexes: dict[str, Path], benchmark_: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colbert_diffusion import Searcher

    asked: list[str] = []
    ask = Searcher.ask

    def counting(self: Searcher, texts: list[str], *, mode: str) -> object:
        asked.extend(texts)
        return ask(self, texts, mode=mode)

    monkeypatch.setattr(Searcher, "ask", counting)
    index_runs(indexes["bm25"], benchmark_, Systems(lexical="bm25", hybrid=True, fusions=FUSIONS, plaid=True).rows)
    assert asked == list(benchmark_.queries.values())


def test_rows_are_reported_beside_the_others_and_an_index_is_built_for_them(
    tiny_checkpoint: Path, benchmark_: Benchmark, tmp_path: Path
) -> None:
    systems = Systems(str(tiny_checkpoint), bm25=True, hybrid=True, fusions=FUSIONS[:1], measures="nDCG@10")
    report, about = measure_systems(benchmark_, systems, tmp_path)
    assert list(report.means) == ["bm25", "hybrid", "hybrid-scaled-0.5"]
    assert [found.system for found in report.comparisons] == ["hybrid", "hybrid-scaled-0.5"]
    assert json.loads((tmp_path / "index" / "lexical.json").read_text())["source"] == "bm25"
    assert about["settings"]["lexical"] is None
    predicted = replace(systems, hybrid=False, bm25=False, fusions=(), lexical="predicted", index=None)
    assert list(measure_systems(benchmark_, predicted, tmp_path / "p")[0].means) == ["lexical"]
    assert json.loads((tmp_path / "p" / "index" / "lexical.json").read_text())["source"] == "predicted"


def test_the_index_decides_what_hybrid_is(indexes: dict[str, Path], benchmark_: Benchmark) -> None:
    runs = index_runs(indexes["bm25"], benchmark_, {"own": Row("hybrid"), "same": Row("hybrid", Fusion("scaled", 0.3))})
    assert runs["own"] == runs["same"]


def test_a_querys_own_document_is_left_out_of_every_row(tiny_checkpoint: Path, tmp_path: Path) -> None:
    documents = {
        "a": "the red cat sleeps",
        "b": "the red cat runs",
        "c": "a blue river of berlin",
        "d": "a blue river of paris",
    }
    queries = {name: documents[name] for name in "acd"}
    benchmark = read_benchmark(write_beir(tmp_path / "own", documents, queries, "a\tb\t1\nc\td\t1\nd\td\t1\n"))
    systems = Systems(str(tiny_checkpoint), lexical="bm25", hybrid=True, fusions=FUSIONS, depth=1, measures="nDCG@1")
    report, _ = measure_systems(benchmark, systems, tmp_path / "out")
    assert report.means["lexical"] == {"nDCG@1": 1.0}
    for name in report.means:
        found = read_run(tmp_path / "out" / f"{name}.trec")
        assert {qid: len(hits) for qid, hits in found.items()} == {"a": 1, "c": 1, "d": 1}
        assert all(hit != qid for qid in "ac" for hit, _ in found[qid])


def test_an_index_without_these_words_is_refused_before_anything_is_encoded(
    indexes: dict[str, Path], benchmark_: Benchmark, encoded: list[str]
) -> None:
    with pytest.raises(UserError, match=r"has no words; build it with `colbert-diffusion index ... --lexical bm25`, or leave"):
        measure_systems(benchmark_, Systems(index=indexes["none"], hybrid=True, exact=True))
    with pytest.raises(UserError, match="has the words of --lexical bm25, not predicted; ask for those, or leave --index out"):
        measure_systems(benchmark_, Systems(index=indexes["bm25"], lexical="predicted"))
    assert encoded == []


def test_settings_of_words_are_checked() -> None:
    with pytest.raises(UserError, match="--lexical 'splade': expected bm25 or predicted"):
        Systems(lexical="splade")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="run file named hybrid would be mistaken"):
        Systems(hybrid=True, runs=(Path("hybrid.trec"),))
    assert not Systems(hybrid=True).runs_plaid


def test_evaluate_by_words_from_the_command_line(beir: Path, indexes: dict[str, Path], tmp_path: Path) -> None:
    command = ["evaluate", beir, "--measures", "nDCG@10", "--json", "--index"]
    done = run(*command, indexes["bm25"], "--lexical", "bm25", "--hybrid", "--fusion", "scaled=.5", "--fusion", "minmax=0.5")
    assert list(json.loads(done.stdout)["means"]) == NAMES[:-1], done.stderr
    for arguments, message in (
        (["--hybrid"], "has no words; build it with"),
        (["--fusion", "scaled=x"], "--fusion 'scaled=x': expected a rule and a weight"),
        (["--fusion", "sum=1"], 'fusion rule "sum" is unknown; choose one of'),
        (["--lexical", "splade"], "expected bm25 or predicted"),
    ):
        refused = run(*command, indexes["none"], *arguments)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.splitlines()[-1].startswith("error: ")
        assert message in refused.stderr
