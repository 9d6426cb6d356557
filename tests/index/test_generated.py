"""PromptReps in an ordinary index: texts that end early have fewer vectors, on both sides."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from colbert_diffusion import DiffusionCheckpoint, DiffusionConfig, build_index, open_index
from colbert_diffusion.config import PromptParts
from colbert_diffusion.encoding.scoring import maxsim

from ..backbones.published import publish
from ..encoding.test_decoding import LETTERS, write_tokenizer


def letters(count: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(LETTERS, size=draw.integers(3, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    publish("llama", folder / "backbone")
    write_tokenizer(folder / "backbone")
    prompt = PromptParts("pa", "sm")
    config = DiffusionConfig(str(folder / "backbone"), readout="generated", query_prompt=prompt, passage_prompt=prompt)
    replace(config, k_query=4, k_passage=6, dim=32).save(folder / "checkpoint")
    return folder / "checkpoint"


def test_an_index_of_decoded_vectors_answers_as_exact_maxsim_does(checkpoint: Path, tmp_path: Path) -> None:
    texts, queries = letters(150, 0), letters(20, 1)
    model = DiffusionCheckpoint(checkpoint, verbose=0)
    asked, kept = model.encode_query(queries), model.encode_document(texts)
    assert len({len(own) for own in asked}) > 1  # queries are padded on their way into ColBERT, passages are not
    assert len({len(own) for own in kept}) > 2
    index = build_index(tmp_path / "index", texts, checkpoint, nbits=4, lexical="predicted", verbose=0)
    searcher = open_index(index)
    assert searcher.ranker.doclens.tolist() == [len(own) for own in kept]
    scores = maxsim(asked, kept)
    for query, exact in zip(queries, scores, strict=True):
        pids, _, found = searcher.search(query, k=150, mode="dense")
        assert np.corrcoef(found, exact[pids])[0, 1] > 0.9
        assert int(exact.argmax()) in pids[:3]
    words = searcher.search(queries[0], k=5, mode="lexical")
    own, theirs = model.lexical_query(queries[:1]), model.lexical_document(texts)
    expected = np.sort((theirs @ own.T).toarray()[:, 0])[::-1][:5]
    np.testing.assert_allclose(words[2], expected[expected > 0][: len(words[2])], rtol=1e-4)
