import os
import threading
import time
from pathlib import Path

import pytest

from colbert_diffusion.seam import extensions
from colbert_diffusion.seam.extensions import ABANDONED_AFTER, wait_for_lock


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    lock = tmp_path / "segmented_maxsim_cpp" / "lock"
    lock.parent.mkdir()
    lock.touch()
    return lock


def age(lock: Path) -> None:
    long_ago = time.time() - ABANDONED_AFTER - 1
    for path in (*lock.parent.iterdir(), lock.parent):
        os.utime(path, (long_ago, long_ago))


def test_a_lock_left_by_a_killed_process_is_removed_and_said(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    age(lock)
    wait_for_lock(lock)
    assert not lock.exists()
    assert str(lock) in capsys.readouterr().err


def test_a_lock_that_a_process_has_open_is_waited_for(lock: Path) -> None:
    with lock.open():
        age(lock)
        waiting = threading.Thread(target=wait_for_lock, args=(lock,), daemon=True)
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive()
        assert lock.exists()
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_folder_that_still_changes_is_waited_for(lock: Path) -> None:
    """The owner may compile on another machine that shares the folder."""
    age(lock)
    (lock.parent / "main.o").touch()
    waiting = threading.Thread(target=wait_for_lock, args=(lock,), daemon=True)
    waiting.start()
    waiting.join(1)
    assert waiting.is_alive()
    assert lock.exists()
    lock.unlink()
    waiting.join(30)
    assert not waiting.is_alive()


def test_loading_the_scorers_waits_for_each_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(extensions, "wait_for_lock", lambda lock: seen.append(lock.parent.name))
    extensions.load_scorer()
    assert set(extensions.CPU_EXTENSIONS) <= set(seen)
