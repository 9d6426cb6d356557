"""Readers of files that somebody else wrote give a value or a UserError, whatever is in them."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import load

fuzzing = load("fuzz_readers")


@pytest.mark.parametrize("name", fuzzing.READERS)
def test_a_good_file_is_read(name: str, tmp_path: Path) -> None:
    assert fuzzing.Room(tmp_path).read(name, fuzzing.READERS[name].good) == "read"


@pytest.mark.parametrize("name", fuzzing.READERS)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.randoms(use_true_random=True))
def test_a_changed_file_is_read_or_refused_in_one_line(
    name: str, tmp_path_factory: pytest.TempPathFactory, draw: object
) -> None:
    content = fuzzing.changed(fuzzing.READERS[name].good, draw)
    assert fuzzing.Room(tmp_path_factory.mktemp("room")).read(name, content) in ("read", "refused")


@pytest.mark.parametrize("name", fuzzing.READERS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_in_one_line(name: str, tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    assert fuzzing.Room(tmp_path_factory.mktemp("room")).read(name, content) in ("read", "refused")
