"""A tuned weight: found where it was planted, kept in the index where it helps on queries that did not choose it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from colbert_diffusion import IndexUpdater, build_index, open_index
from colbert_diffusion.common import locking
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.evaluation import evaluate, read_benchmark
from colbert_diffusion.evaluation.plaid import index_runs
from colbert_diffusion.evaluation.tuning import BEYOND, GRID, Tuned, tune_fusion
from colbert_diffusion.index.fusion import Fusion
from colbert_diffusion.index.manifest import read_manifest
from colbert_diffusion.index.opening import verify
from colbert_diffusion.index.rows import Row
from colbert_diffusion.index.tuned import keep_fusion

from ..cli.test_cli import run
from ..conftest import make_texts
from .conftest import write_beir

DOCUMENTS = {f"d{i}": text for i, text in enumerate(dict.fromkeys(t for t in make_texts(90) if len(t.split()) > 5))}
QUERIES = {f"q{i}": text for i, text in enumerate(dict.fromkeys(" ".join(t.split()[:6]) for t in make_texts(50, seed=4)))}
PLANTED = 0.3
Plant = Callable[..., Path]


@pytest.fixture(scope="module")
def built(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    beir = write_beir(folder / "beir", DOCUMENTS, QUERIES, "")
    build_index(folder / "words", beir, tiny_checkpoint, lexical="bm25", verbose=0)
    build_index(folder / "bare", beir, tiny_checkpoint, verbose=0)
    return folder


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built / "words", tmp_path / "words")


@pytest.fixture(scope="module")
def plant(built: Path) -> Plant:
    """Judgements by which the best passage of one mode is the relevant one."""

    def planted(name: str, mode: str, fusion: Fusion | None = None) -> Path:
        searcher, path = open_index(built / "words"), built / f"{name}.tsv"
        best = {qid: searcher.search(text, k=1, mode=mode, fusion=fusion)[0] for qid, text in QUERIES.items()}
        path.write_text("".join(f"{qid}\t{searcher.ids(pids)[0]}\t1\n" for qid, pids in best.items() if pids))
        return path

    return planted


@pytest.fixture(scope="module")
def both(plant: Plant) -> Path:
    return plant("both", "hybrid", Fusion("scaled", PLANTED))


def tune(index: Path, built: Path, qrels: Path, **options: object) -> Tuned:
    return tune_fusion(index, built / "beir" / "queries.jsonl", qrels, **options)  # type: ignore[arg-type]


def test_a_planted_weight_is_found_and_becomes_the_indexs_own(index: Path, built: Path, both: Path) -> None:
    before = read_manifest(index)
    tuned = tune(index, built, both, measure="nDCG@1")
    assert abs(tuned.weight - PLANTED) <= 0.1
    assert tuned.mean == 1.0 > max(tuned.dense, tuned.lexical)
    assert tuned.plateau[0] <= PLANTED <= tuned.plateau[1]
    assert tuned.over_better.low > 0
    assert tuned.over_dense.difference == pytest.approx(1 - tuned.dense)
    assert 0 < tuned.validated.difference <= tuned.over_dense.difference
    assert (tuned.helps, tuned.written) == (True, True)
    fusion = Fusion("scaled", tuned.weight)
    assert read_manifest(index) == {**(before or {}), "fusion": fusion.as_json()}
    assert verify(index) == []
    searcher, text = open_index(index), QUERIES["q0"]
    assert searcher.fusion == fusion
    assert searcher.search(text, k=5) == searcher.search(text, k=5, mode="hybrid", fusion=fusion)
    assert searcher.search(text, k=5) != searcher.search(text, k=5, mode="dense")
    updater = IndexUpdater(str(index))
    updater.add(["a new passage"], ids=["new"])
    updater.persist_to_disk()
    assert open_index(index).fusion == fusion


def test_where_words_alone_decide_the_weight_is_large(index: Path, built: Path, plant: Plant) -> None:
    tuned = tune(index, built, plant("lexical", "lexical"), measure="RR@10")
    assert tuned.lexical == tuned.mean == 1.0
    assert tuned.over_better.baseline == "lexical"
    assert tuned.over_better.difference == 0
    assert [weight for weight, _ in tuned.curve] == [*GRID, *BEYOND]
    assert tuned.plateau[1] == BEYOND[-1]
    assert tuned.written


def test_where_nothing_is_gained_the_index_stays_as_it_was(index: Path, built: Path, plant: Plant) -> None:
    before = (index / "index.json").read_bytes()
    tuned = tune(index, built, plant("dense", "dense"), measure="nDCG@1")
    assert tuned.dense == 1.0
    assert tuned.validated.difference <= 0
    assert (tuned.helps, tuned.written) == (False, False)
    assert (index / "index.json").read_bytes() == before


def test_only_asked_nothing_is_written(index: Path, built: Path, both: Path) -> None:
    before = (index / "index.json").read_bytes()
    tuned = tune(index, built, both, measure="nDCG@1", write=False)
    assert (tuned.helps, tuned.written) == (True, False)
    assert (index / "index.json").read_bytes() == before


@pytest.mark.parametrize("measure", ["nDCG@10", "AP", "R@5"])
def test_the_curve_is_what_evaluate_measures(index: Path, built: Path, both: Path, tmp_path: Path, measure: str) -> None:
    beir = write_beir(tmp_path / "beir", DOCUMENTS, QUERIES, both.read_text())
    tuned = tune(index, built, both, measure=measure, write=False)
    rows = {"dense": Row("dense"), "lexical": Row("lexical")}
    rows |= {f"{weight:g}": Row("hybrid", Fusion("scaled", weight)) for weight in (0.0, 0.07, PLANTED, 1.0)}
    benchmark = read_benchmark(beir)
    report = evaluate(benchmark, index_runs(index, benchmark, rows, 100), measure)
    assert {"dense": tuned.dense, "lexical": tuned.lexical} | {f"{w:g}": mean for w, mean in tuned.curve} == pytest.approx(
        {f"{w:g}": mean for w, mean in tuned.curve} | {name: means[measure] for name, means in report.means.items()}
    )


def test_the_weights_of_halves_are_measured_on_the_other_half() -> None:
    from colbert_diffusion.evaluation.tuning import _held_out

    values = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])  # each row is good where the other is not
    held, chosen = _held_out(values)
    assert set(chosen) == {0, 1}
    assert held.mean() < values.mean()  # a noisy choice does not look good


def test_a_querys_own_document_is_left_out_as_beir_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    documents = {
        "a": "the red cat sleeps",
        "b": "the red cat runs",
        "c": "a blue river of berlin",
        "d": "a blue river of paris",
    }
    qrels = "a\tb\t1\nc\td\t1\n"
    beir = write_beir(tmp_path / "own", documents, {name: documents[name] for name in "ac"}, qrels)
    index = build_index(tmp_path / "i", beir, tiny_checkpoint, lexical="bm25", verbose=0)
    tuned = tune_fusion(index, beir, beir / "qrels" / "test.tsv", measure="nDCG@1", write=False)
    assert tuned.lexical == 1.0
    elsewhere = tmp_path / "q.tsv"  # without a corpus beside them, equal ids are no equal texts
    elsewhere.write_text("".join(f"{name}\t{documents[name]}\n" for name in "ac"))
    assert tune_fusion(index, elsewhere, beir / "qrels" / "test.tsv", measure="nDCG@1", write=False).lexical == 0.0


def test_removed_passages_are_missing_and_judged_queries_without_hits_count_zero(index: Path, built: Path) -> None:
    updater = IndexUpdater(str(index))
    updater.remove([0])
    updater.persist_to_disk()
    qrels = built / "removed.tsv"
    qrels.write_text("q0\td0\t1\nq1\td1\t1\nq2\td2\t0\n")
    tuned = tune(index, built, qrels)
    assert (tuned.queries, tuned.queries_left_out, tuned.judged_passages_missing) == (2, len(QUERIES) - 2, 1)


def test_an_index_that_changed_meanwhile_or_is_being_written_is_left_alone(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(index) or {}
    with pytest.raises(UserError, match="changed while it was tuned; tune it again"):
        keep_fusion(index, Fusion(), {**manifest, "build": {}})
    monkeypatch.setattr(locking, "PATIENCE", 0.0)
    with locking.writing(index), pytest.raises(UserError, match="is being written by"):
        keep_fusion(index, Fusion(), manifest)
    assert read_manifest(index) == manifest


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("q0\td0\n", {}, "line 1: 'q0.d0', expected qid docid grade"),
        ("q0\td0\tgood\nq1\td1\tgood\n", {}, "line 2: grade 'good', expected a whole number"),
        ("q0\tx0\t1\nq1\tx1\t1\n", {}, "none of the 2 judged documents is in the collection"),
        ("absent\td0\t1\n", {}, "1 of 1 judged queries do not exist"),
        ("q0\td0\t0\n", {}, "has a positive judgement"),
        ("q0\td0\t1\n", {}, "judges 1 query; a weight is chosen on one half"),
        ("q0\td0\t1\nq1\td0\t1\n", {"measure": "nDCG@10 RR"}, "2 measures; a weight is chosen by one"),
        ("q0\td0\t1\nq1\td0\t1\n", {"measure": "nDCG10"}, "measure 'nDCG10'"),
        ("q0\td0\t1\nq1\td0\t1\n", {"measure": "nDCG@10", "depth": 5}, "looks deeper than the 5 passages of each side"),
    ],
)
def test_bad_judgements_are_one_line(
    index: Path, built: Path, tmp_path: Path, content: str, options: dict[str, object], message: str
) -> None:
    (tmp_path / "bad.tsv").write_text(content)
    with pytest.raises(UserError) as caught:
        tune(index, built, tmp_path / "bad.tsv", **options)
    assert message in str(caught.value).replace("\\t", ".")
    assert "\n" not in str(caught.value)


def test_without_words_or_judgements_the_remedy_is_named(built: Path, both: Path) -> None:
    with pytest.raises(UserError, match=r"has no words to weigh; build it with `colbert-diffusion index ... --lexical bm25`"):
        tune(built / "bare", built, both)
    with pytest.raises(UserError, match="is no file of judgements; give one of lines qid docid grade"):
        tune(built / "words", built, built / "absent.tsv")


def test_tune_fusion_from_the_command_line(index: Path, built: Path, both: Path) -> None:
    command = ["tune-fusion", index, "--queries", built / "beir", "--qrels", both, "--measure", "nDCG@1"]
    asked = run(*command, "--no-write", "--json")
    facts = json.loads(asked.stdout)
    assert (facts["helps"], facts["written"], facts["measure"]) == (True, False, "nDCG@1"), asked.stderr
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert f"best weight {facts['weight']:g}: +" in done.stdout
    assert f"scaled={facts['weight']:g}" in done.stdout.splitlines()[-1]
    assert run("verify", index).returncode == 0
    assert open_index(index).fusion == Fusion("scaled", facts["weight"])
    refused = run("tune-fusion", built / "bare", "--queries", built / "beir", "--qrels", both)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: ")
    assert "--lexical bm25" in refused.stderr
