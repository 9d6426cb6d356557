"""How hard a search looks: as measured, and what a caller sets wins."""

import pytest
from colbert.infra import ColBERTConfig, RunConfig

from colbert_diffusion.seam.settings import SearchSettings, choose_settings, explicit_settings


@pytest.mark.parametrize(
    ("k", "partitions", "expected"),
    [
        (1, 4096, (16, 1024)),
        (10, 4096, (16, 1024)),
        (11, 4096, (64, 4096)),
        (100, 4096, (64, 4096)),
        (101, 4096, (256, 4096)),
        (1000, 4096, (256, 16_000)),
        (1000, 2**18, (128, 16_000)),
        (100, 2**18, (64, 4096)),
        (10, 512, (32, 1024)),  # a small index needs more cells
        (100, 1024, (128, 4096)),
        (10, 64, (64, 1024)),  # and never more than there are
    ],
)
def test_settings_are_those_that_were_measured(k: int, partitions: int, expected: tuple[int, int]) -> None:
    assert choose_settings(k, partitions) == SearchSettings(expected[0], 0.3, expected[1])


def test_what_a_caller_sets_is_explicit_and_a_default_is_not() -> None:
    assert explicit_settings(ColBERTConfig(), RunConfig(), None) == {}
    assert explicit_settings(ColBERTConfig(ncells=3, nbits=2), None) == {"ncells": 3}
    assert explicit_settings(ColBERTConfig(ndocs=None)) == {}
    assert explicit_settings(ColBERTConfig(ncells=3, ndocs=8), ColBERTConfig(ncells=5)) == {"ncells": 5, "ndocs": 8}
