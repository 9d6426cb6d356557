"""MS MARCO's passages, complete and in place: prints the folder to index and to evaluate.

Files of FOLDER that are absent are fetched through ir_datasets (msmarco-passage/dev/small). Without --limit every file
must have its published number of lines.

With --limit N the folder is FOLDER/first-N: the first N passages, and of dev's queries those whose relevant passages
are all among them. The others cannot be answered there and are not measured. Fewer passages are easier: figures are
those of another, smaller task than MS MARCO's.

Usage: msmarco.py FOLDER [--limit N]
"""

import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import folder_aside, written_aside
from colbert_diffusion.common.optional import need
from colbert_diffusion.common.progress import note
from colbert_diffusion.evaluation.benchmarks import read_qrels
from colbert_diffusion.texts.collection import read_queries, write_tsv

sys.path.append(str(Path(__file__).parent / "bench"))
from common import errors_in_a_line, make_parser

DATASET = "msmarco-passage/dev/small"
COLLECTION, QUERIES, QRELS = "collection.tsv", "queries.dev.small.tsv", "qrels.dev.small.tsv"
LINES = {COLLECTION: 8_841_823, QUERIES: 6_980, QRELS: 7_437}


def fetch(folder: Path) -> None:
    """Write the files that are absent, as MS MARCO publishes them.

    Raises:
        UserError: the passages are not numbered from 0 on.
    """
    absent = [name for name in LINES if not (folder / name).is_file()]
    if not absent:
        return
    note(f"fetching {', '.join(absent)} through ir_datasets")
    dataset: Any = need("ir_datasets", "fetching MS MARCO", "pip install ir_datasets").load(DATASET)
    for name in absent:
        with written_aside(folder / name) as aside:
            if name == COLLECTION:
                write_tsv(aside, passages(dataset))
            elif name == QUERIES:
                write_lines(aside, (f"{query.query_id}\t{' '.join(query.text.split())}" for query in dataset.queries_iter()))
            else:
                write_lines(aside, (f"{j.query_id}\t0\t{j.doc_id}\t{j.relevance}" for j in dataset.qrels_iter()))


def passages(dataset: Any) -> Iterable[str]:
    for pid, doc in enumerate(dataset.docs_iter()):
        if doc.doc_id != str(pid):
            raise UserError(f"ir_datasets' {DATASET} has {doc.doc_id} as passage {pid}; expected pids from 0 on, in order")
        yield doc.text


def write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def check(folder: Path) -> None:
    """Raises UserError for a file that has not its published number of lines."""
    for name, expected in LINES.items():
        with (folder / name).open("rb") as file:
            found = sum(1 for _ in file)
        if found != expected:
            raise UserError(f"{folder / name} has {found:,} lines, MS MARCO's has {expected:,}; delete it to fetch it again")


def first(folder: Path, count: int) -> Path:
    """A folder of the first passages and of the queries that they answer.

    Raises:
        UserError: there are fewer passages, or none of the queries can be answered.
    """
    out = folder / f"first-{count}"
    judgements = [judged for judged in read_qrels(folder / QRELS) if judged.grade > 0]
    judged, outside = {j.qid for j in judgements}, {j.qid for j in judgements if int(j.document) >= count}
    answered = judged - outside
    note(
        f"of {len(judged):,} judged queries {len(answered):,} have all relevant passages among the first {count:,}; only "
        "they are measured, and among fewer passages they are easier to find: not comparable with figures of the whole"
    )
    if not answered:
        raise UserError(f"no query can be answered from the first {count:,} passages; raise --limit")
    if out.is_dir():
        return out
    with folder_aside(out) as aside:
        with (folder / COLLECTION).open("rb") as file, (aside / COLLECTION).open("wb") as kept:
            found = sum(1 for line in islice(file, count) if kept.write(line))
        if found < count:
            raise UserError(f"{folder / COLLECTION} has {found:,} passages; lower --limit {count}")
        queries = read_queries(folder / QUERIES)
        write_lines(aside / QUERIES, (f"{qid}\t{text}" for qid, text in queries.items() if qid in answered))
        write_lines(aside / QRELS, (f"{j.qid}\t0\t{j.document}\t{j.grade}" for j in judgements if j.qid in answered))
    return out


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int)
    given = parser.parse_args(arguments)
    fetch(given.folder)
    if given.limit is None:
        check(given.folder)
    print(given.folder if given.limit is None else first(given.folder, given.limit))


if __name__ == "__main__":
    main()
