"""Packages that only evaluation needs."""

from importlib import import_module
from types import ModuleType

from ..errors import MissingPackageError


def need(module: str, purpose: str, remedy: str = 'pip install "colbert-diffusion[evaluate]"') -> ModuleType:
    """Import an optional package. Raises MissingPackageError with the command that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"{purpose} needs {module}, which is not installed: {remedy}") from error
