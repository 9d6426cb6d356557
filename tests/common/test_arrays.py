import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from colbert_diffusion.common.arrays import read_arrays, writing_arrays
from colbert_diffusion.common.errors import UserError

EXPECTED = {"starts": "int64", "pids": "int32", "values": "float32 uint16"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    with writing_arrays(path, {"starts": (np.int64, 3), "pids": (np.int32, 5), "values": (np.float32, 5)}) as arrays:
        arrays["starts"][:] = [0, 2, 5]
        arrays["pids"][:] = range(5)
        arrays["values"][:] = np.linspace(0, 1, 5)
    return path


def test_what_is_written_is_read_by_us_and_by_safetensors(path: Path) -> None:
    own, theirs = read_arrays(path, EXPECTED), load_file(path)
    assert own["pids"].tolist() == [0, 1, 2, 3, 4]
    for name in EXPECTED:
        np.testing.assert_array_equal(own[name], theirs[name])


def test_empty_arrays_are_arrays(tmp_path: Path) -> None:
    with writing_arrays(tmp_path / "e", {"pids": (np.int32, 0), "values": (np.uint16, 0)}):
        pass
    assert [len(a) for a in read_arrays(tmp_path / "e", {"pids": "int32", "values": "uint16"}).values()] == [0, 0]


def test_a_failure_leaves_the_file_that_was_there(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), writing_arrays(path, {"pids": (np.int32, 2)}):
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("missing", ["lengths", "other"])
def test_an_array_that_is_missing_is_named(path: Path, missing: str) -> None:
    with pytest.raises(UserError, match=missing):
        read_arrays(path, {**EXPECTED, missing: "int32"})


def test_another_dtype_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match="pids is of dtype int32"):
        read_arrays(path, {"pids": "int64"})


@given(st.data())
def test_damaged_files_are_refused_or_read_within_their_bounds(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    header = {
        name: {
            "dtype": data.draw(st.sampled_from(["I64", "I32", "F32", "BOOL", 7])),
            "shape": data.draw(st.sampled_from([[1], [2], [0], [-1], [1, 1], 2, None])),
            "data_offsets": data.draw(st.sampled_from([[0, 8], [0, 4], [8, 4], [-8, 0], [0, 2**62], [0], "ab"])),
        }
        for name in ("starts", "pids")
    }
    text = json.dumps(header).encode()[: data.draw(st.integers(0, 200))]
    size = data.draw(st.sampled_from([len(text), 0, 2**63, len(text) + 7]))
    path.write_bytes(size.to_bytes(8, "little") + text + bytes(data.draw(st.integers(0, 16))))
    with suppress(UserError):
        assert all(array.sum() == 0 for array in read_arrays(path, {"starts": "int64", "pids": "int32"}).values())
