"""What the scripts share: arguments, how errors end, tables, cells and their kept rows, readings of memory, disk and time."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import read_json, write_json
from colbert_diffusion.index.layout import stored_bytes

T = TypeVar("T")
Row = dict[str, Any]


# Arguments and errors -----------------------------------------------------------------------------------------


def make_parser(about: str | None) -> argparse.ArgumentParser:
    """Its --help is the script's docstring."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def numbers(text: str) -> list[int]:
    """An argument such as 1,2,4."""
    return [int(part) for part in text.split(",")]


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """Around a script's `main`: what a user can put right is one line on stderr and exit status 2, as of the command line."""
    try:
        yield
    except (UserError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from error


# Tables -------------------------------------------------------------------------------------------------------


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """As Markdown; a row is seen as soon as it is measured."""
    print(_line(columns))
    print("|" + "---|" * len(columns), flush=True)
    for row in rows:
        print(_line(row), flush=True)


def _line(cells: Iterable[object]) -> str:
    texts = (str(cell).replace("|", "\\|") for cell in cells)
    return "|" + "".join(f" {text} |" if text else " |" for text in texts)


# Cells --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What is measured once. Each script's own has fields; they identify its rows."""

    @property
    def name(self) -> str:
        """A folder's name."""
        return "-".join(map(str, self.as_row().values()))

    def as_row(self) -> Row:
        return asdict(self)


class KeptRows:
    """Rows in a JSON file, beside what they are about: an interrupted script goes on where it was."""

    def __init__(self, path: Path, **about: Any) -> None:
        """`about`: what the file says of all rows, if it is new."""
        self.path = path
        self.content: dict[str, Any] = read_json(path) if path.exists() else {**about, "rows": []}

    def find(self, **wanted: Any) -> Row | None:
        """The row with these values, if it was measured."""
        return next((row for row in self.content["rows"] if wanted.items() <= row.items()), None)

    def add(self, row: Row) -> None:
        self.content["rows"].append(row)
        write_json(self.path, self.content)


# Readings -----------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Bytes of a process, pages of files that the system may drop included."""

    resident: int
    peak: int


def memory(pid: int | str = "self") -> Memory:
    """By the system's account; ru_maxrss would be the parent's where that was larger."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Memory(*(1024 * int(status[name].split()[0]) for name in ("VmRSS", "VmHWM")))


def bytes_of(folder: Path, *patterns: str) -> int:
    """Of the folder's files that match any of the patterns."""
    return sum(file.stat().st_size for file in {file for pattern in patterns for file in folder.glob(pattern)})


def packed_bytes(index: Path) -> int:
    """An index's codes and residuals."""
    return stored_bytes(index)[0]


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """(what it returned, seconds)"""
    started = perf_counter()
    result = run()
    return result, perf_counter() - started


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round. They take turns, so that a machine's drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(timed(run)[1])
    return times
