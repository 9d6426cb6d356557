"""ColBERT's C++ extensions: compiled at first use, 24-42 s each. Makes the tools findable; loads what scoring needs."""

import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from ..common.errors import MissingPackageError
from ..common.progress import note

CPU_EXTENSIONS = ("segmented_maxsim_cpp", "filter_pids_cpp", "decompress_residuals_cpp", "segmented_lookup_cpp")
GPU_EXTENSIONS = ("packbits_cpp",)  # beside decompress_residuals_cpp, which goes by the same name on both
ABANDONED_AFTER = 120  # seconds without a change in an extension's folder; one of its files takes a compiler 24-42 s


def find_ninja() -> None:
    """Put this environment's ninja first on PATH: its bin is not there when its python is called by path.

    First, because another version of ninja compiles everything anew that this one has compiled, and the other way round.

    Raises:
        MissingPackageError: there is none.
    """
    beside_python = Path(sys.executable).parent
    found = shutil.which("ninja")
    if found is not None and (Path(found).parent == beside_python or not (beside_python / "ninja").exists()):
        return
    if not (beside_python / "ninja").exists():
        raise MissingPackageError("ColBERT compiles its C++ scorers with ninja, which is not installed: pip install ninja")
    os.environ["PATH"] = f"{beside_python}{os.pathsep}{os.environ.get('PATH', '')}"


def extensions_root() -> Path | None:
    """Where torch.utils.cpp_extension builds; its own function for it would make the folder. None without torch."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    if chosen is not None:
        return Path(chosen).absolute()
    if find_spec("torch") is None:
        return None
    import torch
    from torch.utils.cpp_extension import get_default_build_root

    built_for = f"cu{torch.version.cuda.replace('.', '')}" if torch.version.cuda else "cpu"
    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    return Path(get_default_build_root()) / f"{python}_{built_for}"


def load_scorer() -> None:
    """Load the four extensions that searching needs, the first time compiling them side by side.

    ColBERT's own checkpoint class loads the first at construction (modeling/colbert.py:28); the others would follow
    one after the other when the index opens.
    """
    import torch
    from colbert.modeling.colbert import ColBERT
    from colbert.search.index_storage import IndexScorer
    from colbert.search.strided_tensor import StridedTensor

    find_ninja()
    root = extensions_root()
    if root is not None:
        for name in CPU_EXTENSIONS + GPU_EXTENSIONS:
            wait_for_lock(root / name / "lock")
    use_gpu = torch.cuda.is_available()
    with ThreadPoolExecutor() as pool:
        loads = [pool.submit(owner.try_load_torch_extensions, use_gpu) for owner in (ColBERT, IndexScorer, StridedTensor)]
    for load in loads:
        load.result()


def wait_for_lock(lock: Path) -> None:
    """Return once nobody else compiles this extension, removing a lock that a killed process left behind.

    torch marks a folder it compiles in by a file and waits for that file without end (torch/utils/file_baton.py:44), so
    one killed compilation would hang every later search. A lock is abandoned when no process of this machine has it
    open and nothing in its folder has changed for `ABANDONED_AFTER` seconds: its owner may run on another machine that
    shares the folder.
    """
    told = False
    while lock.exists():
        if not _is_open_here(lock) and _unchanged_seconds(lock.parent) > ABANDONED_AFTER:
            note(f"removed {lock}: its owner was killed while it compiled")
            lock.unlink(missing_ok=True)
            return
        if not told:
            note(f"another process compiles ColBERT's scorers, or was killed meanwhile: waiting for {lock}")
            told = True
        time.sleep(0.2)


def _unchanged_seconds(folder: Path) -> float:
    times = [entry.stat().st_mtime for entry in (folder, *folder.iterdir()) if entry.exists()]
    return time.time() - max(times, default=0.0)


def _is_open_here(path: Path) -> bool:
    """Whether a process of this machine has the file open; where that cannot be seen (no /proc), no."""
    wanted = os.path.realpath(path)
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) == wanted:
                return True
        except OSError:  # closed meanwhile, or another user's
            continue
    return False
