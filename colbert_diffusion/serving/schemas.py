"""What requests and answers look like. The search's are those of ColBERT's server and of DSPy's `ColBERTv2` client."""

from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _clean(text: object) -> object:
    """Lone surrogates, which JSON can carry and UTF-8 cannot, become "?", as they do when a text is encoded."""
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_clean)]
Pid = Annotated[int, Field(ge=0, lt=2**31)]
IndexName = Annotated[Text | None, Field(description="Name of an index; default: the first.")]
Mode = Annotated[
    Literal["dense", "lexical", "hybrid"] | None,
    Field(description="By vectors, by words or by both; default: the index's. Scores of two modes do not compare."),
]
K = Annotated[int, Field(description="Passages per query.")]
Pids = Annotated[list[Pid] | None, Field(description="Consider only these passages.")]


def _in_a_url(values: object) -> object:
    """pids=3&pids=4, pids=3,4 and pids=[3,4] are the same; pids= and pids=[] are no passages."""
    if not isinstance(values, list):
        return values
    parts = [part.strip() for value in values for part in str(value).strip().removeprefix("[").removesuffix("]").split(",")]
    return [part for part in parts if part]


UrlPids = Annotated[
    list[Pid] | None,
    BeforeValidator(_in_a_url),
    Query(description="Consider only these passages: repeated, or separated by commas."),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a misspelt filter would be no filter


class SearchRequest(_Request):
    """One query, or several."""

    query: Text | None = None
    queries: list[Text] | None = None
    k: K = 10
    pids: Pids = None
    ids: Annotated[list[Text] | None, Field(description="As pids, by the collection's own ids.")] = None
    index: IndexName = None
    mode: Mode = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "SearchRequest":
        if (self.query is None) == (self.queries is None):
            raise ValueError('give "query" or "queries", not both')
        return self


class EncodeRequest(_Request):
    texts: list[Text]
    side: Literal["query", "passage"] = "passage"
    words: bool = False
    index: IndexName = None


class ExplainRequest(_Request):
    query: Text
    pid: Pid
    index: IndexName = None


class ReloadRequest(_Request):
    index: IndexName = None


class Passage(BaseModel):
    pid: int
    text: str


class Result(Passage):
    id: str
    long_text: str
    rank: int
    score: float
    prob: float


class Answer(BaseModel):
    """`prob` is a softmax over the scores of this answer's passages."""

    query: str
    topk: list[Result]


class Answers(BaseModel):
    """One answer for each of `queries`, in order."""

    results: list[Answer]


class Weighed(BaseModel):
    word: str
    weight: float


class Encoded(BaseModel):
    """vectors: for each text (k, dim), L2-normalised; shapes: their sizes.

    words: where they are asked for, those that each text predicts of itself, by weight.
    """

    vectors: list[list[list[float]]]
    shapes: list[tuple[int, int]]
    dim: int
    words: list[list[Weighed]] | None = None


class Match(BaseModel):
    query: int
    passage: int
    similarity: float


class Contribution(BaseModel):
    word: str
    contribution: float


class SharedWords(BaseModel):
    """source: "bm25" or "predicted"; words: those that query and passage share, whose contributions add up to the score."""

    source: str
    score: float
    words: list[Contribution]


class Explained(BaseModel):
    """Why a passage matches a query.

    similarities: cosine of each query position with each passage position.
    matches: for each query position the passage position that it matched best.
    query_words, passage_words: likeliest words per position, best first; null: `note` says why.
    lexical: which words matched; null: the index has none.
    """

    query: str
    pid: int
    text: str
    score: float
    similarities: list[list[float]]
    matches: list[Match]
    query_words: list[list[str]] | None
    passage_words: list[list[str]] | None
    note: str | None
    lexical: SharedWords | None


class About(BaseModel):
    """lexical: where its words are from, "bm25" or "predicted"; null: it has none. mode: how it is searched by default."""

    name: str
    passages: int
    vectors: int
    dim: int
    nbits: int
    lexical: str | None
    mode: str


class Indexes(BaseModel):
    default: str
    max_k: int
    indexes: list[About]


class Problem(BaseModel):
    """`error` is what clients look for, `message` what DSPy's shows."""

    error: str
    message: str
