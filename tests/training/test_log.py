from pathlib import Path

import pytest

from colbert_diffusion.training.log import Log, read_log


@pytest.mark.parametrize("end", [b'{"step": 3, "los', b"\0" * 50 + b"\n", b"\0" * 4096, b""])
def test_what_a_kill_or_a_power_cut_left_at_the_end_is_no_entry(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path, 0)
    for step in (1, 2):
        log.add({"step": step})
    log.to_disk()
    path.write_bytes(path.read_bytes() + end)
    assert read_log(path) == [{"step": 1}, {"step": 2}]
    Log(path, 1).add({"step": 2})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
