"""The calls that LlamaIndex's ColbertIndex makes (indices/managed/colbert/base.py), in its order."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from colbert.infra import ColBERTConfig, Run, RunConfig

from colbert_diffusion import Indexer, Searcher

from ..conftest import make_texts

TEXTS = make_texts(150, seed=4)


def test_a_colbert_index_is_built_searched_persisted_and_loaded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    storage, persisted = tmp_path / "storage", tmp_path / "persisted"
    for _ in range(2):  # the second replaces the first
        with Run().context(RunConfig(index_root=str(storage), nranks=1, gpus=0)):
            config = ColBERTConfig(doc_maxlen=120, query_maxlen=60, nbits=2, kmeans_niters=4)
            indexer = Indexer(checkpoint=str(tiny_checkpoint), config=config)
            indexer.index(name="nodes", collection=TEXTS, overwrite=True)
            store = Searcher(index="nodes", collection=TEXTS, checkpoint=str(tiny_checkpoint))
    found = store.search(text=TEXTS[3], k=5)
    assert len(found[0]) == 5
    shutil.copytree(storage / "nodes", persisted / "nodes")
    shutil.rmtree(storage)
    loaded = Searcher(index="nodes", index_root=str(persisted), config=ColBERTConfig.load_from_index(str(persisted / "nodes")))
    assert loaded.search(text=TEXTS[3], k=5) == found
    assert [loaded.collection[pid] for pid in found[0]] == [TEXTS[pid] for pid in found[0]]


def test_the_same_calls_work_on_colberts_own_classes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What a program does that imports LlamaIndex and, before it, this package."""
    (tmp_path / "script.py").write_text(f"""
import colbert_diffusion
from pathlib import Path
from colbert import Indexer, Searcher
from colbert.infra import ColBERTConfig, Run, RunConfig
from tests.integrations.test_llama_index import TEXTS

if __name__ == "__main__":
    with Run().context(RunConfig(index_root="storage", nranks=1, gpus=0)):
        config = ColBERTConfig(doc_maxlen=120, query_maxlen=60, nbits=2, kmeans_niters=4)
        Indexer(checkpoint={str(tiny_checkpoint)!r}, config=config).index(name="nodes", collection=TEXTS, overwrite=True)
        store = Searcher(index="nodes", collection=TEXTS, checkpoint={str(tiny_checkpoint)!r})
    found = store.search(text=TEXTS[3], k=5)
    config = ColBERTConfig.load_from_index(Path("storage") / "nodes")
    assert Searcher(index="nodes", index_root="storage", config=config).search(text=TEXTS[3], k=5) == found
    assert [store.collection[pid] for pid in found[0]] == [TEXTS[pid] for pid in found[0]]
    print("FOUND", len(found[0]))
""")
    root = Path(__file__).parents[2]
    command = [sys.executable, "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "FOUND 5" in done.stdout
