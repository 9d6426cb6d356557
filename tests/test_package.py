"""The package as it is installed and published."""

import json
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import colbert_diffusion

ROOT = Path(__file__).parents[1]


def test_every_public_name_resolves() -> None:
    for name in colbert_diffusion.__all__:
        assert getattr(colbert_diffusion, name).__name__ == name
    with pytest.raises(AttributeError, match="absent"):
        colbert_diffusion.absent  # noqa: B018


def test_the_wheel_carries_the_small_checkpoint_and_nothing_of_anybody_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    model = "colbert_diffusion/models/small/"
    assert {model + f for f in ("diffusion.json", "artifact.metadata", "adapter_model.safetensors")} <= names
    assert all(name.startswith(("colbert_diffusion/", "colbert_diffusion-")) for name in names)
    assert wheel.stat().st_size < 10 * 2**20


def test_the_installed_colbert_is_the_published_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "third_party" / "verify.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_verifier_sees_an_edited_file_by_both_witnesses() -> None:
    spec = spec_from_file_location("verify", ROOT / "third_party" / "verify.py")
    assert spec is not None
    assert spec.loader is not None
    verify: Any = module_from_spec(spec)
    spec.loader.exec_module(verify)
    pin = json.loads(verify.PIN.read_text())
    installed = distribution("colbert-ai")
    assert verify.differences(installed, pin) == []
    original = verify._sha256
    edited = "colbert/searcher.py"
    verify._sha256 = lambda path: b"\0" * 32 if str(path).endswith(edited) else original(path)
    try:
        found = verify.differences(installed, pin)
    finally:
        verify._sha256 = original
    assert [line.split(":")[0] for line in found] == [edited, edited]
    assert "RECORD" in found[0]
    assert verify.differences(installed, {**pin, "version": "0.0.1"})[0].endswith("the pin is 0.0.1")
