"""The swap, interrupted at every point, always leaves one complete index where it belongs."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from colbert_diffusion.errors import UserError
from colbert_diffusion.manifest import write_manifest
from colbert_diffusion.seam.places import Places

BUILD = {"checkpoint": "c", "nbits": 2}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """An old index in place, with a foreign file, and a new complete one beside it."""
    places = Places(tmp_path / "name")
    places.target.mkdir()
    (places.target / "centroids.pt").write_text("old")
    (places.target / "notes.txt").write_text("mine")
    (places.target / "figures").mkdir()
    (places.target / "figures" / "a.png").write_text("mine too")
    places.claim(BUILD, discard=False)
    places.index.mkdir()
    (places.index / "centroids.pt").write_text("new")
    write_manifest(places.index, {"build": BUILD})
    return places


def content(places: Places) -> str:
    return (places.target / "centroids.pt").read_text()


def test_a_swap_replaces_the_index_carries_foreign_files_over_and_leaves_nothing_behind(places: Places) -> None:
    places.swap()
    assert content(places) == "new"
    assert (places.target / "notes.txt").read_text() == "mine"
    assert (places.target / "figures" / "a.png").read_text() == "mine too"
    assert [p.name for p in places.target.parent.iterdir()] == ["name"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(5))
def test_a_swap_killed_at_any_step_is_finished(places: Places, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    steps: list[str] = []

    def stepping(original: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            if len(steps) == step:
                raise Killed
            steps.append(original.__name__)
            return original(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stepping(os.replace))  # the marker's, then the two renames
        patch.setattr(shutil, "rmtree", stepping(shutil.rmtree))
        with pytest.raises(Killed):
            places.swap()
    places.recover()
    assert content(places) == ("old" if step == 0 else "new")
    assert (places.target / "notes.txt").read_text() == "mine"
    if step == 0:
        places.swap()
    places.recover()
    assert content(places) == "new"
    assert not places.work.exists()


def test_an_unfinished_index_is_never_swapped_in_by_recovery(places: Places) -> None:
    places.recover()
    assert content(places) == "old"
    assert places.index.exists()


def test_the_same_build_goes_on_and_another_is_refused_unless_discarded(places: Places) -> None:
    places.claim(BUILD, discard=False)
    assert (places.index / "centroids.pt").exists()
    with pytest.raises(UserError, match="nbits 2 there, 4 now"):
        places.claim({**BUILD, "nbits": 4}, discard=False)
    places.claim({**BUILD, "nbits": 4}, discard=True)
    assert not places.index.exists()


def test_a_folder_that_is_not_ours_is_never_touched(tmp_path: Path) -> None:
    places = Places(tmp_path / "name")
    places.work.mkdir()
    (places.work / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        places.claim(BUILD, discard=True)
    assert (places.work / "thesis.tex").read_text() == "mine"
