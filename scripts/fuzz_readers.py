"""Every file that somebody else may have written, changed at random: readers give a value or a UserError, soon and in little
memory. Exits with 1 when one did anything else, and prints the input.

Inputs are good files with bytes and JSON values replaced, repeated, cut and spliced; grow_readers.py grows them by coverage.

Usage: fuzz_readers.py [--inputs 500000] [--seed 0] [--only NAME ...]
"""

import gzip
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from colbert_diffusion.backbones import find_family
from colbert_diffusion.backbones.adapters import lora_config
from colbert_diffusion.backbones.loading import native
from colbert_diffusion.backbones.sources import published_config, weight_files
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.config import DiffusionConfig, check_colbert_file
from colbert_diffusion.encoding.vectors import VectorFiles
from colbert_diffusion.evaluation.benchmarks import read_qrels
from colbert_diffusion.evaluation.runs import read_run
from colbert_diffusion.index.manifest import check_sizes
from colbert_diffusion.index.opening import all_doclens, index_config, removed_pids
from colbert_diffusion.texts.collection import read_collection, read_documents, read_queries
from colbert_diffusion.training.data import read_exclusions, read_source

sys.path.append(str(Path(__file__).parent / "bench"))
from common import make_parser, memory

SLOW = 5.0  # seconds for one input of a few kilobytes
GROWTH = 1 << 30  # bytes of memory that all inputs together may bring

PROMPT = {"prefix": "[CLS]", "suffix": [102], "tail": ""}
DIFFUSION = {
    "format_version": 1,
    "backbone": "base",
    "k_query": 4,
    "k_passage": 16,
    "query_prompt": PROMPT,
    "passage_prompt": PROMPT,
    "query_max_length": 32,
    "passage_max_length": 200,
    "dim": 128,
    "projection": "pca",
    "merge_above": 0.9,
    "cover_above": None,
    "search": {"nbits": 2},
}
ADAPTER = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "target_modules": ["query", "value"],
    "rank_pattern": {"query": 4},
    "alpha_pattern": {"^layer.0": 32},
}
RELEASED = {
    "model_type": "dream",
    "query_prefix_ids": [1, 2],
    "query_suffix_ids": [3],
    "passage_prefix_ids": [1],
    "passage_suffix_ids": [4],
    "n_tail": 3,
    "n_gen_tokens": 4,
    "max_length": 156,
    "mask_token_id": 151666,
    "hidden_size": 3584,
}
BACKBONE = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 128,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
INDEX = {
    "config": {"checkpoint": "/c", "collection": "/t.tsv", "nbits": 2, "dim": 128, "query_maxlen": 4, "doc_maxlen": 200},
    "num_chunks": 1,
    "num_partitions": 64,
    "num_embeddings": 40,
    "avg_doclen": 8.0,
}
MANIFEST = {
    "format_version": 1,
    "complete": True,
    "build": {"checkpoint": "f743ad0bd116e7c2", "passages": 5},
    "texts": {"path": "/t.tsv", "size": 10, "sha256": "0" * 64},
    "files": {"ivf.pid.pt": {"size": 3, "sha256": "1" * 64}},
}
VECTORS = {
    "format_version": 1,
    "checkpoint": "/c",
    "checkpoint_fingerprint": "f743ad0bd116e7c2",
    "dtype": "float32",
    "collection_fingerprint": "0123456789abcdef",
    "passages": 3,
    "shard": 10_000,
    "dim": 16,
    "complete": True,
    "shards": ["0" * 64],
}
OBJECTS = b'{"_id": "a", "title": "T", "text": "one"}\n{"_id": "b", "title": "", "text": "two \\ud83d\\udc1d"}\n'
TABLE = b'0\tone text\n1\ttwo\ta title\n2\tthe "third"\n'
PAIRS = (
    b'{"query": "bees", "positive": "honey", "negatives": ["salt"], "scores": [2.5, 1]}\n'
    b'{"query": "who", "positive_passages": [{"title": "t", "text": "x"}], "negative_passages": []}\n'
)


class Reader(NamedTuple):
    file: str  # its name in a folder
    good: bytes
    read: Callable[[Path], Any]  # of the file's path
    beside: Mapping[str, Any] = MappingProxyType({})  # other files of the folder


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def _triples(path: Path) -> list[Any]:
    return list(read_source(path, queries=path.with_name("q.tsv"), collection=path.with_name("c.tsv")))


IDS = {"q.tsv": "1\twho\n2\twhat\n", "c.tsv": TABLE.decode()}
READERS: dict[str, Reader] = {
    "collection.tsv": Reader("c.tsv", TABLE, lambda path: list(read_collection(path))),
    "collection.jsonl": Reader("c.jsonl", OBJECTS, lambda path: list(read_collection(path))),
    "collection, bad lines skipped": Reader("c.jsonl", OBJECTS, lambda path: list(read_collection(path, []))),
    "collection.jsonl.gz": Reader("c.jsonl.gz", gzip.compress(OBJECTS), lambda path: list(read_collection(path))),
    "documents.tsv": Reader("d.tsv", b"d1\tone\nd2\ttwo\n", lambda path: dict(read_documents(path))),
    "queries.tsv": Reader("q.tsv", b"q1\tone\nq2\ttwo\n", read_queries),
    "queries.jsonl": Reader("q.jsonl", OBJECTS, read_queries),
    "qrels": Reader("test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq2 0 d2 2\n", lambda path: list(read_qrels(path))),
    "run": Reader("r.trec", b"q1 Q0 d1 1 2.5 t\nq1 Q0 d2 2 1e-3 t\n", read_run),
    "pairs": Reader("p.jsonl", PAIRS, lambda path: list(read_source(path))),
    "pairs.tsv": Reader("p.tsv", b"query\tpositive\nbees\thoney\tsalt\n", lambda path: list(read_source(path))),
    "triples": Reader("t.jsonl", b"[1, 0, 1]\n[2, [0, 9.5], [1, 3]]\n", _triples, IDS),
    "triples.tsv": Reader("t.tsv", b"1\t0\t1\n2\t1\t2\n", _triples, IDS),
    "exclusions": Reader("x.txt", b"0123456789abcdef\n", read_exclusions),
    "diffusion.json": Reader("diffusion.json", _json(DIFFUSION), lambda path: DiffusionConfig.load(path.parent)),
    "artifact.metadata": Reader(
        "artifact.metadata", _json({"dim": 128, "nbits": 2, "query_maxlen": 4}), lambda path: check_colbert_file(path.parent)
    ),
    "retriever_config.json": Reader(
        "retriever_config.json",
        _json(RELEASED),
        lambda path: DiffusionConfig.load(path.parent),
        {"adapter_config.json": {**ADAPTER, "base_model_name_or_path": "a/b"}},
    ),
    "adapter_config.json": Reader(
        "adapter_config.json", _json(ADAPTER), lambda path: lora_config(path.parent, {"layer.0.query": "layer.0.query"})
    ),
    "config.json": Reader("config.json", _json(BACKBONE), lambda path: _config(path.parent)),
    "model.safetensors.index.json": Reader(
        "model.safetensors.index.json",
        _json({"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}),
        lambda path: weight_files(path.parent),
    ),
    "index.json": Reader(
        "index.json",
        _json(MANIFEST),
        lambda path: check_sizes(path.parent),
        {"ivf.pid.pt": "abc"},
    ),
    "metadata.json": Reader(
        "metadata.json",
        _json(INDEX),
        lambda path: (index_config(path.parent), all_doclens(path.parent)),
        {"doclens.0.json": [8] * 5},
    ),
    "doclens.0.json": Reader("doclens.0.json", _json([8] * 5), lambda path: all_doclens(path.parent), {"metadata.json": INDEX}),
    "deleted.json": Reader(
        "deleted.json", _json({"pids": [1, 2]}), lambda path: removed_pids(path.parent), {"metadata.json": INDEX}
    ),
    "vectors.json": Reader("vectors.json", _json(VECTORS), lambda path: VectorFiles(path.parent)),
}


def _config(folder: Path) -> Any:
    published = published_config(folder)
    family = find_family(str(published.get("model_type")))
    family.check_assumptions(published)
    return native(family, published, folder)


VALUES: list[Any] = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]
VALUES += ["", "x", "a/b", "../x", "/etc/passwd", "x" * 3000, "\ud800", "\0", "1", [], {}, [[]], [None], {"": None}, [1, "a"]]
PIECES = [b"\0", b"\xff", b"\n", b"\r", b"\t", b"\t\t", b'"', b"\\", b"{", b"[", b"]", b"}", b",", b":", b"\xef\xbb\xbf"]
PIECES += [
    b"\xff\xfe",
    b"9" * 5000,
    b"[" * 20_000,
    b"{" * 3,
    b"NaN",
    b"-",
    b"1e999",
    b"\\ud83d",
    b" ",
    b"\xc2\x85",
    b"\x1f\x8b",
]


def changed(good: bytes, draw: random.Random) -> bytes:
    """An input: a good file in which something is not."""
    if draw.random() < 0.5 and good[:1] in (b"{", b"["):
        lines = good.split(b"\n") if good.count(b"\n{") + good.count(b"\n[") else [good]
        place = draw.randrange(len(lines))
        try:
            lines[place] = json.dumps(_changed_value(json.loads(lines[place]), draw)).encode("utf-8", "replace")
            good = b"\n".join(lines)
        except ValueError:
            pass
    content = bytearray(good)
    for _ in range(draw.choice((0, 1, 1, 2, 5))):
        start = draw.randrange(len(content) + 1)
        stop = min(len(content), start + draw.choice((0, 1, 1, 4, 30)))
        content[start:stop] = draw.choice(
            (b"", draw.choice(PIECES), bytes([draw.randrange(256)]), bytes(content[start:stop]) * 2)
        )
    return bytes(content[: draw.randrange(len(content) + 1)] if draw.random() < 0.05 else content)


def _changed_value(value: Any, draw: random.Random) -> Any:
    if draw.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return draw.choice(VALUES)
    value = value.copy()
    place = draw.choice([*value] if isinstance(value, dict) else range(len(value)))
    if draw.random() < 0.15:
        del value[place]
    elif isinstance(value, dict) and draw.random() < 0.15:
        value[draw.choice(["x", "", place + "s"])] = draw.choice(VALUES)
    else:
        value[place] = _changed_value(value[place], draw)
    return value


class Room:
    """A folder in which readers find their inputs."""

    def __init__(self, folder: Path) -> None:
        self.folders: dict[str, Path] = {}
        for number, (name, reader) in enumerate(READERS.items()):
            self.folders[name] = folder / str(number)
            self.folders[name].mkdir()
            for beside, content in reader.beside.items():
                text = content if isinstance(content, str) else json.dumps(content)
                (self.folders[name] / beside).write_text(text)

    def read(self, name: str, content: bytes) -> str:
        """What became of it: "read", or "refused". Raises what is no UserError."""
        path = self.folders[name] / READERS[name].file
        path.write_bytes(content)
        try:
            READERS[name].read(path)
        except UserError as error:
            if "\n" in str(error) or len(str(error)) > 2000:
                raise AssertionError(f"no line for people: {error!s:.200}") from error
            return "refused"
        return "read"


def fuzz(names: list[str], inputs: int, seed: int) -> int:
    """Inputs that failed."""
    draw, counts, failed, slowest = random.Random(seed), Counter[tuple[str, str]](), 0, 0.0
    before = memory().peak
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        room = Room(Path(folder))
        for number in range(inputs):
            name = names[number % len(names)]
            content = changed(READERS[name].good, draw)
            started = time.perf_counter()
            try:
                counts[name, room.read(name, content)] += 1
            except Exception:
                failed += 1
                print(f"{name}: {content[:300]!r}", file=sys.stderr)
                traceback.print_exc(limit=-4)
            took = time.perf_counter() - started
            slowest = max(slowest, took)
            failed += took > SLOW
            if failed > 20:
                break
    grown = memory().peak - before
    for name in names:
        print(f"{name}: {counts[name, 'read']:,} read, {counts[name, 'refused']:,} refused")
    print(f"{sum(counts.values()):,} inputs, {failed} failed, slowest {slowest:.2f} s, memory grew by {grown / 2**20:.0f} MiB")
    return failed + (grown > GROWTH)


def memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--inputs", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=READERS, default=[*READERS])
    options = parser.parse_args()
    if fuzz(options.only, options.inputs, options.seed):
        sys.exit(1)


if __name__ == "__main__":
    main()
