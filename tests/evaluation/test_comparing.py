"""A comparison's cells are run once and kept; what is shown of them agrees with what the systems give by themselves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.encoding.readouts import find_readout
from colbert_diffusion.evaluation import Benchmark, Comparison, bm25_run, compare, evaluate, exact_run
from colbert_diffusion.evaluation.comparing import Compared, System, compare_systems, holm, plan_lines, read_systems
from colbert_diffusion.evaluation.reporting import as_latex, as_markdown, table_of, write_comparison

from ..cli.test_cli import run

MEASURES = ["nDCG@10", "R@5"]


@pytest.fixture(scope="module")
def checkpoints(tiny_config: DiffusionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DiffRetriever and DiffEmbed."""
    folder = tmp_path_factory.mktemp("systems")
    tiny_config.save(folder / "many")
    find_readout("mean").fitted(replace(tiny_config, readout="mean")).save(folder / "mean")
    (folder / "notes").mkdir()
    return folder


def everything(benchmark: Benchmark, checkpoints: Path, out: Path) -> Compared:
    systems = [*read_systems(checkpoints), System("mean, exact", str(checkpoints / "mean"), exact=True)]
    return compare_systems(benchmark, systems, out, measures=" ".join(MEASURES), depth=20)


@pytest.fixture(scope="module")
def compared(checkpoints: Path, benchmark_: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compared]:
    out = tmp_path_factory.mktemp("compared")
    return out, everything(benchmark_, checkpoints, out)


def test_a_folder_of_checkpoints_is_a_system_each_with_the_words_that_it_predicts(checkpoints: Path) -> None:
    assert read_systems(checkpoints) == [
        System("BM25", None),
        System("many", str(checkpoints / "many"), words="predicted"),
        System("mean", str(checkpoints / "mean")),
    ]


def test_rows_are_what_the_systems_give_alone(
    compared: tuple[Path, Compared], checkpoints: Path, benchmark_: Benchmark
) -> None:
    _, found = compared
    assert list(found.report.means) == ["BM25", "many dense", "many lexical", "many hybrid", "mean dense", "mean, exact dense"]
    runs = {
        "BM25": bm25_run(benchmark_, 20),
        "mean, exact dense": exact_run(DiffusionCheckpoint(checkpoints / "mean", verbose=0), benchmark_, 20),
    }
    alone = evaluate(benchmark_, runs, " ".join(MEASURES))
    for row, means in alone.means.items():
        for measure in MEASURES:
            assert found.report.means[row][measure] == pytest.approx(means[measure], abs=0.02)  # files are float16
    assert found.costs["many dense"].bytes > found.costs["mean dense"].bytes
    many = found.costs
    assert many["many hybrid"].bytes == pytest.approx(many["many dense"].bytes + many["many lexical"].bytes)
    assert found.costs["mean, exact dense"].bytes == 2 * 16
    assert all(0 < cost.encode_p50 <= cost.encode_p95 for cost in found.costs.values())


def test_what_is_there_is_not_run_again(
    compared: tuple[Path, Compared], checkpoints: Path, benchmark_: Benchmark, encoded: list[str]
) -> None:
    out, found = compared
    assert everything(benchmark_, checkpoints, out) == found
    assert not encoded


def test_each_checkpoint_encodes_a_collection_once_for_all_its_rows(
    checkpoints: Path, benchmark_: Benchmark, encoded: list[str], tmp_path: Path
) -> None:
    systems = [System("many", str(checkpoints / "many"), words="predicted")]
    compare_systems(benchmark_, systems, tmp_path, measures="RR@10", depth=20, baseline="many dense")
    passages = {text for text in benchmark_.texts if text not in benchmark_.queries.values()}
    assert sum(text in passages for text in encoded) == sum(text in passages for text in benchmark_.texts)


def test_a_cell_of_another_checkpoint_or_depth_is_refused(
    compared: tuple[Path, Compared], checkpoints: Path, benchmark_: Benchmark
) -> None:
    out, _ = compared
    for systems, depth in (([System("many", str(checkpoints / "mean"))], 20), ([System("BM25", None)], 10)):
        with pytest.raises(UserError, match="holds another cell"):
            compare_systems(benchmark_, systems, out, measures="RR@10", depth=depth)


def test_an_interrupted_cell_goes_on_and_leaves_the_others(
    checkpoints: Path, benchmark_: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colbert_diffusion.evaluation import comparing

    systems = [System("BM25", None), System("mean", str(checkpoints / "mean"))]

    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(comparing, "build_index", fails)
        with pytest.raises(KeyboardInterrupt):
            compare_systems(benchmark_, systems, tmp_path, measures="RR@10", depth=20)
    assert not list(tmp_path.rglob("mean/cell.json"))
    assert list(tmp_path.rglob("BM25/cell.json"))
    found = compare_systems(benchmark_, systems, tmp_path, measures="RR@10", depth=20)
    assert list(found.report.means) == ["BM25", "mean dense"]


def test_p_is_corrected_for_the_number_of_systems_by_holms_steps() -> None:
    """Values of the classical example by hand: m p1, (m - 1) p2 and so on, never falling, never above 1."""
    ps = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.7}
    found = holm([Comparison(name, "base", "RR", 0.1, 0.0, 0.2, p) for name, p in ps.items()])
    expected = {"d": 0.025, "a": 0.04, "c": 0.09, "b": 0.09, "e": 0.7}
    assert {name: values["RR"] for name, values in found.items()} == pytest.approx(expected)


def test_corrected_p_are_those_of_the_runs(compared: tuple[Path, Compared]) -> None:
    _, found = compared
    values = found.report.per_query
    plain = {row: compare(values["BM25"]["R@5"], values[row]["R@5"]).p for row in values if row != "BM25"}
    least = min(plain, key=lambda row: plain[row])
    assert found.adjusted[least]["R@5"] == pytest.approx(min(1, len(plain) * plain[least]))


def test_tables_mark_what_differs_and_keep_their_columns(compared: tuple[Path, Compared]) -> None:
    _, found = compared
    rows = table_of(found, MEASURES)
    assert {len(row) for row in rows} == {6}
    assert rows[0][:3] == ["", *MEASURES]
    by_name = {row[0]: row for row in rows[1:]}
    assert "*" not in "".join(by_name["BM25"])
    for name, cells in by_name.items():
        for measure, cell in zip(MEASURES, cells[1:], strict=False):
            assert float(cell.rstrip("*")) == pytest.approx(found.report.means[name][measure], abs=6e-4)
            assert ("*" in cell) == (name != "BM25" and found.adjusted[name][measure] < 0.05)


def test_markdown_and_latex_escape_what_would_break_them() -> None:
    rows = [["", "a|b"], ["x_y", "50 %*"]]
    assert as_markdown(rows) == "|  | a\\|b |\n|---|---|\n| x_y | 50 %* |"
    latex = as_latex(rows)
    assert r"x\_y & 50 \%$^*$ \\" in latex
    assert latex.startswith(r"\begin{tabular}{lr}")


def test_random_weights_show_times_and_no_quality(checkpoints: Path, benchmark_: Benchmark, tmp_path: Path) -> None:
    systems = [System("BM25", None), System("drawn", str(checkpoints / "mean"), random=True)]
    found = compare_systems(benchmark_, systems, tmp_path, measures="RR@10", depth=20)
    [_, _, drawn] = table_of(found, ["RR@10"])
    assert drawn[:2] == ["drawn dense", "-"]
    assert drawn[3].endswith("ms")


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("{}", "names no system"),
        ('{"a": {"checkpoint": "c", "bits": 2}}', "expected a checkpoint or an object"),
        ('{"a": {"nbits": 2}}', "expected a checkpoint or an object"),
        ('{"a": 3}', "expected a checkpoint or an object"),
        ('{"BM25": "c"}', "BM25 is always there"),
        ('{"../a": "c"}', "a name becomes a folder's"),
        ('{"a": {"checkpoint": "c", "words": "all"}}', "expected .bm25., .predicted. or null"),
        ('{"a": {"checkpoint": "c", "exact": true, "nbits": 2}}', "exact search has no index"),
        ('{"a": {"checkpoint": "c", "exact": "yes"}}', "expected true or false"),
    ],
)
def test_a_file_of_systems_that_is_wrong_is_refused(content: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(UserError, match=wrong):
        read_systems(tmp_path / "s.json")


def test_systems_that_are_nowhere_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; give a folder of checkpoints or a JSON file"):
        read_systems(tmp_path / "nothing.json")
    with pytest.raises(UserError, match="names no system"):
        read_systems(tmp_path)


def test_a_plan_names_what_is_still_to_do(
    compared: tuple[Path, Compared], checkpoints: Path, benchmark_: Benchmark, tmp_path: Path
) -> None:
    out, _ = compared
    assert len(plan_lines([benchmark_], read_systems(checkpoints), out)) == 1
    lines = plan_lines([benchmark_], read_systems(checkpoints), tmp_path)
    assert [line.split(":")[0] for line in lines] == ["many", "mean", "all"]


def test_the_command_writes_tables_and_plots(checkpoints: Path, beir: Path, tmp_path: Path) -> None:
    systems = {"many": {"checkpoint": str(checkpoints / "many"), "words": "bm25"}, "mean": str(checkpoints / "mean")}
    (tmp_path / "s.json").write_text(json.dumps(systems))
    asked = ["compare", beir, "--systems", tmp_path / "s.json", "--out", tmp_path / "out", "--measures", "nDCG@10"]
    done = run(*asked, "--depth", 20)
    assert done.returncode == 0, done.stderr
    assert "| many hybrid |" in done.stdout
    assert (tmp_path / "out" / "compare.md").read_text() == done.stdout.removesuffix("\n")
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["collections"][0]["collection"] == "tiny"
    for name, begins in (("latency.png", b"\x89PNG"), ("bytes.svg", b"<?xml"), ("compare.tex", b"% tiny")):
        assert (tmp_path / "out" / name).read_bytes().startswith(begins)
    wrong = run(*asked, "--depth", 20, "--baseline", "nobody")
    assert wrong.returncode == 2
    assert "choose the baseline from: BM25, many dense" in wrong.stderr.splitlines()[-1]
    planned = run(*asked, "--plan")
    assert planned.stdout.startswith("all: 0.00 h")


def test_two_collections_share_a_table_of_means(compared: tuple[Path, Compared], tmp_path: Path) -> None:
    _, found = compared
    other = replace(found, collection="other")
    text = write_comparison([found, other], MEASURES, tmp_path)
    mean = found.report.means["BM25"]["nDCG@10"]
    shown = f"{mean:.3f}".removeprefix("0")
    assert f"| BM25 | {shown} | {shown} | {shown} |" in text
