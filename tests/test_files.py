from pathlib import Path

import pytest

from colbert_diffusion.files import write_json, written_aside


def test_a_failed_write_leaves_the_good_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"good": True})
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "good": true\n}\n'
    assert list(tmp_path.iterdir()) == [path]
