import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from colbert_diffusion.cli.tables import print_ranking
from colbert_diffusion.encoding.vectors import SHARD

from ..conftest import HIDDEN, PARITY, make_texts

TEXTS = make_texts(150)


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "colbert_diffusion", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("collection") / "c.jsonl"
    path.write_text("".join(json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


def test_encode_index_and_search_end_to_end(collection: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    encoded = run("encode", collection, tmp_path / "v", "--checkpoint", tiny_checkpoint, "--json")
    assert json.loads(encoded.stdout)["passages"] == 150
    indexed = run("index", collection, tmp_path / "i", "--vectors", tmp_path / "v", "--nbits", 2, "--json")
    facts = json.loads(indexed.stdout)
    assert (facts["passages"], facts["vectors"], facts["nbits"]) == (150, 1200, 2)
    assert facts["bytes_per_passage"] > 8 * (4 + HIDDEN * 2 // 8) - 1
    (tmp_path / "q.tsv").write_text(f"1\t{TEXTS[17]}\n2\tcat\n")
    found = run("search", tmp_path / "i", "--queries", tmp_path / "q.tsv", "-k", 5, "--json")
    answers = [json.loads(line) for line in found.stdout.splitlines()]
    assert [answer["query"] for answer in answers] == [TEXTS[17], "cat"]
    assert answers[0]["topk"][0].keys() == {"rank", "score", "pid", "id", "text"}
    assert answers[0]["topk"][0]["text"] == TEXTS[answers[0]["topk"][0]["pid"]]
    table = run("search", tmp_path / "i", "cat")
    assert "score" in table.stdout
    assert "#>" not in table.stdout + table.stderr  # ColBERT's own chatter


def test_two_processes_share_an_index(tiny_checkpoint: Path, tmp_path: Path) -> None:
    passages = SHARD + 5  # two shards: with one there is nothing to share
    (tmp_path / "c.tsv").write_text("".join(f"{i}\tcat {i % 7}\n" for i in range(passages)))
    done = run("index", tmp_path / "c.tsv", tmp_path / "i", "--checkpoint", tiny_checkpoint, "--ranks", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passages"] == passages  # one line: the other process has not run the command again


def test_convert_from_the_command_line(collection: Path, tmp_path: Path) -> None:
    done = run("convert", PARITY / "released-dream", tmp_path / "c", "--dim", 32, "--fit-on", collection)
    assert done.returncode == 0, done.stderr
    assert "k_query=4, k_passage=16, dim=32" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "absent.tsv", "i"], "absent.tsv does not exist"),
        (["index", "bad.tsv", "i"], "bad.tsv, line 2: pid '7', expected 1"),
        (["index", "bad.tsv", "i", "--checkpoint", "a", "--vectors", "b"], "exclude each other"),
        (["index", "good.tsv", "i", "--checkpoint", str(PARITY / "released-dream")], "colbert-diffusion convert"),
        (["index", "good.tsv", "i", "--checkpoint", "./absent"], "./absent not found"),
        (["index", "good.tsv", "i", "--nbits", "3"], "nbits=3"),
        (["search", "absent", "cat"], "does not exist; build it with"),
        (["search", "absent"], "nothing to search for"),
        (["encode", "good.tsv", "."], "holds no vector files"),
        (["convert", "./absent", "out"], "./absent not found"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy_and_exit_code_two(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "bad.tsv").write_text("0\ta\n7\tb\n")
    (tmp_path / "good.tsv").write_text("0\ta\n1\tb\n")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tsv", "good.tsv"]  # nothing half-done is left


def test_bad_lines_are_left_out_and_kept_in_a_file_when_asked(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lines = [f"{i}\t{text}\n" for i, text in enumerate(TEXTS[:20])]
    (tmp_path / "c.tsv").write_text("".join([*lines, "7\tagain\n", "no columns\n"]))
    command = ["index", tmp_path / "c.tsv", tmp_path / "i", "--checkpoint", tiny_checkpoint]
    assert run(*command).returncode == 2
    done = run(*command, "--skip-bad", "--json")
    assert json.loads(done.stdout)["passages"] == 20
    assert "2 lines left out" in done.stderr
    assert (tmp_path / "c.tsv.skipped").read_text().splitlines()[0] == "21\tpid '7' is repeated\t7\tagain"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("--debug", "search", tmp_path / "absent", "cat")
    assert "Traceback" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    check = (
        "import sys\n"
        "sys.argv = ['colbert-diffusion', '--help']\n"
        "from colbert_diffusion.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'colbert', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "convert" in done.stdout


def test_a_text_is_shown_as_it_is_and_reaches_no_terminal_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[/INST] [bold]loud[/bold] [link=file:///x]here[/link] \x1b[31mred\x1b]0;title\x07 \u202eback a\tb"
    print_ranking("[red]?", [{"rank": 1, "score": 1.0, "id": "[i]1", "text": text}])
    shown = "".join(capsys.readouterr().out.split())
    parts = ("[/INST]", "[bold]loud[/bold]", "[link=file:///x]here[/link]", r"\x1b[31mred\x1b]0;title\x07", r"\u202eback")
    for part in (*parts, "[i]1", "[red]?"):
        assert part in re.sub("[│┃]", "", shown)
    assert "\x1b" not in shown
