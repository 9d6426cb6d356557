from collections.abc import Sequence

from colbert_diffusion.encoding.lexical import ContentIds, content_words


def test_content_words_are_lower_cased_without_stop_words_and_punctuation() -> None:
    assert content_words("The Cat's hat, and a DOG-house: 42 (x)!") == ["cat", "hat", "dog", "house", "42"]


def test_each_word_is_tokenised_alone_and_once() -> None:
    asked: list[str] = []

    def tokenize(words: Sequence[str]) -> list[list[int]]:
        asked.extend(words)
        return [[len(word), 99] for word in words]

    ids = ContentIds(tokenize, never=[99, None])
    assert ids(["cat horse", "the cat", "..."]) == [{3, 5}, {3}, set()]
    assert ids(["horse cat"]) == [{3, 5}]
    assert sorted(asked) == ["cat", "horse"]
