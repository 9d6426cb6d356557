"""A tuned fusion into an index's manifest: its one file that changes, so that `verify` stays clean."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import write_json
from .fusion import Fusion
from .manifest import FUSION, MANIFEST_FILE, read_manifest
from .places import Places


def keep_fusion(index: Path, fusion: Fusion, of: Mapping[str, Any]) -> None:
    """Make searches of an index hybrid by this fusion, until it is rebuilt; an update keeps it.

    Args:
        of: the manifest of the index that it was tuned on.

    Raises:
        UserError: the index is another by now, another process is writing it, or nothing can be written there.
    """
    places = Places(index)
    with places.writing():
        places.recover()
        if read_manifest(places.target) != of:
            raise UserError(f"{index} changed while it was tuned; tune it again")
        if of.get(FUSION) != fusion.as_json():
            write_json(places.target / MANIFEST_FILE, {**of, FUSION: fusion.as_json()})
