"""A process that has used a model may fork: gunicorn's preload, Celery's prefork, multiprocessing's "fork".

GNU's OpenMP keeps a pool of threads for the thread that computes. A forked child inherits the pool's description and none of
its threads, and waits for them for ever. So the pool is given back before a fork: parent and child each make a new one when
they next need it (`omp_pause_resource_all`, OpenMP 5.0, section 3.2.44; libgomp 9 and later have it). The tokenizer's pool
cannot be given back: a child tokenises in one thread, as the tokenizers library arranges itself unless TOKENIZERS_PARALLELISM
is set (importing ColBERT sets it, infra/run.py:13).
"""

import ctypes
import os
import sys
from pathlib import Path

MAPS = Path("/proc/self/maps")
RUNTIME = "libgomp"  # torch and faiss each bring one; LLVM's and Intel's runtimes take care of forks themselves
PAUSE = "omp_pause_resource_all"
HARD = 2  # omp_pause_hard

_process = os.getpid()


def settle_child() -> None:
    """In a forked child, do without the threads that it did not inherit; again when somebody has set it otherwise."""
    if os.getpid() == _process:
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch = sys.modules.get("torch")
    if torch is not None and not all(hasattr(ctypes.CDLL(path), PAUSE) for path in _runtimes()):
        torch.set_num_threads(1)


def _give_back_threads() -> None:
    for path in _runtimes():
        runtime = ctypes.CDLL(path)
        if hasattr(runtime, PAUSE):
            runtime.omp_pause_resource_all(HARD)


def _runtimes() -> list[str]:
    """The OpenMP runtimes of GNU's that this process has loaded."""
    if not MAPS.is_file():
        return []
    mapped = {line.split(maxsplit=5)[-1].strip() for line in MAPS.read_text(errors="replace").splitlines() if RUNTIME in line}
    return sorted(path for path in mapped if Path(path).is_file())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_give_back_threads, after_in_child=settle_child)
