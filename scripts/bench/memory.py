"""What a collection costs in memory before it is indexed: opening it, reading from it, planning for it.

Writes a .tsv of passages of MS MARCO's mean length (335 characters) for each size, in a temporary folder that is
deleted, and measures each step in a process of its own: resident memory at its end and its peak, beside that of a
process that only imports the same modules; pages of files that the system may drop (the mapped offsets) count too.
`plan` is measured without its probe, whose memory is that of the index's own steps.

With --index, a Searcher is opened on each of these indexes instead and searches once: beside what it holds then stands
the size of the index's files without its texts, which ColBERT holds as tensors, and what its checkpoint holds alone.

Usage: memory.py [--lines 10000,100000,1000000,8841823] [--folder FOLDER] [--index FOLDER ...]
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from common import Memory, bytes_of, errors_in_a_line, make_parser, memory, numbers, print_table

from colbert_diffusion.index.planning import example_passages

EXAMPLES = 1000  # different passages, over and over

DONE = "the step took"
PROCESS = f"""
import sys, time
started = time.monotonic()
{{step}}
print({DONE!r}, time.monotonic() - started, flush=True)
sys.stdin.read()  # until its memory was read
"""

IMPORTS = "from pathlib import Path\nfrom colbert_diffusion.texts.collection import Passages\n"
OPEN = IMPORTS + "passages = Passages(Path(sys.argv[1]))\n"
STEPS = {
    "imports alone": IMPORTS,
    "open, first time": OPEN,
    "open again": OPEN,
    "open, read 1,000 at random": OPEN
    + "import random\nrandom.seed(0)\nfor _ in range(1000): passages[random.randrange(len(passages))]\n",
    "open, read all in order": OPEN + "for text in passages: pass\n",
    "plan: imports alone": "import colbert_diffusion.index.planning\n",
    "plan": "from colbert_diffusion.index.planning import *\n"
    + "from colbert_diffusion.seam.shape import Shape\n"
    + OPEN
    + "shape = Shape(len(passages), 16, 128, 2)\n"
    + "index_bytes(shape), building_bytes(shape), memory_bytes(shape), list(notes(shape))\n",
}

SEARCHER = """import json
from pathlib import Path
from colbert_diffusion import DiffusionCheckpoint, Searcher
import colbert.searcher, colbert.data
index = Path(sys.argv[1])
"""
SEARCHER_STEPS = {
    "its checkpoint alone": SEARCHER
    + "config = json.loads((index / 'metadata.json').read_text())['config']\n"
    + "DiffusionCheckpoint(config['checkpoint'], verbose=0).encode_query(['ready'])\n",
    "searcher": SEARCHER
    + "searcher = Searcher(index.name, index_root=str(index.parent), verbose=0)\n"
    + "searcher.search('ready', k=10)\n",
}


def write(path: Path, count: int) -> None:
    """`count` lines; the texts repeat, which nothing here notices."""
    texts = islice(cycle(example_passages(EXAMPLES)), count)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{pid}\t{text}\n" for pid, text in enumerate(texts))


def measure(path: Path, step: str) -> tuple[Memory, float]:
    """Memory of a new process at the end of the step, and the step's seconds."""
    command = [sys.executable, "-c", PROCESS.format(step=step), str(path)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        for line in process.stdout or ():  # ColBERT prints too
            if line.startswith(DONE):
                return memory(process.pid), float(line.removeprefix(DONE))
        errors.seek(0)
        raise RuntimeError(f"{path}: {errors.read()}")


def rows(count: int, files: int, path: Path, steps: dict[str, str]) -> Iterator[tuple[str, ...]]:
    for name, step in steps.items():
        found, seconds = measure(path, step)
        resident, peak = (f"{value / 2**20:.0f} MB" for value in found)
        yield f"{count:,}", f"{files / 1e6:,.0f} MB", name, resident, peak, f"{seconds:.1f}"


def all_rows(indexes: list[Path], lines: list[int], folder: Path | None) -> Iterator[tuple[str, ...]]:
    for index in indexes:
        count = sum(len(json.loads(file.read_text())) for file in index.glob("doclens.*.json"))
        yield from rows(count, bytes_of(index, "*") - bytes_of(index, "collection.*"), index.absolute(), SEARCHER_STEPS)
    for count in () if indexes else lines:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            path = Path(temporary) / "collection.tsv"
            write(path, count)
            yield from rows(count, path.stat().st_size, path, STEPS)


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--lines", type=numbers, default=[10_000, 100_000, 1_000_000, 8_841_823])
    parser.add_argument("--folder", type=Path, help="where the files are written; default: the system's temporary folder")
    parser.add_argument("--index", nargs="+", type=Path, default=[])
    given = parser.parse_args(arguments)
    columns = ("passages", "files", "step", "resident", "peak", "seconds")
    print_table(columns, all_rows(given.index, given.lines, given.folder))


if __name__ == "__main__":
    main()
