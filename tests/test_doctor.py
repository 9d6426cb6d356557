import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Mapping
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from colbert_diffusion import cli, doctor
from colbert_diffusion.doctor import CHECKS, Finding, Status
from colbert_diffusion.seam.extensions import CPU_EXTENSIONS, extensions_root

ROOT = Path(__file__).parents[1]


def look(name: str) -> Finding:
    return doctor._guarded(name, CHECKS[name])


def installed(monkeypatch: pytest.MonkeyPatch, versions: Mapping[str, str]) -> None:
    """Only these packages are installed, as far as their metadata says."""

    def version(package: str) -> str:
        if package not in versions:
            raise PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(doctor, "version", version)


def modules(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: SimpleNamespace(origin=name) if present else None)


def programs(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: f"/bin/{name}" if name in names else None)


def gpus(monkeypatch: pytest.MonkeyPatch, *names: str, nvcc: bool = True) -> None:
    monkeypatch.setattr(doctor, "_gpus", lambda: list(names))
    monkeypatch.setattr(doctor, "_has_nvcc", lambda: nvcc)


def test_every_check_of_the_list_is_reported_once_and_in_its_order() -> None:
    findings = doctor.diagnose()
    assert [finding.name for finding in findings] == list(CHECKS)
    assert all("\n" not in finding.detail for finding in findings)
    assert not [finding for finding in findings if finding.detail.startswith("the check itself broke")]


def test_a_check_that_raises_is_a_failure_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Finding:
        raise RuntimeError("no\nsuch luck")

    monkeypatch.setattr(doctor, "CHECKS", {"broken": broken, "python": doctor.check_python})
    first, second = doctor.diagnose()
    assert first == Finding("broken", "fail", "the check itself broke: RuntimeError: no such luck")
    assert second.status == "ok"


def test_no_check_breaks_when_everything_it_looks_for_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {})
    modules(monkeypatch, present=False)
    programs(monkeypatch)
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.delenv("GIT_PYTHON_REFRESH", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises

    def absent(package: str) -> Distribution:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "distribution", absent)
    findings = doctor.diagnose()
    assert not [finding for finding in findings if "itself broke" in finding.detail]
    failed = {finding.name for finding in findings if finding.status == "fail"}
    needed = {"torch", "transformers", "peft", "colbert", "faiss", "git", "ninja", "compiler"}
    assert needed <= failed
    assert {finding.name: finding.status for finding in findings}["cuda"] == "warn"
    assert all(finding.remedy for finding in findings if finding.name in failed)


def test_supported_ranges_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = set(project["dependencies"])
    assert {name + doctor._text(supported) for name, supported in doctor.RANGES.items()} <= declared
    assert project["requires-python"] == doctor._text(doctor.PYTHON)
    assert project["optional-dependencies"]["cpu"] == ["faiss-cpu" + doctor._text(doctor.FAISS)]


def test_the_small_base_is_the_one_the_default_checkpoint_names() -> None:
    config = json.loads((ROOT / "colbert_diffusion/models/small/diffusion.json").read_text())
    assert config["backbone"].startswith(f"package:{doctor.SMALL_BASE}/")


@pytest.mark.parametrize(("running", "status"), [("3.10.14", "fail"), ("3.11.0", "ok"), ("3.14.0rc1", "ok")])
def test_python_below_the_range_fails(monkeypatch: pytest.MonkeyPatch, running: str, status: Status) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: running)
    found = look("python")
    assert (found.status, found.remedy is None) == (status, status == "ok")
    assert running in found.detail


@pytest.mark.parametrize(
    ("package", "version", "status"),
    [
        ("torch", "2.12.1", "fail"),
        ("torch", "2.13.0+cu130", "ok"),
        ("torch", "2.13.9", "ok"),
        ("torch", "2.14.0", "fail"),
        ("transformers", "4.57.3", "fail"),
        ("transformers", "5.1.9", "fail"),
        ("transformers", "5.2.0", "ok"),
        ("transformers", "6.0.0", "fail"),
        ("peft", "0.17.1", "fail"),
        ("peft", "1.0.0", "ok"),
    ],
)
def test_a_version_outside_the_range_fails(monkeypatch: pytest.MonkeyPatch, package: str, version: str, status: Status) -> None:
    installed(monkeypatch, {package: version})
    found = look(package)
    assert found.status == status
    assert version in found.detail
    if status == "fail":
        assert found.remedy == f'pip install "{package}{doctor._text(doctor.RANGES[package])}"'


@pytest.mark.parametrize("package", doctor.RANGES)
def test_a_missing_package_fails_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    installed(monkeypatch, {})
    found = look(package)
    assert (found.status, found.detail) == ("fail", "not installed")
    assert str(found.remedy).startswith(f'pip install "{package}>=')


# ColBERT


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed colbert-ai of two files, as importlib.metadata reads one from disk."""
    (tmp_path / "colbert").mkdir()
    recorded = []
    for file in ("colbert/__init__.py", "colbert/searcher.py"):
        (tmp_path / file).write_text(f"# {file}\n")
        digest = base64.urlsafe_b64encode(hashlib.sha256((tmp_path / file).read_bytes()).digest()).rstrip(b"=").decode()
        recorded.append(f"{file},sha256={digest},1")
    about = tmp_path / "colbert_ai-0.2.22.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: colbert-ai\nVersion: 0.2.22\n")
    (about / "RECORD").write_text("\n".join([*recorded, "colbert/__pycache__/x.pyc,,", f"{about.name}/RECORD,,"]))
    monkeypatch.setattr(doctor, "distribution", lambda name: Distribution.at(about))
    origin = SimpleNamespace(origin=str(tmp_path / "colbert/__init__.py"))
    monkeypatch.setattr(doctor, "find_spec", lambda name: origin)
    return tmp_path


def test_an_unedited_colbert_passes(wheel: Path) -> None:
    assert look("colbert") == Finding("colbert", "ok", "0.2.22, unedited")


def test_the_first_edited_file_of_colbert_is_named(wheel: Path) -> None:
    (wheel / "colbert/searcher.py").write_text("# edited\n")
    found = look("colbert")
    assert (found.status, found.detail) == ("fail", "colbert/searcher.py is edited")
    assert found.remedy == "pip install --force-reinstall --no-deps colbert-ai==0.2.22"


def test_a_missing_file_of_colbert_fails(wheel: Path) -> None:
    (wheel / "colbert/searcher.py").unlink()
    assert (look("colbert").status, look("colbert").detail) == ("fail", "colbert/searcher.py is missing")


def test_a_colbert_that_cannot_be_proved_unedited_fails(wheel: Path) -> None:
    (wheel / "colbert_ai-0.2.22.dist-info/RECORD").unlink()
    assert look("colbert").status == "fail"
    assert "cannot be proved" in look("colbert").detail


def test_another_version_of_colbert_fails(wheel: Path) -> None:
    (wheel / "colbert_ai-0.2.22.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: colbert-ai\nVersion: 0.2.21\n")
    found = look("colbert")
    assert (found.status, found.detail) == ("fail", "0.2.21, the seam fits 0.2.22")
    assert "colbert-ai==0.2.22" in str(found.remedy)


def test_a_colbert_that_hides_the_installed_one_fails(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (wheel / "clone.py").touch()
    monkeypatch.setattr(doctor, "find_spec", lambda name: SimpleNamespace(origin=str(wheel / "clone.py")))
    found = look("colbert")
    assert found.status == "fail"
    assert "clone.py instead of" in found.detail
    assert "PYTHONPATH" in str(found.remedy)


# CUDA and faiss


def test_a_gpu_with_its_compiler_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, "A", "B")
    assert look("cuda") == Finding("cuda", "ok", "A, B")


def test_a_gpu_without_nvcc_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, "A", nvcc=False)
    found = look("cuda")
    assert found.status == "fail"
    assert "CUDA_HOME" in str(found.remedy)


def test_a_gpu_that_torch_does_not_see_is_a_warning_unless_it_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch)
    programs(monkeypatch, "nvidia-smi")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = look("cuda")
    assert found.status == "warn"
    assert "CUDA build" in str(found.remedy)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert look("cuda").status == "ok"


@pytest.mark.parametrize(
    ("packages", "gpu", "status", "detail", "remedy"),
    [
        (["faiss-cpu"], False, "ok", "faiss-cpu 1.15.1", None),
        (["faiss-gpu"], True, "ok", "faiss-gpu 1.15.1", None),
        (["faiss-gpu"], False, "ok", "faiss-gpu 1.15.1", None),
        (["faiss-cpu"], True, "fail", "k-means", 'pip uninstall -y faiss-cpu && pip install "colbert-diffusion[gpu]"'),
        (["faiss-cpu", "faiss-gpu"], False, "fail", "overwrite each other", "pip uninstall -y faiss-cpu faiss-gpu && pip"),
        ([], False, "warn", "not from pip", 'pip install "colbert-diffusion[cpu]"'),
    ],
)
def test_one_build_of_faiss_that_fits_the_machine(
    monkeypatch: pytest.MonkeyPatch, packages: list[str], gpu: bool, status: Status, detail: str, remedy: str | None
) -> None:
    installed(monkeypatch, dict.fromkeys(packages, "1.15.1"))
    modules(monkeypatch, present=True)
    gpus(monkeypatch, *["A"] * gpu)
    found = look("faiss")
    assert found.status == status
    assert detail in found.detail
    assert found.remedy is None if remedy is None else str(found.remedy).startswith(remedy)


def test_no_faiss_or_a_gutted_or_an_old_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch)
    installed(monkeypatch, {})
    modules(monkeypatch, present=False)
    assert look("faiss").status == "fail"
    assert str(look("faiss").remedy).startswith('pip install "colbert-diffusion[cpu]"')
    installed(monkeypatch, {"faiss-gpu": "1.15.1"})
    assert look("faiss").status == "fail"
    assert look("faiss").remedy == 'pip uninstall -y faiss-gpu && pip install "colbert-diffusion[cpu]"'
    installed(monkeypatch, {"faiss-cpu": "1.7.4"})
    modules(monkeypatch, present=True)
    assert (look("faiss").status, look("faiss").detail) == ("fail", "faiss-cpu 1.7.4, supported is >=1.15,<1.16")


# Programs


def test_a_missing_git_fails_unless_gitpython_is_told_not_to_care(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_PYTHON_REFRESH", raising=False)
    programs(monkeypatch)
    assert look("git").status == "fail"
    assert "GIT_PYTHON_REFRESH=quiet" in str(look("git").remedy)
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    assert look("git").status == "ok"


def test_ninja_counts_beside_python_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    found = look("ninja")
    assert (found.status, found.remedy) == ("fail", "pip install ninja")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ninja").touch(mode=0o755)
    assert look("ninja") == Finding("ninja", "ok", str(tmp_path / "bin" / "ninja"))


@pytest.mark.parametrize(
    ("cxx", "present", "status", "remedy"),
    [
        (None, ["c++"], "ok", None),
        ("ccache g++", ["ccache"], "ok", None),
        (None, ["g++"], "fail", "export CXX=g++"),  # torch calls c++ and no other
        ("icpc", ["c++"], "fail", "export CXX=c++"),
        (None, [], "fail", "apt install g++"),
        ("", ["clang++"], "fail", "export CXX=clang++"),
    ],
)
def test_the_compiler_that_torch_calls_must_be_there(
    monkeypatch: pytest.MonkeyPatch, cxx: str | None, present: list[str], status: Status, remedy: str | None
) -> None:
    programs(monkeypatch, *present)
    if cxx is None:
        monkeypatch.delenv("CXX", raising=False)
    else:
        monkeypatch.setenv("CXX", cxx)
    found = look("compiler")
    assert found.status == status
    assert found.remedy is None if remedy is None else str(found.remedy).startswith(remedy)


def test_missing_python_headers_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert look("headers").status == "fail"
    assert "python3-dev" in str(look("headers").remedy)
    (tmp_path / "Python.h").touch()
    assert look("headers").status == "ok"


# Compiled extensions


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the four extensions compiled."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "a cache"))
    for extension in CPU_EXTENSIONS:
        (tmp_path / "a cache" / extension).mkdir(parents=True)
        (tmp_path / "a cache" / extension / f"{extension}.so").touch()
    return tmp_path / "a cache"


def test_compiled_extensions_are_counted_and_the_others_named(cache: Path) -> None:
    assert look("extensions") == Finding("extensions", "ok", f"4 of 4 compiled in {cache}")
    (cache / "filter_pids_cpp" / "filter_pids_cpp.so").unlink()
    found = look("extensions")
    assert (found.status, found.detail) == ("ok", f"3 of 4 compiled in {cache}, at first use: filter_pids_cpp")


def test_a_lock_left_behind_is_a_warning_with_the_command_that_removes_it(cache: Path) -> None:
    lock = cache / "segmented_lookup_cpp" / "lock"
    lock.touch()
    os.utime(lock, (lock.stat().st_mtime - 600,) * 2)
    found = look("extensions")
    assert found.status == "warn"
    assert "10 minutes old" in found.detail
    assert str(found.remedy).endswith(f"rm '{lock}'")


def test_a_cache_that_cannot_be_written_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != cache / "filter_pids_cpp")
    found = look("extensions")
    assert (found.status, found.detail) == ("fail", f"{cache / 'filter_pids_cpp'} cannot be written")
    assert "TORCH_EXTENSIONS_DIR" in str(found.remedy)


def test_looking_at_the_cache_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "absent" / "cache"))
    assert look("extensions").detail.startswith("0 of 4 compiled")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "absent").touch()  # a file where the folder would be
    assert look("extensions").status == "fail"


def test_the_cache_is_where_torch_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils import cpp_extension

    monkeypatch.setattr(cpp_extension, "get_default_build_root", lambda: str(tmp_path))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    assert extensions_root() == Path(cpp_extension._get_build_directory("x", verbose=False)).parent


# The rest


def test_a_missing_base_of_the_default_checkpoint_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    modules(monkeypatch, present=False)
    assert (look("small").status, look("small").remedy) == ("warn", 'pip install "colbert-diffusion[small]"')
    modules(monkeypatch, present=True)
    assert look("small").status == "ok"


@pytest.mark.parametrize(("value", "status"), [("1", "fail"), ("True", "fail"), ("0", "ok"), (None, "ok")])
def test_switched_on_unpickling_fails(monkeypatch: pytest.MonkeyPatch, value: str | None, status: Status) -> None:
    if value is None:
        monkeypatch.delenv(doctor.UNPICKLING, raising=False)
    else:
        monkeypatch.setenv(doctor.UNPICKLING, value)
    found = look("unpickling")
    assert found.status == status
    assert found.remedy == (f"unset {doctor.UNPICKLING}" if status == "fail" else None)


def test_little_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4_900_000_000))
    found = look("disk")
    assert found.status == "warn"
    assert "4.9 GB free" in found.detail
    assert found.remedy
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000_000))
    assert look("disk").status == "ok"


def test_little_memory_is_a_warning_and_unknown_memory_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 3000000 kB\n")
    found = look("memory")
    assert found.status == "warn"
    assert "3.1 GB available" in found.detail
    assert found.remedy
    (tmp_path / "meminfo").write_text("MemAvailable: 9000000 kB\n")
    assert look("memory").status == "ok"
    (tmp_path / "meminfo").unlink()
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)
    assert look("memory").status == "warn"
    monkeypatch.delattr(os, "sysconf")
    assert look("memory") == Finding("memory", "ok", "unknown on this platform")


# The command


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_only_a_failure_blocks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: Status, code: int
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"one": lambda name: Finding(name, status, "is so", "do this")})
    monkeypatch.setattr(sys, "argv", ["colbert-diffusion", "doctor"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert capsys.readouterr().out.split() == [status, "one", "is", "so", "->", "do", "this"]


def test_a_failure_reaches_the_shell_as_json_and_exit_code_one() -> None:
    command = [sys.executable, "-m", "colbert_diffusion", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {doctor.UNPICKLING: "1"}, timeout=120)
    assert done.returncode == 1, done.stderr
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert list(findings) == list(CHECKS)
    assert findings["unpickling"]["remedy"] == f"unset {doctor.UNPICKLING}"
    assert findings["ninja"] == {"name": "ninja", "status": "ok", "detail": findings["ninja"]["detail"], "remedy": None}


def test_neither_colbert_nor_transformers_is_imported() -> None:
    check = (
        "import sys\nfrom colbert_diffusion.doctor import diagnose\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "diagnose()\nassert not {'colbert', 'transformers', 'peft', 'faiss'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
