"""The recipes in scripts/, on the fake backbone."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig
from colbert_diffusion.encoding.lexical import content_words
from colbert_diffusion.encoding.vectors import VectorFiles
from colbert_diffusion.evaluation import read_run

from .conftest import HIDDEN, make_texts
from .evaluation.conftest import write_beir
from .training.conftest import make_examples

EXAMPLES = make_examples(60)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A query's passage is the one with its words in another order."""
    documents = {f"p{i}": example.passages[0] for i, example in enumerate(EXAMPLES)}
    queries = {f"q{i}": example.query for i, example in enumerate(EXAMPLES)}
    return write_beir(tmp_path / "tiny", documents, queries, "".join(f"q{i}\tp{i}\t1\n" for i in range(len(EXAMPLES))))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"query": e.query, "positive": e.passages[0]}) + "\n" for e in EXAMPLES))
    return path


def rows(printed: str) -> list[list[str]]:
    """The cells of a Markdown table's body."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# curve.py -----------------------------------------------------------------------------------------------------


def test_the_curve_has_every_cell_and_merging_never_adds_bytes(
    tiny_config: DiffusionConfig, beir: Path, tmp_path: Path, encoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    curve = load("curve")
    replace(tiny_config, nested=True, merge_above=0.5).save(tmp_path / "nested")
    arguments = [str(tmp_path / "nested"), str(beir), "--out", str(tmp_path / "out"), "--k-passage", "1,8", "--nbits", "1,2"]
    curve.main([*arguments, "--merge-above", "none,0.8"])
    found = {tuple(row[1:5]): [float(cell) for cell in row[5:9]] for row in rows(capsys.readouterr().out)}
    cells = [("1", "-"), ("8", "-"), ("8", "0.8")]
    assert list(found) == [(k, str(HIDDEN), above, nbits) for k, above in cells for nbits in ("1", "2")]
    for nbits in ("1", "2"):
        one, whole, merged = (found[k, str(HIDDEN), above, nbits] for k, above in cells)
        assert one[0] == 1 < merged[0] < whole[0] == 8
        assert one[1] < merged[1] < whole[1]
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    passages = {example.passages[0] for example in EXAMPLES} - {example.query for example in EXAMPLES}
    assert sum(text in passages for text in encoded) == len(passages)

    encoded.clear()
    curve.main([*arguments, "--merge-above", "none,0.8"])
    assert not encoded
    assert len(rows(capsys.readouterr().out)) == 6

    of_cell = DiffusionCheckpoint(tmp_path / "out" / "cells" / "k8-dim16-merge0.8")
    expected = of_cell.encode_document([example.passages[0] for example in EXAMPLES])
    stored = VectorFiles(tmp_path / "out" / "tiny" / "k8-dim16-merge0.8" / "vectors").read(range(len(EXAMPLES)))
    for ours, theirs in zip(stored, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(theirs), atol=1e-3, rtol=0)


def test_the_front_is_what_nothing_smaller_equals() -> None:
    sizes = [(10, 0.5), (20, 0.5), (20, 0.7), (30, 0.6), (40, 0.8)]
    found = load("curve").front([{"bytes": size, "plaid": value} for size, value in reversed(sizes)])
    assert [(row["bytes"], row["plaid"]) for row in found] == [(10, 0.5), (20, 0.7), (40, 0.8)]


def test_a_curve_of_a_checkpoint_without_prefixes_or_of_another_one_is_refused(
    tiny_checkpoint: Path, beir: Path, tmp_path: Path
) -> None:
    arguments = [str(tiny_checkpoint), str(beir), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="error: the checkpoint is not nested"):
        load("curve").main([*arguments, "--k-passage", "1,8"])
    (tmp_path / "curve.json").write_text('{"checkpoint": "another", "collections": {}, "rows": []}')
    with pytest.raises(SystemExit, match="is of another checkpoint; choose another --out"):
        load("curve").main([*arguments, "--k-passage", "8"])


# compare.py ---------------------------------------------------------------------------------------------------


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    script = load("compare")
    monkeypatch.setattr(script, "RECIPE", replace(script.RECIPE, bf16=False, query_tokens=12, passage_tokens=40))
    monkeypatch.setattr(script, "LENGTHS", {"query_max_length": 16, "passage_max_length": 40})
    return script


def test_the_comparison_has_every_readout_at_its_best_rate_and_is_done_once(
    compare: ModuleType,
    tiny_bert: Path,
    pairs: Path,
    beir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    fixed = [f"--pairs={pairs}", f"--dev={beir}", f"--out={out}", f"--bases={tiny_bert}", "--batch=16", "--dim=16"]
    asked = [*fixed, "--rates", "1e-4", "1e-2", "--seeds=1"]
    compare.main([*asked, "--steps=3"])
    table = rows(capsys.readouterr().out)
    assert [row[:2] for row in table] == [[str(tiny_bert), readout] for readout in compare.READOUTS]

    kept = json.loads((out / "compare.json").read_text())
    assert len(kept["trials"]) == 2 * len(compare.READOUTS)
    for row, shown in zip(kept["table"], table, strict=True):
        trials = {rate: kept["trials"][compare.Trial(compare.Cell(*shown[:2]), rate, 0).name] for rate in (1e-4, 1e-2)}
        best = max(trials, key=lambda rate: trials[rate]["exact"]["tiny"])
        assert row["rate"] == best
        assert row["tiny plaid"] == {"mean": trials[best]["plaid"]["tiny"], "sd": 0, "seeds": [trials[best]["plaid"]["tiny"]]}
        assert re.fullmatch(r"\d\.\d{3} ± 0\.000", shown[3])

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    monkeypatch.setattr(compare, "train", never)
    monkeypatch.setattr(compare, "measure_systems", never)
    compare.main([*asked, "--steps=3"])
    assert rows(capsys.readouterr().out) == table
    with pytest.raises(SystemExit, match="its steps differs; choose another --out"):
        compare.main([*asked, "--steps=4"])
    with pytest.raises(SystemExit, match="seeds is 0, expected at least 1"):
        compare.main([*asked, "--seeds=0"])


def test_the_plan_estimates_every_readout_and_trains_no_trial(
    compare: ModuleType, tiny_bert: Path, pairs: Path, beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = [f"--pairs={pairs}", f"--dev={beir}", f"--out={tmp_path / 'out'}", f"--bases={tiny_bert}", "--batch=16", "--dim=8"]
    compare.main([*fixed, "--teacher=mean", "--plan"])
    table = rows(capsys.readouterr().out)
    assert [row[1:4] for row in table] == [[readout, "5", "0"] for readout in compare.READOUTS] + [["", "20", ""]]
    assert not (tmp_path / "out" / "trials").exists()
    assert {DiffusionConfig.load(folder).dim for folder in (tmp_path / "out" / "starts").glob("*-masked-*")} == {8}


# words.py -----------------------------------------------------------------------------------------------------


def test_a_head_that_says_the_same_of_every_passage_knows_nothing_of_any(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "rigged")
    checkpoint = DiffusionCheckpoint(folder)
    assert checkpoint.head is not None
    assert checkpoint.head.bias is not None
    checkpoint.head.bias[checkpoint.encoder.backbone.tokenize(["france paris the"])[0]] += 1000
    checkpoint.head.save(folder)
    passages = tmp_path / "passages.tsv"
    passages.write_text("".join(f"{i}\tthe {'dog' if i % 4 else 'city of Paris'} {i}\n" for i in range(20)))
    load("words").main([str(folder), str(passages), "--top", "3", "--show", "1"])
    summary, *first = rows(capsys.readouterr().out)
    assert summary == ["20", "8 x 3", "0.250", "0.250", "1.00"]
    positions = [row for row in first if row[0].isdigit()]
    assert [set(row[1].split()) for row in positions] == [{"france", "paris", "the"}] * 8


def test_a_head_that_says_each_passages_own_words_scores_1(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def own_words(_: object, texts: list[str], top: int) -> list[list[list[str]]]:
        return [[content_words(text)[:top]] for text in texts]

    monkeypatch.setattr(DiffusionCheckpoint, "predict_words", own_words)
    passages = tmp_path / "passages.tsv"
    passages.write_text("".join(f"{i}\tthe {word}\n" for i, word in enumerate(["dog", "cat", "cat", "sun", "moon"])))
    load("words").main([str(tiny_checkpoint), str(passages)])
    assert rows(capsys.readouterr().out)[0] == ["5", "8 x 10", "1.000", "0.100", "10.00"]  # 2 of 20 pairs share the cat
    passages.write_text("0\tthe dog\n")
    with pytest.raises(SystemExit, match="error: 1 passages: another passage to compare with needs at least 2"):
        load("words").main([str(tiny_checkpoint), str(passages)])


# index_msmarco.sh ---------------------------------------------------------------------------------------------


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
    root = Path(__file__).parents[1]
    variables = {**os.environ, "PYTHON": sys.executable, "DATA": str(folder), **environment}
    command = ["bash", str(root / "scripts" / "index_msmarco.sh"), *arguments]
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
    assert done.returncode == 1
    assert "collection.tsv has 60 lines, MS MARCO's has 8,841,823" in done.stderr
    for limit, message in (("100", "has 60 passages; lower --limit 100"), ("0", "no query can be answered")):
        done = index_msmarco(msmarco, "--limit", limit)
        assert done.returncode == 1
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


# compare_projections.py ---------------------------------------------------------------------------------------


def test_projections_are_compared_with_the_states_themselves_and_each_text_is_encoded_once(
    tiny_checkpoint: Path, beir: Path, encoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("compare_projections")
    script.main([str(tiny_checkpoint), str(beir), "--dim", "4,16"])
    table = rows(capsys.readouterr().out)
    kinds = ["PCA", "random orthogonal", "none, first coordinates"]
    assert [row[1:3] for row in table] == [["none", "16"], *([kind, dim] for dim in ("4", "16") for kind in kinds)]
    kept = {(row[1], row[2]): float(row[3]) for row in table}
    assert kept["PCA", "4"] > kept["random orthogonal", "4"]
    assert all(kept[kind, "16"] > 0.98 for kind in kinds)  # rotations: rounding may turn ties
    assert float(table[0][4]) == pytest.approx(float(table[-1][4]), abs=1e-3)
    assert len(encoded) == 2 * len(EXAMPLES)
    with pytest.raises(SystemExit, match="--dim 32: the backbone has 16 dimensions"):
        script.main([str(tiny_checkpoint), str(beir), "--dim", "32"])


def test_kept_order_is_the_share_of_the_yardsticks_best() -> None:
    yardstick = {"q": [("a", 2.0), ("b", 1.0)], "r": [("c", 1.0), ("d", 0.5)]}
    assert (
        load("compare_projections").kept_order({"q": [("b", 9.0), ("a", 8.0)], "r": [("x", 1.0), ("d", 0.1)]}, yardstick)
        == 0.75
    )


def test_a_random_projection_is_orthogonal() -> None:
    weight = load("compare_projections").random_orthogonal(8, 20, seed=1).weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(8))


# bench_memory.py ----------------------------------------------------------------------------------------------


def test_memory_is_measured_for_every_step_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script: Any = load("bench_memory")
    script.STEPS = {name: script.STEPS[name] for name in ("imports alone", "open, read all in order")}
    script.STEPS["100 MiB more"] = script.STEPS["imports alone"] + "kept = bytes(1) * (100 << 20)\n"
    script.main(["--lines", "10,2000", "--folder", str(tmp_path)])
    table = rows(capsys.readouterr().out)
    assert [row[:3] for row in table] == [
        [lines, megabytes, step] for lines, megabytes in (("10", "0 MB"), ("2,000", "1 MB")) for step in script.STEPS
    ]
    for cell in (3, 4):
        alone, read, more = (int(row[cell].removesuffix(" MB")) for row in table[:3])
        assert 95 < more - alone < 115
        assert alone <= read + 1 < alone + 20
    assert not list(tmp_path.iterdir())


def test_memory_of_a_searcher_is_measured_beside_its_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("bench_plan").main(["--out", str(tmp_path), "--cells", "300:2:16:2", "--keep"])
    capsys.readouterr()
    load("bench_memory").main(["--index", str(tmp_path / "300-2-16-2")])
    alone, searcher = rows(capsys.readouterr().out)
    assert (alone[0], alone[2], searcher[2]) == ("300", "its checkpoint alone", "searcher")
    assert int(searcher[3].removesuffix(" MB")) > int(alone[3].removesuffix(" MB")) > 100


# bench_index.py -----------------------------------------------------------------------------------------------


def test_the_stages_of_an_index_and_everything_else_are_its_time(
    tiny_checkpoint: Path,
    beir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script, found, out = load("bench_index"), {}, tmp_path / "bench"
    seconds_of = script.seconds_of

    def kept(profile: object) -> dict[str, float]:
        found.update(seconds_of(profile))
        return dict(found)

    monkeypatch.setattr(script, "seconds_of", kept)
    script.main([str(beir), "--out", str(out), "--passages", "50", "--checkpoint", str(tiny_checkpoint)])
    assert set(found) == set(script.STAGES)
    assert all(seconds > 0 for seconds in found.values()), "ColBERT calls that function otherwise"
    printed = capsys.readouterr().out
    *stages, everything = rows(printed)
    assert [row[0] for row in stages] == ["encoding", "k-means", "compression", "inverted list", "everything else"]
    assert sum(float(row[1]) for row in stages) == pytest.approx(float(everything[1]), abs=0.3)
    assert "\n50 passages, " in printed
    assert len((out / "passages.tsv").read_text().splitlines()) == 50


# bench_plan.py ------------------------------------------------------------------------------------------------


def test_a_cell_is_planned_and_built_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load("bench_plan")
    script.main(["--out", str(tmp_path), "--cells", "300:2:16:2"])
    kept = json.loads((tmp_path / "plan.json").read_text())
    [row] = kept["rows"]
    assert row["bytes"] == pytest.approx(row["planned_bytes"], rel=0.1)
    first = rows(capsys.readouterr().out)
    script.main(["--out", str(tmp_path), "--cells", "300:2:16:2"])
    assert json.loads((tmp_path / "plan.json").read_text()) == kept
    assert rows(capsys.readouterr().out) == first
    with pytest.raises(SystemExit, match="'300:2' is no cell"):
        script.main(["--out", str(tmp_path), "--cells", "300:2"])
