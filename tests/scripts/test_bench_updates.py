"""scripts/bench/updates.py"""

import re
from pathlib import Path

import pytest
import torch

from colbert_diffusion import open_index

from .conftest import QUERIES, TEXTS, Takes, best, load, read_vectors, share


def test_files_and_shares_are_those_of_the_two_indexes(
    collection: Path, queries: Path, vectors: Path, tmp_path: Path, takes: Takes, capsys: pytest.CaptureFixture[str]
) -> None:
    takes(2.0, 1.0, 3.5)
    work = tmp_path / "work"
    arguments = [str(path) for path in (collection, queries, vectors, work)]
    load("bench/updates").main([*arguments, "--adds", "3", "--each", "5"])
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match("built|grown|3 updates", line)]
    base, expected = len(TEXTS) - 15, []
    for name in ("built", "grown"):
        searcher = open_index(work / name, verbose=0)
        encoded = searcher.encode(QUERIES)
        exact = best(encoded, read_vectors(vectors), 10)
        found = [searcher.dense_search(query, 10)[0] for query in encoded.split(1)]
        added = [[pid for pid in pids if pid >= base] for pids in exact]
        asked = [place for place, pids in enumerate(added) if pids]
        assert asked
        of_added = share([found[place] for place in asked], [added[place] for place in asked])
        files = list((work / name).iterdir())
        partitions, chunks = len(torch.load(work / name / "centroids.pt")), len(list((work / name).glob("*.codes.pt")))
        expected.append(
            f"{name}: recall@10 of exact {share(found, exact):.4f}, of the 15 passages added {of_added:.4f}; "
            f"{partitions} partitions, {chunks} chunks, {len(files)} files"
        )
    assert lines == [*expected, "3 updates of 5: median 2.00 s, last 3.50 s"]
    nobodys = load("bench/updates").report(work / "built", [[0, 1]], [[1, 2]], base=3, added=5)
    assert "recall@10 of exact 0.5000, of the 5 passages added unknown, none is among a query's 10 best; " in nobodys
