import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from colbert_diffusion.common import files
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import (
    aside_of,
    exchange,
    folder_aside,
    is_full,
    needing_room,
    put_in_place,
    read_json,
    restore,
    save_tensors,
    write_json,
    written_aside,
)


def test_a_failed_write_leaves_the_good_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"good": True})
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "good": true\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_of_a_write_is_used_again_and_gone(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    aside_of(path).write_text("half of a very long file" * 100)
    write_json(path, {"good": True})
    assert read_json(path) == {"good": True}
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_never_write_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    code = "import sys; from pathlib import Path; from colbert_diffusion.common.files import write_json\n"
    code += "write_json(Path(sys.argv[1]), {'mine': True})"
    with written_aside(path) as aside:
        aside.write_text('{"first": true}')
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
        assert "is being written by another process" in other.stderr
    assert read_json(path) == {"first": True}


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is forced to the disk, renamed and deleted, in order: (what, name of the file or folder)."""
    seen: list[tuple[str, str]] = []

    def told(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            what = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else arguments[0]
            seen.append((name, os.path.basename(what)))
            return original(*arguments, **options)

        return run

    for name in ("fsync", "replace", "rename"):
        monkeypatch.setattr(os, name, told(name, getattr(os, name)))
    monkeypatch.setattr(files, "exchange", told("exchange", files.exchange))
    monkeypatch.setattr(files, "remove", told("remove", files.remove))
    return seen


def test_a_file_is_on_the_disk_before_its_rename_and_the_rename_after_it(
    tmp_path: Path, operations: list[tuple[str, str]]
) -> None:
    write_json(tmp_path / "a.json", {})
    assert operations == [("fsync", ".a.json.partial"), ("replace", ".a.json.partial"), ("fsync", tmp_path.name)]


def test_a_folder_with_all_in_it_is_on_the_disk_before_what_was_there_is_deleted(
    tmp_path: Path, operations: list[tuple[str, str]]
) -> None:
    for content in ("old", "new"):
        operations.clear()
        with folder_aside(tmp_path / "x", replace=True) as aside:
            (aside / "deep").mkdir()
            (aside / "deep" / "file").write_text(content)
    assert (tmp_path / "x" / "deep" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    placed = operations.index(("exchange", ".x.partial"))
    assert {name for what, name in operations[:placed] if what == "fsync"} == {"file", "deep", ".x.partial"}
    forced = operations.index(("fsync", tmp_path.name), placed)
    assert ("remove", ".x.partial") in operations[forced:]


def test_a_folder_that_is_there_is_replaced_only_when_told(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="exists"), folder_aside(tmp_path / "x") as aside:
        (aside / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert not list((tmp_path / "x").iterdir())


@pytest.fixture(params=["one step", "two steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With a system that exchanges folders, and without."""
    if request.param == "two steps":
        monkeypatch.setattr(files, "exchange", lambda *_: False)
    return str(request.param)


@pytest.fixture
def old_and_new(tmp_path: Path) -> tuple[Path, Path, Path]:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "new", tmp_path / "old", tmp_path / "replaced"


def test_a_folder_takes_anothers_place(old_and_new: tuple[Path, Path, Path], steps: str) -> None:
    new, old, replaced = old_and_new
    put_in_place(new, old, replaced)
    assert (old / "file").read_text() == "new"
    assert ((new if steps == "one step" else replaced) / "file").read_text() == "old"


def test_a_rename_that_fails_leaves_everything_as_it_was(
    old_and_new: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old, replaced = old_and_new
    rename, calls = os.rename, list[Path]()

    def failing(source: Path, to: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, to)

    monkeypatch.setattr(files, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        put_in_place(new, old, replaced)
    assert ((old / "file").read_text(), (new / "file").read_text()) == ("old", "new")
    assert not replaced.exists()


def test_an_exchange_says_when_it_fails_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "one", tmp_path / "two")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_replacement_cut_off_between_two_renames_is_undone(tmp_path: Path) -> None:
    (tmp_path / ".x.replaced").mkdir()
    (tmp_path / ".x.replaced" / "file").write_text("old")
    restore(tmp_path / "x")
    assert (tmp_path / "x" / "file").read_text() == "old"


@pytest.mark.parametrize(
    "write",
    [
        "path.write_bytes(bytes(3_000_000))",
        "import torch; torch.save(torch.zeros(3_000_000), path)",
        "import torch, safetensors.torch; safetensors.torch.save_file({'a': torch.zeros(3_000_000)}, path)",
    ],
    ids=["python", "torch", "safetensors"],
)
def test_a_full_disk_is_one_line_whoever_writes(write: str, tmp_path: Path) -> None:
    code = f"""
import resource, signal, sys
from pathlib import Path
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import needing_room
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = Path(sys.argv[1])
try:
    with needing_room(path.parent, lambda: 7_000_000):
        {write}
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], capture_output=True, text=True)
    assert done.stdout.startswith(f"no space left on {tmp_path}, needs about 7 MB"), done.stderr
    assert done.stdout.count("\n") == 1


def test_other_errors_are_not_taken_for_a_full_disk() -> None:
    assert not is_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_full(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape"), needing_room(Path()):
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize("content", ["[1]", "{", "{1}", '{"a": ' + "9" * 5000 + "}", "[" * 100_000, "\udcff"])
def test_what_is_no_json_object_is_one_line_with_the_files_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"x\.json"):
        read_json(path)


def test_tensors_are_readable_by_whom_other_files_are(tmp_path: Path) -> None:
    """safetensors itself writes 0600, whatever the umask says: a colleague or a server's account could read no checkpoint."""
    (tmp_path / "plain").touch()
    save_tensors({"a": torch.ones(2)}, tmp_path / "new", {"made": "here"})
    with written_aside(tmp_path / "aside") as aside:
        save_tensors({"a": torch.ones(2)}, aside)
    assert {path.stat().st_mode for path in tmp_path.iterdir() if path.is_file()} == {(tmp_path / "plain").stat().st_mode}
    with safe_open(tmp_path / "new", "pt") as file:
        assert file.metadata() == {"made": "here"}
