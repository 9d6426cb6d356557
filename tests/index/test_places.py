"""The swap, interrupted at every point, always leaves one complete index where it belongs, and nobody's files are lost."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from colbert_diffusion.common import files
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.locking import lock_path
from colbert_diffusion.index import places as module
from colbert_diffusion.index.layout import is_own
from colbert_diffusion.index.manifest import MANIFEST_FILE, verify, write_manifest
from colbert_diffusion.index.places import BUILD_FILE, Places, own_files, snapshot

BUILD = {"checkpoint": "c", "nbits": 2}


def fill(folder: Path, content: str) -> None:
    """What stands for an index."""
    folder.mkdir(exist_ok=True)
    (folder / "centroids.pt").write_text(content)
    (folder / "metadata.json").write_text(json.dumps({"config": {}, "num_chunks": 0, "is": content}))
    write_manifest(folder, {"build": BUILD, "is": content}, is_own)


@pytest.fixture(params=["one step", "two steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a system that exchanges folders, and on one that cannot (NFS)."""
    if request.param == "two steps":
        monkeypatch.setattr(files, "exchange", lambda *_: False)
    return str(request.param)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """An old index in place, with foreign files, and a new complete one beside it."""
    places = Places(tmp_path / "name")
    fill(places.target, "old")
    (places.target / "notes.txt").write_text("mine")
    (places.target / "figures").mkdir()
    (places.target / "figures" / "a.png").write_text("mine too")
    (places.target / ".#notes.txt").symlink_to("nobody@host.123")  # an editor's lock, leading nowhere
    places.claim(BUILD, discard=False)
    fill(places.index, "new")
    places.vectors.mkdir()
    (places.vectors / "vectors.json").write_text("{}")
    return places


def content(places: Places) -> str:
    return (places.readable() / "centroids.pt").read_text()


def assert_swapped(places: Places) -> None:
    assert (places.target / "centroids.pt").read_text() == "new"
    assert (places.target / "notes.txt").read_text() == "mine"
    assert (places.target / "figures" / "a.png").read_text() == "mine too"
    assert os.readlink(places.target / ".#notes.txt") == "nobody@host.123"
    assert verify(places.target) == []
    assert [path.name for path in places.target.parent.iterdir()] == ["name"]


def test_a_swap_replaces_the_index_carries_foreign_files_over_and_leaves_nothing_behind(places: Places, steps: str) -> None:
    places.swap()
    assert_swapped(places)


class Killed(BaseException):
    pass


def killing(monkeypatch: pytest.MonkeyPatch, at: int | None) -> list[str]:
    """Every operation on files is noted; the one with this number, and all after it, do not happen."""
    seen: list[str] = []

    def stepping(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if at is not None and len(seen) >= at:
                raise Killed
            seen.append(name)
            return original(*arguments, **options)

        return run

    for name in ("rename", "replace", "link", "symlink", "unlink", "rmdir", "mkdir", "fsync", "pwrite"):
        monkeypatch.setattr(os, name, stepping(name, getattr(os, name)))
    monkeypatch.setattr(files, "exchange", stepping("exchange", files.exchange))
    return seen


def test_a_swap_killed_before_any_operation_is_finished_by_the_next_writer(
    places: Places, steps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path.with_name(tmp_path.name + "-saved")
    shutil.copytree(tmp_path, saved, symlinks=True)
    finished, kills = False, 0
    while not finished:
        shutil.rmtree(tmp_path)
        shutil.copytree(saved, tmp_path, symlinks=True)
        with monkeypatch.context() as patch:
            killing(patch, kills)
            try:
                places.swap()
                finished = True
            except Killed:
                kills += 1
        assert content(places) in ("old", "new")  # a reader finds one of them, whole
        assert (places.readable() / "notes.txt").read_text() == "mine"
        with places.writing():
            places.recover()
            if content(places) == "old":
                places.swap()
        assert_swapped(places)
    assert kills > 30


def test_a_swap_that_cannot_be_done_leaves_the_old_index_and_the_new_one_to_go_on_with(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    with monkeypatch.context() as patch:
        patch.setattr(files, "exchange", full)
        with pytest.raises(UserError, match=r"could not be replaced .*cross-device.* it is as it was"):
            places.swap()
    assert content(places) == "old"
    assert not places.recover()  # nobody finishes what the user was told did not happen
    assert content(places) == "old"
    places.claim(BUILD, discard=False)
    places.swap()
    assert_swapped(places)


def test_an_unfinished_index_is_never_swapped_in_by_recovery(places: Places) -> None:
    places.recover()
    assert content(places) == "old"
    assert places.index.exists()


def test_a_swap_that_version_0_1_left_is_finished(places: Places, steps: str) -> None:
    (places.work / BUILD_FILE).write_text(json.dumps({**BUILD, "swapping": True}))
    places.recover()
    assert (places.target / "centroids.pt").read_text() == "new"
    assert not places.work.exists()


def test_the_same_build_goes_on_and_another_is_refused_unless_discarded(places: Places) -> None:
    places.claim(BUILD, discard=False)
    assert (places.index / "centroids.pt").exists()
    with pytest.raises(UserError, match="nbits 2 there, 4 now"):
        places.claim({**BUILD, "nbits": 4}, discard=False)
    places.claim({**BUILD, "nbits": 4}, discard=True)
    assert not places.index.exists()


def test_a_work_folder_left_before_its_marker_was_whole_is_gone_on_with(tmp_path: Path) -> None:
    for left in (".build.json.partial", ".build.json.4711.partial", None):
        places = Places(tmp_path / f"name{left}")
        places.work.mkdir()
        if left:
            (places.work / left).write_text("{")
        places.claim(BUILD, discard=False)
        assert json.loads((places.work / BUILD_FILE).read_text()) == BUILD


def test_a_folder_that_is_not_ours_is_never_touched(tmp_path: Path) -> None:
    places = Places(tmp_path / "name")
    places.work.mkdir()
    (places.work / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        places.claim(BUILD, discard=True)
    with places.writing():
        places.recover()
    assert (places.work / "thesis.tex").read_text() == "mine"


# Before anything is encoded ----------------------------------------------------------------------------------------


def own_data(target: Path) -> None:
    target.mkdir()
    (target / "collection.tsv").write_text("0\tthe only copy\n")
    (target / "metadata.json").write_text('{"license": "MIT"}')


def foreign_of_our_name(target: Path) -> None:
    fill(target, "old")
    (target / "ids.txt").write_text("mine")


def pipe(target: Path) -> None:
    fill(target, "old")
    os.mkfifo(target / "pipe")


def pipe_deep_inside(target: Path) -> None:
    fill(target, "old")
    (target / "sub").mkdir()
    os.mkfifo(target / "sub" / "pipe")


def a_file(target: Path) -> None:
    target.write_text("thesis")


def work_folder_elsewhere(target: Path) -> None:
    (target.parent / "elsewhere").mkdir()
    Places(target).work.symlink_to(target.parent / "elsewhere")


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (own_data, "is no index"),
        (foreign_of_our_name, "ids.txt is not the index's own"),
        (pipe, "pipe is no file, folder or link"),
        (pipe_deep_inside, "pipe is no file, folder or link"),
        (a_file, "is a file, no index"),
        (work_folder_elsewhere, "is a link or on another file system"),
    ],
)
def test_what_could_not_be_replaced_or_would_be_lost_is_refused_beforehand(
    make: Callable[[Path], None], cause: str, tmp_path: Path
) -> None:
    make(tmp_path / "name")
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=cause):
        Places(tmp_path / "name").check_feasible()
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_mount_point_as_the_index_or_inside_it_is_refused(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    places.check_feasible()
    for point in (places.target, places.target / "figures"):
        monkeypatch.setattr(module, "mount_points", lambda point=point: {point.resolve()})
        with pytest.raises(UserError, match="mount point"):
            places.check_feasible()


def test_this_systems_mount_points_are_found() -> None:
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("no list of mounts")
    assert Path("/") in module.mount_points()


@pytest.mark.parametrize(("user", "refused"), [(0, False), (1234, False), (5678, True)], ids=["root", "owner", "other"])
def test_in_a_sticky_folder_like_tmp_only_ones_own_index_is_replaced(
    user: int, refused: bool, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.target.parent.chmod(0o1777)
    about = Path.stat

    def owned(path: Path, **options: Any) -> Any:
        found = about(path, **options)
        return os.stat_result((*found[:4], 1234, *found[5:10])) if path in (places.target, places.target.parent) else found

    monkeypatch.setattr(Path, "stat", owned)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(UserError, match="permission denied") if refused else nullcontext():
        places._check_permission()
    monkeypatch.undo()
    places.target.parent.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 5678)
    places._check_permission()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="nothing can be written"), Places(tmp_path / "closed" / "name").writing():
        raise AssertionError


def test_a_stock_colbert_index_is_one_by_its_plan_and_only_its_own_files_are(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps({"config": {}, "num_chunks": 1}))
    for name in ("0.codes.pt", "doclens.0.json", "7.codes.pt", "collection.tsv", "passages.jsonl", "notes"):
        (tmp_path / name).write_text("x")
    assert own_files(tmp_path) == {"metadata.json", "0.codes.pt", "doclens.0.json"}


def test_an_index_whose_manifest_is_damaged_can_be_rebuilt(places: Places) -> None:
    (places.target / MANIFEST_FILE).write_text("{")
    places.check_feasible()
    places.swap()
    assert_swapped(places)


@pytest.mark.parametrize("relative", [True, False])
def test_a_link_as_the_target_stays_a_link_and_what_it_leads_to_is_replaced(relative: bool, tmp_path: Path) -> None:
    real = tmp_path / "releases" / "index-1"
    real.parent.mkdir()
    fill(real, "old")
    (tmp_path / "current").symlink_to("releases/index-1" if relative else real)
    places = Places(tmp_path / "current")
    with places.writing():
        places.check_feasible()
        places.claim(BUILD, discard=False)
        fill(places.index, "new")
        places.swap()
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "current" / "centroids.pt").read_text() == "new"
    assert [path.name for path in real.parent.iterdir()] == ["index-1"]


def test_a_link_in_circles_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="link"):
        Places(tmp_path / "a").check_feasible()


def test_a_carried_file_damages_no_index_when_it_is_edited_later(places: Places) -> None:
    places.swap()
    (places.target / "notes.txt").write_text("more of mine")
    assert verify(places.target) == []


# Readers -----------------------------------------------------------------------------------------------------------


def test_between_the_two_renames_a_reader_finds_the_old_index_and_changes_nothing(places: Places) -> None:
    os.rename(places.target, places.replaced)
    before = sorted(path.name for path in places.work.iterdir())
    assert snapshot(places.target, lambda folder: (folder / "centroids.pt").read_text()) == "old"
    assert sorted(path.name for path in places.work.iterdir()) == before
    assert not places.target.exists()


def test_an_index_replaced_while_it_is_read_is_read_again_from_the_beginning(places: Places) -> None:
    reads: list[str] = []

    def read(folder: Path) -> tuple[str, str]:
        first = (folder / "centroids.pt").read_text()
        if not reads:
            places.swap()
        reads.append(first)
        return first, json.loads((folder / "metadata.json").read_text())["is"]

    assert snapshot(places.target, read) == ("new", "new")
    assert reads == ["old", "new"]


def test_an_error_of_an_index_that_vanished_while_it_was_read_is_not_the_readers(places: Places) -> None:
    tries: list[Path] = []

    def read(folder: Path) -> str:
        tries.append(folder)
        if len(tries) == 1:
            places.swap()
            raise RuntimeError("half a file")
        return (folder / "centroids.pt").read_text()

    assert snapshot(places.target, read) == "new"
    with pytest.raises(RuntimeError, match="wrong by itself"):
        snapshot(places.target, lambda folder: exec('raise RuntimeError("wrong by itself")'))


def write_again_and_again(target: Path, rounds: int) -> None:
    for number in range(rounds):
        places = Places(target)
        with places.writing():
            places.recover()
            places.claim({"round": number}, discard=True)
            fill(places.index, f"content {number}")
            places.swap()


@pytest.mark.parametrize("rounds", [int(os.environ.get("SWAPS", "40"))])
def test_no_reader_ever_finds_half_an_index_or_none(rounds: int, tmp_path: Path) -> None:
    """SWAPS=1000 is the long form."""
    target = tmp_path / "name"
    fill(target, "content first")
    writer = multiprocessing.get_context("fork").Process(target=write_again_and_again, args=(target, rounds))
    writer.start()
    seen = set()
    while writer.is_alive():
        found = snapshot(
            target,
            lambda folder: (
                (folder / "centroids.pt").read_text(),
                json.loads((folder / "metadata.json").read_text())["is"],
                json.loads((folder / MANIFEST_FILE).read_text())["is"],
            ),
        )
        assert len(set(found)) == 1
        seen.add(found[0])
        time.sleep(0.001)
    writer.join()
    assert writer.exitcode == 0
    assert len(seen) > 3
    assert verify(target) == []
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_only_one_of_two_writers_swaps(places: Places) -> None:
    code = """
import sys
from pathlib import Path
from colbert_diffusion.index.places import Places
places = Places(Path(sys.argv[1]))
with places.writing():
    places.swap()
"""
    with places.writing():
        done = subprocess.run([sys.executable, "-c", code, str(places.target)], capture_output=True, text=True)
        assert f"is being written by process {os.getpid()}" in done.stderr
        places.swap()
    assert_swapped(places)


def test_recovery_leaves_a_swap_to_the_writer_that_is_at_it(places: Places) -> None:
    (places.work / BUILD_FILE).write_text(json.dumps({**BUILD, "swapping": "x"}))
    with places.writing():
        assert not Places(places.target).recover()
        assert places.index.exists()
    assert not lock_path(places.target).exists()


def test_an_update_that_died_in_place_is_known_until_somebody_writes(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not places.interrupted()
    with monkeypatch.context() as patch:
        patch.setattr(Places, "_drop_work", lambda self: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            places.swap()
    assert places.interrupted()
    assert Places(places.target).interrupted()
    with places.writing():
        places.recover()
    assert not places.interrupted()


def test_a_damaged_marker_is_another_builds_and_never_ends_a_command(places: Places) -> None:
    (places.work / BUILD_FILE).write_bytes(b"\0" * 40)
    assert not places.recover()
    with pytest.raises(UserError, match="another build"):
        places.claim(BUILD, discard=False)
    places.claim(BUILD, discard=True)
    assert json.loads((places.work / BUILD_FILE).read_text()) == BUILD
