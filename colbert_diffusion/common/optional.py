"""Packages that not every user needs: imported when they are, and named with the command that installs them when absent."""

from importlib import import_module
from types import ModuleType

from .errors import MissingPackageError


def extra(name: str) -> str:
    """The command that installs an extra of this package."""
    return f'pip install "colbert-diffusion[{name}]"'


def need(module: str, purpose: str, remedy: str) -> ModuleType:
    """Import an optional package.

    Args:
        purpose: what needs it, the sentence's subject: "BM25".
        remedy: the command that installs it.

    Raises:
        MissingPackageError: it is absent.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"{purpose} needs {module}, which is not installed: {remedy}") from error
