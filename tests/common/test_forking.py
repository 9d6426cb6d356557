"""What is open in a process works in the children that it forks."""

import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own: what other tests did with threads says nothing here.
SCRIPT = """
import os, sys
import torch
from colbert_diffusion import DiffusionCheckpoint, default_checkpoint

torch.set_num_threads(2)
root, before = sys.argv[1:]
texts = [f"passage {i}: bees stay calm when a beekeeper smokes the hive" for i in range(64)]
checkpoint, opened = DiffusionCheckpoint(default_checkpoint(), verbose=0), []

def encode():
    assert len(checkpoint.encode_document(texts)) == 64

def open_index():
    from colbert.infra import Run, RunConfig
    from colbert_diffusion import Indexer, Searcher
    with Run().context(RunConfig(index_root=root)):
        Indexer(verbose=0).index("i", texts, overwrite="resume")
    opened.append(Searcher("i", index_root=root, verbose=0))

def search():
    if not opened:
        open_index()
    assert len(opened[0].search("bees", k=5)[0]) == 5

for step in before.split():
    {"encode": encode, "open": open_index, "search": search}[step]()
child = os.fork()
if child == 0:
    encode(), search(), encode()
    os._exit(0 if torch.get_num_threads() == 2 else 3)
_, status = os.waitpid(child, 0)
encode(), search()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("before", ["encode", "open", "open search", "open search encode"])
def test_a_forked_child_encodes_and_searches(tmp_path: Path, before: str) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), before], check=True, timeout=600, stdout=subprocess.DEVNULL)
