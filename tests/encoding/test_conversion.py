import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colbert.infra import ColBERTConfig

from colbert_diffusion import DiffusionCheckpoint, Indexer, Searcher, convert
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import DiffusionConfig, PromptParts
from colbert_diffusion.encoding.scoring import maxsim

from ..conftest import HIDDEN, PARITY, make_texts
from ..releases import LAYOUTS, base_of, write_release

TEXTS = make_texts(40)


def test_a_release_becomes_an_indexable_folder_that_keeps_its_vectors(tmp_path: Path) -> None:
    converted = convert(str(PARITY / "released-dream"), tmp_path / "c", dim=64)
    released = DiffusionCheckpoint(PARITY / "released-dream")
    assert (tmp_path / "c" / "artifact.metadata").is_file()
    assert np.array_equal(converted.encode_document(TEXTS[:3]), released.encode_document(TEXTS[:3]))
    assert np.array_equal(converted.encode_query(TEXTS[:3]), released.encode_query(TEXTS[:3]))


def test_a_release_is_projected_to_dim_with_most_of_its_maxsim_order_kept(tmp_path: Path) -> None:
    texts: list[str] = json.loads((PARITY / "texts.json").read_text())
    converted = convert(str(PARITY / "released-dream"), tmp_path / "c", dim=32, fit_on=TEXTS + texts)
    assert converted.encode_query(["x"])[0].shape == (4, 32)
    released = DiffusionCheckpoint(PARITY / "released-dream")
    every = TEXTS + texts

    def scores(checkpoint: DiffusionCheckpoint) -> np.ndarray[Any, Any]:
        return maxsim(checkpoint.encode_query(texts), checkpoint.encode_document(every)).ravel()

    assert np.corrcoef(scores(converted), scores(released))[0, 1] > 0.97  # the directions that vary least: below .9


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_published_layout_converts_is_indexed_and_found(name: str, tmp_path: Path, index_root: str) -> None:
    layout, single = LAYOUTS[name], name.endswith("single")
    release = tmp_path / name
    merged = write_release(release, layout, "an-organisation/the-base" if single else str(base_of(layout)))
    converted = convert(str(release), tmp_path / "c", dim=64, backbone=str(base_of(layout)) if single else None)
    assert (converted.config.k_query, converted.config.k_passage) == (layout.k_query, layout.k_passage)

    def over(base: Path, folder: Path) -> DiffusionCheckpoint:
        """The same without its adapter."""
        replace(converted.config, backbone=str(base)).save(folder)
        return DiffusionCheckpoint(folder)

    checkpoints = converted, over(merged, tmp_path / "by hand"), over(base_of(layout), tmp_path / "untuned")
    for encode in ("encode_query", "encode_document"):
        ours, expected, without = (np.stack(getattr(checkpoint, encode)(TEXTS[:4])) for checkpoint in checkpoints)
        np.testing.assert_allclose(ours, expected, atol=2e-5)
        assert np.abs(ours - without).max() > 0.01, "the adapter changes nothing"

    Indexer(str(tmp_path / "c"), ColBERTConfig(nbits=8), verbose=0).index("i", TEXTS)
    searcher = Searcher("i", verbose=0)
    for query in TEXTS[:5]:
        assert searcher.search(query, k=1)[0] == [converted.rerank(query, TEXTS)[0][0]]


def test_a_backbone_becomes_a_zero_shot_checkpoint_with_the_bert_frame(tiny_bert: Path, tmp_path: Path) -> None:
    converted = convert(str(tiny_bert), tmp_path / "c", dim=HIDDEN, k_query=2, k_passage=3)
    assert converted.config.passage_prompt == PromptParts("[CLS]", "[SEP]", "[SEP]")
    assert converted.encode_document(["cat"])[0].shape == (3, HIDDEN)
    assert converted.encode_document(["the cat " * 500])[0].shape == (3, HIDDEN)


def test_a_chat_backbone_is_prompted_through_its_own_template_and_the_number_word_follows_k(tmp_path: Path) -> None:
    one = convert(str(PARITY / "tiny-dream"), tmp_path / "one", dim=64, k_query=1, k_passage=16).config
    assert str(one.query_prompt.prefix).endswith('<|im_start|>user\nQuery: "')
    assert "one lowercase word that" in str(one.query_prompt.suffix)
    assert "sixteen lowercase words that" in str(one.passage_prompt.suffix)
    assert str(one.passage_prompt.suffix).endswith('<|im_start|>assistant\nThe sixteen words are: "')
    assert one.passage_prompt.tail == '"<|im_end|><|endoftext|>'
    llada = convert(str(PARITY / "tiny-llada"), tmp_path / "llada", dim=64).config
    assert str(llada.query_prompt.prefix).startswith("<|startoftext|><|start_header_id|>user")
    assert llada.query_prompt.tail == '"<|eot_id|><|endoftext|>'


def test_prompts_may_be_given(tiny_bert: Path, tmp_path: Path) -> None:
    prompts = {"query": {"prefix": [2], "suffix": "query", "tail": [3]}}
    config = convert(str(tiny_bert), tmp_path / "c", dim=HIDDEN, prompts=prompts).config
    assert config.query_prompt == PromptParts((2,), "query", (3,))
    assert config.passage_prompt.prefix == "[CLS]"
    with pytest.raises(UserError, match="prompts: expected"):
        convert(str(tiny_bert), tmp_path / "d", dim=HIDDEN, prompts={"title": {}})


@pytest.mark.parametrize("readout", ["mean", "last"])
def test_single_vector_readouts_convert_with_k_one(tiny_bert: Path, tmp_path: Path, readout: str) -> None:
    converted = convert(str(tiny_bert), tmp_path / "c", dim=HIDDEN, readout=readout)
    assert converted.encode_document(["cat"])[0].shape == (1, HIDDEN)
    assert converted.config.passage_prompt == PromptParts("[CLS]", "[SEP]")  # no masks for a second [SEP] to close


def test_a_smaller_dim_without_texts_and_a_larger_one_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--fit-on TEXTS"):
        convert(str(tiny_bert), tmp_path / "c", dim=8)
    with pytest.raises(UserError, match=f"hidden size {HIDDEN}"):
        convert(str(tiny_bert), tmp_path / "c", dim=128)
    assert not (tmp_path / "c").exists()


def test_the_masks_place_and_a_teachers_projection_are_taken_over(tiny_bert: Path, tmp_path: Path) -> None:
    lengths: dict[str, Any] = {"query_max_length": 16, "passage_max_length": 32}
    teacher = convert(str(tiny_bert), tmp_path / "teacher", readout="tokens", dim=8, fit_on=TEXTS, **lengths)
    start = convert(
        str(tiny_bert), tmp_path / "start", dim=8, k_passage=8, projection_of=tmp_path / "teacher", mask_position=40, **lengths
    )
    assert (start.config.mask_position, start.config.dim) == (40, 8)
    assert (teacher.config.k_query, teacher.config.k_passage) == (16, 32)
    projections = [(tmp_path / name / "projection.safetensors").read_bytes() for name in ("teacher", "start")]
    assert projections[0] == projections[1]
    assert start.encode_document(["cat"])[0].shape == (8, 8)


def test_an_existing_folder_is_never_written_over(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        convert(str(tiny_bert), tmp_path, dim=HIDDEN)


def test_a_converted_folder_works_from_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PARITY)
    convert("released-dream", tmp_path / "c", dim=64)
    monkeypatch.chdir(tmp_path)
    assert DiffusionCheckpoint("c").encode_query(["cat"])[0].shape == (4, 64)


def test_a_nested_checkpoints_prefix_is_a_checkpoint_of_its_own(tiny_config: DiffusionConfig, tmp_path: Path) -> None:
    replace(tiny_config, nested=True).save(tmp_path / "nested")
    texts = make_texts(6)
    whole = DiffusionCheckpoint(tmp_path / "nested").encode_document(texts)
    prefix = convert(str(tmp_path / "nested"), tmp_path / "prefix", k_passage=3)
    assert (prefix.config.k_passage, prefix.config.masks("passage")) == (3, 8)
    for some, every in zip(prefix.encode_document(texts), whole, strict=True):
        np.testing.assert_allclose(some, every[:3], atol=1e-6)
    merged = convert(str(tmp_path / "nested"), tmp_path / "merged", merge_above=0.5, nbits=4)
    assert merged.config.search["nbits"] == 4
    with pytest.raises(UserError, match="nbits is 3"):
        convert(str(tmp_path / "nested"), tmp_path / "odd", nbits=3)
    with pytest.raises(UserError, match=r"bm25_weight is -1, expected a number from 0 to 1,000"):
        convert(str(tmp_path / "nested"), tmp_path / "odd", word_weight=-1)
    with pytest.raises(UserError, match=r"merge_above is 0.5 and cover_above 0.7"):
        convert(str(tmp_path / "no such source"), tmp_path / "odd", merge_above=0.5, cover_above=0.7)
    weighed = convert(str(tmp_path / "merged"), tmp_path / "weighed", word_weight=0.2)
    assert weighed.config.search == {"nbits": 4, "bm25_weight": 0.2, "predicted_weight": 0.2}
    assert sum(map(len, merged.encode_document(texts))) < sum(map(len, whole))
    covering = convert(str(tmp_path / "merged"), tmp_path / "covering", cover_above=0.7)
    assert (covering.config.merge_above, covering.config.cover_above, covering.config.search["nbits"]) == (None, 0.7, 4)
    assert convert(str(tmp_path / "covering"), tmp_path / "as-it-was").config.cover_above == 0.7


def test_a_nested_checkpoints_first_dimensions_are_a_checkpoint_of_its_own(tiny_bert: Path, tmp_path: Path) -> None:
    whole = convert(str(tiny_bert), tmp_path / "whole", dim=8, k_query=2, k_passage=4, fit_on=TEXTS)
    replace(whole.config, nested=True).save(tmp_path / "whole")
    cut = convert(str(tmp_path / "whole"), tmp_path / "cut", dim=4, k_query=1)
    assert (cut.config.dim, cut.config.k_query, cut.config.k_passage) == (4, 1, 4)
    for some, every in zip(cut.encode_document(TEXTS[:6]), whole.encode_document(TEXTS[:6]), strict=True):
        expected = every[:, :4] / np.linalg.norm(every[:, :4], axis=1, keepdims=True)
        np.testing.assert_allclose(some, expected, atol=1e-5)


def test_a_nested_checkpoint_gets_further_dimensions_and_positions_to_be_trained_on(tiny_bert: Path, tmp_path: Path) -> None:
    whole = convert(str(tiny_bert), tmp_path / "whole", dim=4, k_query=2, k_passage=4, fit_on=TEXTS)
    replace(whole.config, nested=True, merge_above=0.5).save(tmp_path / "whole")
    with pytest.raises(UserError, match=r"beyond the checkpoint's 4 .*--fit-on TEXTS"):
        convert(str(tmp_path / "whole"), tmp_path / "more", dim=8)
    with pytest.raises(UserError, match=f"hidden size {HIDDEN}"):
        convert(str(tmp_path / "whole"), tmp_path / "more", dim=HIDDEN + 1, fit_on=TEXTS)
    more = convert(str(tmp_path / "whole"), tmp_path / "more", dim=8, k_query=3, fit_on=TEXTS, merge_above=1)
    assert (more.config.dim, more.config.k_query, more.config.masks("query"), more.config.k_passage) == (8, 3, 3, 4)
    for some, every in zip(whole.encode_document(TEXTS[:6]), more.encode_document(TEXTS[:6]), strict=True):
        assert every.shape == (4, 8)
        np.testing.assert_allclose(some, every[:, :4] / np.linalg.norm(every[:, :4], axis=1, keepdims=True), atol=1e-5)
    assert [len(vectors) for vectors in more.encode_query(TEXTS[:2])] == [3, 3]


@pytest.mark.parametrize("source", ["nested", "backbone"])
def test_rotated_vectors_have_the_same_products_and_no_prefix_of_dimensions(
    source: str, tiny_bert: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"dim": 8, "k_passage": 4, "fit_on": TEXTS}
    whole = convert(str(tiny_bert), tmp_path / "whole", **asked)
    if source == "nested":
        replace(whole.config, nested=True).save(tmp_path / "whole")
        rotated = convert(str(tmp_path / "whole"), tmp_path / "rotated", rotate=True)
    else:
        rotated = convert(str(tiny_bert), tmp_path / "rotated", rotate=True, **asked)
    one, other = (np.concatenate(checkpoint.encode_document(TEXTS[:6])) for checkpoint in (whole, rotated))
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-5)
    spread = [vectors.var(axis=0).max() / vectors.var(axis=0).mean() for vectors in (one, other)]
    assert spread[1] < spread[0]
    replace(rotated.config, nested=True).save(tmp_path / "rotated")
    assert convert(str(tmp_path / "rotated"), tmp_path / "fewer", k_passage=2).encode_document(["cat"])[0].shape == (2, 8)
    with pytest.raises(UserError, match="were rotated, so 4 of them"):
        convert(str(tmp_path / "rotated"), tmp_path / "cut", dim=4)
    with pytest.raises(UserError, match="8 rotated dimensions, so 4 of them"):
        convert(str(tiny_bert), tmp_path / "cut", dim=4, projection_of=tmp_path / "rotated")


def test_a_backbones_own_dimensions_are_not_rotated(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --rotate out"):
        convert(str(tiny_bert), tmp_path / "c", dim=HIDDEN, rotate=True)
    assert not (tmp_path / "c").exists()


def test_a_nested_checkpoints_prefix_finds_a_base_that_lies_beside_the_whole(
    tiny_bert: Path, tiny_config: DiffusionConfig, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bert, tmp_path / "a" / "base")
    replace(tiny_config, nested=True, backbone="../base").save(tmp_path / "a" / "whole")
    prefix = convert(str(tmp_path / "a" / "whole"), tmp_path / "b" / "prefix", k_passage=3)
    assert prefix.encode_document(["cat"])[0].shape == (3, HIDDEN)


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_every_number_of_bits_that_colbert_packs_may_be_recommended(nbits: int, tiny_bert: Path, tmp_path: Path) -> None:
    assert convert(str(tiny_bert), tmp_path / "c", dim=HIDDEN, nbits=nbits).config.search["nbits"] == nbits


def test_a_checkpoint_that_is_not_nested_has_no_prefix(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not nested"):
        convert(str(tiny_checkpoint), tmp_path / "prefix", k_passage=3)
    assert not (tmp_path / "prefix").exists()
