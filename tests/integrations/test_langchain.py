from pathlib import Path

import pytest
from langchain_core.retrievers import BaseRetriever

from colbert_diffusion import Searcher, UserError
from colbert_diffusion.integrations.langchain import ColBERTDiffusionRetriever

from ..conftest import TinyIndex, tiny_index  # noqa: F401 - a fixture


def test_documents_are_what_the_searcher_finds(tiny_index: TinyIndex) -> None:  # noqa: F811
    retriever = ColBERTDiffusionRetriever(index=tiny_index.path, k=4)
    assert isinstance(retriever, BaseRetriever)
    documents = retriever.invoke(tiny_index.texts[5])
    searcher: Searcher = tiny_index.searcher()
    pids, ranks, scores = searcher.search(tiny_index.texts[5], k=4)
    assert [document.metadata["pid"] for document in retriever.invoke(tiny_index.texts[5], k=2)] == pids[:2]
    assert [document.page_content for document in documents] == [tiny_index.texts[pid] for pid in pids]
    assert [document.metadata["pid"] for document in documents] == pids
    assert [document.metadata["rank"] for document in documents] == ranks
    assert [document.metadata["score"] for document in documents] == pytest.approx(scores, abs=1e-4)


def test_a_missing_index_shows_when_the_retriever_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        ColBERTDiffusionRetriever(index=tmp_path / "absent")
