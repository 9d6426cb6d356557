"""The run's log, one JSON object per line, and the curves drawn from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.files import to_disk, written_aside

SMOOTHED = 50  # curves show the mean over this fraction of a run's steps


class Log:
    """Appends to a JSONL file. Opened again after a kill, entries after the resumed step are dropped."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        self.path = path
        kept = [entry for entry in read_log(path) if entry["step"] <= resumed_at]
        with written_aside(path) as aside:
            aside.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")

    def add(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def to_disk(self) -> None:
        """What was added so far outlives a power cut; before a state is saved that says it was."""
        to_disk(self.path)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries, up to the first line that a kill or a power cut left unfinished."""
    entries: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def draw_curves(log: Path, out: Path) -> None:
    """The losses (left) and the dev measures (right) over steps, as a PNG."""
    from matplotlib.figure import Figure

    entries = read_log(log)
    losses = [entry for entry in entries if "losses" in entry]
    dev = [entry for entry in entries if "dev" in entry]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    window = max(1, len(losses) // SMOOTHED)
    for name in losses[0]["losses"] if losses else ():
        values = [entry["losses"][name] for entry in losses]
        means = [sum(values[i : i + window]) / len(values[i : i + window]) for i in range(0, len(values), window)]
        left.plot([losses[i]["step"] for i in range(0, len(values), window)], means, label=name)
    for name in dev[0]["dev"] if dev else ():
        right.plot([entry["step"] for entry in dev], [entry["dev"][name] for entry in dev], marker="o", label=name)
    for axes, title in ((left, f"losses, mean of {window} steps"), (right, "dev collections")):
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend()
    with written_aside(out) as aside:
        figure.savefig(aside, format="png")
