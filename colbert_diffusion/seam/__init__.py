"""The only place that touches ColBERT's internals. ColBERT is bound to, never edited.

    binding     which names of ColBERT's modules are rebound, and what each must look like
    adapter     what ColBERT calls of a checkpoint, over our encoder and over vector files
    worker      the child: what ColBERT's launcher runs in each process
    launching   the parent: a launcher that notices a dead child
    building    ColBERT's builder, resumable and in bounded memory: sample, k-means, chunks, inverted lists
    compressing ColBERT's codec, a few vectors at a time, here or on another machine
    scorer      what ColBERT's C++ trusts of an index, checked when it is loaded
    parts       some chunks of an index, searched as a part of the whole
    extensions  the compiler for that C++
    settings    how a search over few vectors is tuned
    shape       ColBERT's arithmetic: sizes, and what cannot work

Rebound are `Checkpoint` (collection_indexer, searcher, index_updater), `encode`, `Launcher`, `mp` (indexer) and `IndexScorer`
(searcher), for every user of this process: indexes of ColBERT's own BERT checkpoints are then also built through our builder.
"""

from .binding import install, uninstall

__all__ = ["install", "uninstall"]
