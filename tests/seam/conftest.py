"""One small index over the fake backbone, shared by the tests that only read it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from colbert.infra import Run, RunConfig

from colbert_diffusion import Indexer, Searcher
from colbert_diffusion.config import DiffusionConfig

from ..conftest import HIDDEN, make_texts
from ..releases import write_adapter


@dataclass(frozen=True)
class TinyIndex:
    path: Path
    texts: list[str]

    def searcher(self) -> Searcher:
        return Searcher(self.path.name, index_root=str(self.path.parent), verbose=0)


@pytest.fixture(scope="session")
def tiny_index(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyIndex:
    texts = make_texts(300)
    root = tmp_path_factory.mktemp("indexes")
    with Run().context(RunConfig(index_root=str(root))):
        path = Indexer(str(tiny_checkpoint), verbose=0).index("tiny", texts)
    return TinyIndex(Path(path), texts)


@pytest.fixture(scope="session")
def adapted_checkpoint(tiny_config: DiffusionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a LoRA adapter: loading one draws random numbers."""
    folder = tmp_path_factory.mktemp("checkpoints") / "adapted"
    write_adapter(folder, {"bert.encoder.layer.0.attention.self.query": (HIDDEN, HIDDEN)})
    tiny_config.save(folder)
    return folder
