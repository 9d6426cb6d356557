import subprocess
import sys
from pathlib import Path
from typing import Any

import colbert.indexer
import colbert.indexing.collection_indexer
import colbert.searcher
import pytest

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.seam import binding, install, uninstall
from colbert_diffusion.seam.worker import encode


def run_script(folder: Path, source: str) -> str:
    """Run a script as a user would; returns its stdout."""
    script = folder / "script.py"
    script.write_text(source)
    done = subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_importing_the_package_loads_neither_torch_nor_colbert_and_binds_when_colbert_comes(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        "import sys, colbert_diffusion\n"
        "assert not {'torch', 'colbert', 'transformers'} & set(sys.modules)\n"
        "import colbert.indexer\n"
        "assert colbert.indexer.encode.__module__ == 'colbert_diffusion.seam.worker'\n",
    )


def test_binding_happens_at_once_when_colbert_is_there_first(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        "import colbert.indexer\n"
        "import colbert_diffusion\n"
        "assert colbert.indexer.encode.__module__ == 'colbert_diffusion.seam.worker'\n",
    )


def test_install_and_uninstall_are_idempotent() -> None:
    install()
    install()
    assert colbert.indexer.encode is encode
    uninstall()
    uninstall()
    assert colbert.indexer.encode is colbert.indexing.collection_indexer.encode
    assert isinstance(colbert.searcher.Checkpoint, type)
    install()
    assert colbert.indexer.encode is encode


def test_our_class_is_made_for_our_folders_and_colberts_own_for_the_rest(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def stock(name: str, colbert_config: Any = None, verbose: int = 3) -> None:
        asked.append(name)

    uninstall()
    with monkeypatch.context() as patch:
        patch.setattr(colbert.indexing.collection_indexer, "Checkpoint", stock)
        install()
        made = colbert.indexing.collection_indexer.Checkpoint(str(tiny_checkpoint))
        assert isinstance(made, DiffusionCheckpoint)
        assert asked == []
        colbert.indexing.collection_indexer.Checkpoint("bert-base-uncased")
        colbert.indexing.collection_indexer.Checkpoint(str(tmp_path))
        assert asked == ["bert-base-uncased", str(tmp_path)]
        uninstall()
    install()


def test_another_colbert_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall()
    with monkeypatch.context() as patch:
        patch.setattr(binding, "version", lambda _: "0.2.21")
        with pytest.raises(UserError, match=r"pip install colbert-ai==0\.2\.22"):
            install()
        patch.undo()
        patch.setattr(colbert.searcher, "Checkpoint", lambda path: None)
        with pytest.raises(UserError, match=r"colbert\.searcher\.Checkpoint is not"):
            install()
        assert colbert.indexer.encode is not encode  # nothing is bound by halves
    install()


def test_a_plain_colbert_script_indexes_and_searches_with_one_added_import(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Stock classes, a spawned child, no config: the only line that is ours is the import."""
    out = run_script(
        tmp_path,
        f"""
import colbert_diffusion
from colbert import Indexer, Searcher
from colbert.infra import ColBERTConfig, Run, RunConfig

if __name__ == "__main__":
    with Run().context(RunConfig(nranks=1, experiment="e")):
        texts = [f"{{a}} {{b}} {{c}}" for a in ("the", "a") for b in ("dog", "cat", "sun", "moon") for c in
                 ("runs", "sleeps", "in paris", "in berlin", "and the river")] * 3
        with open("c.tsv", "w") as f:
            f.writelines(f"{{i}}\\t{{t}}\\n" for i, t in enumerate(texts))
        Indexer(checkpoint={str(tiny_checkpoint)!r}, config=ColBERTConfig(nbits=2)).index(name="n", collection="c.tsv")
        pids, ranks, scores = Searcher(index="n", collection="c.tsv").search("the dog in paris", k=3)
        print("FOUND", len(pids), texts[pids[0]])
""",
    )
    assert "FOUND 3 " in out


def test_our_indexer_needs_no_main_guard(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = run_script(
        tmp_path,
        f"""
from colbert_diffusion import Indexer
texts = [f"the {{w}} {{v}} {{n}}" for w in ("dog", "cat", "sun") for v in ("runs", "sleeps") for n in range(20)]
print("BUILT", Indexer({str(tiny_checkpoint)!r}, verbose=0).index("n", texts))
""",
    )
    assert f"BUILT {tmp_path}/experiments/default/indexes/n" in out
