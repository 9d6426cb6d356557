"""Binding: three of ColBERT's modules see our factory under the name `Checkpoint`, its indexer our callee as `encode`
and our launcher as `Launcher`, its searcher our checks as `IndexScorer`.

The callee is a module-level function of ours because ColBERT's launcher pickles it by reference: a spawned child
imports this package and is bound in turn. Importing this module imports neither torch nor colbert.
"""

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from ..common.errors import UserError
from ..common.forking import settle_child
from ..config import layout_of
from .worker import encode

COLBERT_VERSION = "0.2.22"

# (module, name bound there, the first parameters that what is bound must have)
_BOUND: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("colbert.indexing.collection_indexer", "Checkpoint", ("name", "colbert_config", "verbose")),
    ("colbert.searcher", "Checkpoint", ("name", "colbert_config", "verbose")),
    ("colbert.searcher", "IndexScorer", ("index_path", "use_gpu", "load_index_with_mmap")),
    ("colbert.index_updater", "Checkpoint", ("name", "colbert_config", "verbose")),
    ("colbert.indexer", "encode", ("config", "collection", "shared_lists", "shared_queues", "verbose")),
    ("colbert.indexer", "Launcher", ("callee", "run_config", "return_all")),
    ("colbert.indexer", "mp", ()),
)
_originals: dict[tuple[str, str], Any] = {}


def install() -> None:
    """Bind ColBERT to diffusion checkpoints in this process; calling it again changes nothing.

    Raises:
        UserError: another ColBERT is installed than the one this seam was measured on.
    """
    if _originals:
        return
    found = version("colbert-ai")
    if found != COLBERT_VERSION:
        raise UserError(
            f"colbert-ai {found} is installed, this seam fits {COLBERT_VERSION}: pip install colbert-ai=={COLBERT_VERSION}"
        )
    originals = {}
    for module_name, name, parameters in _BOUND:
        original = getattr(importlib.import_module(module_name), name, None)
        if original is None or _parameters(original)[: len(parameters)] != parameters:
            raise UserError(
                f"{module_name}.{name} is not what colbert-ai {COLBERT_VERSION} publishes; "
                f"reinstall it: pip install --force-reinstall --no-deps colbert-ai=={COLBERT_VERSION}"
            )
        originals[module_name, name] = original
    from .launching import Launcher, Multiprocessing
    from .scorer import open_scorer

    ours: dict[str, Any] = {"encode": encode, "Launcher": Launcher, "mp": Multiprocessing(), "IndexScorer": open_scorer}
    for (module_name, name), original in originals.items():
        bound = ours.get(name)
        if bound is None:
            bound = _factory(original, searches=module_name == "colbert.searcher")
        setattr(importlib.import_module(module_name), name, bound)
    _originals.update(originals)
    settle_child()  # importing ColBERT has just set TOKENIZERS_PARALLELISM


def _parameters(original: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(original).parameters) if callable(original) else ()


def uninstall() -> None:
    """Give ColBERT its own names back; calling it again changes nothing."""
    for (module_name, name), original in _originals.items():
        setattr(importlib.import_module(module_name), name, original)
    _originals.clear()


def _factory(original: Callable[..., Any], *, searches: bool) -> Callable[..., Any]:
    """Our class for a diffusion checkpoint's folder, ColBERT's own for anything else."""

    def checkpoint(name: str, colbert_config: Any = None, verbose: int = 3) -> Any:
        if layout_of(name) is None:
            return original(name, colbert_config=colbert_config, verbose=verbose)
        from .adapter import open_checkpoint

        opened = open_checkpoint(name, colbert_config, verbose)
        if searches:
            from .extensions import load_scorer

            load_scorer()
        return opened

    return checkpoint
