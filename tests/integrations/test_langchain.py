from pathlib import Path

import pytest
from langchain_core.retrievers import BaseRetriever

from colbert_diffusion import Searcher, UserError, build_index, open_index
from colbert_diffusion.integrations.langchain import ColBERTDiffusionRetriever

from ..conftest import TinyIndex, make_texts, tiny_index  # noqa: F401 - a fixture


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


def test_a_mode_is_passed_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    texts = make_texts(60, seed=5)
    index = build_index(tmp_path / "words", texts, tiny_checkpoint, lexical="bm25", verbose=0)
    searcher = open_index(index)
    retriever = ColBERTDiffusionRetriever(index=index, k=4, mode="lexical")
    for mode, found in (("lexical", retriever.invoke("cat dog")), ("hybrid", retriever.invoke("cat dog", mode="hybrid"))):
        pids, _, scores = searcher.search("cat dog", k=4, mode=mode)
        assert [document.metadata["pid"] for document in found] == pids
        assert [document.metadata["score"] for document in found] == pytest.approx(scores, abs=1e-5)
    with pytest.raises(UserError, match="mode is 'words', expected one of dense, lexical, hybrid"):
        ColBERTDiffusionRetriever(index=index, mode="words")


def test_words_of_an_index_without_them_are_refused_when_the_retriever_is_made(tiny_index: TinyIndex) -> None:  # noqa: F811
    with pytest.raises(UserError, match='has no words for mode "hybrid"'):
        ColBERTDiffusionRetriever(index=tiny_index.path, mode="hybrid")


def test_a_missing_index_shows_when_the_retriever_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        ColBERTDiffusionRetriever(index=tmp_path / "absent")
