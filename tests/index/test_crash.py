"""Killed before any operation on files, every job goes on to the same bytes; a reader meanwhile finds the old or the new.

KILL_EVERY=1 is the long form: every operation, some minutes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EVERY = int(os.environ.get("KILL_EVERY", "9"))


@pytest.mark.parametrize("scenario", ["index", "overwrite", "update", "encode"])
def test_a_job_killed_before_any_operation_goes_on_to_the_same_bytes(
    scenario: str, adapted_checkpoint: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.index.crash", scenario, str(adapted_checkpoint), str(tmp_path), str(EVERY)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    kills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"operation"')]
    assert len(kills) > 2
    assert {kill["first"] for kill in kills} == {"killed"}
    assert [kill for kill in kills if kill["reader"] != "old or new"] == []
    assert [kill for kill in kills if kill["again"] != "ok" or kill["differs"]] == []
