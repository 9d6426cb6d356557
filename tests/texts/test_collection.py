import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_diffusion import DiffusionCheckpoint, Indexer
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.texts.collection import Skipped, as_texts, read_collection, read_documents, read_queries, write_tsv


def test_tsv_reads_as_colbert_reads_it(tmp_path: Path) -> None:
    from colbert.evaluation.loaders import load_collection

    path = tmp_path / "c.tsv"
    path.write_text("0\tplain text\n1\tbody\ta title\n2\t\n3\ttrailing  \n4\tnaïve – 東京\u2028line\n", encoding="utf-8")
    assert list(read_collection(path)) == load_collection(str(path))


def test_jsonl_and_beir_folders_join_title_and_text(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": "x", "title": "T", "text": "one"}\n{"id": 7, "contents": "two"}\n')
    assert list(read_collection(tmp_path)) == list(read_collection(tmp_path / "corpus.jsonl")) == ["T one", "two"]


def test_quotation_marks_that_no_program_put_there_are_texts(tmp_path: Path) -> None:
    """As MS MARCO's, of which some look quoted."""
    (tmp_path / "c.tsv").write_text('0\t"say ""stay"" now"\n1\tthe "sting"\t1984\n2\tx\tA title\n')
    assert len(read_collection(tmp_path / "c.tsv")) == 3


def test_passages_of_ms_marcos_second_version_have_their_own_ids(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"pid": "p_1", "passage": "one", "spans": "(0,1)", "docid": "d_1"}\n')
    assert dict(read_documents(tmp_path / "c.jsonl")) == {"p_1": "one"}


@pytest.mark.parametrize(
    "line",
    [
        '{"query_id": 7, "query": "who"}',
        '{"qid": "7", "query": "who", "url": "u", "answer_pids": [3]}',
        '{"_id": "7", "text": "who", "title": "Narrative: bees"}',
        '\ufeff{"_id": "7", "text": "who"}',
    ],
)
def test_a_query_is_its_question_alone(tmp_path: Path, line: str) -> None:
    (tmp_path / "q.jsonl").write_text(line + "\n", encoding="utf-8")
    assert read_queries(tmp_path / "q.jsonl") == {"7": "who"}


def test_a_line_of_headings_is_no_query_and_no_document(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("qid\tquery\n7\twho\n")
    assert read_queries(tmp_path / "q.tsv") == {"7": "who"}
    (tmp_path / "d.tsv").write_text("docid\ttext\nd7\tbees\n")
    assert dict(read_documents(tmp_path / "d.tsv")) == {"d7": "bees"}


def test_queries_keep_their_ids(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("17\twhat\n3\twho\n")
    (tmp_path / "queries.jsonl").write_text('{"_id": "a", "text": "what"}\n')
    assert read_queries(tmp_path / "q.tsv") == {"17": "what", "3": "who"}
    assert read_queries(tmp_path) == {"a": "what"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.tsv", b"0\ta\n0\tb\n", "line 2: pid '0', expected 1"),
        ("c.tsv", b"0\ta\n2\tb\n", "line 2: pid '2', expected 1"),
        ("c.tsv", b"0\ta\t\n1\tb\n", "line 1: a trailing tab"),
        ("c.tsv", b"pid\ttext\n0\ta\n", "line 1: pid 'pid', expected 0"),
        ("c.tsv", b"0\ta\n\n1\tb\n", "line 2: an empty line"),
        ("c.tsv", b"0\ta\n1 b\n", "line 2: only one column"),
        ("c.tsv", b"0\ta\rb\n", "line 1: a bare carriage return"),
        ("c.tsv", b"\xef\xbb\xbf0\ta\n", "line 1: starts with a byte order mark"),
        ("c.tsv", b"0\ta\n1\t\xff\n", "line 2: not UTF-8"),
        ("c.tsv", b"", "no passages"),
        ("c.jsonl", b'{"text": "a"}\n{"text"\n', "line 2: not JSON"),
        ("c.jsonl", b'{"text": "a"}\n["b"]\n', "line 2: no string"),
        ("c.jsonl", b'{"text": null}\n', "line 1: no string"),
        ("c.jsonl", b'{"text": "a"}\n\n', "line 2: an empty line"),
        ("c.jsonl", b'{"id": 1, "text": "a"}\n{"text": "b"}\n', "line 2: no id, the lines before have one"),
        ("c.jsonl", b'{"text": "a"}\n{"id": 1, "text": "b"}\n', "line 2: an id, the lines before have none"),
        ("c.tsv", b"0\ta\ttitle\thttp://a\n", "line 1: 4 columns"),
        ("c.tsv", b'0\ta\n1\t"say ""stay"" now"\n2\t"""x"" y"\n', r"line 2: the text is quoted as CSV, as in all 2 lines"),
        ("c.tsv", b"0\ta\t1.5\n1\tb\t-2\n", "third column has 2 numbers and no title"),
        ("c.csv", b"0,a\n", "unknown kind"),
    ],
)
def test_a_malformed_collection_is_refused_by_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_collection(tmp_path / name)
    assert name in str(error.value)


def test_bad_lines_are_collected_when_asked_and_the_rest_is_numbered_anew(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_bytes(b"pid\ttext\n0\tone\n\n0\tagain\n5\ttwo\n6\t\xff\n7\tthree\n")
    skipped: list[Skipped] = []
    assert read_collection(path, skipped) == ["one", "two", "three"]
    assert [(s.line, s.reason.split(" (")[0].split(",")[0]) for s in skipped] == [
        (1, "pid 'pid' is no number"),
        (3, "an empty line"),
        (4, "pid '0' is repeated"),
        (6, "not UTF-8"),
    ]
    assert skipped[3].raw == b"6\t\xff\n"


def test_a_query_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("1\ta\n1\tb\n")
    with pytest.raises(UserError, match="occurs twice"):
        read_queries(tmp_path / "q.tsv")


def test_a_written_collection_is_read_back_line_for_line(tmp_path: Path) -> None:
    texts = ["plain", "", "tab\tand\nnewline\rreturn", "naïve – 東京\u2028separator\x0b"]
    write_tsv(tmp_path / "c.tsv", texts)
    assert list(read_collection(tmp_path / "c.tsv")) == [texts[0], "", "tab and newline return", texts[3]]


TWO = ["a cat", "a dog"]


class Column:
    """As a column of a Hugging Face dataset: a sequence that is no list."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> str:
        return TWO[place]


class Table(Column):
    columns = ("id", "text")


IN_ORDER = [
    TWO,
    tuple(TWO),
    (text for text in TWO),
    np.array(TWO),
    np.array(TWO, dtype=object),
    Column(),
    dict.fromkeys(TWO).keys(),
]


@pytest.mark.parametrize("texts", IN_ORDER)
def test_texts_are_taken_from_whatever_holds_them_in_an_order(texts: Any) -> None:
    assert list(as_texts(texts)) == TWO


@pytest.mark.parametrize(
    ("texts", "remedy"),
    [
        ({"d1": "a cat"}, r"list\(x\.values\(\)\)"),
        (Table(), r'x\["text"\]'),
        ({"a", "b"}, "no order"),
        ("a cat", "not one string"),
        (b"a cat", "not one bytes"),
        (7, "expected a list of texts"),
        (None, "expected a list of texts"),
        (["a", None], "passage 1 is None of type NoneType"),
        ([{"text": "a"}], "passage 0 is {'text': 'a'} of type dict"),
        ([float("nan")], "passage 0 is nan of type float"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused_everywhere(
    texts: Any, remedy: str, tiny_checkpoint: Path, index_root: str
) -> None:
    checkpoint = DiffusionCheckpoint(tiny_checkpoint)
    for use in (as_texts, checkpoint.encode_document):
        with pytest.raises(UserError, match=remedy):
            use(texts)
    if not isinstance(texts, str):  # which is a path there
        with pytest.raises(UserError, match=remedy):
            Indexer(str(tiny_checkpoint), verbose=0).index("i", texts)


@pytest.mark.parametrize("line", ['{"text": ' + "9" * 5000 + "}", "[" * 100_000, '{"text": "a", "n": ' + "[" * 50_000 + "}"])
def test_json_that_no_reader_takes_is_refused_by_line_and_may_be_skipped(line: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"line 2: n") as caught:
        read_collection(path)
    assert len(str(caught.value)) < 400
    skipped: list[Skipped] = []
    assert list(read_collection(path, skipped)) == ["a"]
    assert [skip.line for skip in skipped] == [2]


@pytest.mark.parametrize("name", ["_id", "id", "docid", "doc_id", "docno", "pid"])
@pytest.mark.parametrize("text", ["text", "contents", "body"])
def test_the_usual_names_of_ids_and_texts_are_read(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({name: "d7", text: "a cat"}) + "\n" + json.dumps({name: 8, text: "a dog", "title": None}) + "\n")
    assert read_documents(path) == {"d7": "a cat", "8": "a dog"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"_id": null, "text": "a"}', '"_id" is None'),
        ('{"_id": 1.5, "text": "a"}', '"_id" is 1.5'),
        ('{"_id": true, "text": "a"}', '"_id" is True'),
        ('{"_id": ["x"], "text": "a"}', '"_id" is'),
        ('{"text": "a", "title": NaN}', '"title" is nan'),
        ('{"text": "a", "title": ["b"]}', '"title" is'),
        ('{"text": "a", "title": {"en": "b"}}', '"title" is'),
        ('{"text": null}', "no string under"),
        ('["a"]', "no string under"),
        ('"a"', "no string under"),
    ],
)
def test_what_is_no_plain_id_text_or_title_is_refused_by_line(line: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    for read in (read_collection, read_documents):
        with pytest.raises(UserError, match=f"line 2: .*{re.escape(fault)}"):
            read(path)


def test_a_third_column_of_queries_is_never_part_of_the_question(tmp_path: Path) -> None:
    path = tmp_path / "q.tsv"
    path.write_text("1\twho discovered radium\tMarie Curie\n")
    with pytest.raises(UserError, match="line 1: 3 columns, expected two"):
        read_queries(path)


def test_utf_16_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_text("0\ta cat\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"line 1: UTF-16.*iconv"):
        read_collection(path)
