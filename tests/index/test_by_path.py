"""An index is its folder: whoever builds it by path finds it by path, from Python and from the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from colbert_diffusion import UserError, build_index, open_index
from colbert_diffusion.index.opening import index_config

from ..conftest import make_texts

TEXTS = make_texts(30)


@pytest.mark.parametrize("given", ["i", "i/", "./i", "deep/er/i", "absolute"])
def test_an_index_is_where_it_was_asked_for(
    given: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / "i") if given == "absolute" else given
    built = build_index(path, TEXTS, tiny_checkpoint, verbose=0)
    assert built == (tmp_path / given if given != "absolute" else tmp_path / "i")
    searcher = open_index(path)
    assert searcher.collection[7] == TEXTS[7]
    assert len(searcher.search(TEXTS[7], k=5)[0]) == 5
    with pytest.raises(UserError, match="exists"):
        build_index(path, TEXTS, tiny_checkpoint, verbose=0)
    assert build_index(path, TEXTS, tiny_checkpoint, overwrite="resume", verbose=0) == built


def test_the_command_line_finds_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    build_index(tmp_path / "i", TEXTS, tiny_checkpoint, nbits=2, metadata=[{"n": n} for n in range(30)], verbose=0)
    command = [sys.executable, "-m", "colbert_diffusion", "search", str(tmp_path / "i"), TEXTS[3], "-k", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert TEXTS[3] in done.stdout
    pids, _, _ = open_index(tmp_path / "i").search(TEXTS[3], k=9, where=lambda about: about["n"] > 20)
    assert sorted(pids) == list(range(21, 30))


def test_an_index_has_the_bits_that_were_asked_for_or_else_the_checkpoints(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name, nbits in (("own", None), ("one", 1)):
        built = build_index(tmp_path / name, TEXTS, tiny_checkpoint, nbits=nbits, verbose=0)
        assert index_config(built)["nbits"] == (nbits or 2)
