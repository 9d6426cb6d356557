"""How hard a search over few vectors looks. ColBERT's defaults are made for 32 query vectors; here there are 1 to 16."""

from typing import Any, NamedTuple

NAMES = ("ncells", "centroid_score_threshold", "ndocs")


class SearchSettings(NamedTuple):
    """ColBERT's three settings (infra/config/settings.py, SearchSettings)."""

    ncells: int
    centroid_score_threshold: float
    ndocs: int


def choose_settings(k: int, partitions: int) -> SearchSettings:
    """Settings for a search of depth `k` in an index of `partitions` centroids.

    Measured with scripts/bench/search.py on 10,033 real passages (k_query 4, k_passage 16, dim 128, 500 queries,
    4,096 partitions): share of full probing's top k, and p50 as a multiple of that of ColBERT's defaults for this k.

    | k, nbits | these | ColBERT's defaults | p50 |
    |---|---|---|---|
    | 10, 2 | .998 | .734 | 2.1 |
    | 10, 4 | .989 | .677 | 2.3 |
    | 100, 2 | .995 | .491 | 4.0 |
    | 100, 4 | .983 | .451 | 3.8 |
    | 1000, 2 | .989 | .219 | 16 |

    Of the passages 2.6 %, 10 % and 40 % are scored. A cell holds only partitions / 256 to partitions / 64 vectors, so
    a small index needs more cells: at 300 passages 8 find .83 of the top 10, 16 find .98.
    """
    if k <= 10:
        ncells, ndocs = max(16, 2**14 // partitions), 1024
    elif k <= 100:
        ncells, ndocs = max(64, 2**17 // partitions), 4096
    else:
        ncells, ndocs = max(128, 2**20 // partitions), max(4096, 16 * k)
    return SearchSettings(min(ncells, partitions), 0.3, ndocs)


def explicit_settings(*configs: Any) -> dict[str, Any]:
    """Those of the three that a caller's ColBERTConfig or RunConfig sets itself."""
    return {
        name: getattr(config, name)
        for config in configs
        if config is not None
        for name in NAMES
        if config.assigned.get(name) and getattr(config, name) is not None
    }
