"""A path -> an index's config, checkpoint and texts. Reads only; whatever is not as the index was built is refused.

Importing this module imports no colbert, which takes seconds.
"""

from functools import partial
from pathlib import Path
from typing import Any

from ..backbones.sources import locate
from ..common import fingerprint
from ..common.checks import is_number
from ..common.errors import UserError
from ..common.files import parse_json, read_json
from ..common.stamps import sha256_of
from ..config import CHECKPOINT, RELEASED, check_colbert_file, layout_of
from ..encoding.checkpoint import default_checkpoint
from ..encoding.identity import identify
from ..texts.collection import COLLECTION_FILE, Passages, as_texts, collection_fingerprint, read_collection
from . import manifest as manifests
from .layout import REMOVED_FILE
from .manifest import MANIFEST_FILE, TEXTS, read_manifest
from .places import snapshot

NUMBERS: dict[str, tuple[float, int]] = {
    "dim": (1, 2**16),
    "nbits": (1, 8),
    "query_maxlen": (1, 2**20),
    "doc_maxlen": (1, 2**20),
    "ncells": (1, 2**31),
    "ndocs": (1, 2**31),
    "centroid_score_threshold": (-2.0, 2),
}
OPTIONAL = {"doc_maxlen", "ncells", "ndocs", "centroid_score_threshold"}
COUNTS = ("num_chunks", "num_partitions", "num_embeddings")


def index_folder(index: str, index_root: str | None = None, config: Any = None) -> Path:
    """Where ColBERT looks for the index of this name (searcher.py:33)."""
    from colbert.infra.config import ColBERTConfig
    from colbert.infra.run import Run

    return Path(index_root or ColBERTConfig.from_existing(config, Run().config).index_root_) / index


def index_config(folder: Path) -> dict[str, Any]:
    """The config that the index was built with.

    Raises:
        UserError: there is no complete index, or its metadata.json is damaged.
    """
    config: dict[str, Any] = index_metadata(folder)["config"]
    return config


def index_metadata(folder: Path) -> dict[str, Any]:
    """ColBERT's `metadata.json`; raises as `index_config`."""
    path = folder / "metadata.json"
    if not path.is_file():
        state = "is incomplete" if folder.is_dir() else "does not exist"
        raise UserError(f"index {folder} {state}; build it with `colbert-diffusion index TEXTS {folder}`")
    about = read_json(path)
    config = about.get("config")
    if isinstance(config, dict):
        _check_config(config, path)
    if not isinstance(config, dict) or not {"checkpoint", "collection"} <= config.keys():
        raise UserError(f"{path} is damaged (no config with checkpoint and collection); restore it or rebuild the index")
    if bad := [name for name in COUNTS if not is_number(about.get(name), 0, whole=True)]:
        raise UserError(f"{path} is damaged (no number for {', '.join(bad)}); restore it or rebuild the index")
    return about


def index_state(folder: Path) -> str:
    """Changes with every build and update: the manifest holds the hash of each file."""
    return fingerprint.of_files(path for name in (MANIFEST_FILE, "metadata.json") if (path := folder / name).is_file())


def check_build(folder: Path, state: str) -> None:
    """Raises UserError where this machine has another build of an index than the one that another machine speaks of."""
    index_metadata(folder)  # says when there is none
    if (there := index_state(folder)) != state:
        raise UserError(
            f"{folder} is another build on this machine ({there:.8}, not {state:.8}); copy it here, or run the command again "
            "where it was built anew"
        )


def _check_config(config: dict[str, Any], path: Path) -> None:
    """What ColBERT obeys of an index's config is in its range; nothing in it says what is loaded how."""
    if config.get("load_index_with_mmap"):
        raise UserError(f"{path} asks for load_index_with_mmap, which reads from a wrong offset on torch 2.13; set it to false")
    for name, (least, most) in NUMBERS.items():
        value = config.get(name)
        if value is None and name in OPTIONAL:
            continue
        if not is_number(value, least, most, whole=name != "centroid_score_threshold"):
            raise UserError(f"{path} gives {name} {value!r:.40}, expected {least} to {most:,}; restore it or rebuild the index")


def removed_pids(folder: Path) -> list[int]:
    """The pids whose passages were removed from the index, ascending. Raises UserError when their list is damaged."""
    path = folder / REMOVED_FILE
    if not path.is_file():
        return []
    pids = read_json(path).get("pids")
    if not isinstance(pids, list) or not all(is_number(pid, 0, whole=True) for pid in pids):
        raise UserError(f"{path} is damaged (no list of pids); restore it or rebuild the index")
    return pids


def all_doclens(folder: Path) -> list[list[int]]:
    """Vectors per passage, chunk by chunk."""
    doclens = []
    for chunk in range(index_metadata(folder)["num_chunks"]):
        path = folder / f"doclens.{chunk}.json"
        try:
            lengths = parse_json(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is missing or damaged ({error}); restore it or rebuild the index") from error
        if not isinstance(lengths, list) or not all(is_number(length, 0, whole=True) for length in lengths):
            raise UserError(f"{path} is damaged (no list of numbers); restore it or rebuild the index")
        doclens.append(lengths)
    return doclens


def checkpoint_of(folder: Path, built_with: dict[str, Any], checkpoint: str | None = None) -> str:
    """The checkpoint to encode with: the one given, else the one that the index was built with.

    What an index names is believed only where it is a checkpoint of ours, which is data: ColBERT's own loader runs a
    folder's code and unpickles from addresses. Gone, it is looked for in the default checkpoint's place.

    Raises:
        UserError: it is gone, is none of ours and not named by the caller, or its vectors are not those of the index;
            scores would look fine and mean nothing.
    """
    expected = (read_manifest(folder) or {}).get("build", {}).get("checkpoint")
    if checkpoint is None:
        path = built_with["checkpoint"]
        if not isinstance(path, str) or layout_of(path) is None:
            if expected is not None and _is_default(expected):
                return default_checkpoint()
            state = "is no diffusion checkpoint" if isinstance(path, str) and Path(path).exists() else "is gone"
            raise UserError(
                f"{folder} was built with {path!s:.200}, which {state}; pass checkpoint= its new place, or one that you trust "
                "(--checkpoint)"
            )
    else:
        path = str(locate(str(checkpoint)))
        if layout_of(path) is None:
            check_stock_checkpoint(Path(path))
    check_colbert_file(Path(path))
    if expected is not None and layout_of(path) in (CHECKPOINT, RELEASED):
        identity = identify(path)
        if not identity.is_named(expected):
            raise UserError(
                f"{folder} was built with a checkpoint of fingerprint {expected}, {path} has {identity.fingerprint}; "
                "use the checkpoint it was built with, or rebuild it"
            )
    return path


def _is_default(fingerprint: str) -> bool:
    try:
        return identify(default_checkpoint()).is_named(fingerprint)
    except UserError:  # its base is not installed
        return False


def check_stock_checkpoint(folder: Path) -> None:
    """One of ColBERT's own checkpoints, which its loader opens with remote code allowed: only where there is none.

    Raises:
        UserError: no local folder with safetensors, or its configs ask for code.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} is no diffusion checkpoint, and none of ColBERT's with config.json and safetensors, all that is loaded"
        )
    for path in folder.glob("*.json"):
        if "auto_map" in path.read_text(encoding="utf-8", errors="replace"):
            raise UserError(f"{path} asks for code of its own (auto_map), which is never run; remove that field to go without")


# Texts -------------------------------------------------------------------------------------------------------------


def open_collection(collection: Any, folder: Path) -> Any:
    """What ColBERT takes for a collection: the caller's, or with None the index's own; its texts are those of the vectors.

    A path that is gone falls back to the copy stored with the index.

    Raises:
        UserError: the texts changed since the index was built, or are others.
    """
    from colbert.data import Collection

    given = collection is not None
    own = folder / COLLECTION_FILE
    if not given and (sha256 := _recorded(folder, COLLECTION_FILE)) is not None:  # wherever its config says that is
        return Collection(path=str(own), data=Passages(own, sha256))
    collection = collection if given else index_config(folder)["collection"]
    if isinstance(collection, list) and collection and str(collection[0]).startswith("list with "):  # core_config.py: export
        raise UserError(f"{folder} keeps no copy of the list it was built from; pass collection= the same passages")
    if isinstance(collection, str | Path):
        opened = _open_path(Path(collection), folder)
    elif isinstance(collection, Collection):
        opened = collection
    else:
        texts = as_texts(collection)
        opened = Collection(path=str(texts.path) if isinstance(texts, Passages) else None, data=texts)
    texts = getattr(opened, "data", opened)
    if given:
        _check_given(texts, folder)
    elif not isinstance(texts, Passages) or texts.path.absolute().parent != folder.absolute():
        _check_outside(texts, folder)
    return opened


def _open_path(path: Path, folder: Path) -> Any:
    from colbert.data import Collection

    if not path.exists() and (folder / COLLECTION_FILE).is_file():
        path = folder / COLLECTION_FILE
    try:
        return Collection(path=str(path), data=read_collection(path))
    except UserError:
        if path.suffix == ".tsv" and path.exists():
            return str(path)  # a stock index of a TSV that only ColBERT's own, laxer reader takes
        if not path.exists():
            raise UserError(f"the texts of {folder} were {path}, which is gone; restore it, or pass collection= them") from None
        raise


def _recorded(folder: Path, name: str) -> str | None:
    entry = (read_manifest(folder) or {"files": {}})["files"].get(name, {})
    sha256: str | None = entry.get("sha256")
    return sha256


def _check_outside(texts: Any, folder: Path) -> None:
    """The user's own file, which the index refers to: by its size and content's hash, which is kept with large files.

    An index without a manifest may name any file of this machine, whose lines a server would show.
    """
    manifest = read_manifest(folder)
    if manifest is None or not isinstance(texts, Passages):
        raise UserError(
            f"{folder} (no index of this package's) says that its texts are outside of it; name them yourself: "
            "collection= (--collection)"
        )
    kept = manifest.get(TEXTS)
    if kept is not None:
        same = texts.size == kept["size"] and texts.sha256 == kept["sha256"]
    else:  # an index of version 0.1
        same = collection_fingerprint(texts) == manifest.get("build", {}).get("collection")
    if not same:
        raise UserError(
            f"{texts.path} changed since {folder} was built: its texts are not those of the vectors any more; "
            "restore the file, pass collection= the same passages from elsewhere, or rebuild the index"
        )


def _check_given(texts: Any, folder: Path) -> None:
    """Texts that the caller names: the same number and the same content."""
    manifest = read_manifest(folder)
    if manifest is None or not isinstance(texts, list | Passages):
        return
    build = manifest.get("build", {})
    known = {_recorded(folder, COLLECTION_FILE), manifest.get(TEXTS, {}).get("sha256")} - {None}
    if isinstance(texts, Passages) and texts.sha256 in known:
        return
    passages = build.get("passages", len(texts))
    if passages != len(texts) or collection_fingerprint(texts) != build.get("collection"):
        raise UserError(
            f"the collection given has {len(texts)} passages that are not the {passages} of {folder}; "
            "pass those it was built from, or leave collection out"
        )


def verify(folder: Path, collection: Any = None) -> list[str]:
    """Hash an index's files and texts; one line per difference, none when all is as it was written.

    Args:
        collection: its texts, where they moved; None: where they were.

    Raises:
        UserError: there is no index, or it has no manifest.
    """
    return snapshot(folder, partial(differences, collection=collection))


def differences(folder: Path, collection: Any = None) -> list[str]:
    """As `verify`, of a folder that no other takes the place of."""
    found = manifests.verify(folder)
    if collection is None:
        return found + changed_outside(folder)
    try:
        open_collection(collection, folder)
    except UserError as error:
        found.append(str(error))
    return found


def changed_texts(folder: Path) -> list[str]:
    """What is wrong with an index's texts, stored or outside, read in full; nothing known where it has no manifest."""
    sha256 = _recorded(folder, COLLECTION_FILE)
    if sha256 is not None and sha256_of(folder / COLLECTION_FILE) != sha256:
        return [f"{folder / COLLECTION_FILE}: changed (sha256 differs)"]
    return changed_outside(folder)


def changed_outside(folder: Path) -> list[str]:
    """What is wrong with the user's own file that an index refers to, read in full; nothing where the texts are stored."""
    manifest = read_manifest(folder)
    if manifest is None or COLLECTION_FILE in manifest["files"]:
        return []
    path = index_config(folder)["collection"]
    if not isinstance(path, str):
        return []
    if not Path(path).is_file():
        return [f"{path}: missing, it holds the texts"]
    kept = manifest.get(TEXTS)
    if kept is not None:
        same = sha256_of(Path(path)) == kept["sha256"]
    else:
        same = collection_fingerprint(read_collection(path)) == manifest.get("build", {}).get("collection")
    return [] if same else [f"{path}: changed since the index was built from its texts"]
