"""ColBERT's Indexer with guards: same arguments, an index that its Searcher opens, nothing half-built in its place."""

import json
import os
import random
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import colbert
import numpy as np
import torch
from colbert.data import Collection
from colbert.infra.config import ColBERTConfig, RunConfig
from colbert.infra.run import Run

from ..backbones.sources import locate
from ..common import fingerprint
from ..common.errors import UserError
from ..common.files import needing_room, read_json, write_json, written_aside
from ..common.optional import extra, need
from ..common.progress import note
from ..config import VECTORS, DiffusionConfig
from ..encoding.checkpoint import default_checkpoint
from ..encoding.identity import CheckpointIdentity, identify
from ..encoding.vectors import Cluster, VectorFiles, claim, is_claimed_by, shards_of
from ..seam.adapter import check_dim
from ..seam.binding import COLBERT_VERSION, install
from ..seam.settings import choose_settings, explicit_settings
from ..seam.shape import Shape, check_indexable, check_shape, peak_disk
from ..seam.worker import Pids
from ..texts.collection import COLLECTION_FILE, Passages, as_texts, collection_fingerprint, read_collection, write_tsv
from ..texts.ids import IDS_FILE, write_ids
from ..texts.lines import is_derived
from .fusion import Fusion
from .layout import METADATA_FILE, is_own, keep_offsets
from .lexical import PREDICTED, Lexical, described, write_bm25, write_predicted
from .manifest import FUSION, TEXTS, read_manifest, write_manifest
from .places import Places, Renew, inside_an_index

REPLACING = "; pass overwrite=True (--overwrite) to replace it, or choose another name"
OVERWRITES = (False, True, "reuse", "resume", "force_silent_overwrite")


class Indexer(colbert.Indexer):  # type: ignore[misc]  # colbert has no types
    """Builds PLAID indexes from diffusion checkpoints with ColBERT's own indexer.

    One process is used without forking, so a script needs no `__main__` guard; with `RunConfig(nranks=...)` above 1
    ColBERT spawns, and it does.

    Args:
        checkpoint: checkpoint folder or hub id, or a folder of vector files; None: the small default checkpoint.
        config: as ColBERT's; nbits defaults to the checkpoint's recommendation.

    Raises:
        UserError: not a checkpoint ColBERT can index, or a config that disagrees with it.

    >>> Indexer("my-checkpoint").index("my-index", "passages.tsv")
    '/home/me/experiments/default/indexes/my-index'
    """

    def __init__(self, checkpoint: str | None = None, config: ColBERTConfig | None = None, verbose: int = 1) -> None:
        install()
        folder = locate(str(checkpoint or default_checkpoint()))
        check_indexable(folder)
        self._explicit = explicit_settings(config, Run().config)
        self._shape: Shape | None = None
        self._cluster: Cluster | None = None
        super().__init__(str(folder), config, verbose)
        check_dim(config, self.checkpoint_config.dim, folder)
        _warn_ignored(config, self.config)
        check_shape(self.config.dim, self.config.nbits, gpu=torch.cuda.is_available())

    def index(
        self,
        name: str,
        collection: str | Sequence[str],
        overwrite: bool | str = False,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        lexical: Lexical = None,
        cluster: Cluster | None = None,
    ) -> str:
        """Build the index `name` and return its path.

        It grows in `NAME.partial` beside the target and takes its place by a rename when it is complete: an index
        that is there is served until then and survives a failure. Interrupted, the same call goes on where it
        stopped; each text is encoded once.

        Args:
            collection: a `.tsv` (as ColBERT), `.jsonl`, either as .gz or .zst, a BEIR folder, or a list of passages.
                Files are read passage by passage; the ids of a `.jsonl` are stored with the index.
            overwrite: False: refuse to replace an index; "reuse": keep one that is there; "resume": keep it if it
                is the same build; True or "force_silent_overwrite": replace it, without ColBERT's 20-second pause.
            metadata: one JSON object per passage, stored with the index for `Searcher.search(..., where=)`.
            lexical: words beside the vectors, for `Searcher.search(..., mode="lexical" | "hybrid")`: "bm25" or `BM25(k1, b)`
                for any checkpoint, "predicted" for those that the masked positions predict (DiffRetriever eq. 2). A stock
                ColBERT Searcher ignores them.
            cluster: encodes and compresses in place of this machine (`distributed.RayCluster`); files are written here.

        Raises:
            UserError: the index exists and may not be replaced, an unfinished one is of another build, or the
                collection cannot be indexed or its metadata not stored.
        """
        if overwrite not in OVERWRITES:
            raise UserError(f"overwrite={overwrite!r} is not supported, choose one of {OVERWRITES}")
        self.configure(index_name=name)
        places = Places(Path(self.config.index_path_))
        self.index_path = str(places.named)
        if overwrite == "reuse" and places.readable().exists():
            return self.index_path
        if cluster is not None and self.config.nranks > 1:
            raise UserError(
                f"nranks is {self.config.nranks} and there is a cluster, which has workers of its own: leave one out"
            )
        self._cluster = cluster
        words = described(lexical)
        self._shape = None
        with needing_room(places.target.parent, lambda: self._bytes_left(places)), places.writing():
            died = places.interrupted()
            just_finished = places.recover() or died  # this very call's earlier try may have died in the swap
            places.check_feasible()
            if places.target.exists() and not overwrite and not just_finished:
                raise UserError(f"{places.target} exists{REPLACING}")
            self._build(places, collection, overwrite, metadata, words, just_finished)
        return self.index_path

    def _build(
        self,
        places: Places,
        collection: str | Sequence[str],
        overwrite: bool | str,
        metadata: Sequence[Mapping[str, Any]] | None,
        words: dict[str, Any] | None,
        just_finished: bool,
    ) -> None:
        """What `index` does under the lock."""
        check_faiss()
        texts = _read(collection)
        lines = None if metadata is None else metadata_lines(metadata, len(texts))
        source = self._source(texts)
        self._shape = Shape(len(texts), _vectors_per_passage(source), self.config.dim, self.config.nbits)
        build = self._build_identity(texts, source)
        renewed: Renew = partial(source.current, name="checkpoint") if isinstance(source, CheckpointIdentity) else dict
        if lines is not None:
            build["metadata"] = fingerprint.of_texts(lines)
        if words is not None:
            build["lexical"] = words | ({"head": source.words_fingerprint} if words["source"] == PREDICTED else {})
        if places.target.exists() and (just_finished or overwrite == "resume"):
            if renewed((read_manifest(places.target) or {}).get("build", {})) == build:
                return
            if overwrite in (False, "resume"):
                raise UserError(f"{places.target} exists and is of another build{REPLACING}")

        places.claim(build, discard=overwrite in (True, "force_silent_overwrite"), renewed=renewed)
        pids = _prepare_vectors(places, source, texts, lexical=words is not None and words["source"] == PREDICTED)
        pids.cluster = self._cluster
        places.index.mkdir(exist_ok=True)
        stored = _store(texts, places.index)
        self._run(places.index, pids, stored)
        self._write_settings(places, pids, stored)
        if lines is not None:
            write_lines(places.index / METADATA_FILE, lines)
        keep_offsets(places.index)
        about: dict[str, Any] = {"build": build}
        if words is not None:
            self._write_words(places.index, words, texts, pids.vectors)
            about |= _recommended_fusion(source, words["source"])
        if stored.parent != places.index and isinstance(texts, Passages):
            about[TEXTS] = {"path": str(stored), "size": texts.size, "sha256": texts.sha256}
        write_manifest(places.index, about, is_own)
        places.swap()

    def _bytes_left(self, places: Places) -> int | None:
        """What the build will still write, at most; None before its size is known."""
        if self._shape is None:
            return None
        there = sum(path.stat().st_size for path in places.work.rglob("*") if path.is_file())
        return max(0, peak_disk(self._shape) - there)

    def _source(self, texts: Sequence[str]) -> VectorFiles | CheckpointIdentity:
        """Where the vectors come from: the user's own files, checked against the texts, or a model."""
        folder = Path(self.checkpoint)
        if not VECTORS.matches(folder):
            return identify(folder)
        files = VectorFiles(folder)
        _check_same_collection(files, texts)
        return files

    def _build_identity(self, texts: Sequence[str], source: VectorFiles | CheckpointIdentity) -> dict[str, Any]:
        """Everything that decides the index's bytes; an interrupted build goes on only if all of it is the same."""
        return {
            "checkpoint": source.fingerprint,
            "dtype": source.dtype,
            "collection": collection_fingerprint(texts),
            "passages": len(texts),
            "dim": self.config.dim,
            "nbits": self.config.nbits,
            "kmeans_niters": self.config.kmeans_niters,
            "nranks": 1,  # until version 0.2 their number decided the bytes
            "colbert": COLBERT_VERSION,
        }

    def _usable_ranks(self, passages: int) -> int:
        """No more ranks than there are shards to encode."""
        nranks: int = self.config.nranks
        return min(nranks, shards_of(passages))

    def _run(self, folder: Path, pids: Pids, stored: Path) -> None:
        """Run ColBERT's indexer over pids: `docFromText` finds their vectors in the files."""
        self._note(f"{len(pids):,} passages: encoding (unless done), then clustering and compressing with ColBERT")
        checkpoint, target = self.config.checkpoint, self.index_path
        nranks = self._usable_ranks(len(pids))
        self.configure(avoid_fork_if_possible=True, index_path=str(folder), checkpoint=str(pids.vectors), nranks=nranks)
        try:
            with _process_state(), Run().context(RunConfig(nranks=nranks)):
                super().index(self.config.index_name, Collection(path=str(stored), data=pids), overwrite="resume")
        finally:
            self.index_path = target
            self.configure(index_path=None, checkpoint=checkpoint, collection=str(stored))

    def _write_words(self, folder: Path, words: dict[str, Any], texts: Sequence[str], vectors: Path) -> None:
        if words["source"] == PREDICTED:
            files = VectorFiles(vectors)
            write_predicted(folder, words, len(texts), files.vocabulary, files.words)
        else:
            write_bm25(folder, words, texts, show=self.verbose > 0)

    def _note(self, text: str) -> None:
        if self.verbose > 0:
            note(text)

    def _write_settings(self, places: Places, pids: Pids, stored: Path) -> None:
        """Put into the index's own config what its readers need: final paths and settings for few vectors.

        A stock Searcher obeys an index's config; in artifact.metadata the settings would be overridden by it.
        """
        metadata = read_json(places.index / "metadata.json")
        settings = choose_settings(k=100, partitions=metadata["num_partitions"])._asdict() | self._explicit
        changes = {
            "checkpoint": pids.checkpoint or VectorFiles(pids.vectors).checkpoint,
            "collection": str(places.target / COLLECTION_FILE if stored.parent == places.index else stored),
            "index_path": None,
            "nranks": 1,  # whoever built it: the index is the same
            "name": places.target.name,  # ColBERT's default is the time of day: equal builds would not be equal
            "resume": False,
            **settings,
        }
        for file in ("plan.json", "metadata.json"):
            content = read_json(places.index / file)
            content["config"].update(changes)
            write_json(places.index / file, content)


def _config_of(source: VectorFiles | CheckpointIdentity) -> DiffusionConfig | None:
    if isinstance(source, CheckpointIdentity):
        return source.config
    try:
        return DiffusionConfig.load(Path(source.checkpoint))
    except UserError:  # the checkpoint of vector files is elsewhere now
        return None


def _vectors_per_passage(source: VectorFiles | CheckpointIdentity) -> int:
    """At most."""
    config = _config_of(source)
    return 16 if config is None else config.k_passage


def _recommended_fusion(source: VectorFiles | CheckpointIdentity, words: str) -> dict[str, Any]:
    """What the checkpoint recommends for words of this source, for the manifest: searches are hybrid then."""
    config = _config_of(source)
    weight = None if config is None else config.search.get(f"{words}_weight")
    return {} if weight is None else {FUSION: Fusion(weight=weight).as_json()}


def _prepare_vectors(places: Places, source: VectorFiles | CheckpointIdentity, texts: Sequence[str], *, lexical: bool) -> Pids:
    """The passages as ColBERT will see them; claims the folder in which a model's vectors are kept for the build.

    ColBERT encodes every passage of its k-means sample twice (all of them up to 30,720); from files it is once.
    """
    if isinstance(source, VectorFiles):
        return Pids(texts, None, source.folder)
    folder = places.vectors
    if folder.exists() and not is_claimed_by(folder, source, texts, lexical=lexical):
        shutil.rmtree(folder)  # of another build, which `Places.claim` was told to discard
    claim(folder, source, texts, lexical=lexical)
    return Pids(texts, str(source.path), folder)


def _read(collection: str | Path | Sequence[str]) -> Sequence[str]:
    if isinstance(collection, Collection):  # of a searcher
        collection = collection.data
    if isinstance(collection, str | Path):
        return read_collection(collection)
    if isinstance(collection, Passages):
        return collection
    texts = as_texts(collection)
    if not len(texts):
        raise UserError("the collection is empty; an index needs passages")
    return texts


def metadata_lines(metadata: Sequence[Mapping[str, Any]], passages: int) -> list[str]:
    """Metadata as lines of JSON. Raises UserError when there is not one JSON object for each passage."""
    if len(metadata) != passages:
        raise UserError(f"{len(metadata)} metadata entries for {passages} passages; give one for each")
    lines = []
    for position, entry in enumerate(metadata):
        try:
            lines.append(json.dumps(dict(entry), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UserError(f"metadata entry {position} is no JSON object ({error})") from error
    return lines


def write_lines(path: Path, lines: Iterable[str]) -> None:
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def _store(texts: Sequence[str], folder: Path) -> Path:
    """A TSV that ColBERT's Searcher reads: the user's own, or a copy stored with the index. Its ids, where it has any.

    A file that may vanish (in some index, or unpacked here) is copied.
    """
    if isinstance(texts, Passages) and texts.path.suffix == ".tsv":
        if not inside_an_index(texts.path) and not is_derived(texts.path):
            return texts.path.absolute()
    elif isinstance(texts, Passages):
        write_ids(folder / IDS_FILE, texts)
    write_tsv(folder / COLLECTION_FILE, texts)
    return folder / COLLECTION_FILE


def _warn_ignored(given: ColBERTConfig | None, effective: ColBERTConfig) -> None:
    """ColBERT takes a run's settings from RunConfig alone and ignores them elsewhere without a word (indexer.py:19)."""
    for name in ("root", "experiment", "index_root", "nranks"):
        if given is not None and given.assigned.get(name) and getattr(given, name) != getattr(effective, name):
            warnings.warn(
                f"{name}={getattr(given, name)!r} in ColBERTConfig is ignored by ColBERT; put it in RunConfig",
                stacklevel=3,
            )


def check_faiss() -> None:
    faiss = need("faiss", "indexing", f"{extra('cpu')} (or [gpu])")
    if torch.cuda.is_available() and not hasattr(faiss, "StandardGpuResources"):
        raise UserError(
            "a GPU is visible and faiss is the CPU build, with which ColBERT's k-means fails: "
            "pip uninstall faiss-cpu && pip install faiss-gpu, or hide the GPU (CUDA_VISIBLE_DEVICES=)"
        )


def _check_same_collection(files: VectorFiles, texts: Sequence[str]) -> None:
    if len(files) != len(texts) or collection_fingerprint(texts) != files.collection_fingerprint:
        raise UserError(
            f"{files.folder} holds the vectors of another collection ({len(files)} passages, this one has {len(texts)}); "
            "index the collection they were encoded from"
        )


@contextmanager
def _process_state() -> Iterator[None]:
    """Leave the global random states and CUDA_VISIBLE_DEVICES as found: ColBERT's launcher sets both (launcher.py:99)."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if devices is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices
