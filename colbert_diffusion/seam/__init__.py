"""The only place that touches ColBERT's internals. ColBERT is bound to, never edited.

binding: which checkpoint class ColBERT's modules see; worker: what its launcher runs; indexing and searching: its
Indexer and Searcher with our guards; settings: how a search over few vectors is tuned; shape: ColBERT's arithmetic.
"""

from .binding import install, uninstall

__all__ = ["install", "uninstall"]
