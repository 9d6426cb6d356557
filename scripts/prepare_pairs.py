"""Make training pairs (short text -> passage) from Debian packages, which are fetched and unpacked, never installed.

Usage: prepare_pairs.py OUT [--exclude HASHES] [--from FOLDER] [--limit NAME=N ...]

Writes OUT/NAME.jsonl.gz with {"query", "positive"} per line for each source, and OUT/README.md with counts and licences.
FOLDER holds .deb files and package lists fetched before; what it lacks is fetched into it.
Equal packages give equal files: pairs stand in the order of their hashes, so the first N are a sample.
"""

import argparse
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from colbert_diffusion.common.errors import UserError
from colbert_diffusion.common.files import written_aside
from colbert_diffusion.training.data import is_excluded, read_exclusions

sys.path.extend(str(Path(__file__).parent / folder) for folder in ("bench", "pairs"))
from common import errors_in_a_line, make_parser
from manuals import MANUALS, Kind, read_faqs, read_manuals
from questions import FAQS, Pair

LONGEST = 1500  # characters of a passage
MOST = 6000  # pairs of one kind from one manual


class Source(NamedTuple):
    what: str
    packages: tuple[str, ...]  # none: the package lists themselves
    licence: str  # where the packages' copyright files do not say it in a line
    read: Callable[[Path], Iterator[Pair]]  # of the folder with the packages' own ones and the package lists
    shortest: int = 80  # characters of a passage


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--exclude", type=Path, help="hashes of texts to leave out, e.g. those of evaluation collections")
    parser.add_argument("--from", dest="fetched", type=Path, help="folder with .deb files and package lists")
    parser.add_argument("--limit", type=limit, action="append", default=[], help="at most N pairs of NAME; 0: not read")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        fetched, unpacked = given.fetched or Path(temporary, "fetched"), Path(temporary, "unpacked")
        exclusions = read_exclusions(given.exclude) if given.exclude else set()
        limits = dict(given.limit)
        wanted = [name for name in SOURCES if limits.get(name) != 0]
        fetch(fetched, unpacked, {package for name in wanted for package in SOURCES[name].packages})
        rows = [prepare(name, unpacked, given.out, exclusions, limits.get(name)) for name in wanted]
    about = "# Training pairs\n\n| file | what | pairs | Debian packages | licence |\n|---|---|---|---|---|\n"
    (given.out / "README.md").write_text(about + "".join(rows), encoding="utf-8")


def limit(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in SOURCES or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=N with NAME one of {', '.join(SOURCES)}")
    return name, int(number)


def fetch(fetched: Path, unpacked: Path, packages: set[str]) -> None:
    """Get what is not there yet, with apt's own checks of signatures, and unpack it, each package in a folder of its name."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is not here: run this on Debian or Ubuntu (or in a container of it)")
    (fetched / "partial").mkdir(parents=True, exist_ok=True)
    unpacked.mkdir(parents=True, exist_ok=True)
    if not list(fetched.glob("*Translation-en")):
        options = (f"Dir::State::Lists={fetched.absolute()}", "Acquire::Languages=en", "Acquire::GzipIndexes=false")
        run("apt-get", "update", *(part for option in options for part in ("-o", option)))
    missing = [package for package in sorted(packages) if not list(fetched.glob(f"{package}_*.deb"))]
    if missing:
        run("apt-get", "download", *missing, cwd=fetched)
    for package in sorted(packages):
        run("dpkg-deb", "-x", str(max(fetched.glob(f"{package}_*.deb")).absolute()), str(unpacked / package))
    for lists in fetched.glob("*Translation-en"):
        shutil.copy(lists, unpacked)


def run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command[:2])} failed: {' '.join(done.stderr.split())[:300]}")


def prepare(name: str, unpacked: Path, out: Path, exclusions: set[str], limit: int | None) -> str:
    """Write one source's pairs; return its line of the README."""
    source = SOURCES[name]
    pairs, dropped = select(source.read(unpacked), source.shortest, exclusions)
    lines = [json.dumps({"query": query, "positive": positive}, ensure_ascii=False) for query, positive in pairs[:limit]]
    with written_aside(out / f"{name}.jsonl.gz") as aside:
        aside.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode(), mtime=0))
    licences = "; ".join(dict.fromkeys(licence(unpacked, package) or source.licence for package in source.packages))
    count, packages = len(lines), ", ".join(source.packages) or "the package lists"
    print(f"{name}: {count:,} pairs, dropped {dropped}, {licences or source.licence}")
    return f"| {name} | {source.what} | {count:,} | {packages} | {licences or source.licence} |\n"


def select(pairs: Iterable[Pair], shortest: int, exclusions: set[str]) -> tuple[list[Pair], dict[str, int]]:
    """Clean pairs in the order of their hashes, and how many were dropped why.

    A query has one passage and a passage one query: another with the same first 80 letters and digits is a duplicate.
    """
    kept: list[Pair] = []
    seen: set[tuple[str, str]] = set()
    dropped = {"short": 0, "duplicate": 0, "excluded": 0}
    for pair in pairs:
        query, positive = (" ".join(text.split()) for text in pair)
        keys = {("query", plain(query)), ("positive", plain(positive)[:80])}
        if not plain(query) or len(positive) < shortest:
            dropped["short"] += 1
        elif is_excluded(query, exclusions) or is_excluded(positive, exclusions):
            dropped["excluded"] += 1
        elif keys & seen:
            dropped["duplicate"] += 1
        else:
            seen |= keys
            kept.append((query, positive[:LONGEST]))
    return sorted(kept, key=by_hash), dropped


def by_hash(pair: Pair) -> bytes:
    return hashlib.sha256("\t".join(pair).encode()).digest()


def plain(text: str) -> str:
    return re.sub("[^a-z0-9]+", " ", text.lower()).strip()


def licence(unpacked: Path, package: str) -> str | None:
    """What a machine-readable copyright file says of all but the packaging, if that is short."""
    path = unpacked / package / "usr/share/doc" / package / "copyright"
    text = path.read_text("utf-8", "replace") if path.is_file() else ""  # some link to another package's folder
    upstream = [part for part in text.split("\n\n") if part.startswith("Files:") and not part.startswith("Files: debian/")]
    names = list(dict.fromkeys(re.findall(r"^License: *(\S.*)$", "\n".join(upstream), re.MULTILINE)))
    return ", ".join(names) if 1 <= len(names) <= 3 else None


def read_descriptions(unpacked: Path) -> Iterator[Pair]:
    """Synopsis -> description, from apt's Translation-en lists."""
    for path in sorted(unpacked.glob("*Translation-en")):
        for entry in path.read_text("utf-8").split("\n\n"):
            _, found, text = entry.partition("\nDescription-en: ")
            synopsis, _, description = text.partition("\n")
            if found:
                yield synopsis, re.sub(r"^ \.?", "", description, flags=re.MULTILINE)


def read_dictd(path: Path) -> Iterator[Pair]:
    """Term -> article of a dictd dictionary, once for each article, under its first term in the index."""
    articles = gzip.decompress(path.with_suffix(".dict.dz").read_bytes())  # dictzip is gzip
    done = set()
    for line in path.with_suffix(".index").read_text("utf-8").splitlines():
        term, start, length, *_ = line.split("\t")
        if term.startswith(("00-", "00database")) or start in done:
            continue
        done.add(start)
        begin = base64_number(start)
        yield term, articles[begin : begin + base64_number(length)].decode("utf-8", "replace")


def base64_number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = 64 * value + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".index(digit)
    return value


def read_gcide(unpacked: Path) -> Iterator[Pair]:
    """Headword -> article; the other terms of an article are phrases somewhere in it."""
    for term, article in read_dictd(unpacked / "dict-gcide/usr/share/dictd/gcide"):
        text = clean_gcide(article)
        if text.lower().startswith(term.lower()):
            yield term, text


def clean_gcide(article: str) -> str:
    """Without pronunciations, etymologies, sources, and marks of accents and cross references."""
    text = re.sub(r"\\[^\\\n]*\\|\([^()]*\[[^()]*\)", "", article)
    text = re.sub(r"\[\W(\w)\]|\[(\w)(?:um|dot|ae)\]", r"\1\2", text)
    text = re.sub(r"\[[^\]]*\]|[{}]", "", text)
    return re.sub(r"\s+,", ",", text).strip()


def read_wordnet(unpacked: Path) -> Iterator[Pair]:
    """Lemmas -> gloss; a line is `offset file type count (lemma id)* ... | gloss`, the count in hexadecimal."""
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (unpacked / f"wordnet-base/usr/share/wordnet/data.{kind}").read_text("utf-8").splitlines():
            if not line.startswith(" "):  # the licence
                fields, _, gloss = line.partition(" | ")
                words = fields.split(" ")
                lemmas = words[4 : 4 + 2 * int(words[3], 16) : 2]
                yield ", ".join(re.sub(r"\(\w+\)$", "", lemma).replace("_", " ") for lemma in lemmas), gloss


def read_glosses(unpacked: Path) -> Iterator[Pair]:
    """WordNet's gloss -> GCIDE's article of the same word, where WordNet knows one meaning of it alone."""
    glosses: dict[str, set[str]] = {}
    for lemmas, gloss in read_wordnet(unpacked):
        for lemma in lemmas.split(", "):
            glosses.setdefault(lemma.lower(), set()).add(gloss.partition('; "')[0])
    for term, article in read_gcide(unpacked):
        [gloss, *others] = glosses.get(term.lower(), {""})
        if gloss and not others:
            yield gloss, article


def read_manual(kind: Kind) -> Callable[[Path], Iterator[Pair]]:
    """The pairs of a kind, of no manual more than `MOST`, those with the smallest hashes."""

    def read(unpacked: Path) -> Iterator[Pair]:
        for manual in read_manuals(unpacked):
            yield from sorted(manual.pairs(kind), key=by_hash)[:MOST]

    return read


def read_questions(unpacked: Path) -> Iterator[Pair]:
    """Of the manuals and of files named FAQ."""
    for manual in (*read_manuals(unpacked), *read_faqs(unpacked)):
        yield from manual.pairs("question")


def read_manpages(unpacked: Path) -> Iterator[Pair]:
    """One line of NAME -> DESCRIPTION."""
    for path in (path for package in MANPAGES for path in sorted((unpacked / package).glob("usr/share/man/man*/*.gz"))):
        sections = parse_man(gzip.decompress(path.read_bytes()).decode("utf-8", "replace"))
        _, _, purpose = sections.get("NAME", "").partition(" - ")
        yield purpose, sections.get("DESCRIPTION", "")


def parse_man(text: str) -> dict[str, str]:
    """A manual page's sections as running text: words and fonts of the man macros, without tables."""
    sections: dict[str, str] = {}
    name = ""
    for line in re.sub(r"^\.TS.*?^\.TE", "", text, flags=re.MULTILINE | re.DOTALL).splitlines():
        macro, _, rest = line.partition(" ")
        words = [quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', rest)]
        if macro == ".SH":
            name = " ".join(words)
        elif macro in (".B", ".I", ".SM", ".SS", ".IP"):
            sections[name] = sections.get(name, "") + " " + unescape(" ".join(words[:1] if macro == ".IP" else words))
        elif re.fullmatch(r"\.[BIR]{2}", macro):  # alternating fonts join their words
            sections[name] = sections.get(name, "") + " " + unescape("".join(words))
        elif not line.startswith((".", "'")):
            sections[name] = sections.get(name, "") + " " + unescape(line)
    return sections


def unescape(text: str) -> str:
    text = re.sub(r'\\".*|\\f(\[\w*\]|\(..|.)|\\s[-+]?\d|\\[&|^/,%c:]', "", text)
    names = {"aq": "'", "dq": '"', "em": "-", "en": "-", "lq": '"', "rq": '"', "bu": "", "ti": "~", "ha": "^", "rs": "\\"}
    text = re.sub(r"\\[(*]?[(\[](\w\w)\]?", lambda match: names.get(match[1], ""), text)
    return re.sub(r"\\([-'` ])", r"\1", text.replace("\\~", " ")).replace("\\e", "\\")


MANPAGES = ("manpages", "manpages-dev", "git-man", "libssl-doc", "systemd", "tcl8.6-doc", "tk8.6-doc")
SOURCES = {
    "debian_synopsis": Source("package synopsis -> description", (), "of each package its own", read_descriptions),
    "foldoc": Source(
        "computing term -> article (Free On-line Dictionary of Computing, foldoc.org, editor Denis Howe)",
        ("dict-foldoc",),
        "GFDL-1.1+",
        lambda unpacked: read_dictd(unpacked / "dict-foldoc/usr/share/dictd/foldoc"),
    ),
    "gcide": Source(
        "word -> article (GNU Collaborative International Dictionary of English)",
        ("dict-gcide",),
        "GPL-2+",
        read_gcide,
        shortest=40,
    ),
    "wordnet": Source("lemmas -> gloss (WordNet 3.0, Princeton)", ("wordnet-base",), "WordNet 3.0", read_wordnet, shortest=4),
    "manpage": Source(
        "what a manual page is about -> its DESCRIPTION (Linux man-pages)",
        MANPAGES,
        "per page in the package's copyright file",
        read_manpages,
    ),
    "jargon": Source(
        "hackers' term -> article (The Jargon File)",
        ("dict-jargon",),
        "public domain",
        lambda unpacked: read_dictd(unpacked / "dict-jargon/usr/share/dictd/jargon"),
    ),
    "gloss": Source("WordNet's gloss -> GCIDE's article", ("wordnet-base", "dict-gcide"), "WordNet 3.0; GPL-2+", read_glosses),
    "heading": Source("heading -> section of a manual", tuple(MANUALS), "of each manual its own", read_manual("heading")),
    "question": Source("question -> answer of a FAQ or manual", (*MANUALS, *FAQS), "of each package its own", read_questions),
    "term": Source(
        "title and term of a list -> what is said of it", tuple(MANUALS), "of each manual its own", read_manual("term")
    ),
    "link": Source("words of a link or index entry -> section", tuple(MANUALS), "of each manual its own", read_manual("link")),
}

if __name__ == "__main__":
    main()
