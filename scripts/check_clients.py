"""What other people's clients find, beside our own Searcher. `ours` runs in our environment and writes what the others,
each in its own and without our package, read: the vector files, queries.npy and ours.json.

ours        index the vectors, search 200 queries with full probing (every cell, nothing pruned, everything scored)
dspy        DSPy's ColBERTv2, GET and POST, on a running server: the same passages as the server's own answers
fast-plaid  an index of the same vectors at equal nbits, full probing: the same top 1 for at least 95 % of the queries
pylate      the same for PyLate's PLAID index, the median of three seeds of its k-means

Usage: check_clients.py ours COLLECTION QUERIES WORK [--nbits 4] [--count 200] | dspy WORK URL | fast-plaid WORK | pylate WORK

scripts/check_clients.sh makes the environments and runs all of it.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

SAME = 0.95  # of the queries
SEEDS = 3
EVERYTHING = 1 << 30  # passages scored


def ours(collection: str, queries: str, work: Path, nbits: int, count: int) -> None:
    """Build WORK/index from WORK/vectors and write what full probing finds there."""
    import numpy as np
    from colbert.infra import ColBERTConfig, Run, RunConfig

    from colbert_diffusion import Indexer, Searcher
    from colbert_diffusion.texts.collection import read_queries

    texts = list(dict.fromkeys(read_queries(queries).values()))[:count]
    with Run().context(RunConfig(index_root=str(work.absolute()))):
        Indexer(str(work / "vectors"), ColBERTConfig(nbits=nbits), verbose=0).index("index", collection, overwrite="reuse")
        partitions = len(Searcher("index", verbose=0).ranker.codec.centroids)
        full = ColBERTConfig(ncells=partitions, centroid_score_threshold=-2.0, ndocs=EVERYTHING)
        searcher = Searcher("index", config=full, verbose=0)
    encoded = searcher.encode(texts)
    top = [searcher.dense_search(query, k=1)[0][0] for query in encoded.split(1)]
    np.save(work / "queries.npy", encoded.numpy())
    (work / "ours.json").write_text(json.dumps({"nbits": nbits, "queries": texts, "top": top}) + "\n")
    print(f"ours: {len(texts)} queries, nbits {nbits}, {partitions} partitions, all probed")


def dspy(work: Path, url: str) -> bool:
    client = import_module("dspy").ColBERTv2
    queries = json.loads((work / "ours.json").read_text())["queries"]
    same = {"GET": 0, "POST": 0}
    for query in queries:
        with urlopen(f"{url}?{urlencode({'query': query, 'k': 5})}", timeout=60) as answer:
            expected = [(row["pid"], row["text"]) for row in json.load(answer)["topk"]]
        for method in same:
            found = client(url=url, post_requests=method == "POST")(query, k=5)
            same[method] += [(passage.pid, passage.long_text) for passage in found] == expected
    print(f"dspy {version('dspy')}: " + ", ".join(f"{method} {n}/{len(queries)} the same" for method, n in same.items()))
    return all(n == len(queries) for n in same.values())


def vectors(work: Path) -> list[Any]:
    """Each passage's vectors, float32 (k, dim), from the files alone."""
    torch, load = import_module("torch"), import_module("safetensors.torch").load_file
    passages: list[Any] = []
    for shard in sorted((work / "vectors").glob("*.safetensors")):
        tensors = load(shard)
        passages += torch.split(tensors["vectors"].float(), tensors["doclens"].tolist())
    return passages


def query_vectors(work: Path) -> Any:
    """float32 (queries, k_query, dim)"""
    return import_module("numpy").load(work / "queries.npy")


def fast_plaid(work: Path) -> bool:
    torch, plaid = import_module("torch"), import_module("fast_plaid.search").FastPlaid
    folder, about = fresh(work / "fast-plaid"), json.loads((work / "ours.json").read_text())
    index = plaid(index=str(folder), device="cpu")
    index.create(documents_embeddings=vectors(work), nbits=about["nbits"])
    queries = torch.from_numpy(query_vectors(work))
    found = index.search(queries_embeddings=queries, top_k=1, n_ivf_probe=partitions(folder), n_full_scores=EVERYTHING)
    return compare("fast-plaid", about, [hits[0][0] for hits in found])


def pylate(work: Path) -> bool:
    """Its clusters differ from seed to seed, and with them a handful of answers: the median of `SEEDS` counts."""
    plaid = import_module("pylate.indexes").PLAID
    about, passages, queries = json.loads((work / "ours.json").read_text()), vectors(work), list(query_vectors(work))
    ids = [str(pid) for pid in range(len(passages))]
    runs: list[list[int]] = []
    for seed in range(SEEDS):
        folder = fresh(work / "pylate")
        place = {"index_folder": str(folder), "index_name": "index", "nbits": about["nbits"], "device": "cpu", "seed": seed}
        plaid(**place).add_documents(documents_ids=ids, documents_embeddings=passages)
        probed = partitions(folder / "index" / "fast_plaid_index")
        found = plaid(**place, n_ivf_probe=probed, n_full_scores=EVERYTHING)(queries, k=1)
        runs.append([int(hits[0]["id"]) for hits in found])
    return compare("pylate", about, sorted(runs, key=lambda tops: agreeing(tops, about["top"]))[SEEDS // 2])


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def partitions(folder: Path) -> int:
    """Of an index of fast-plaid."""
    return int(json.loads((folder / "metadata.json").read_text())["num_partitions"])


def compare(client: str, about: dict[str, Any], found: Sequence[int]) -> bool:
    number = agreeing(found, about["top"])
    share = number / len(found)
    print(f"{client} {version(client)}: nbits {about['nbits']}, {number} of {len(found)} queries with our top 1 ({share:.1%})")
    return share >= SAME


def agreeing(found: Sequence[int], wanted: Sequence[int]) -> int:
    return sum(a == b for a, b in zip(found, wanted, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("ours")
    first.add_argument("collection")
    first.add_argument("queries")
    first.add_argument("work", type=Path)
    first.add_argument("--nbits", type=int, default=4)
    first.add_argument("--count", type=int, default=200, help="queries")
    second = commands.add_parser("dspy")
    second.add_argument("work", type=Path)
    second.add_argument("url", help="of /api/search")
    for name in ("fast-plaid", "pylate"):
        commands.add_parser(name).add_argument("work", type=Path)
    options = parser.parse_args()
    if options.command == "ours":
        ours(options.collection, options.queries, options.work, options.nbits, options.count)
    elif options.command == "dspy":
        sys.exit(not dspy(options.work, options.url))
    else:
        sys.exit(not {"fast-plaid": fast_plaid, "pylate": pylate}[options.command](options.work))


if __name__ == "__main__":
    main()
