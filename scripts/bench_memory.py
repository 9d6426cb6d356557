"""What a collection costs in memory before it is indexed: opening it, reading from it, planning for it.

Writes a .tsv of passages of MS MARCO's mean length (335 characters) for each size, in a temporary folder that is
deleted, and measures each step in a process of its own: resident memory at its end and its peak, beside that of a
process that only imports the same modules; pages of files that the system may drop (the mapped offsets) count too.
`plan` is measured without its probe, whose memory is that of the index's own steps.

With --index, a Searcher is opened on each of these indexes instead and searches once: beside what it holds then stands
the size of the index's files without its texts, which ColBERT holds as tensors, and what its checkpoint holds alone.

Usage: bench_memory.py [--lines 10000,100000,1000000,8841823] [--folder FOLDER] [--index FOLDER ...]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from colbert_diffusion.index.planning import example_passages

EXAMPLES = 1000  # different passages, over and over

MEASURE = """
import sys, time
started = time.monotonic()
{step}
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmRSS"].split()[0], status["VmHWM"].split()[0], time.monotonic() - started)
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


def rows(path: Path, steps: dict[str, str]) -> Iterator[tuple[str, float, float, float]]:
    """(step, resident MB at the end, peak MB, seconds), each in a new process."""
    for name, step in steps.items():
        code = MEASURE.format(step=step)
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        resident, peak, seconds = map(float, done.stdout.splitlines()[-1].split())  # ColBERT prints before
        yield name, resident / 1024, peak / 1024, seconds


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", default="10000,100000,1000000,8841823")
    parser.add_argument("--folder", type=Path, help="where the files are written; default: the system's temporary folder")
    parser.add_argument("--index", nargs="+", type=Path, default=[])
    given = parser.parse_args(arguments)
    print("| passages | files | step | resident | peak | seconds |\n|---|---|---|---|---|---|")
    for index in given.index:
        count = sum(len(json.loads(file.read_text())) for file in index.glob("doclens.*.json"))
        files = sum(file.stat().st_size for file in index.iterdir() if not file.name.startswith("collection."))
        show(count, files, rows(index.absolute(), SEARCHER_STEPS))
    for count in map(int, () if given.index else given.lines.split(",")):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            path = Path(folder) / "collection.tsv"
            write(path, count)
            show(count, path.stat().st_size, rows(path, STEPS))


def show(count: int, files: int, measured: Iterator[tuple[str, float, float, float]]) -> None:
    for step, resident, peak, seconds in measured:
        print(f"| {count:,} | {files / 1e6:,.0f} MB | {step} | {resident:.0f} MB | {peak:.0f} MB | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
