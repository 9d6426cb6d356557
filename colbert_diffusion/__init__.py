"""Diffusion language models as retrievers, in ColBERT's own index.

Importing this package makes a plain ColBERT script accept diffusion checkpoints; it loads neither torch nor colbert.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

from .common import forking as forking  # registers what a fork needs

if TYPE_CHECKING:
    from .common.errors import UserError as UserError
    from .config import DiffusionConfig as DiffusionConfig
    from .encoding.checkpoint import DiffusionCheckpoint as DiffusionCheckpoint
    from .encoding.checkpoint import default_checkpoint as default_checkpoint
    from .encoding.conversion import convert as convert
    from .index.by_path import build_index as build_index
    from .index.by_path import open_index as open_index
    from .index.indexing import Indexer as Indexer
    from .index.searching import Searcher as Searcher
    from .index.updating import IndexUpdater as IndexUpdater

__version__ = "0.1.0"

_HOMES = {
    "DiffusionCheckpoint": ".encoding.checkpoint",
    "default_checkpoint": ".encoding.checkpoint",
    "DiffusionConfig": ".config",
    "UserError": ".common.errors",
    "build_index": ".index.by_path",
    "open_index": ".index.by_path",
    "Indexer": ".index.indexing",
    "Searcher": ".index.searching",
    "IndexUpdater": ".index.updating",
    "convert": ".encoding.conversion",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Resolve a public name at first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


@wrapt.when_imported("colbert")
def _bind(_: Any) -> None:
    from .seam import install

    install()
