"""Where an index grows and how it takes its place. All that is unfinished lies in `NAME.partial` beside the target.

NAME.partial/build.json   what is being built; the sign that the folder is ours
NAME.partial/vectors/     the passages' vectors
NAME.partial/index/       the index, until it is complete
NAME.partial/replaced/    the index that was there, between the two renames of a swap
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json, write_json

BUILD_FILE = "build.json"
SWAPPING = "swapping"  # its field that says a complete index is taking its place
# What ColBERT and we write into an index; anything else in a replaced index is somebody's own and carried over.
OWN_FILE = re.compile(
    r"(\d+\.(codes|residuals)\.pt|doclens\.\d+\.json|(\d+\.)?metadata\.json|plan\.json|centroids\.pt|buckets\.pt"
    r"|avg_residual\.pt|ivf(\.pid)?\.pt|sample\.\d+\.pt|collection\.tsv|passages\.jsonl|index\.json|deleted\.json|ids\.txt)"
)


@dataclass(frozen=True)
class Places:
    """The paths of one target index."""

    target: Path

    @property
    def work(self) -> Path:
        return self.target.with_name(self.target.name + ".partial")

    @property
    def _marker(self) -> Path:
        return self.work / BUILD_FILE

    @property
    def index(self) -> Path:
        return self.work / "index"

    @property
    def vectors(self) -> Path:
        return self.work / "vectors"

    @property
    def replaced(self) -> Path:
        return self.work / "replaced"

    def claim(self, build: Mapping[str, Any], *, discard: bool) -> None:
        """Take the work folder for this build: go on with what is there if it is the same build.

        Args:
            discard: drop the unfinished index of another build (its vectors stay as long as they fit).

        Raises:
            UserError: the folder is not ours, or holds another build and `discard` is False.
        """
        marker = self._marker
        if self.work.exists() and not marker.exists():
            if any(self.work.iterdir()):
                raise UserError(f"{self.work} is in the way and is no unfinished index; move it elsewhere")
        elif marker.exists() and (other := _differences(read_json(marker), build)):
            if not discard:
                raise UserError(
                    f"{self.work} holds an unfinished index of another build ({other}); pass overwrite=True (--overwrite) "
                    "to drop it, or choose another name"
                )
            shutil.rmtree(self.index, ignore_errors=True)
        write_json(marker, dict(build))

    def swap(self) -> None:
        """Put the complete index in the target's place by two renames, then drop the old one and the work folder.

        From here on the marker says so: a swap that is interrupted is finished by `recover`.
        """
        if self.target.exists():
            self._carry_foreign_files()
        write_json(self._marker, {**read_json(self._marker), SWAPPING: True})
        self._finish_swap()

    def recover(self) -> bool:
        """Finish a swap that was interrupted; nothing happens when none was. Returns whether one was."""
        interrupted = self._marker.is_file() and bool(read_json(self._marker).get(SWAPPING))
        if interrupted:
            self._finish_swap()
        return interrupted

    def _finish_swap(self) -> None:
        if self.index.exists():
            if self.target.exists():
                os.replace(self.target, self.replaced)
            os.replace(self.index, self.target)
        for folder in (self.replaced, self.vectors):  # the marker goes last, with the work folder itself
            if folder.exists():
                shutil.rmtree(folder)
        shutil.rmtree(self.work)

    def _carry_foreign_files(self) -> None:
        for path in self.target.iterdir():
            if OWN_FILE.fullmatch(path.name):
                continue
            if path.is_dir():
                shutil.copytree(path, self.index / path.name, dirs_exist_ok=True)
            else:
                shutil.copy2(path, self.index / path.name)


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    return ", ".join(f"{name} {there.get(name)} there, {now.get(name)} now" for name in names)
