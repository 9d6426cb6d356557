"""scripts/bench/search.py"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colbert.infra import ColBERTConfig

from colbert_diffusion import Searcher

from .conftest import QUERIES, TEXTS, Takes, best, load, read_vectors, rows, share

K = 5


def candidates(index: Path, query: Any, ncells: int) -> int:
    """Passages with a vector in a cell that is among the nearest of some query vector, from the index's files."""
    centroids = torch.load(index / "centroids.pt").float().numpy()
    doclens = json.loads((index / "doclens.0.json").read_text())
    codes = np.split(torch.load(index / "0.codes.pt").numpy(), np.cumsum(doclens)[:-1])
    nearest = set(np.argsort(-(np.asarray(query) @ centroids.T), axis=1)[:, :ncells].ravel().tolist())
    return sum(not nearest.isdisjoint(own.tolist()) for own in codes)


def test_what_each_setting_finds_and_scores_is_what_numpy_counts(
    collection: Path, queries: Path, vectors: Path, tmp_path: Path, takes: Takes, capsys: pytest.CaptureFixture[str]
) -> None:
    takes(0.004)
    threads, work = torch.get_num_threads(), tmp_path / "work"
    arguments = [collection, queries, vectors, work, "--k", K, "--nbits", 2, "--sweep", "--ncells", 2, "--thresholds", 0.3]
    more = ["--ndocs", 16, "--at-least", 0, "--at-most", 1, "--json", tmp_path / "rows.json"]
    load("bench/search").main(list(map(str, [*arguments, *more])))
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    found: dict[str, list[list[int]]] = {}
    counted: dict[str, tuple[float, float]] = {}
    partitions = len(torch.load(work / "nbits2" / "centroids.pt"))
    settings = {
        "ColBERT's defaults": (1, 0.5, 256),
        "ours": (min(partitions, max(16, 2**14 // partitions)), 0.3, 1024),
        "full": (partitions, -2.0, 4 * len(TEXTS)),
        "grid 1": (2, 0.3, 16),
    }
    for name, (ncells, threshold, ndocs) in settings.items():
        config = ColBERTConfig(ncells=ncells, centroid_score_threshold=threshold, ndocs=ndocs)
        searcher = Searcher("nbits2", config=config, index_root=str(work), verbose=0)
        encoded = searcher.encode(QUERIES)
        found[name] = [searcher.dense_search(query, K)[0] for query in encoded.split(1)]
        looked = [candidates(work / "nbits2", query, ncells) for query in encoded]
        scored = [min(count, ndocs // 4) for count in looked]
        counted[name] = (np.mean(looked) / len(TEXTS), np.mean(scored) / len(TEXTS))  # type: ignore[assignment]
    exact = best(encoded, read_vectors(vectors), K)
    assert f"nbits 2, k {K}: {len(TEXTS)} passages, {partitions} partitions, {len(QUERIES)} queries of 4 vectors" in printed
    table = [row for row in rows(printed) if row[0] in settings]
    assert [row[0] for row in table][:3] == ["ColBERT's defaults", "ours", "full"]
    assert "grid 1" in [row[0] for row in table][3:]
    for name, setting, of_full, of_exact, *times, looked_at, were_scored in table:
        assert setting == "{} / {:g} / {}".format(*settings[name])
        assert float(of_full) == pytest.approx(share(found[name], found["full"]), abs=5.1e-4)
        assert float(of_exact) == pytest.approx(share(found[name], exact), abs=5.1e-4)
        assert times == ["4.00", "4.00", "1.00"]
        assert [looked_at, were_scored] == [f"{part:.1%}" for part in counted[name]]
    assert len({row[2] for row in table}) > 1, "settings that find the same show nothing"
    assert len(json.loads((tmp_path / "rows.json").read_text())) == len(settings)


def test_exact_maxsim_is_numpys(vectors: Path) -> None:
    from colbert_diffusion.encoding.vectors import VectorFiles

    passages = read_vectors(vectors)
    asked = np.stack([passage[:4] for passage in passages[:6]])
    found = load("bench/search").exact_maxsim(VectorFiles(vectors), torch.from_numpy(asked), 7)
    assert found == best(asked, passages, 7)


def test_recall_is_the_mean_share_of_what_is_wanted() -> None:
    assert load("bench/search").recall([[1, 2, 3], [9]], [[3, 4], [9]]) == 0.75
