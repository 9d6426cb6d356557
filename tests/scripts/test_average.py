"""scripts/average.py"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.backbones.sources import WEIGHTS_FILE
from colbert_diffusion.config import PROJECTION_FILE
from colbert_diffusion.encoding.conversion import convert

from ..conftest import make_texts
from .conftest import load

TEXTS = make_texts(40)


@pytest.fixture
def folders(tiny_bert: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint, and the same after a training that moved its projection."""
    start = convert(str(tiny_bert), tmp_path / "start", dim=8, fit_on=TEXTS)
    replace(start.config, training={"recipe": {"steps": 1}}).save(tmp_path / "start")
    trained = convert(str(tiny_bert), tmp_path / "trained", dim=8, fit_on=TEXTS)
    replace(trained.config, training={"recipe": {"steps": 2}}).save(tmp_path / "trained")
    weight = load_file(tmp_path / "start" / PROJECTION_FILE)["weight"]
    save_file({"weight": weight + torch.randn(weight.shape)}, tmp_path / "trained" / PROJECTION_FILE)
    return tmp_path / "start", tmp_path / "trained"


def test_weights_lie_between_those_of_the_two_and_both_trainings_are_recorded(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    load("average").main([*map(str, folders), str(tmp_path / "out"), "--share", "0.25"])
    start, trained, out = (load_file(folder / PROJECTION_FILE)["weight"] for folder in (*folders, tmp_path / "out"))
    np.testing.assert_allclose(out, 0.75 * start + 0.25 * trained, atol=1e-6)
    averaged = DiffusionCheckpoint(tmp_path / "out")
    assert averaged.encode_document(["cat"])[0].shape[1] == 8
    assert averaged.config.training == {"recipe": {"steps": 2}, "averaged": 0.25, "before": {"recipe": {"steps": 1}}}


def test_whole_weights_are_averaged_too(folders: tuple[Path, Path]) -> None:
    for folder, value in zip(folders, (0.0, 1.0), strict=True):
        save_file({"w": torch.full((2,), value)}, folder / WEIGHTS_FILE)
    script = load("average")
    assert WEIGHTS_FILE in script.WEIGHTS
    assert script.mean(folders[0] / WEIGHTS_FILE, folders[1] / WEIGHTS_FILE, 0.25)["w"].tolist() == [0.25, 0.25]


def test_what_is_no_start_of_the_other_is_refused(
    folders: tuple[Path, Path], tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(str(tiny_bert), tmp_path / "other", dim=4, fit_on=TEXTS)
    for start, share, said in ((tmp_path / "other", "0.5", "other tensors"), (folders[0], "1", "--share is 1")):
        with pytest.raises(SystemExit):
            load("average").main([str(start), str(folders[1]), str(tmp_path / "out"), "--share", share])
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
