from pathlib import Path

import pytest

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.work import Marker, differences

RUN = {"steps": 300, "recipe": {"rate": 0.1, "dims": (64, 128)}, "best": None}


@pytest.fixture
def marker(tmp_path: Path) -> Marker:
    marker = Marker(tmp_path / "run.json", grows={"best"})
    marker.write(RUN)
    return marker


def test_the_same_run_goes_on_however_far_it_is(marker: Marker) -> None:
    marker.write({**RUN, "best": {"step": 7}})
    assert marker.differences(RUN) == ""
    found = marker.found()
    assert found is not None
    assert found["best"] == {"step": 7}


def test_where_there_is_none_nothing_differs(tmp_path: Path) -> None:
    marker = Marker(tmp_path / "run.json")
    assert marker.found() is None
    assert marker.differences(RUN) == ""


def test_every_difference_is_named_with_both_values(marker: Marker) -> None:
    other = {"steps": 400, "recipe": {"rate": 0.1, "dims": (64,)}, "seed": 1}
    assert (
        marker.differences(other) == "steps 300 there, 400 now, recipe.dims [64, 128] there, [64] now, seed None there, 1 now"
    )


def test_what_an_earlier_version_wrote_is_compared_in_this_ones_words(marker: Marker) -> None:
    renewed = Marker(marker.path, grows={"best"}, renewed=lambda there: {**there, "steps": there["steps"] // 3})
    assert renewed.differences({**RUN, "steps": 100}) == ""


def test_long_values_stay_short() -> None:
    assert len(differences({"data": "x" * 10_000}, {"data": "y" * 10_000})) < 200


def test_a_damaged_marker_is_named(marker: Marker) -> None:
    marker.path.write_text("{")
    with pytest.raises(UserError, match=r"run\.json"):
        marker.differences(RUN)
