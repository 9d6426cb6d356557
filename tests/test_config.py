import json
from pathlib import Path

import pytest

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import COLBERT_FILE, CONFIG_FILE, DiffusionConfig, PromptParts, layout_of

from .conftest import PARITY


def test_a_saved_config_loads_as_it_was(tmp_path: Path) -> None:
    config = DiffusionConfig(
        backbone="some/hub-id",
        query_prompt=PromptParts((1, 2), "as text", (3,)),
        length_bound="text",
        search={"nbits": 4},
        training={"steps": 7},
    )
    config.save(tmp_path)
    assert DiffusionConfig.load(tmp_path) == config


def test_colbert_reads_dim_and_k_query_from_the_metadata_beside_the_config(tmp_path: Path) -> None:
    DiffusionConfig(backbone="b", dim=64, k_query=4, search={"nbits": 4}).save(tmp_path)
    written = json.loads((tmp_path / COLBERT_FILE).read_text())
    assert (written["dim"], written["query_maxlen"], written["nbits"]) == (64, 4, 4)


def test_a_released_folder_is_read_as_it_is() -> None:
    config = DiffusionConfig.load(PARITY / "released-dream")
    assert (config.k_query, config.k_passage, config.dim, config.family) == (4, 16, 64, "dream")
    assert config.length_bound == "prompt"
    assert config.passage_max_length == 156
    assert config.mask_token_id == 904
    assert isinstance(config.query_prompt.prefix, tuple)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format_version 99"),
        ({"surprise": 1}, "unknown fields"),
        ({"k_query": 0}, "k_query is 0"),
        ({"read_offset": 1}, "read_offset is 1"),
        ({"length_bound": "words"}, "length_bound"),
        ({"projection": "magic"}, "projection"),
        ({"k_query": "four"}, "wrong type"),
        ({"search": {"nbits": 3}}, "search: nbits is 3, expected 1, 2, 4 or 8"),
        ({"search": {"nbits": 2.0}}, "search: nbits is 2.0"),
        ({"search": {"bm25_weight": 5000}}, "bm25_weight is 5000, expected a number from 0 to 1,000"),
        ({"search": {"predicted_weight": -0.1}}, "predicted_weight is -0.1"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_in_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    DiffusionConfig(backbone="b").save(tmp_path)
    content = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=message) as error:
        DiffusionConfig.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    assert layout_of(tmp_path) is None
    with pytest.raises(UserError, match="neither"):
        DiffusionConfig.load(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        DiffusionConfig.load(tmp_path / "absent")


def test_damaged_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("{")
    with pytest.raises(UserError, match=CONFIG_FILE):
        DiffusionConfig.load(tmp_path)
