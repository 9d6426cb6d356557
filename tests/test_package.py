"""The package as it is installed and published."""

import base64
import hashlib
import json
import marshal
import py_compile
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import PathDistribution, distribution
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


@pytest.fixture(scope="module")
def verifier() -> Any:
    spec = spec_from_file_location("verify", ROOT / "third_party" / "verify.py")
    assert spec is not None
    assert spec.loader is not None
    verify: Any = module_from_spec(spec)
    spec.loader.exec_module(verify)
    return verify


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PathDistribution:
    """The installed ColBERT, copied to where it may be edited."""
    installed = distribution("colbert-ai")
    site = Path(str(installed.locate_file("")))
    [about] = site.glob("colbert_ai-*.dist-info")
    for package in ("colbert", "utility"):
        shutil.copytree(site / package, tmp_path / package)
    shutil.copytree(about, tmp_path / about.name)
    for compiled in (tmp_path / "colbert").rglob("__pycache__"):
        shutil.rmtree(compiled)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return PathDistribution(tmp_path / about.name)


def record_anew(site: Path, name: str) -> None:
    """Who edits a file can edit RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256((site / name).read_bytes()).digest()).rstrip(b"=").decode()
    [record] = site.glob("*.dist-info/RECORD")
    lines = record.read_text().splitlines()
    record.write_text("\n".join(f"{name},sha256={digest}," if line.startswith(f"{name},") else line for line in lines) + "\n")


def edit_source(site: Path) -> None:
    with (site / "colbert" / "searcher.py").open("a") as file:
        file.write("\n# edited\n")


def edit_source_and_record(site: Path) -> None:
    (site / "colbert" / "utils" / "runs.py").write_text("# edited\n")
    record_anew(site, "colbert/utils/runs.py")


def edit_compiled(site: Path) -> None:
    source = site / "colbert" / "searcher.py"
    compiled = Path(py_compile.compile(str(source), doraise=True) or "")
    evil = compile("print('edited')", str(source), "exec")
    compiled.write_bytes(compiled.read_bytes()[:16] + marshal.dumps(evil))


def add_module(site: Path) -> None:
    (site / "colbert" / "extra.py").write_text("")


def shadow(site: Path) -> None:
    (site / "before" / "colbert").mkdir(parents=True)
    (site / "before" / "colbert" / "__init__.py").write_text("")
    sys.path.insert(0, str(site / "before"))


def customize(site: Path) -> None:
    (site / "sitecustomize.py").write_text("")


def remove_file(site: Path) -> None:
    (site / "colbert" / "searcher.py").unlink()


EDITS = [edit_source, edit_source_and_record, edit_compiled, add_module, shadow, customize, remove_file]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_the_verifier_sees_every_edit_of_the_installed_colbert(
    edit: Callable[[Path], None], verifier: Any, copied: PathDistribution, tmp_path: Path
) -> None:
    pin = json.loads(verifier.PIN.read_text())
    assert verifier.differences(copied, pin) == []
    py_compile.compile(str(tmp_path / "colbert" / "infra" / "run.py"), doraise=True)
    assert verifier.differences(copied, pin) == []  # what Python compiles by itself is no edit
    edit(tmp_path)
    assert verifier.differences(copied, pin)


def test_another_version_is_said(verifier: Any) -> None:
    pin = json.loads(verifier.PIN.read_text())
    assert verifier.differences(distribution("colbert-ai"), {**pin, "version": "0.0.1"})[0].endswith("the pin is 0.0.1")
