import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import portalocker
import pytest

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.locking import BusyError, NoLocksError, left_behind, lock_path, writing

HOLD = """
import sys, time
from pathlib import Path
from colbert_diffusion.common.locking import writing
with writing(Path(sys.argv[1])) as lock:
    lock.note(sys.argv[2])
    print("held", flush=True)
    time.sleep(60)
"""


def holder(target: Path, note: str = "") -> "subprocess.Popen[str]":
    """Another process that holds the lock of `target`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(target), note], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_with_the_firsts_process_and_host(tmp_path: Path) -> None:
    process = holder(tmp_path / "x")
    try:
        with pytest.raises(BusyError, match=rf"process {process.pid} on {socket.gethostname()}"), writing(tmp_path / "x"):
            raise AssertionError
        with writing(tmp_path / "y"):  # another target is free
            pass
    finally:
        process.kill()
        process.wait()


def test_two_threads_or_blocks_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with writing(tmp_path / "x"), pytest.raises(BusyError, match=f"process {os.getpid()}"), writing(tmp_path / "x"):
        raise AssertionError


def test_any_death_lets_go_and_leaves_the_dead_ones_note(tmp_path: Path) -> None:
    process = holder(tmp_path / "x", "halfway")
    assert left_behind(tmp_path / "x") is None  # it is at work
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left_behind(tmp_path / "x") == "halfway"
    assert left_behind(tmp_path / "x") == "halfway"  # looking changes nothing
    with writing(tmp_path / "x") as lock:
        assert lock.left == "halfway"
    assert left_behind(tmp_path / "x") is None
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_let_go_leaves_nothing_whether_its_block_succeeded_or_failed(tmp_path: Path) -> None:
    with writing(tmp_path / "x") as lock:
        assert lock.left is None
    with pytest.raises(KeyError), writing(tmp_path / "x"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_who_waits_gets_the_lock_when_the_other_ends(tmp_path: Path) -> None:
    process = holder(tmp_path / "x")
    process.send_signal(signal.SIGKILL)
    with writing(tmp_path / "x", wait=True):
        pass
    process.wait()


def test_many_processes_at_once_are_never_two_inside(tmp_path: Path) -> None:
    code = """
import sys, os, time
from pathlib import Path
from colbert_diffusion.common.locking import writing
inside = Path(sys.argv[1], "inside")
for _ in range(30):
    with writing(Path(sys.argv[1], "x"), wait=True):
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        time.sleep(0.001)
        inside.unlink()
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[1] for process in processes] == [b""] * 4
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise portalocker.LockException(OSError(errno.ENOLCK, "No locks available"))

    monkeypatch.setattr(portalocker, "lock", none)
    with pytest.raises(NoLocksError, match=r"has no locks .*local disk"), writing(tmp_path / "x"):
        raise AssertionError


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("mine")
    lock_path(tmp_path / "x").symlink_to(tmp_path / "thesis")
    with pytest.raises((OSError, UserError)), writing(tmp_path / "x"):
        raise AssertionError
    assert (tmp_path / "thesis").read_text() == "mine"


def test_a_moment_of_looking_refuses_no_writer(tmp_path: Path) -> None:
    process = holder(tmp_path / "x")
    process.kill()
    process.wait()
    code = "import sys; from pathlib import Path; from colbert_diffusion.common.locking import left_behind\n"
    code += "while True: left_behind(Path(sys.argv[1]))"
    looking = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")])
    try:
        time.sleep(0.5)
        with writing(tmp_path / "x") as lock:
            assert lock.left == ""
    finally:
        looking.kill()
        looking.wait()
