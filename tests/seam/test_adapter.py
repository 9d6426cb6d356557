"""What ColBERT asks of a checkpoint, it gets from ours and from vector files."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colbert.infra import ColBERTConfig

from colbert_diffusion import DiffusionConfig
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import HEAD_FILE
from colbert_diffusion.encoding.identity import identify
from colbert_diffusion.encoding.vectors import encode_to
from colbert_diffusion.seam.adapter import ColBERTCheckpoint, Models, VectorCheckpoint, open_checkpoint, sharing

from ..conftest import HIDDEN, make_texts

TEXTS = make_texts(12)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> ColBERTCheckpoint:
    return ColBERTCheckpoint(tiny_checkpoint)


def test_colbert_gets_packed_float32_documents_and_stacked_queries(checkpoint: ColBERTCheckpoint) -> None:
    packed, doclens = checkpoint.docFromText(TEXTS, bsize=3, keep_dims="flatten", showprogress=False)
    assert packed.dtype == torch.float32
    assert doclens == [8] * len(TEXTS)
    assert np.array_equal(packed.numpy().reshape(-1, 8, HIDDEN), np.stack(checkpoint.encode_document(TEXTS)))
    queries = checkpoint.queryFromText(TEXTS, bsize=128, to_cpu=True, full_length_search=True)
    assert queries.shape == (len(TEXTS), 4, HIDDEN)
    assert checkpoint.queryFromText([]).shape == (0, 4, HIDDEN)


def test_what_colbert_might_ask_and_we_do_not_do_is_refused(checkpoint: ColBERTCheckpoint) -> None:
    with pytest.raises(UserError, match="pool_factor=2"):
        checkpoint.docFromText(TEXTS, pool_factor=2)
    with pytest.raises(UserError, match="keep_dims"):
        checkpoint.docFromText(TEXTS, keep_dims=False)


def test_a_config_with_another_dim_is_refused_and_a_default_one_is_not(tiny_checkpoint: Path) -> None:
    ColBERTCheckpoint(tiny_checkpoint, ColBERTConfig(nbits=2))
    with pytest.raises(UserError, match="dim=64"):
        ColBERTCheckpoint(tiny_checkpoint, ColBERTConfig(dim=64))


def test_vector_files_serve_documents_by_pid_and_queries_from_their_model(
    checkpoint: ColBERTCheckpoint, tmp_path: Path
) -> None:
    encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    served = open_checkpoint(str(tmp_path / "v"))
    assert isinstance(served, VectorCheckpoint)
    packed, doclens = served.docFromText([5, 2])
    expected, _ = checkpoint.docFromText([TEXTS[5], TEXTS[2]])
    assert torch.allclose(packed, expected, atol=1e-3)
    assert doclens == [8, 8]
    assert torch.equal(served.queryFromText(TEXTS[:1]), checkpoint.queryFromText(TEXTS[:1]))
    with pytest.raises(UserError, match="by pid"):
        served.docFromText(["a text"])  # type: ignore[list-item]


def test_a_checkpoint_that_is_shared_is_loaded_once(
    checkpoint: ColBERTCheckpoint, tiny_checkpoint: Path, tiny_config: DiffusionConfig, tmp_path: Path
) -> None:
    encode_to(tmp_path / "v", checkpoint.identity, lambda: checkpoint, TEXTS)
    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    replace(tiny_config, k_query=2).save(tmp_path / "other")
    models: Models = {}
    with sharing(models):
        first, copy, other = (open_checkpoint(str(path)) for path in (tiny_checkpoint, tmp_path / "copy", tmp_path / "other"))
        files = open_checkpoint(str(tmp_path / "v"))
        assert isinstance(files, VectorCheckpoint)
        assert first is copy is files.model
        assert first is not other
        with pytest.raises(UserError, match="dim=8"):
            open_checkpoint(str(tiny_checkpoint), ColBERTConfig(dim=8))
        (tmp_path / "copy" / HEAD_FILE).write_bytes(b"another head, which predicts other words from the same vectors")
        assert open_checkpoint(str(tmp_path / "copy")) is not first
        assert identify(tmp_path / "copy").fingerprint == first.identity.fingerprint
        models.popitem()
    assert list(models.values()) == [first, other]
    assert open_checkpoint(str(tiny_checkpoint)) is not first


def test_no_documents_are_no_vectors(checkpoint: ColBERTCheckpoint) -> None:
    packed, doclens = checkpoint.docFromText([])
    assert packed.shape == (0, HIDDEN)
    assert doclens == []
