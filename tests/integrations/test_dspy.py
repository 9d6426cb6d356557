"""DSPy's own clients, unmodified: ColBERTv2 against a running server, the local retriever on an index of ours."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from colbert.infra import ColBERTConfig, Run, RunConfig

from colbert_diffusion import Searcher

from ..serving.conftest import TEXTS, served_path, serving  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def dspy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Imported with a cache of its own, which would answer for the server, and without asking the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSPY_CACHEDIR", str(tmp_path_factory.mktemp("dspy")))
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        yield import_module("dspy")


def expected(path: Path, query: str, k: int) -> list[int]:
    pids, _, _ = Searcher(path.name, index_root=str(path.parent), verbose=0).search(query, k=k)
    return pids


def test_colbertv2_is_answered_by_get_and_by_post(dspy: Any, served_path: Path) -> None:  # noqa: F811
    with serving(served_path) as (_, url):
        for post in (False, True):
            client = dspy.ColBERTv2(url=f"{url}/api/search", post_requests=post)
            passages = client(TEXTS[5], k=3)
            assert [passage.pid for passage in passages] == expected(served_path, TEXTS[5], 3)
            assert [passage.long_text for passage in passages] == [TEXTS[passage.pid] for passage in passages]
            assert client(TEXTS[6], k=2, simplify=True) == [TEXTS[pid] for pid in expected(served_path, TEXTS[6], 2)]
            with pytest.raises(Exception, match="422 Client Error"):
                client(TEXTS[5], k=0)
            named = dspy.ColBERTv2(url=f"{url}/api/search?index=tiny", post_requests=post)
            assert [passage.pid for passage in named(TEXTS[5], k=3)] == expected(served_path, TEXTS[5], 3)
            absent = dspy.ColBERTv2(url=f"{url}/api/search?index=absent", post_requests=post)
            with pytest.raises(Exception, match="404 Client Error"):
                absent(TEXTS[5], k=3)


def test_the_local_retriever_searches_and_filters(dspy: Any, served_path: Path) -> None:  # noqa: F811
    local = import_module("dspy.dsp.colbertv2").ColBERTv2RetrieverLocal
    with Run().context(RunConfig(index_root=str(served_path.parent))):
        config = ColBERTConfig(checkpoint="of the index", index_name=served_path.name)
        retriever = local(TEXTS, colbert_config=config, load_only=True)
    found = retriever(TEXTS[5], k=3)
    assert found[0].pid == expected(served_path, TEXTS[5], 1)[0]
    assert [passage.long_text for passage in found] == [TEXTS[passage.pid] for passage in found]
    allowed = [passage.pid for passage in found[1:]]
    assert [passage.pid for passage in retriever(TEXTS[5], k=3, filtered_pids=allowed)] == allowed
