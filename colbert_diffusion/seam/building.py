"""ColBERT's CollectionIndexer made to fit any size and to go on after any interruption, to the same bytes.

What is kept of an interrupted build: the codec once all of it is there, and every chunk whose metadata, written last,
is whole. Everything else is made anew from the vectors; samples and k-means are seeded (launcher.py:99), so it is the
same again.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from colbert.indexing.collection_indexer import CollectionIndexer
from colbert.indexing.index_saver import IndexSaver
from torch import Tensor

from ..common.files import publish, remove
from ..common.locking import claimed
from ..common.progress import progress_bar
from .compressing import Codec, Compressor, compress
from .shape import CHUNK, QUANTILE_LIMIT, fitting_partitions

CODEC_FILES = ("centroids.pt", "buckets.pt", "avg_residual.pt")


class Saver(IndexSaver):  # type: ignore[misc]  # colbert has no types
    """ColBERT's files, each appearing by a rename when it is whole.

    Written in place of ColBERT's queue and thread: an error in its thread is lost and blocks the indexer for ever.
    """

    @property
    def _folder(self) -> Path:
        return Path(self.config.index_path_)

    @contextmanager
    def _aside(self) -> Iterator[Path]:
        """A folder to write in, then everything in it is moved beside it. torch stores a file's own name in it, so
        the names must be the final ones for equal bytes."""
        aside = self._folder / f".writing.{self.config.rank}"
        remove(aside)
        aside.mkdir()
        try:
            yield aside
            publish(aside, self._folder, last="metadata.json")
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def save_codec(self, codec: Any) -> None:
        with self._aside() as aside:
            codec.save(index_path=str(aside))

    def try_load_codec(self) -> bool:
        return all((self._folder / name).is_file() for name in CODEC_FILES)

    @contextmanager
    def thread(self) -> Iterator[None]:
        self.codec = self.load_codec()
        try:
            yield
        finally:
            del self.codec

    def save_chunk(self, chunk_idx: int, offset: int, embs: Tensor, doclens: list[int]) -> None:
        self.write_chunk(chunk_idx, compress(self.codec, embs), doclens, passage_offset=offset)

    def write_chunk(self, number: int, compressed: Any, doclens: list[int], **offsets: int) -> None:
        """Four files of compressed vectors, whole or not at all.

        Args:
            offsets: passage_offset, and embedding_offset where no `finalize` follows that adds it.
        """
        about = {**offsets, "num_passages": len(doclens), "num_embeddings": len(compressed)}
        with self._aside() as aside:
            compressed.save(str(aside / str(number)))
            (aside / f"doclens.{number}.json").write_text(json.dumps(doclens))
            (aside / f"{number}.metadata.json").write_text(json.dumps(about))

    def check_chunk_exists(self, chunk_idx: int) -> bool:
        if not super().check_chunk_exists(chunk_idx):
            return False
        try:
            json.loads((self._folder / f"{chunk_idx}.metadata.json").read_text())
        except json.JSONDecodeError:  # ColBERT's finalize rewrites it in place
            return False
        return True


class PlaidIndexer(CollectionIndexer):  # type: ignore[misc]  # colbert has no types
    """Any number of passages from one up, resumable at every step."""

    num_partitions: int

    def __init__(self, config: Any, collection: Any, verbose: int) -> None:
        config.configure(resume=True)
        super().__init__(config, collection, verbose)
        self.saver = Saver(config)

    def setup(self) -> None:
        """The plan, with no more partitions than sampled vectors: k-means cannot make more."""
        if self.saver.try_load_codec() and self._try_load_plan():
            return
        if self.rank == 0:
            (Path(self.config.index_path_) / "plan.json").unlink(missing_ok=True)
        self.config.configure(resume=False)
        super().setup()
        self.config.configure(resume=True)
        partitions = fitting_partitions(self.num_partitions, int(self.num_sample_embs))
        if partitions < self.num_partitions:
            self.num_partitions = partitions
            self._save_plan()

    def _concatenate_and_split_sample(self) -> tuple[Tensor, Tensor]:
        """ColBERT holds 5 % out to measure residuals; of fewer than 20 vectors that is none, so all of them serve.

        And no more than torch's quantile takes (collection_indexer.py:331): from dim 336 on that is fewer than 50,000.
        """
        sample, heldout = super()._concatenate_and_split_sample()
        heldout = heldout if len(heldout) else sample
        return sample, heldout[: QUANTILE_LIMIT // heldout.shape[1]]


class VectorIndexer(PlaidIndexer):
    """Over vector files, where any number of ranks makes the bytes that one makes.

    The sample and its codec are the first rank's, chunks have a size of their own, and each is made by the first rank that
    comes to it. ColBERT's chunks are smaller with more ranks, each has its owner, and the sample's order is the ranks'
    (data/collection.py:64): where a rank encodes texts itself that spares work, here it would only change the index.

    Args:
        threads: those of a process alone, for what one rank does while the others wait.
        cluster: compresses in place of this machine.
    """

    def __init__(self, config: Any, collection: Any, verbose: int, threads: int, cluster: Compressor | None = None) -> None:
        super().__init__(config, collection, verbose)
        self._cluster = cluster
        self.nranks = 1  # ColBERT's for as many samples
        self._shared, self._threads = config.nranks > 1, threads
        self.collection.get_chunksize = lambda: CHUNK

    def setup(self) -> None:
        if self.rank == 0:
            super().setup()

    def _sample_embeddings(self, sampled_pids: set[int]) -> float:
        """As ColBERT's one rank has it (collection_indexer.py:131)."""
        vectors, doclens = self.encoder.encode_passages(sorted(sampled_pids))
        self.num_sample_embs = len(vectors)
        self.avg_doclen_est = torch.tensor(sum(doclens) / len(doclens)).item()
        torch.save(vectors.half(), Path(self.config.index_path_, "sample.0.pt"))
        return self.avg_doclen_est

    def train(self, shared_lists: Any) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            super().train(shared_lists)
        finally:
            torch.set_num_threads(threads)

    def index(self) -> None:
        """Compress the chunks that are not there yet."""
        with self.saver.thread():
            if self._cluster is not None:
                self._index_elsewhere(self._cluster)
                return
            for number in self._missing():
                with claimed(self._work / f"chunk-{number}") if self._shared else nullcontext(True) as mine:
                    if mine and not self.saver.check_chunk_exists(number):
                        vectors, doclens = self._vectors(number)
                        self.saver.save_chunk(number, number * CHUNK, vectors, doclens)

    def _index_elsewhere(self, cluster: Compressor) -> None:
        lengths: dict[int, list[int]] = {}
        missing = self._missing()

        def chunks() -> Iterator[tuple[int, Tensor]]:
            for number in missing:
                vectors, lengths[number] = self._vectors(number)
                yield number, vectors.cpu()

        with progress_bar(len(missing), "compress", show=self.verbose > 0, unit=" chunks") as progress:
            for number, (codes, residuals) in cluster.compress(Codec.of(self.saver.codec), chunks()):
                compressed = self.saver.codec.Embeddings(codes, residuals)
                self.saver.write_chunk(number, compressed, lengths.pop(number), passage_offset=number * CHUNK)
                progress.update(1)

    def _missing(self) -> list[int]:
        count = -(-len(self.collection) // CHUNK)
        return [number for number in range(count) if not self.saver.check_chunk_exists(number)]

    def _vectors(self, number: int) -> tuple[Tensor, list[int]]:
        """A chunk's, float16."""
        first = number * CHUNK
        vectors, doclens = self.encoder.encode_passages(list(range(first, min(first + CHUNK, len(self.collection)))))
        return vectors.half(), doclens

    @property
    def _work(self) -> Path:
        """Beside the index that grows: whatever a kill leaves there goes with it."""
        return Path(self.config.index_path_).parent
