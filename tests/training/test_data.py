import gzip
import hashlib
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.training.data import (
    Example,
    Source,
    Stream,
    data_hash,
    is_excluded,
    read_exclusions,
    read_source,
)


def write(path: Path, content: str | list[object]) -> Path:
    text = content if isinstance(content, str) else "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def ids(tmp_path: Path) -> dict[str, Path]:
    """Queries and a collection for triples of ids."""
    return {
        "queries": write(tmp_path / "queries.tsv", "7\twhat\n12\twho\n"),
        "collection": write(tmp_path / "collection.tsv", "0\tzero\n1\tnaïve – 東京\n2\ttwo\ta title\n3\tno newline"),
    }


def read_ids(path: Path, ids: dict[str, Path], negatives: int | None = None) -> Source:
    return read_source(path, queries=ids["queries"], collection=ids["collection"], negatives=negatives)


def numbered(path: Path, count: int, name: str) -> Source:
    return read_source(write(path, [{"query": f"{name}{i}", "positive": "p" * (1 + i % 7)} for i in range(count)]))


def test_tevatron_takes_the_first_positive_and_joins_titles(tmp_path: Path) -> None:
    passage = {"docid": "1", "title": "T", "text": "one"}
    record = {
        "query": "q",
        "positive_passages": [passage, {"text": "other"}],
        "negative_passages": [{"text": "bad", "title": ""}],
    }
    source = read_source(write(tmp_path / "t.jsonl", [record]))
    assert list(source) == [Example("q", ("T one", "bad"))]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"query": "q", "positive": "p"}], Example("q", ("p",))),
        ([{"anchor": "q", "positive": "p", "negative": "n"}], Example("q", ("p", "n"))),
        ([{"anchor": "q", "positive": "p", "negative_10": "b", "negative_2": "a"}], Example("q", ("p", "a", "b"))),
        ([{"query": "q", "positive": "p", "negatives": ["n"], "scores": [1, 0.5]}], Example("q", ("p", "n"), (1, 0.5))),
        ("q\tp\n", Example("q", ("p",))),
        ("q\tp\tn\tm\r\n", Example("q", ("p", "n", "m"))),
    ],
)
def test_pairs_are_read_in_each_form(tmp_path: Path, content: str | list[object], expected: Example) -> None:
    assert list(read_source(write(tmp_path / "pairs", content))) == [expected]


def test_gzip_is_told_by_content_and_every_pass_reads_again(tmp_path: Path) -> None:
    source = read_source(write(tmp_path / "pairs.gz", "q\tp\nr\ts\n"))
    assert list(source) == list(source) == [Example("q", ("p",)), Example("r", ("s",))]


def test_triples_give_the_texts_of_their_ids(tmp_path: Path, ids: dict[str, Path]) -> None:
    source = read_ids(write(tmp_path / "triples.jsonl", [[7, 3, 1], ["12", 2]]), ids)
    assert list(source) == [Example("what", ("no newline", "naïve – 東京")), Example("who", ("a title | two",))]


def test_a_teachers_scores_keep_the_order_of_the_file(tmp_path: Path, ids: dict[str, Path]) -> None:
    source = read_ids(write(tmp_path / "triples.jsonl", [[7, [0, 0.5], [1, 9.5], [2, -1]]]), ids)
    assert list(source) == [Example("what", ("zero", "naïve – 東京", "a title | two"), (0.5, 9.5, -1))]


def test_negatives_bounds_passages_and_scores(tmp_path: Path, ids: dict[str, Path]) -> None:
    source = read_ids(write(tmp_path / "triples.jsonl", [[7, [0, 3], [1, 2], [2, 1]], [7, [0, 3]]]), ids, negatives=1)
    assert [(len(e.passages), e.scores) for e in source] == [(2, (3, 2)), (1, (3,))]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"query": "q", "positive": "p"}\n{"query"\n', "line 2: not JSON"),
        ('{"query": "q", "positive": "p"}\n["q"]\n', "line 2: a JSON list, expected an object"),
        ('{"query": "q", "positive": "p"}\n\n', "line 2: an empty line"),
        ('{"positive": "p"}\n', 'line 1: no string under "query"'),
        ('{"query": "q"}\n', 'line 1: no text under "positive"'),
        ('{"query": 1, "positive": "p"}\n', 'line 1: no string under "query"'),
        ('{"query": "q", "positive": []}\n', 'line 1: no text under "positive"'),
        ('{"query": "q", "positive": "p", "n": ' + "9" * 5000 + "}\n", "line 1: not JSON (a number of thousands of digits)"),
        ('{"query": ' + "[" * 100_000 + "\n", "line 1: not JSON (nested too deeply)"),
        ('{"query": "q", "positive": "p", "negatives": [" "]}\n', "line 1: a negative is empty"),
        ('{"sentence1": "a", "sentence2": "b", "score": 0.3}\n', 'line 1: no string under "query"'),
        ("q\tp\t\n", "line 1: a negative is empty"),
        ("q\tp\t\tn\n", "line 1: a negative is empty"),
        ('{"query": "q", "positive": " "}\n', "line 1: the positive is empty"),
        ('{"query": "", "positive": "p"}\n', "line 1: the query is empty"),
        ('{"query": "q", "positive": "p", "negatives": 1}\n', 'line 1: "negatives" is a JSON int, expected a list'),
        ('{"query": "q", "positive": "p", "negatives": [null]}\n', "line 1: a query or passage is no string"),
        ('{"query": "q", "positive": "p", "scores": [1, 2]}\n', "line 1: 2 scores for 1 passages"),
        ('{"query": "q", "positive": "p", "scores": [NaN]}\n', "line 1: a score is no finite number"),
        ('{"query": "q", "positive_passages": []}\n', 'line 1: "positive_passages" is empty'),
        ('{"query": "q", "positive_passages": [{"title": "t"}]}\n', 'line 1: a passage without a string under "text"'),
        ("q\tp\nq\n", "line 2: only one column"),
        ("q\tp\n\n", "line 2: an empty line"),
        ("q\t\n", "line 1: the positive is empty"),
        (b"q\tp\nq\t\xff\n", "line 2: not UTF-8"),
    ],
)
def test_a_bad_line_is_named_when_it_is_reached(tmp_path: Path, content: str | bytes, reason: str) -> None:
    path = tmp_path / "pairs"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = read_source(path)
    with pytest.raises(UserError, match=re.escape(reason)) as error:
        list(source)
    assert str(error.value).startswith(f"{path}, line ")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ([99, 0], "line 1: qid 99 is not among the 2 queries"),
        ([7, 4], r"line 1: pid 4 is not in the collection, which has pids 0..3"),
        ([7, -1], "line 1: pid -1 is not in"),
        ([7, "4"], "line 1: pid '4' is not in"),
        ([7, 0.0], "line 1: pid 0.0 is not in"),
        ([7], r"line 1: expected a list \[qid, pid, ...\]"),
        ([7, [0, 1], 2], "line 1: 1 scores for 2 passages"),
        ([7, [0, "high"]], "line 1: a score is no finite number"),
    ],
)
def test_a_bad_triple_is_named(tmp_path: Path, ids: dict[str, Path], line: list[object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        list(read_ids(write(tmp_path / "triples.jsonl", [line]), ids))


@pytest.mark.parametrize(("name", "content"), [("collection", "0\ta\n2\tb\n"), ("queries", "7\ta\n7\tb\n"), ("queries", "7\n")])
def test_bad_files_of_ids_are_named_by_line(tmp_path: Path, ids: dict[str, Path], name: str, content: str) -> None:
    write(ids[name], content)
    with pytest.raises(UserError, match=f"{name}.tsv, line "):
        list(read_ids(write(tmp_path / "triples.jsonl", [[7, 1]]), ids))


@pytest.mark.parametrize("line", ["7\t0\t2", '["7", "0", "2"]', "[7, 0, 2]"])
def test_ids_are_read_as_ms_marco_and_colbert_write_them(tmp_path: Path, ids: dict[str, Path], line: str) -> None:
    path = tmp_path / "qidpidtriples.train.tsv"
    path.write_text(line + "\n")
    assert [example.passages for example in read_ids(path, ids)] == [("zero", "a title | two")]
    with pytest.raises(UserError, match="holds ids: give the queries"):
        read_source(path)


def test_headings_are_no_example(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("query\tpositive\tnegative\nbees\thoney\tsalt\n")
    assert list(read_source(path)) == [Example("bees", ("honey", "salt"))]
    path.write_text("query\tan answer to a question\nbees\thoney\n")
    assert len(list(read_source(path))) == 2


def test_a_table_that_was_quoted_as_csv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text('bees\thoney\nwho\t"""I"" said the bee"\n')
    with pytest.raises(UserError, match="line 2: the text is quoted as CSV"):
        read_source(path)
    path.write_text('bees\thoney\nwho\t"""I"" said the bee"\nwhat\tthe "sting"\n')
    assert len(list(read_source(path))) == 3


def test_an_array_over_many_lines_is_told_from_ids(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text('[\n{"query": "q", "positive": "p"}\n]\n')
    with pytest.raises(UserError, match="a JSON array over many lines"):
        read_source(path)


def test_a_negative_that_is_the_positive_is_left_out_with_its_score(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [{"query": "q", "pos": ["p", "p2"], "neg": ["n", "p"], "scores": [3, 2, 1]}])
    assert list(read_source(path)) == [Example("q", ("p", "n"), (3, 2))]


def test_a_truncated_gzip_file_is_one_line(tmp_path: Path) -> None:
    generator = random.Random(0)
    whole = gzip.compress("".join(f"q{i}\t{generator.random()}\n" for i in range(5000)).encode())
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.gz").write_bytes(whole[:5000] + b"\0" * 100 + whole[5100:])
    for name in ("cut.gz", "bad.gz"):
        with pytest.raises(UserError, match=f"{name} is damaged behind line [1-9]") as error:
            list(read_source(tmp_path / name))
        assert "\n" not in str(error.value)


def test_what_does_not_fit_together_is_refused_at_once(tmp_path: Path, ids: dict[str, Path]) -> None:
    triples, pairs = write(tmp_path / "triples.jsonl", [[7, 0]]), write(tmp_path / "pairs.tsv", "q\tp\n")
    with pytest.raises(UserError, match="holds ids: give the queries"):
        read_source(triples, queries=ids["queries"])
    with pytest.raises(UserError, match="holds texts, not ids"):
        read_ids(pairs, ids)
    with pytest.raises(UserError, match="no examples"):
        read_source(write(tmp_path / "empty", ""))
    with pytest.raises(UserError, match="does not exist"):
        read_source(tmp_path / "nowhere")


def test_an_epoch_has_every_example_once_and_each_epoch_another_order(tmp_path: Path) -> None:
    sources = [numbered(tmp_path / "a.gz", 300, "a"), numbered(tmp_path / "b", 50, "b")]
    drawn = [e.query for e in itertools.islice(Stream(sources, seed=1, buffer=64), 700)]
    assert Counter(drawn[:350]) == Counter(drawn[350:]) == Counter(e.query for source in sources for e in source)
    assert drawn[:350] != drawn[350:]


def test_a_stream_goes_on_exactly_where_it_is_told(tmp_path: Path) -> None:
    sources = [numbered(tmp_path / "a", 60, "a"), numbered(tmp_path / "b.gz", 40, "b")]
    stream = Stream(sources, seed=3, buffer=16)
    whole = list(itertools.islice(stream, 260))
    for start in (0, 1, 99, 100, 217):
        assert list(itertools.islice(stream.iterate(start), 260 - start)) == whole[start:]


def test_the_seed_alone_decides_and_global_generators_stay_untouched(tmp_path: Path) -> None:
    source = numbered(tmp_path / "a", 100, "a")
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]

    def drawn(seed: int) -> list[Example]:
        return list(itertools.islice(Stream([source], seed=seed, buffer=8), 100))

    assert drawn(1) == drawn(1) != drawn(2)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]


def test_sources_of_any_size_are_mixed_throughout(tmp_path: Path) -> None:
    stream = Stream([numbered(tmp_path / "a", 3000, "a"), numbered(tmp_path / "b", 1000, "b")], seed=0, buffer=1)
    drawn = [e.query[0] for e in itertools.islice(stream, 4000)]
    shares = [drawn[i : i + 500].count("b") / 500 for i in range(0, 4000, 500)]
    assert all(abs(share - 0.25) < 0.05 for share in shares)


def test_a_bad_line_stops_a_stream_by_name_and_skipping_it_does_not(tmp_path: Path) -> None:
    stream = Stream([read_source(write(tmp_path / "pairs", "bad\nq\tp\n"))], seed=0, buffer=1)  # in the file's order
    with pytest.raises(UserError, match="pairs, line 1: only one column"):
        next(iter(stream))
    assert next(stream.iterate(1)) == Example("q", ("p",))
    with pytest.raises(UserError, match="0 sources"):
        Stream([], seed=0)


def test_a_hash_is_of_the_files_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "x", "abc")
    assert data_hash(path) == hashlib.sha256(b"abc").hexdigest()[:16]


def test_a_text_is_excluded_by_its_normalised_beginning(tmp_path: Path) -> None:
    prefix = "the capital of france is paris 1 and so on until eighty characters are certainly reached here"[:80]
    path = write(tmp_path / "exclude", hashlib.sha256(prefix.encode()).hexdigest()[:16] + "\n")
    exclusions = read_exclusions(path)
    text = "  The capital of FRANCE is Paris (1), and so on until eighty characters -- are certainly reached here"
    assert is_excluded(text, exclusions)
    assert is_excluded(text + " and more", exclusions)
    assert not is_excluded(text[:60], exclusions)
    assert not is_excluded("short", exclusions | {hashlib.sha256(b"short").hexdigest()[:16]})
    with pytest.raises(UserError, match="line 1: 'xyz' is not 16 hex digits"):
        read_exclusions(write(tmp_path / "bad", "xyz\n"))
