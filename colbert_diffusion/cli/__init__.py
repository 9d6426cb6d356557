"""The command line: parses, calls, prints. Everything heavy is imported by the command that needs it."""

from . import evaluating, indexing, training
from .app import app, main

__all__ = ["app", "evaluating", "indexing", "main", "training"]
