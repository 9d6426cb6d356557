import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colbert_diffusion.evaluation import Benchmark, bm25_run, read_run, write_run

from ..cli.test_cli import run


def test_evaluate_end_to_end(beir: Path, benchmark_: Benchmark, tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "mine.trec", bm25_run(benchmark_), "mine")
    command = [
        "evaluate",
        beir,
        "--checkpoint",
        tiny_checkpoint,
        "--run",
        tmp_path / "mine.trec",
        "--measures",
        "nDCG@10 RR@10",
    ]
    done = run(*command, "--plaid", "--exact", "--k-passage", "8", "--out", tmp_path / "o", "--json")
    assert done.returncode == 0, done.stderr
    assert "1 queries without a positive judgement are left out" in done.stderr
    found = json.loads(done.stdout)
    assert list(found["means"]) == ["exact", "exact-k8-dim16", "plaid", "mine"]
    assert found["means"]["exact"] == found["means"]["exact-k8-dim16"]
    assert [(c["system"], c["baseline"]) for c in found["comparisons"]][::2] == [
        ("exact-k8-dim16", "exact"),
        ("plaid", "exact"),
        ("mine", "exact"),
    ]
    written = {path.name for path in (tmp_path / "o").iterdir()}
    assert written == {"exact.trec", "exact-k8-dim16.trec", "plaid.trec", "measures.json", "index"}
    assert len(read_run(tmp_path / "o" / "plaid.trec")) == 12
    table = run(*command)
    assert "nDCG@10" in table.stdout
    assert "mine" in table.stdout


def test_several_collections_get_a_table_and_a_folder_each(beir: Path, tmp_path: Path) -> None:
    second = shutil.copytree(beir, tmp_path / "second")
    done = run("evaluate", beir, second, "--bm25", "--out", tmp_path / "o", "--measures", "RR@10")
    assert "tiny: " in done.stdout
    assert "second: " in done.stdout
    assert sorted(str(path.relative_to(tmp_path / "o")) for path in (tmp_path / "o").rglob("*.trec")) == [
        "second/bm25.trec",
        "tiny/bm25.trec",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent is no folder"),
        (["BEIR", "--split", "train"], "choose --split from: test"),
        (["BEIR", "--measures", "nDCG10"], "measure 'nDCG10'"),
        (["BEIR", "--k-passage", "four"], "expected whole numbers separated by commas"),
        (["BEIR", "--k-passage", "4", "--checkpoint", "CHECKPOINT"], "not nested"),
        (["BEIR", "--run", "absent.trec"], "absent.trec does not exist"),
        (["BEIR", "BEIR", "--index", "i"], "belong to one collection, there are 2"),
        (["BEIR", "--index", "i"], "does not exist; build it with"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(
    beir: Path, tiny_checkpoint: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"BEIR": str(beir), "CHECKPOINT": str(tiny_checkpoint)}
    done = run("evaluate", *[places.get(argument, argument) for argument in arguments], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert [line.startswith("error: ") for line in done.stderr.splitlines()][-1]
    assert "Traceback" not in done.stderr


def test_importing_evaluation_loads_neither_torch_nor_the_extras() -> None:
    check = (
        "import sys, colbert_diffusion.evaluation\nassert not {'torch', 'colbert', 'ir_measures', 'bm25s'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
