"""Nothing in a damaged index reaches ColBERT's C++ unseen: it is refused, or the answers are those of valid numbers."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from colbert_diffusion import Searcher
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.index.manifest import write_manifest

from ..conftest import TinyIndex


@pytest.fixture
def index(tiny_index: TinyIndex, tmp_path: Path) -> Path:
    shutil.copytree(tiny_index.path, tmp_path / "i")
    return tmp_path / "i"


def refused(index: Path, match: str) -> None:
    (index / "index.json").unlink()
    write_manifest(index, {})  # as if it had been written so
    with pytest.raises(UserError, match=match) as caught:
        Searcher("i", index_root=str(index.parent), verbose=0)
    assert "\n" not in str(caught.value)


def change(path: Path, at: int, value: float, part: int | None = None) -> None:
    tensors = torch.load(path)
    tensor = tensors if part is None else tensors[part]
    tensor.view(-1)[at] = value
    torch.save(tensors, path)


@pytest.mark.parametrize(
    ("name", "part", "value", "fault"),
    [
        ("0.codes.pt", None, 10**6, "codes are not all in 0.."),
        ("0.codes.pt", None, -5, "codes are not all in 0.."),
        ("ivf.pid.pt", 0, 10**6, "names passages beyond"),
        ("ivf.pid.pt", 0, -1, "names passages beyond"),
        ("ivf.pid.pt", 1, -1, "inverted list"),
        ("ivf.pid.pt", 1, 2**40, "inverted list"),
        ("centroids.pt", None, float("nan"), "finite"),
        ("buckets.pt", 1, float("inf"), "finite"),
        ("buckets.pt", 0, float("nan"), "finite"),
    ],
)
def test_a_number_out_of_its_range_is_refused_at_load(
    name: str, part: int | None, value: float, fault: str, index: Path
) -> None:
    change(index / name, 3 if name != "buckets.pt" else 1, value, part)
    refused(index, fault)


@pytest.mark.parametrize("doclens", [[10**6], [-5], [2**40], []])
def test_lengths_that_do_not_add_up_are_refused_before_anything_is_allocated_by_them(doclens: list[int], index: Path) -> None:
    path = index / "doclens.0.json"
    lengths = json.loads(path.read_text())
    path.write_text(json.dumps(doclens + lengths[len(doclens) :] if doclens else []))
    refused(index, "do not add up")


def test_tensors_of_another_shape_are_refused(index: Path) -> None:
    for name in ("centroids.pt", "0.residuals.pt", "0.codes.pt"):
        saved = (index / name).read_bytes()
        torch.save(torch.load(index / name)[:-1], index / name)
        refused(index, "is damaged|cannot be opened")
        (index / name).write_bytes(saved)


SEARCH = """
import sys
from pathlib import Path
from colbert_diffusion import Searcher
from colbert_diffusion.common.errors import UserError
index = Path(sys.argv[1])
for trial in sorted(index.parent.glob("trial-*")):
    try:
        searcher = Searcher(trial.name, index_root=str(index.parent), verbose=0)
        pids, _, scores = searcher.search("the capital of france", k=20)
        assert all(0 <= pid < 300 for pid in pids)
        print(trial.name, "answered", flush=True)
    except UserError as error:
        assert "\\n" not in str(error)
        print(trial.name, "refused", flush=True)
"""


@pytest.mark.parametrize("flips", [int(os.environ.get("FLIPS", "54"))])
def test_flipped_bits_end_no_process(flips: int, index: Path) -> None:
    """Without a manifest: sizes and hashes would tell. FLIPS=1000 is the long form."""
    draw = random.Random(0)
    (index / "index.json").unlink()
    names = sorted(path.name for path in index.iterdir() if path.suffix == ".pt" or path.name.startswith(("doclens", "0.meta")))
    for number in range(flips):
        trial = index.with_name(f"trial-{number:04d}")
        trial.mkdir()
        for path in index.iterdir():
            os.link(path, trial / path.name)
        name = names[number % len(names)]
        content = bytearray((trial / name).read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (trial / name).unlink()
        (trial / name).write_bytes(content)
    done = subprocess.run([sys.executable, "-c", SEARCH, str(index)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    verdicts = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("trial-")]
    assert len(verdicts) == flips
    assert "refused" in verdicts


def test_a_verifying_searcher_refuses_any_flipped_bit(index: Path) -> None:
    path = index / "0.residuals.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    options: dict[str, Any] = {"index_root": str(index.parent), "verbose": 0}
    assert Searcher("i", **options).search("paris", k=3)[0]  # valid numbers, other scores
    with pytest.raises(UserError, match=r"0\.residuals\.pt: changed"):
        Searcher("i", verify=True, **options)


def test_a_stock_searcher_is_guarded_too(index: Path) -> None:
    import colbert

    change(index / "0.codes.pt", 3, 10**6)
    with pytest.raises(UserError, match="codes are not all"):
        colbert.Searcher("i", index_root=str(index.parent), verbose=0)
