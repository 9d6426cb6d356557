"""ColBERT's C++ extensions: compiled at first use, 24-42 s each. Makes the tools findable; loads what scoring needs."""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ..errors import MissingPackageError


def find_ninja() -> None:
    """Put ninja on PATH: a virtual environment's bin is not there when its python is called by path.

    Raises:
        MissingPackageError: there is none.
    """
    if shutil.which("ninja"):
        return
    beside_python = Path(sys.executable).parent
    if not (beside_python / "ninja").exists():
        raise MissingPackageError("ColBERT compiles its C++ scorers with ninja, which is not installed: pip install ninja")
    os.environ["PATH"] = f"{beside_python}{os.pathsep}{os.environ.get('PATH', '')}"


def load_scorer() -> None:
    """Load the four extensions that searching needs, the first time compiling them side by side.

    ColBERT's own checkpoint class loads the first at construction (modeling/colbert.py:28); the others would follow
    one after the other when the index opens.
    """
    from colbert.modeling.colbert import ColBERT
    from colbert.search.index_storage import IndexScorer
    from colbert.search.strided_tensor import StridedTensor

    find_ninja()
    use_gpu = torch.cuda.is_available()
    with ThreadPoolExecutor() as pool:
        loads = [pool.submit(owner.try_load_torch_extensions, use_gpu) for owner in (ColBERT, IndexScorer, StridedTensor)]
    for load in loads:
        load.result()
