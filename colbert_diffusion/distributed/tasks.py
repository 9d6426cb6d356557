"""What a worker runs: one shard, one chunk, one batch of queries. Its process loads a model, or an index, once and keeps it."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from ..common.errors import UserError
from ..encoding.checkpoint import DiffusionCheckpoint, default_checkpoint
from ..encoding.shards import Shard, make_shard
from ..index.by_path import open_index
from ..index.opening import check_build
from ..index.rows import Found, Replica, Row, answers
from ..index.searching import Searcher
from ..seam.compressing import Codec


def encode(checkpoint: str | None, fingerprint: str, dtype: str, texts: Sequence[str], lexical: bool, threads: int) -> Shard:
    """A shard's vectors and words; None is the checkpoint that ships. Raises UserError where it is not there, or another."""
    torch.set_num_threads(threads)
    model = _model(checkpoint, fingerprint, dtype)
    before = replace(model.encoder.cut["passage"])
    shard = make_shard(model, texts, lexical=lexical)
    return shard._replace(cut=model.encoder.cut["passage"].more(before, -1))


def compress(codec: Codec, vectors: Tensor, threads: int) -> tuple[Tensor, Tensor]:
    """A chunk's codes and residuals."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        return codec.compress(vectors)


def search(replica: Replica, queries: Sequence[str], rows: Mapping[str, Row], k: int, threads: int) -> list[dict[str, Found]]:
    """Each query's answers. Raises UserError where the index is not there, or another build of it."""
    torch.set_num_threads(threads)
    return list(answers(_searcher(replica), queries, rows, k))


@lru_cache(maxsize=1)
def _searcher(replica: Replica) -> Searcher:
    with naming_this_host():
        check_build(replica.path, replica.state)
        return open_index(replica.path, checkpoint=replica.checkpoint, collection=replica.collection)


@contextmanager
def naming_this_host() -> Iterator[None]:
    """Errors for people say on which machine."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{socket.gethostname()}: {error}") from error


@lru_cache(maxsize=1)
def _model(named: str | None, fingerprint: str, dtype: str) -> DiffusionCheckpoint:
    checkpoint = named or default_checkpoint()
    with naming_this_host():
        model = DiffusionCheckpoint(checkpoint, verbose=0)
    host, there = socket.gethostname(), model.identity
    if there.fingerprint != fingerprint:
        raise UserError(f"{host}: {checkpoint} is another checkpoint there ({there.fingerprint:.12}, not {fingerprint:.12})")
    if there.dtype != dtype:
        raise UserError(
            f'{host} computes {checkpoint} in {there.dtype}, the driver in {dtype}: name one as "dtype" in its diffusion.json'
        )
    return model
