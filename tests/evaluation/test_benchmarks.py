import gzip
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from colbert_diffusion.common.errors import MissingPackageError, UserError
from colbert_diffusion.evaluation import Benchmark, read_benchmark
from colbert_diffusion.texts.collection import Passages

from ..conftest import make_texts
from .conftest import write_beir

DOCUMENTS, QUERIES = {"a": "the sun", "b": "the moon"}, {"1": "sun", "2": "moon"}


def test_a_beir_folder_reads_with_title_and_text_and_only_judged_queries(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "solar", DOCUMENTS, QUERIES, "1\ta\t2\n1\tb\t0\n2\tb\t0\n")
    (folder / "corpus.jsonl").write_text('{"_id": "a", "title": "T", "text": "the sun"}\n{"_id": "b", "text": "the moon"}\n')
    documents = {"a": "T the sun", "b": "the moon"}
    assert read_benchmark(folder) == Benchmark("solar", "test", documents, {"1": "sun"}, {"1": {"a": 2, "b": 0}}, left_out=1)


@pytest.mark.parametrize("files", ["beir", "ms-marco"])
def test_a_folder_of_packed_files_reads_as_the_files(tmp_path: Path, files: str) -> None:
    if files == "beir":
        folder = write_beir(tmp_path / "packed", DOCUMENTS, QUERIES, "1\ta\t1\n2\tb\t1\n")
    else:
        folder = tmp_path / "packed"
        folder.mkdir()
        for name, text in {"collection": "0\tsun\n", "queries.dev": "1\tsun\n", "qrels.dev": "1 0 0 1\n"}.items():
            (folder / f"{name}.tsv").write_text(text)
    expected = read_benchmark(folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_benchmark(folder) == expected


def test_judgements_that_are_no_text_are_refused_by_line(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "b", DOCUMENTS, QUERIES, "")
    (folder / "qrels" / "test.tsv").write_bytes(b"1\ta\t1\n1\t\xff\t1\n")
    with pytest.raises(UserError, match=r"test\.tsv, line 2: not UTF-8"):
        read_benchmark(folder)


@pytest.mark.parametrize("separator", ["\t", " "])
def test_an_ms_marco_folder_reads_and_its_pids_need_not_count_lines(tmp_path: Path, separator: str) -> None:
    (tmp_path / "collection.tsv").write_text("7\tthe sun\n3\tthe moon\n")
    for split, query in (("dev", "sun"), ("dev.small", "moon")):
        (tmp_path / f"queries.{split}.tsv").write_text(f"10\t{query}\n")
        (tmp_path / f"qrels.{split}.tsv").write_text(separator.join(["10", "0", "3", "1"]) + "\n")
    found = read_benchmark(tmp_path)
    assert (found.split, found.documents) == ("dev.small", {"7": "the sun", "3": "the moon"})
    assert (found.queries, found.qrels) == ({"10": "moon"}, {"10": {"3": 1}})
    assert read_benchmark(tmp_path, "dev").queries == {"10": "sun"}


def test_documents_stay_in_their_file_unless_a_tsvs_ids_count_no_lines(tmp_path: Path) -> None:
    corpus = {f"doc {i}".replace(" ", "-"): text for i, text in enumerate(make_texts(50))}
    found = read_benchmark(write_beir(tmp_path / "b", corpus, QUERIES, "1\tdoc-7\t1\n"))
    assert isinstance(found.texts, Passages)
    assert found.documents == corpus
    assert list(found.document_ids) == list(corpus)
    assert found.document_ids[7] == "doc-7"
    assert found.document_ids[48:] == ["doc-48", "doc-49"]
    assert "doc-7" in found.documents
    assert "doc-50" not in found.documents
    with pytest.raises(KeyError):
        found.documents["doc-50"]

    (tmp_path / "qrels.dev.tsv").write_text("1 0 1 1\n")
    (tmp_path / "queries.dev.tsv").write_text("1\tsun\n")
    for first, kept in ((0, Passages), (1, list)):
        (tmp_path / "collection.tsv").write_text(f"{first}\tthe sun\n{first + 1}\tthe moon\n")
        assert isinstance(read_benchmark(tmp_path).texts, kept)


def test_judged_documents_outside_the_collection_are_counted_and_kept(tmp_path: Path) -> None:
    found = read_benchmark(write_beir(tmp_path / "b", DOCUMENTS, QUERIES, "1\ta\t1\n1\tgone\t1\n"))
    assert found.missing == 1
    assert found.qrels == {"1": {"a": 1, "gone": 1}}


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("1\ta\t1\n1\ta\t2\n", "test.tsv, line 3: a has grade 1 and 2 for query 1"),
        ("1\ta\n", "test.tsv, line 2: '1\\ta', expected qid docid grade"),
        ("1\t\t1\n", "test.tsv, line 2: '1\\t\\t1', expected"),
        ("1\ta\tgood\n", "test.tsv, line 2: grade 'good', expected a whole number"),
        ("1\ta\t" + "9" * 5000 + "\n", "test.tsv, line 2: grade '9999"),
        ("1\ta\t1_0\n", "test.tsv, line 2: grade '1_0', expected a whole number"),
        ("1\ta\t1\n9\ta\t1\n8\ta\t1\n", "2 of 3 judged queries do not exist (first: 9)"),
        ("1\tx\t1\n2\ty\t1\n", "none of the 2 judged documents is in the collection (first: x); its ids are like a"),
        ("1\ta\t0\n", "none of the 2 queries has a positive judgement"),
    ],
)
def test_faulty_judgements_are_refused_with_the_place(tmp_path: Path, qrels: str, message: str) -> None:
    folder = write_beir(tmp_path / "b", DOCUMENTS, QUERIES, qrels)
    with pytest.raises(UserError) as caught:
        read_benchmark(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "a", "text": "y"}\n', "corpus.jsonl, line 3: document id a occurs twice"),
        ("queries.jsonl", '{"_id": "1", "text": "y"}\n', "queries.jsonl, line 3: query id 1 occurs twice"),
        ("corpus.jsonl", "nonsense\n", "corpus.jsonl, line 3: not JSON"),
        ("corpus.jsonl", '{"_id": "b c", "text": "y"}\n', "id 'b c' is empty or has white space"),
    ],
)
def test_faulty_texts_are_refused_with_the_place(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = write_beir(tmp_path / "b", DOCUMENTS, QUERIES, "1\ta\t1\n")
    with (folder / file).open("a") as added:
        added.write(content)
    with pytest.raises(UserError) as caught:
        read_benchmark(folder)
    assert message in str(caught.value)


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "b", DOCUMENTS, QUERIES, "1\ta\t1\n")
    with pytest.raises(UserError, match="no split dev; choose --split from: test"):
        read_benchmark(folder, "dev")
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "train.tsv")
    with pytest.raises(UserError, match=r"no split test or dev.small or dev; choose --split from: train"):
        read_benchmark(folder)
    (folder / "qrels" / "train.tsv").unlink()
    with pytest.raises(UserError, match=r"has no judgements; expected qrels/SPLIT.tsv"):
        read_benchmark(folder)
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(UserError, match=r"neither corpus.jsonl nor collection.tsv"):
        read_benchmark(folder)
    with pytest.raises(UserError, match=r"absent is no folder; give a BEIR folder"):
        read_benchmark(tmp_path / "absent")


def test_ir_datasets_ids_read_and_unknown_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> SimpleNamespace:
        if name != "solar/dev":
            raise KeyError(name)
        return SimpleNamespace(
            has_docs=lambda: True,
            has_queries=lambda: True,
            has_qrels=lambda: True,
            docs_iter=lambda: [
                SimpleNamespace(doc_id="a", title="T", text="the sun"),
                SimpleNamespace(doc_id="b", default_text=lambda: "the moon"),
            ],
            queries_iter=lambda: [SimpleNamespace(query_id="1", text="sun")],
            qrels_iter=lambda: [SimpleNamespace(query_id="1", doc_id="a", relevance=1)],
        )

    monkeypatch.setitem(sys.modules, "ir_datasets", SimpleNamespace(load=load))
    found = read_benchmark("ir_datasets:solar/dev")
    assert found == Benchmark("solar/dev", "", {"a": "T the sun", "b": "the moon"}, {"1": "sun"}, {"1": {"a": 1}})
    with pytest.raises(UserError, match="no dataset 'lunar'"):
        read_benchmark("ir_datasets:lunar")
    with pytest.raises(UserError, match="names its split itself; leave --split dev out"):
        read_benchmark("ir_datasets:solar/dev", "dev")
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(MissingPackageError, match="pip install ir_datasets"):
        read_benchmark("ir_datasets:solar/dev")
