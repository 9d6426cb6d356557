"""Nothing from a downloaded folder runs, and nothing in it decides where this machine reads or writes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from colbert.infra import Run, RunConfig

from colbert_diffusion import DiffusionCheckpoint, Indexer, IndexUpdater, Searcher
from colbert_diffusion.backbones.sources import locate
from colbert_diffusion.common.errors import MissingPackageError, UserError
from colbert_diffusion.index.layout import is_own
from colbert_diffusion.index.manifest import write_manifest

from ..conftest import TinyIndex, make_texts

CANARY = "import pathlib; pathlib.Path({path!r}).write_text('code ran')\n"


@pytest.fixture
def index(tiny_index: TinyIndex, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_index.path, tmp_path / "i"))


def set_config(index: Path, **changes: Any) -> None:
    """As though the index had been written so."""
    for name in ("metadata.json", "plan.json"):
        about = json.loads((index / name).read_text())
        about["config"] |= changes
        (index / name).write_text(json.dumps(about))
    build = json.loads((index / "index.json").read_text())["build"]
    write_manifest(index, {"build": build}, is_own)


def code_folder(index: Path) -> str:
    """A published model whose config asks for the code beside it."""
    folder = index / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "code.Config"}}))
    (folder / "code.py").write_text(CANARY.format(path=str(index.parent / "canary")))
    (folder / "model.safetensors").write_bytes(b"")
    return str(folder)


NAMED: dict[str, Callable[[Path], Any]] = {
    "a folder with code": code_folder,
    "a hub id": lambda index: "somebody/model",
    "an address": lambda index: "http://127.0.0.1:1/model.dnn",
    "a pickle": lambda index: str(index / "model.dnn"),
    "a number": lambda index: 7,
}


@pytest.mark.parametrize("named", NAMED)
def test_a_checkpoint_that_an_index_names_is_ours_or_refused(named: str, index: Path) -> None:
    set_config(index, checkpoint=NAMED[named](index))
    with pytest.raises(UserError, match="pass checkpoint=") as caught:
        Searcher("i", index_root=str(index.parent), verbose=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        update = IndexUpdater("i", index_root=str(index.parent), verbose=0)
        update.add(["a text"])
    assert not (index.parent / "canary").exists()


def test_a_foreign_checkpoint_runs_no_code_even_when_the_caller_names_it(index: Path) -> None:
    with pytest.raises(UserError, match="auto_map"):
        Searcher("i", code_folder(index), index_root=str(index.parent), verbose=0)
    assert not (index.parent / "canary").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"load_index_with_mmap": True},
        {"query_maxlen": 0},
        {"query_maxlen": None},
        {"dim": "128"},
        {"nbits": 3_000},
        {"ncells": -1},
        {"ndocs": 10**12},
        {"centroid_score_threshold": "x"},
        {"collection": 7},
    ],
    ids=str,
)
def test_a_setting_of_an_index_that_is_out_of_its_range_is_refused(change: dict[str, Any], index: Path) -> None:
    if "collection" in change:
        (index / "collection.tsv").unlink()
    set_config(index, **change)
    with pytest.raises(UserError) as caught:
        Searcher("i", index_root=str(index.parent), verbose=0)
    assert "\n" not in str(caught.value)


def test_an_index_shows_no_file_that_is_not_its_own(index: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.tsv"
    secret.write_text("".join(f"{i}\tsecret {i}\n" for i in range(300)))
    (index / "collection.tsv").unlink()
    set_config(index, collection=str(secret))
    with pytest.raises(UserError, match="changed since"):
        Searcher("i", index_root=str(index.parent), verbose=0)
    (index / "index.json").unlink()
    with pytest.raises(UserError, match=r"name them yourself: collection="):
        Searcher("i", index_root=str(index.parent), verbose=0)
    named = Searcher("i", collection=str(secret), index_root=str(index.parent), verbose=0)
    assert named.collection[7] == "secret 7"


def test_a_checkpoint_decides_its_own_settings_and_no_path(tiny_checkpoint: Path, tmp_path: Path) -> None:
    hostile = Path(shutil.copytree(tiny_checkpoint, tmp_path / "hostile"))
    about = json.loads((hostile / "artifact.metadata").read_text())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("precious")
    (hostile / "artifact.metadata").write_text(json.dumps(about | {"index_path": str(tmp_path / "photos"), "root": "/"}))
    for use in (Indexer, DiffusionCheckpoint):
        with pytest.raises(UserError, match=r"fields \['index_path', 'root'\] that no checkpoint decides"):
            use(str(hostile))
    for wrong in ({"dim": 10**9}, {"query_maxlen": 0}, {"nbits": "2"}, {"mask_punctuation": "no"}):
        (hostile / "artifact.metadata").write_text(json.dumps(about | wrong))
        with pytest.raises(UserError, match=r"artifact\.metadata gives"):
            Indexer(str(hostile))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("module", ["evil.sub", "evil", "..", "evil/../../..", "os.path", "evil-package"])
def test_a_package_is_found_without_importing_and_never_in_the_current_folder(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil" / "sub").mkdir(parents=True)
    (tmp_path / "evil" / "__init__.py").write_text(CANARY.format(path=str(tmp_path / "canary")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises((UserError, MissingPackageError)):
        locate(f"package:{module}/sub")
    assert not (tmp_path / "canary").exists()


HUGE = 10**9


@pytest.mark.parametrize(
    "change",
    [
        {"k_query": HUGE},
        {"k_passage": HUGE},
        {"dim": HUGE},
        {"passage_max_length": HUGE},
        {"query_max_length": 1.5},
        {"k_query": True},
        {"mask_token_id": -1},
        {"mask_token_id": 2**40},
        {"mask_position": HUGE},
        {"masks_passage": "8"},
        {"nested": 1},
        {"merge_above": "high"},
        {"cover_above": "high"},
        {"search": {"nbits": 10**30}},
        {"search": [2]},
        {"backbone": 3},
        {"dtype": ["float32"]},
        {"query_prompt": {"prefix": [1, -2]}},
        {"query_prompt": {"prefix": [2**40]}},
        {"query_prompt": {"prefix": [1.5]}},
        {"query_prompt": {"prefix": 5}},
        {"query_prompt": "[CLS]"},
        {"passage_prompt": {"surprise": "x"}},
    ],
    ids=str,
)
def test_a_field_of_a_checkpoint_out_of_its_range_is_refused_before_anything_is_allocated(
    change: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    hostile = Path(shutil.copytree(tiny_checkpoint, tmp_path / "hostile"))
    about = json.loads((hostile / "diffusion.json").read_text())
    (hostile / "diffusion.json").write_text(json.dumps(about | change))
    with pytest.raises(UserError) as caught:
        DiffusionCheckpoint(hostile)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**6},
        {"hidden_size": HUGE},
        {"vocab_size": HUGE},
        {"vocab_size": "many"},
        {"intermediate_size": -4},
        {"num_hidden_layers": 40},
        {"hidden_size": None, "vocab_size": None},
        {"num_attention_heads": 7},
    ],
    ids=str,
)
def test_a_backbones_size_out_of_its_range_or_without_its_tensors_is_refused(
    change: dict[str, Any], tiny_bert: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    backbone = Path(shutil.copytree(tiny_bert, tmp_path / "bert"))
    about = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(about | change))
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    config = json.loads((checkpoint / "diffusion.json").read_text())
    (checkpoint / "diffusion.json").write_text(json.dumps(config | {"backbone": str(backbone)}))
    with pytest.raises(UserError) as caught:
        DiffusionCheckpoint(checkpoint)
    assert "\n" not in str(caught.value)


def test_a_backbones_config_chooses_no_code_for_attention(tiny_bert: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    backbone = Path(shutil.copytree(tiny_bert, tmp_path / "bert"))
    about = json.loads((backbone / "config.json").read_text())
    changed = {"attn_implementation": "somebody/kernel", "_attn_implementation": "flash_attention_2"}
    (backbone / "config.json").write_text(json.dumps(about | changed))
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "c"))
    config = json.loads((checkpoint / "diffusion.json").read_text())
    (checkpoint / "diffusion.json").write_text(json.dumps(config | {"backbone": str(backbone)}))
    texts = make_texts(3)
    ours, plain = (DiffusionCheckpoint(path).encode_document(texts) for path in (checkpoint, tiny_checkpoint))
    assert all((one == two).all() for one, two in zip(ours, plain, strict=True))


def test_another_model_under_a_known_model_type_is_named_by_what_it_lacks(tmp_path: Path) -> None:
    folder = tmp_path / "moe"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llada", "hidden_size": 2048, "num_experts": 64}))
    from colbert_diffusion.backbones.loading import load_backbone

    with pytest.raises(UserError, match=r"has no d_model, embedding_size.*family llada needs.*family of its own"):
        load_backbone(folder)


def test_an_index_is_built_where_the_user_says(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with Run().context(RunConfig(index_root=str(tmp_path / "root"))):
        assert Indexer(str(tiny_checkpoint), verbose=0).index("i", make_texts(20)) == str(tmp_path / "root" / "i")
