"""What ColBERT's launcher runs, in this process or in a spawned one. Importing it imports neither torch nor colbert."""

import multiprocessing.connection
import os
import threading
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, overload

from ..common.errors import UserError

SEED = 12345  # ColBERT's (infra/launcher.py:99)
GROUP_TIMEOUT = timedelta(hours=12)  # a rank may wait at a barrier while another clusters
UNSAFE_LOADING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class Pids(Sequence[int]):
    """The collection as ColBERT iterates over it: pids for texts, since vectors are served by pid.

    Carries what each process needs to encode its share. ColBERT copies its config, the collection included, at every
    export (core_config.py:87): a copy of this is itself.

    Args:
        checkpoint: the model's folder; None when the vector files are complete.
        vectors: folder of the vector files.
        cluster: encodes and compresses, with one rank.
    """

    def __init__(self, texts: Sequence[str], checkpoint: str | None, vectors: Path, cluster: Any = None) -> None:
        self.texts, self.checkpoint, self.vectors, self.cluster = texts, checkpoint, vectors, cluster

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        return range(len(self))[index]

    def __deepcopy__(self, memo: object) -> "Pids":
        return self


class Failure:
    """A child's exception, as text: its traceback would not survive the queue."""

    def __init__(self, rank: int, error: BaseException) -> None:
        self.rank, self.summary, self.details = rank, f"{type(error).__name__}: {error}", traceback.format_exc()
        self.is_user_error = isinstance(error, UserError)

    def raise_here(self) -> NoReturn:
        if self.is_user_error:
            raise UserError(self.summary.removeprefix("UserError: "))
        raise RuntimeError(f"rank {self.rank} failed: {self.summary}\n{self.details}")


def run_rank(callee: Any, port: str, results: Any, config: Any, *args: Any) -> None:
    """ColBERT's own entry of a rank, which tells its parent how it failed.

    Here, because a spawned process imports this module first: one that imports colbert would be bound while half loaded.
    """
    end_with_parent()
    from colbert.infra.launcher import setup_new_process

    try:
        setup_new_process(callee, port, results, config, *args)
    except BaseException as error:
        results.put((config.rank, Failure(config.rank, error)))
        raise SystemExit(1) from None


def end_with_parent() -> None:
    """A rank whose parent was killed ends at once: nobody would collect its work, or let another build begin."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def encode(config: Any, collection: Any, shared_lists: Any, shared_queues: Any, verbose: int = 3) -> None:
    """Encode what other ranks do not, then run ColBERT's indexer.

    ColBERT's own callee under a name of ours (indexer.py:86): a spawned child that unpickles it imports this package.
    With it comes the hook in `colbert_diffusion/__init__.py`, so the child is bound as its parent is.
    """
    import torch
    from colbert.infra.launcher import set_seed
    from colbert.utils import distributed

    from .building import PlaidIndexer, VectorIndexer
    from .extensions import find_ninja

    refuse_unsafe_loading()
    find_ninja()
    threads = torch.get_num_threads()
    join_group(config.rank, config.nranks)
    pids = getattr(collection, "data", None)
    if isinstance(pids, Pids) and pids.checkpoint is not None:
        _encode_shards(pids, shared=config.nranks > 1, show=verbose > 0 and config.rank == 0)
        distributed.barrier(config.rank)
        if config.rank == 0:
            from ..encoding.vectors import mark_complete

            mark_complete(pids.vectors)
        distributed.barrier(config.rank)
    set_seed(SEED)  # loading a model with an adapter draws numbers, which a build that goes on does not
    if isinstance(pids, Pids):
        VectorIndexer(config, collection, verbose, threads, pids.cluster).run(shared_lists)
    else:
        PlaidIndexer(config, collection, verbose).run(shared_lists)


def _encode_shards(pids: Pids, *, shared: bool, show: bool) -> None:
    from ..encoding.checkpoint import DiffusionCheckpoint
    from ..encoding.identity import identify
    from ..encoding.vectors import encode_elsewhere, encode_shards

    if pids.cluster is not None:
        identity = identify(str(pids.checkpoint))
        encode_elsewhere(pids.vectors, pids.cluster, identity, pids.texts, show_progress_bar=show)
        return
    encode_shards(
        pids.vectors,
        lambda: DiffusionCheckpoint(str(pids.checkpoint)),
        pids.texts,
        shared=shared,
        show_progress_bar=show,
    )


def refuse_unsafe_loading() -> None:
    """Raises UserError when the environment makes torch unpickle ColBERT's .pt files: a hostile one would run code."""
    if os.environ.get(UNSAFE_LOADING, "").lower() in ("1", "y", "yes", "true"):
        raise UserError(f"{UNSAFE_LOADING} is set: an index's .pt files could run code when loaded; unset it")


def join_group(rank: int, nranks: int) -> None:
    """On CPU, do what ColBERT does with NCCL on GPUs: join a process group, and make its barrier one of that group.

    ColBERT itself divides by the number of GPUs there (utils/distributed.py:37).
    """
    import torch

    if nranks == 1 or torch.cuda.is_available() or torch.distributed.is_initialized():
        return
    from colbert.utils import distributed

    torch.distributed.init_process_group("gloo", init_method="env://", rank=rank, world_size=nranks, timeout=GROUP_TIMEOUT)
    distributed.barrier = lambda rank: torch.distributed.barrier()
    torch.set_num_threads(max(1, torch.get_num_threads() // nranks))
