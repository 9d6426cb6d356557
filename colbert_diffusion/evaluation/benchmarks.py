"""Reading benchmarks: BEIR folders, MS MARCO folders, `ir_datasets` ids. Knows nothing about systems or measures."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ..common.errors import UserError
from ..common.optional import need
from ..texts.collection import Documents, read_documents, read_queries
from ..texts.lines import PACKED, found, text_lines

PREFIX = "ir_datasets:"
DEFAULT_SPLITS = ("test", "dev.small", "dev")  # MS MARCO's dev.small is the dev set of the literature

Qrels = dict[str, dict[str, int]]  # qid -> document id -> grade


@dataclass(frozen=True)
class Benchmark:
    """Documents, the queries that somebody judged, and the judgements.

    Args:
        documents: text by document id, in the order that makes a document's pid; those of files stay there.
        queries: text by query id; only queries with a positive judgement.
        qrels: grades of these queries' judged documents.
        left_out: queries without a positive judgement; they are not run and count in no mean.
        missing: judged documents that are not among the documents; they count as not found.
        own: queries that are documents themselves under the same id, as in ArguAna and Quora: BEIR leaves a query's own
            document out of its results. One that is judged relevant to itself is no such query.
    """

    name: str
    split: str
    documents: Mapping[str, str]
    queries: dict[str, str]
    qrels: Qrels
    left_out: int = 0
    missing: int = 0
    own: frozenset[str] = frozenset()

    @property
    def document_ids(self) -> Sequence[str]:
        return self.documents.ids if isinstance(self.documents, Documents) else list(self.documents)

    @property
    def texts(self) -> Sequence[str]:
        return self.documents.texts if isinstance(self.documents, Documents) else list(self.documents.values())


class Judgement(NamedTuple):
    qid: str
    document: str
    grade: int
    where: str  # for errors


def read_benchmark(source: str | Path, split: str | None = None) -> Benchmark:
    """Read a benchmark.

    Args:
        source: a BEIR folder (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), an MS MARCO folder (collection.tsv,
            queries.SPLIT.tsv, qrels.SPLIT.tsv), or `ir_datasets:` and an id such as msmarco-passage/dev/small.
        split: None: test, else dev.small, else dev.

    Raises:
        UserError: no such benchmark or split, a malformed line, an id that occurs twice or cannot stand in a run
            file, a judged query that does not exist, or nothing judged.
        MissingPackageError: an `ir_datasets:` id, and the package is not installed.
    """
    if str(source).startswith(PREFIX):
        return _read_ir_datasets(str(source).removeprefix(PREFIX), split)
    folder = Path(source)
    if found(folder / "corpus.jsonl").is_file():
        corpus, queries, qrels = "corpus.jsonl", "queries.jsonl", "qrels/{}.tsv"
    elif found(folder / "collection.tsv").is_file():
        corpus, queries, qrels = "collection.tsv", "queries.{}.tsv", "qrels.{}.tsv"
    else:
        there = "has neither corpus.jsonl nor collection.tsv" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder} {there}; give a BEIR folder, an MS MARCO folder or {PREFIX}ID")
    split = _choose_split(folder, qrels, split)
    judgements = read_qrels(found(folder / qrels.format(split)))
    asked = read_queries(found(folder / queries.format(split)))
    read = _assemble(folder.resolve().name, split, read_documents(found(folder / corpus)), asked, judgements)
    return _without_own(read) if corpus == "corpus.jsonl" else read


def _choose_split(folder: Path, pattern: str, asked: str | None) -> str:
    before, after = pattern.split("{}")
    files = [path for end in ("", *PACKED) for path in folder.glob(pattern.format("*") + end)]
    there = sorted({str(path.relative_to(folder))[len(before) :].rpartition(after)[0] for path in files})
    if not there:
        raise UserError(f"{folder} has no judgements; expected {pattern.format('SPLIT')}")
    wanted = DEFAULT_SPLITS if asked is None else (asked,)
    for split in wanted:
        if split in there:
            return split
    raise UserError(f"{folder} has no split {' or '.join(wanted)}; choose --split from: {', '.join(there)}")


def read_qrels(path: Path) -> Iterator[Judgement]:
    """BEIR's three columns (with or without its header) or TREC's four, separated by tabs or spaces."""
    for number, line in text_lines(path):
        columns = line.split("\t") if "\t" in line else line.split()
        fields = [column.strip() for column in columns]
        if len(fields) not in (3, 4) or not all(fields):
            raise UserError(f"{path}, line {number}: {line.strip()!r:.60}, expected qid docid grade, or qid 0 docid grade")
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", fields[-1]):
            if number == 1 and len(fields) == 3:  # BEIR's header
                continue
            raise UserError(f"{path}, line {number}: grade {fields[-1]!r:.40}, expected a whole number")
        yield Judgement(fields[0], fields[-2], int(fields[-1]), f"{path}, line {number}")


def _read_ir_datasets(name: str, split: str | None) -> Benchmark:
    if split is not None:
        raise UserError(f"{PREFIX}{name} names its split itself; leave --split {split} out")
    package: Any = need("ir_datasets", f"{PREFIX}{name}", "pip install ir_datasets")
    try:
        dataset = package.load(name)
    except KeyError as error:
        raise UserError(f"ir_datasets has no dataset {name!r}; its catalogue: https://ir-datasets.com") from error
    if not (dataset.has_docs() and dataset.has_queries() and dataset.has_qrels()):
        raise UserError(f"ir_datasets' {name} lacks documents, queries or judgements; choose a split, e.g. {name}/test")
    documents = {doc.doc_id: _joined(doc) for doc in dataset.docs_iter()}
    queries = {query.query_id: _joined(query) for query in dataset.queries_iter()}
    judgements = (Judgement(j.query_id, j.doc_id, j.relevance, f"ir_datasets' {name}") for j in dataset.qrels_iter())
    read = _assemble(name, "", documents, queries, judgements)
    return _without_own(read) if name.startswith("beir/") else read


def read_judged(name: str, queries: str | Path, qrels: str | Path, documents: Mapping[str, str]) -> Benchmark:
    """A benchmark of documents that are elsewhere, from a file of queries and one of judgements.

    Args:
        queries: as `read_queries` takes them; BEIR's rule for queries that are documents holds where a corpus.jsonl is beside.
        qrels: as `read_qrels` reads them.

    Raises:
        UserError: as `read_benchmark`.
    """
    path = found(Path(qrels))
    if not path.is_file():
        raise UserError(f"{qrels} is no file of judgements; give one of lines qid docid grade, or qid 0 docid grade")
    read = _assemble(name, "", documents, read_queries(queries), read_qrels(path))
    folder = Path(queries) if Path(queries).is_dir() else Path(queries).parent
    return _without_own(read) if found(folder / "corpus.jsonl").is_file() else read


def _without_own(read: Benchmark) -> Benchmark:
    """MS MARCO's numbers of queries and passages have nothing to do with one another; in BEIR equal ids mean the same text."""
    own = frozenset(qid for qid in read.queries if qid in read.documents and read.qrels[qid].get(qid, 0) <= 0)
    return replace(read, own=own)


def _joined(entry: Any) -> str:
    """`title text` where the entry has these fields, as BEIR does; else what ir_datasets calls its default text."""
    text = getattr(entry, "text", None)
    if not isinstance(text, str):
        return str(entry.default_text())
    title = getattr(entry, "title", None)
    return f"{title} {text}" if title else text


def _assemble(
    name: str, split: str, documents: Mapping[str, str], queries: dict[str, str], judgements: Iterable[Judgement]
) -> Benchmark:
    """Check that the three belong together, and leave out what nobody judged."""
    qrels: Qrels = {}
    for qid, document, grade, where in judgements:
        judged = qrels.setdefault(qid, {})
        if judged.setdefault(document, grade) != grade:
            raise UserError(f"{where}: {document} has grade {judged[document]} and {grade} for query {qid}; keep one")
    if unknown := [qid for qid in qrels if qid not in queries]:
        raise UserError(f"{name}: {len(unknown)} of {len(qrels)} judged queries do not exist (first: {unknown[0]}); add them")
    kept = {qid: text for qid, text in queries.items() if max(qrels.get(qid, {}).values(), default=0) > 0}
    if not kept:
        raise UserError(f"{name}: none of the {len(queries)} queries has a positive judgement; is it the right split?")
    judged_documents = {document for qid in kept for document in qrels[qid]}
    missing = [document for document in judged_documents if document not in documents]
    if len(missing) == len(judged_documents):
        raise UserError(
            f"{name}: none of the {len(missing)} judged documents is in the collection (first: {min(missing)}); "
            f"its ids are like {next(iter(documents))}: are they of the same collection?"
        )
    for key in chain(kept, documents):
        if key.split() != [key]:
            raise UserError(f"{name}: id {key!r:.60} is empty or has white space, which a TREC run cannot hold; rename it")
    return Benchmark(name, split, documents, kept, {qid: qrels[qid] for qid in kept}, len(queries) - len(kept), len(missing))
