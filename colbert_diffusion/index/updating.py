"""Adding passages to an index and removing some: the updated index grows beside the old one and takes its place."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from colbert.indexing.codecs.residual import ResidualCodec
from colbert.indexing.collection_indexer import compute_faiss_kmeans
from colbert.infra.config import ColBERTConfig
from torch import Tensor
from torch.nn.functional import normalize

from ..common import fingerprint
from ..common.checks import whole_numbers
from ..common.errors import UserError
from ..common.files import link, needing_room, read_json, remove, write_json
from ..encoding.checkpoint import DiffusionCheckpoint
from ..encoding.identity import identify
from ..encoding.lexical import Weights
from ..encoding.vectors import VectorFiles, encode_to, is_claimed_by
from ..seam.adapter import flatten
from ..seam.binding import install
from ..seam.building import Saver
from ..seam.compressing import compress
from ..seam.settings import NAMES, choose_settings
from ..seam.shape import CHUNK, KMEANS_STEPS
from ..seam.worker import refuse_unsafe_loading
from ..texts.collection import COLLECTION_FILE, as_texts, read_collection, write_tsv
from ..texts.ids import IDS_FILE, Ids, as_ids
from .indexing import check_faiss, metadata_lines, write_lines
from .layout import METADATA_FILE, REMOVED_FILE, is_own, keep_offsets, kind_of
from .lexical import LEXICAL_FILE, has_predicted, update_lexical
from .manifest import FUSION, check_sizes, read_manifest, write_manifest
from .opening import (
    all_doclens,
    changed_texts,
    checkpoint_of,
    index_config,
    index_folder,
    index_metadata,
    index_state,
    open_collection,
    removed_pids,
)
from .places import BUILD_FILE, Places, own_files, snapshot

PLANNED = ("config", "num_chunks", "num_partitions")
# Made anew; an update links every other file of the old index into the new one.
BUILT = "built"  # the manifest's field for what the first build had: {"passages", "partitions"}


class IndexUpdater:
    """Adds passages to an index and removes some; pids never change.

    Its methods are named as ColBERT's, which cannot be used: its `add` fails on every index that ColBERT builds
    (index_updater.py:418 takes the padded ivf for a bare one), and its `persist_to_disk` counts embeddings twice
    (:259), breaks on more than one chunk (:228) and writes into the index that is served. So this works on our side,
    on the same files; a stock Searcher opens the result.

    Nothing on disk changes before `persist_to_disk`. Added passages bring centroids of their own, in proportion to all that
    were added since the index was built; no vector that is there is touched. They fill the last chunk before they begin
    another, so that many small updates make no more files than a large one. Vectors of removed passages stay in the files,
    unreachable, until a rebuild.

    Args:
        index: name (under `index_root`) or path of the index.
        checkpoint: where the index's checkpoint is now; None: where it was.
        collection: its texts, where they moved, or where a stock ColBERT script built it; None: where they were.

    Raises:
        UserError: there is no complete index.

    >>> updater = IndexUpdater("/home/me/my-index")
    >>> updater.add(["A new passage."])
    [2]
    >>> updater.persist_to_disk()
    '/home/me/my-index'
    """

    def __init__(
        self,
        index: str,
        checkpoint: str | None = None,
        index_root: str | None = None,
        verbose: int = 1,
        *,
        collection: Any = None,
    ) -> None:
        install()
        refuse_unsafe_loading()
        self._places = Places(index_folder(index, index_root))
        self._given, self._given_texts, self._verbose = checkpoint, collection, verbose
        self._open(interrupted=self._places.interrupted())

    def _open(self, *, interrupted: bool = False) -> None:
        """Read the index as it is; after an update that was killed when it was in its place, as it was before.

        So that the same update, made again, gives the same pids and finds itself done.
        """
        self._gone: frozenset[int] = frozenset()
        snapshot(self._places.target, self._read)
        update = self._manifest.get("update", {})
        if interrupted and {"of", "passages", "pids"} <= update.keys():
            self._base = update["of"]
            self._passages = update["passages"]
            self._gone = self._gone - set(update["pids"])
        self._checkpoint: str | None = None
        self._added: list[str] = []
        self._added_metadata: list[str] = []
        self._added_ids: list[str] = []
        self._removed: set[int] = set()

    def _read(self, folder: Path) -> None:
        self._config = index_config(folder)
        check_sizes(folder)
        self._manifest = read_manifest(folder) or {}
        self._base = index_state(folder)
        self._passages = sum(map(len, all_doclens(folder)))
        self._gone = frozenset(removed_pids(folder))
        self._has_metadata = (folder / METADATA_FILE).is_file()
        self._ids = Ids(folder, self._passages) if (folder / IDS_FILE).is_file() else None

    def add(
        self,
        passages: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        ids: Sequence[str | int] | None = None,
    ) -> list[int]:
        """Note passages for `persist_to_disk` and return their pids, which follow the last one.

        Args:
            metadata: one JSON object per passage, for an index that stores them; without it they have {}.
            ids: one external id per passage, for an index that has them; without it the pids are their ids.

        Raises:
            UserError: a passage is not a string, the checkpoint is gone or not the index's, or an id is taken.
        """
        passages = as_texts(passages)
        if metadata is not None and not self._has_metadata:
            raise UserError(f"{self._places.target} stores no metadata; build it with Indexer.index(..., metadata=[...])")
        lines = ["{}"] * len(passages) if metadata is None else metadata_lines(metadata, len(passages))
        if passages and self._checkpoint is None:
            self._checkpoint = checkpoint_of(self._places.target, self._config, self._given)
        first = self._passages + len(self._added)
        given = [str(first + i) for i in range(len(passages))] if ids is None else as_ids(ids)
        self._added_ids += self._new_ids(given, len(passages))
        self._added += passages
        self._added_metadata += lines
        return list(range(first, first + len(passages)))

    def _new_ids(self, ids: list[str], passages: int) -> list[str]:
        """Checked against the index's; none where it has none of its own."""
        if self._ids is None:
            first = self._passages + len(self._added)
            if ids != [str(first + i) for i in range(passages)]:
                raise UserError(f"{self._places.target} has no ids but its pids: leave ids out")
            return []
        if len(ids) != passages or len({*ids, *self._added_ids}) < passages + len(self._added_ids):
            raise UserError(f"{len(set(ids))} different new ids for {passages} passages; give a new one for each")
        if taken := [identifier for identifier in ids if self._ids.has(identifier, self._passages)]:
            raise UserError(f"{len(taken)} ids are in the index already (first: {taken[0]!r:.60}); give new ones")
        return ids

    def remove(self, pids: Iterable[int]) -> None:
        """Note passages to remove in `persist_to_disk`: no search returns them, their text becomes empty.

        Raises:
            UserError: a pid that is not in the index, or already removed; then none of them is.
        """
        wanted = set(whole_numbers("pid", pids))
        passages = self._passages + len(self._added)
        if bad := sorted(pid for pid in wanted if not 0 <= pid < passages):
            raise UserError(f"{len(bad)} pids are not in the index (first: {bad[0]}), it has pids 0..{passages - 1}")
        if bad := sorted(wanted & (self._gone | self._removed)):
            raise UserError(f"{len(bad)} pids are already removed (first: {bad[0]})")
        self._removed |= wanted

    def persist_to_disk(self) -> str:
        """Build the updated index beside the old one, put it in its place by renames and return its path.

        Killed or failed at any time, the old index or the new one is there, whole; called again, it goes on. Added
        passages that were encoded are not encoded again, by another process neither if it adds the same.

        Raises:
            UserError: no passage would be left, the index changed since it was opened, its collection is gone, or an
                unfinished rebuild of it is in the way.
        """
        places = self._places
        if not self._added and not self._removed:
            return str(places.named)
        update = {
            "of": self._base,
            "added": fingerprint.of_texts([*self._added, *self._added_metadata, *self._added_ids]),
            "removed": fingerprint.of_texts([str(pid) for pid in sorted(self._removed)]),
        }
        with needing_room(places.target.parent, self._bytes_needed), places.writing():
            places.recover()
            done = (read_manifest(places.target) or {}).get("update", {})
            if {name: done.get(name) for name in update} != update:
                if len(self._gone | self._removed) == self._passages + len(self._added):
                    raise UserError(f"every passage of {places.target} would be removed; delete the folder instead")
                if index_state(places.target) != self._base:
                    raise UserError(f"{places.target} changed since it was opened for updating; open it again")
                self._build_and_swap(update)
        self._open()
        return str(places.named)

    def _bytes_needed(self) -> int:
        """At most: the texts, the list of pids and the last chunk are written anew, the rest is linked."""
        folder = self._places.target
        rewritten = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        return rewritten + sum(len(text.encode("utf-8", "replace")) for text in self._added) + 4096 * len(self._added)

    def _build_and_swap(self, update: dict[str, Any]) -> None:
        places = self._places
        places.check_feasible()
        if self._given_texts is None and (changed := changed_texts(places.target)):
            raise UserError(f"{changed[0]}; restore it, or rebuild the index")
        self._claim(update)
        self._build({**update, "passages": self._passages, "pids": sorted(self._removed)})
        places.swap()

    def _claim(self, update: dict[str, Any]) -> None:
        """Take the work folder; an unfinished update in it is dropped, an unfinished rebuild of the user's is not."""
        marker = self._places.work / BUILD_FILE
        if marker.is_file() and "of" not in read_json(marker):
            raise UserError(f"{marker.parent} holds an unfinished rebuild of this index; finish it or delete that folder")
        self._places.claim(update, discard=True)
        remove(self._places.index)
        self._places.index.mkdir()

    def _build(self, update: dict[str, Any]) -> None:
        old, new = self._places.target, self._places.index
        gone = self._gone | self._removed
        texts = _Edited(self._stored_texts(), self._added, gone)
        write_tsv(new / COLLECTION_FILE, texts)
        if (old / METADATA_FILE).is_file():
            lines = enumerate(chain(_lines(old / METADATA_FILE), self._added_metadata))
            write_lines(new / METADATA_FILE, ("{}" if pid in self._removed else line for pid, line in lines))
        if (old / IDS_FILE).is_file():
            write_lines(new / IDS_FILE, chain(_lines(old / IDS_FILE), self._added_ids))
        if gone:
            write_json(new / REMOVED_FILE, {"pids": sorted(gone)})
        for name in own_files(old) or ():
            kind = kind_of(name)
            if kind is not None and kind.update != "rewritten":
                link(old / name, new / name)
        keep_offsets(new)

        about = index_metadata(old)
        partitions = about["num_partitions"]
        built = self._manifest.get(BUILT) or {"passages": self._passages, "partitions": partitions}
        added = ["" if pid in gone else text for pid, text in enumerate(self._added, self._passages)]
        wanted = built["partitions"] * len(texts) // max(1, built["passages"])
        self._write_chunks(added, about, max(0, wanted - partitions))
        about["avg_doclen"] = about["num_embeddings"] / len(texts)
        about["config"] |= {"collection": str(self._places.target / COLLECTION_FILE), "index_path": None}
        about["config"] |= _settings(about, partitions)
        write_json(new / "metadata.json", about)
        if (old / "plan.json").is_file():
            write_json(new / "plan.json", read_json(old / "plan.json") | {n: about[n] for n in PLANNED})
        torch.save(_inverted(new, about["num_partitions"], sorted(gone)), new / "ivf.pid.pt")

        if (old / LEXICAL_FILE).is_file():
            update_lexical(old, new, added, self._words_of_added, gone)
        build = self._manifest.get("build", {})
        build = build | {
            "collection": fingerprint.of_texts(texts),
            "passages": len(texts),
            "added": build.get("added", 0) + len(self._added),
            "removed": len(gone),
        }
        fusion = {FUSION: self._manifest[FUSION]} if FUSION in self._manifest else {}
        write_manifest(new, {"build": build, BUILT: built, "update": update, **fusion}, is_own)

    def _words_of_added(self) -> Iterator[Weights]:
        return VectorFiles(self._places.vectors).words() if self._added else iter(())

    def _stored_texts(self) -> Sequence[str]:
        given = self._given_texts if COLLECTION_FILE not in self._manifest.get("files", {}) else None  # stored by then
        collection = open_collection(given, self._places.target)
        texts: Sequence[str] = read_collection(collection) if isinstance(collection, str) else collection
        if len(texts) != self._passages:
            raise UserError(f"{self._config['collection']} has {len(texts)} passages, the index {self._passages}; restore it")
        return texts

    def _write_chunks(self, added: list[str], about: dict[str, Any], more: int) -> None:
        """Encode and compress the added passages with the index's codec and `more` centroids; `about` counts them."""
        if not added:
            return
        new, folder = self._places.index, self._places.vectors
        identity = identify(str(self._checkpoint))
        lexical = has_predicted(self._places.target)
        if folder.exists() and not is_claimed_by(folder, identity, added, lexical=lexical):
            remove(folder)  # of another update, never finished
        show = self._verbose > 0

        def load() -> DiffusionCheckpoint:
            return DiffusionCheckpoint(identity.path)

        files = encode_to(folder, identity, load, added, lexical=lexical, show_progress_bar=show)
        saver = Saver(ColBERTConfig(index_path=str(new)))
        codec = ResidualCodec.load(str(self._places.target))
        *_, held = all_doclens(self._places.target)  # of the last chunk, which is filled up first
        number, start = about["num_chunks"] - 1, 0
        while start < len(added):
            if len(held) >= CHUNK:
                number, held = number + 1, []
            stop = min(len(added), start + CHUNK - len(held))
            packed, doclens = flatten(list(files.read(range(start, stop))), files.dim, torch.device("cpu"))
            codec.centroids = _more_centroids(codec.centroids, packed, more * stop // len(added) - more * start // len(added))
            compressed = compress(codec, packed.half())
            if held:
                compressed = _joined(ResidualCodec.Embeddings.load(str(new), number), compressed)
            saver.write_chunk(
                number,
                compressed,
                held + doclens,
                passage_offset=self._passages + start - len(held),
                embedding_offset=about["num_embeddings"] - sum(held),
            )
            about["num_chunks"] = number + 1
            about["num_embeddings"] += len(packed)
            start, held = stop, held + doclens
        about["num_partitions"] = len(codec.centroids)
        remove(new / "centroids.pt")  # the old index's own file
        torch.save(codec.centroids.half(), new / "centroids.pt")


class _Edited(Iterable[str]):
    """The texts of the updated index in the pids' order, read as they are asked for; those that are gone are empty."""

    def __init__(self, stored: Sequence[str], added: Sequence[str], gone: frozenset[int] | set[int]) -> None:
        self._stored, self._added, self._gone = stored, added, gone

    def __iter__(self) -> Iterator[str]:
        for pid, text in enumerate(chain(self._stored, self._added)):
            yield "" if pid in self._gone else text

    def __len__(self) -> int:
        return len(self._stored) + len(self._added)


def _lines(path: Path) -> Iterator[str]:
    """Without their newlines."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def _joined(one: Any, two: Any) -> Any:
    """The compressed vectors of both."""
    return type(one)(torch.cat([one.codes, two.codes]), torch.cat([one.residuals, two.residuals]))


def _inverted(folder: Path, partitions: int, removed: list[int]) -> tuple[Tensor, Tensor]:
    """(pids int32, how many per centroid int64 (partitions,)): the pids at each centroid, ascending, each once.

    As ColBERT's (indexing/utils.py:8) but for the zeros with which that may end, which its readers add themselves.
    """
    chunks = all_doclens(folder)
    doclens = torch.tensor([length for chunk in chunks for length in chunk])
    files = [folder / f"{number}.codes.pt" for number in range(len(chunks))]
    codes = torch.cat([torch.load(file, map_location="cpu", weights_only=True) for file in files])
    live = torch.ones(len(doclens), dtype=torch.bool)
    live[removed] = False
    owners = torch.repeat_interleave(torch.arange(len(doclens)), doclens)
    kept = live[owners]
    pairs = torch.unique(codes[kept].long() * len(doclens) + owners[kept])
    return (pairs % len(doclens)).int(), torch.bincount(pairs // len(doclens), minlength=partitions)


def _settings(about: Mapping[str, Any], partitions: int) -> dict[str, Any]:
    """The search settings for as many partitions as there are now, unless the caller chose those there were."""
    were, are = (choose_settings(k=100, partitions=count)._asdict() for count in (partitions, about["num_partitions"]))
    return {name: are[name] for name in NAMES if about["config"].get(name) == were[name]}


def _more_centroids(centroids: Tensor, vectors: Tensor, count: int) -> Tensor:
    """Centroids (partitions, dim) and `count` further ones made from the new vectors, as the first were from theirs.

    The residuals of vectors that no centroid was made from are too large for the buckets. Of 8,361 real passages a
    fifth replaced, recall@10 against a rebuild's: -.031 at nbits 2 and -.014 at nbits 4 with the first centroids
    alone (300 queries), +.004 and -.001 with these (1,200 queries).
    """
    count = min(count, len(vectors))
    if not count:
        return centroids
    check_faiss()
    new = compute_faiss_kmeans(vectors.shape[1], count, KMEANS_STEPS, [[vectors]])
    return torch.cat([centroids, normalize(new, dim=-1).half().to(centroids)])  # half: as they are stored
