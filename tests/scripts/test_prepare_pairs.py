import gzip
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import load, refusal


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("prepare_pairs")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def dictd(folder: Path, name: str, articles: list[tuple[list[str], str]]) -> None:
    """A dictionary; offsets here are below 64, so one digit each."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    text, index = b"", ""
    for terms, article in articles:
        index += "".join(f"{term}\t{digits[len(text)]}\t{digits[len(article.encode())]}\n" for term in terms)
        text += article.encode()
    folder = folder / f"dict-{name}/usr/share/dictd"
    write(folder / f"{name}.index", index)
    write(folder / f"{name}.dict.dz", gzip.compress(text))


def test_package_lists_give_synopsis_and_description(script: ModuleType, tmp_path: Path) -> None:
    lists = (
        "Package: a\nDescription-md5: 1\nDescription-en: tool for a\n First line,\n second.\n .\n New paragraph.\n\n"
        "Package: b\nDescription-md5: 2\n"
    )
    write(tmp_path / "x_main_i18n_Translation-en", lists)
    [(query, positive)] = script.read_descriptions(tmp_path)
    assert (query, positive.split()) == ("tool for a", "First line, second. New paragraph.".split())


def test_a_dictionarys_article_is_read_once_under_its_first_term(script: ModuleType, tmp_path: Path) -> None:
    dictd(tmp_path, "foldoc", [(["00-database-info"], "about"), (["bit", "byte"], "Bit\n\n  small"), (["ö"], "Ö")])
    assert list(script.read_dictd(tmp_path / "dict-foldoc/usr/share/dictd/foldoc")) == [("bit", "Bit\n\n  small"), ("ö", "Ö")]
    assert script.base64_number("Gb9L") == 6 * 64**3 + 27 * 64**2 + 61 * 64 + 11


def test_gcide_keeps_headwords_and_drops_marks(script: ModuleType, tmp_path: Path) -> None:
    dictd(tmp_path, "gcide", [(["Life", "To life"], "Life \\Life\\, n. {Being}.\n   [1913 Webster]")])
    assert list(script.read_gcide(tmp_path)) == [("Life", "Life, n. Being.")]
    article = "Large \\Large\\ (l[aum]rj), a. [F., fr. L.\n   largus.]\n   Big; as in pa['i]s; see {Size}. [1913 Webster]"
    assert " ".join(script.clean_gcide(article).split()) == "Large, a. Big; as in pais; see Size."


def test_wordnet_gives_lemmas_and_gloss(script: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "wordnet-base/usr/share/wordnet"
    line = "00002137 03 n 02 abstraction 0 abstract_entity 0 001 @ 00001740 n 0000 | a general concept  \n"
    write(folder / "data.noun", "  1 This software is licensed\n" + line)
    write(folder / "data.adj", "00001740 00 a 01 able(p) 0 000 | having means  \n")
    for kind in ("verb", "adv"):
        write(folder / f"data.{kind}", "")
    pairs = [(query, gloss.strip()) for query, gloss in script.read_wordnet(tmp_path)]
    assert pairs == [("abstraction, abstract entity", "a general concept"), ("able", "having means")]


def test_manual_pages_become_running_text(script: ModuleType, tmp_path: Path) -> None:
    page = (
        '.\\" a comment\n.TH fdim 3\n.SH NAME\nfdim, fdimf \\- positive difference\n.SH SYNOPSIS\n.nf\nint x;\n'
        '.SH DESCRIPTION\nReturns max(\\fIx\\fP\\-\\fIy\\fP,0) \\(aqsic\\(aq, see\n.BR strlen (3)\nand\n.BI "f(" x );\n'
        ".TS\nl l.\na\tb\n.TE\n.IP \\(bu 3\none\\~item, \\e0.\n.SH ERRORS\nNone.\n"
    )
    for package in ("manpages-dev", "mutt"):  # the other is here for its manual
        write(tmp_path / package / "usr/share/man/man3/fdim.3.gz", gzip.compress(page.encode()))
    [(query, positive)] = script.read_manpages(tmp_path)
    assert query.strip() == "positive difference"
    assert " ".join(positive.split()) == "Returns max(x-y,0) 'sic', see strlen(3) and f(x); one item, \\0."


def test_pairs_are_cleaned_once_each_and_in_an_order_of_their_own(script: ModuleType) -> None:
    long = "a passage that is long enough to be kept by everyone who reads it, and " + "so on " * 300
    secret = "an excluded text of some length"
    exclusions = {hashlib.sha256(secret.encode()).hexdigest()[:16]}
    pairs = [
        ("one", long),
        ("two", long + "differs at its end"),
        ("One!", "b" * 90),
        ("three", "short"),
        ("?", "c" * 90),
        ("An  excluded\ttext, of some length", "d" * 90),
        ("  four\n", "e" * 90),
    ]
    kept, dropped = script.select(pairs, 80, exclusions)
    assert dropped == {"short": 2, "duplicate": 2, "excluded": 1}
    assert sorted(kept) == [("four", "e" * 90), ("one", " ".join(long.split())[:1500])]
    assert script.select(pairs[::-1][:1] + pairs[:1], 80, set())[0] == kept


def test_a_licence_is_read_where_it_is_short_and_is_not_the_packagings(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "p/usr/share/doc/p/copyright"
    write(path, "Format: x\n\nFiles: *\nLicense: WordNet3.0\n text\n\nFiles: debian/*\nLicense: GPL-2+\n")
    assert script.licence(tmp_path, "p") == "WordNet3.0"
    write(path, "Distributed under the GFDL.\n")
    assert script.licence(tmp_path, "p") is None


def test_equal_packages_give_equal_files_with_a_readme(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(f"query {i}", f"passage {i} " + "x" * 90) for i in range(5)]
    monkeypatch.setattr(script, "SOURCES", {"some": script.Source("this -> that", (), "MIT", lambda _: iter(pairs))})
    monkeypatch.setattr(script, "fetch", lambda *_: None)
    for pid, out in enumerate(("one", "two")):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)  # is in the name of a file written aside
        script.main([str(tmp_path / out), *(f"--limit={name}=3" for name in script.SOURCES)])
    first = (tmp_path / "one/some.jsonl.gz").read_bytes()
    assert first == (tmp_path / "two/some.jsonl.gz").read_bytes()
    lines = [json.loads(line) for line in gzip.decompress(first).splitlines()]
    assert len(lines) == 3
    assert all((line["query"], line["positive"]) in pairs for line in lines)
    assert "| some | this -> that | 3 | the package lists | MIT |" in (tmp_path / "one/README.md").read_text()
    assert "some: 3 pairs" in capsys.readouterr().out


def test_a_source_that_is_not_wanted_is_neither_fetched_nor_read(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise AssertionError("read")

    pairs = [("query", "passage " + "x" * 90)]
    sources = {
        "some": script.Source("this -> that", ("a",), "MIT", lambda _: iter(pairs)),
        "other": script.Source("this -> that", ("a", "b"), "MIT", refuse),
    }
    fetched: list[set[str]] = []
    monkeypatch.setattr(script, "SOURCES", sources)
    monkeypatch.setattr(script, "fetch", lambda *given: fetched.append(given[2]))
    script.main([str(tmp_path), "--limit", "other=0"])
    assert fetched == [{"a"}]
    assert {path.name for path in tmp_path.iterdir()} == {"some.jsonl.gz", "README.md"}


@pytest.mark.skipif(not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="of Debian")
def test_each_package_is_unpacked_in_a_folder_of_its_name(script: ModuleType, tmp_path: Path) -> None:
    for package in ("one", "two"):
        write(tmp_path / package / "usr/share/same", package)
        write(
            tmp_path / package / "DEBIAN/control",
            f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: b\n",
        )
        write(tmp_path / "fetched" / "of_Translation-en", "")
        subprocess.run(["dpkg-deb", "-b", tmp_path / package, tmp_path / "fetched" / f"{package}_1_all.deb"], check=True)
    script.fetch(tmp_path / "fetched", tmp_path / "a/b", {"one", "two"})
    assert [(tmp_path / "a/b" / package / "usr/share/same").read_text() for package in ("one", "two")] == ["one", "two"]
    assert (tmp_path / "a/b/of_Translation-en").is_file()


def test_without_apt_the_error_is_one_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusal(script.main, [tmp_path / "out"], capsys).startswith("error: apt-get is not here: run this on Debian")
