"""scripts/pairs/manuals.py"""

import gzip
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import load

SAID = "says enough of what it is about to be the passage of a pair, and then some more of it to be safe"
PAGE = f"""<html><head><title>Storage — Manual 1.0</title><style>p {{}}</style></head><body>
<div class="sphinxsidebar"><a href="x.html">Table of contents</a> not prose</div>
<h1 id="top">2.1. Keeping large tables<a class="headerlink" href="#top">¶</a></h1>
<p>First, it {SAID}. See <a href="other.html#vacuum">reclaiming the space of dead rows</a>.
<pre>code()</pre><p>Last.
<h2><a name="old"></a>Notes</h2><p>Of one kind.<h2>Notes</h2><p>Of another.<h2>notes</h2><p>Of a third.
<dl><dt id="opt">--fill factor</dt><dd>How full a page may be, it {SAID}.</dd></dl>
<a href="other.html">here</a> <a href="https://elsewhere.example/a">a page of somebody else</a>
</body></html>"""
OTHER = f"""<title>Vacuum</title><body><h1 id="vacuum">Routine Vacuuming</h1><p>It {SAID}.</p>
<p><a href="./index.html#top">how large tables are kept</a> and <a href="index.html#top">Keeping large tables</a>,
<a href="index.html#opt">how large tables are filled</a>, <a href="index.html#top">an ambiguous text</a>,
<a href="#vacuum">an ambiguous text</a></p>"""


@pytest.fixture(scope="module")
def manuals() -> ModuleType:
    return load("pairs/manuals")


@pytest.fixture
def manual(manuals: ModuleType, tmp_path: Path) -> object:
    (tmp_path / "index.html").write_text(PAGE)
    (tmp_path / "other.html.gz").write_bytes(gzip.compress(OTHER.encode()))
    (tmp_path / "faq").mkdir()
    (tmp_path / "faq" / "questions.html").write_text(f"<h1>Who may ask this question?</h1><p>It {SAID}.</p>")
    return manuals.read_html(tmp_path)


def test_a_heading_stands_for_the_prose_up_to_the_next(manual: object) -> None:
    pairs = dict(manual.pairs("heading"))  # type: ignore[attr-defined]
    assert set(pairs) == {"Keeping large tables", "Routine Vacuuming"}  # three sections are called notes; no FAQ
    assert pairs["Keeping large tables"] == f"First, it {SAID}. See reclaiming the space of dead rows. Last."


def test_a_lists_term_stands_with_its_page_for_what_is_said_of_it(manual: object) -> None:
    [(query, text)] = manual.pairs("term")  # type: ignore[attr-defined]
    assert query == "Storage: --fill factor"
    assert text.startswith(f"How full a page may be, it {SAID}.")


def test_a_links_words_stand_for_the_one_section_that_they_lead_to(manual: object) -> None:
    pairs = dict(manual.pairs("link"))  # type: ignore[attr-defined]
    assert set(pairs) == {"reclaiming the space of dead rows", "how large tables are kept", "how large tables are filled"}
    assert pairs["reclaiming the space of dead rows"].startswith(f"Routine Vacuuming. It {SAID}.")
    assert pairs["how large tables are filled"].startswith("--fill factor. How full")


def test_an_info_manuals_index_leads_to_its_nodes(manuals: ModuleType, tmp_path: Path) -> None:
    parts = [
        "This is x.info\n\n",
        f"\x1f\nFile: x.info,  Node: Top,  Up: (dir)\n\nShell\n*****\n\nIt {SAID}.\n\n* Menu:\n\n* Quoting words::\n\n",
        f"\x1f\nFile: x.info,  Node: Quoting,  Up: Top\n\n3.1 Quoting of Words\n====================\n\nIt {SAID}.\n\n",
        "     $ example\n\nMore.\n",
        "\x1f\nFile: x.info,  Node: Index,  Up: Top\n\nIndex\n*****\n\n* Menu:\n\n",
        "* single quotes kept:              Quoting.            (line  6)\n\x1f\nTag Table:\n",
    ]
    text = "".join(parts).encode()
    paths = [tmp_path / "x.info-1.gz", tmp_path / "x.info-2.gz"]
    for path, half in zip(paths, (text[:300], text[300:]), strict=True):
        path.write_bytes(gzip.compress(half))
    manual = manuals.read_info(paths)
    assert dict(manual.pairs("heading"))["Quoting of Words"] == f"It {SAID}. More."
    assert dict(manual.pairs("link")) == {"single quotes kept": f"Quoting of Words. It {SAID}. More."}


@pytest.mark.parametrize(
    "text", ["word", "x = y + 1 * 3", "α β γ δ", "a " * 40, "12 34 56 page", "join(iterable, strict) of two", "size_t of it"]
)
def test_a_query_is_a_few_words(text: str, manuals: ModuleType) -> None:
    assert not manuals.is_query(text)
    assert manuals.is_query("how a page is filled")
