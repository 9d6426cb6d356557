"""Sections of HTML and Info manuals, and the short texts that stand for them: headings, questions, entries of lists, links.

A `Manual` is one package's. Four kinds of pairs come of it: a heading and its section's text; a question and its answer, where
a heading, a term or a bold paragraph is one; the term of a list (an option, a function, a word) with its page's title and what
is said of it; a link's or index entry's own words and the section it leads to, under its heading.
"""

import gzip
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from lxml import etree, html
from questions import FAQS, Pair, asked, read_text, without_mark

Kind = Literal["heading", "question", "term", "link"]

LONGEST = 2000  # characters kept of a section; a pair is cut further
COMMON = 3  # a heading that stands this often in a manual says nothing of its section
WORDS = range(2, 17)  # of a query
BLOCKS = frozenset("p li dd td th div br tr ul ol dl table section".split())
LEFT_OUT = frozenset("script style nav header footer pre form button select svg math sup".split())
FURNITURE = re.compile(  # a word of an element's class
    r"(nav|navheader|navfooter|navigation|toc|toctree-wrapper|related|headerlink|footer|contents|menu|wy-nav-(side|top)"
    r"|(breadcrumb|highlight|sidebar|sphinxsidebar|bd-sidebar|bd-toc|rst-footer).*)"
)
PROGRAM = re.compile(r"[_()\[\]{}=<>|\\*]")  # signs of names and signatures
HEADING = re.compile(r"h[1-6]")
FAQ_SUFFIXES = ("", ".faq", ".htm", ".html", ".md", ".rst", ".shtml", ".txt", ".xhtml")
BOLD = ("b", "strong")
Q = re.compile(r"\s*(Q|Question)\s*[0-9.]*\s*[:.)]", re.IGNORECASE)
NUMBERING = re.compile(
    r"^((chapter|appendix|section|part)\s+)?([A-Z]?[0-9]+([.-][0-9A-Za-z]{1,3})*|[A-Z]([.][0-9]+)+)[.:)]?\s+", re.I
)


MANUALS = {  # package: its folder or Info files below /usr/share, as a pattern
    "postgresql-doc-15": "doc/postgresql-doc-15/html",
    "python3.11-doc": "doc/python3.11/html",
    "linux-doc-6.1": "doc/linux-doc-6.1/html",
    "debian-handbook": "doc/debian-handbook/html/en-US",
    "gimp-help-en": "gimp/2.0/help/en",
    "libreoffice-help-en-us": "libreoffice/help/en-US/text",
    "python-sklearn-doc": "doc/python-sklearn-doc/html",
    "python-scipy-doc": "doc/python-scipy-doc/html",
    "python-statsmodels-doc": "doc/python-statsmodels-doc/html",
    "python-pandas-doc": "doc/python-pandas-doc/html",
    "python-sympy-doc": "doc/python-sympy-doc/html",
    "python-astropy-doc": "doc/python-astropy-doc/html",
    "python-django-doc": "doc/python-django-doc/html",
    "python-sqlalchemy-doc": "doc/python-sqlalchemy-doc/html",
    "sqlite3-doc": "doc/sqlite3",
    "apache2-doc": "doc/apache2-doc/manual/en",
    "git-doc": "doc/git-doc",
    "anarchism": "doc/anarchism/html",
    "installation-guide-amd64": "doc/installation-guide-amd64/en",
    "freedombox-doc-en": "freedombox/manual/en",
    "imagemagick-6-doc": "doc/imagemagick-6-common/html",
    "wireshark-doc": "doc/wireshark/wsug_html_chunked",
    "llvm-16-doc": "doc/llvm-16-doc/html",
    "erlang-doc": "doc/erlang-doc/doc",
    "racket-doc": "doc/racket",
    "ghc-doc": "doc/ghc-doc/html/users_guide",
    "dpdk-doc": "doc/dpdk/guides",
    "lilypond-doc-html": "doc/lilypond/html/Documentation",
    "db5.3-doc": "doc/db5.3-doc/programmer_reference",
    "csound-doc": "doc/csound-doc/html",
    "povray-doc": "doc/povray/html",
    "ada-reference-manual-2012": "doc/ada-reference-manual-2012/arm2012.html",
    "bacula-doc": "doc/bacula-doc/html",
    "postfix-doc": "doc/postfix/html",
    "debian-policy": "doc/debian-policy/policy.html",
    "debian-reference-en": "debian-reference",
    "gnucash-docs": "doc/gnucash-docs/gnucash-*-en",
    "octave-doc": "doc/octave/octave.html",
    "cargo-doc": "doc/cargo/doc",
    "shorewall-doc": "doc/shorewall-doc/html",
    "gnuplot-doc": "doc/gnuplot/htmldocs",
    "mutt": "doc/mutt/html",
    "bash-doc": "info/bash.info*",
    "coreutils": "info/coreutils.info*",
    "findutils": "info/find.info*",
    "mailutils-doc": "info/mailutils.info*",
    "r-doc-info": "info/R-*.info*",
    "libgcrypt20-doc": "info/gcrypt.info*",
    "parted-doc": "info/parted.info*",
    "gnutls-doc": "info/gnutls.info*",
}


@dataclass
class Section:
    """A heading or a list's term, with the text up to the next."""

    page: str  # its title
    heading: str
    kind: Kind
    text: str = ""

    @property
    def passage(self) -> str:
        return f"{self.heading}. {self.text}"

    @cached_property
    def question(self) -> str | None:
        return asked(self.heading)


@dataclass
class Manual:
    """Sections in their order; `places` names those that links lead to, `links` are (words, place)."""

    sections: list[Section] = field(default_factory=list)
    places: dict[str, Section] = field(default_factory=dict)
    links: list[tuple[str, str]] = field(default_factory=list)

    def pairs(self, kind: Kind) -> Iterator[Pair]:
        if kind == "link":
            yield from self._linked()
            return
        if kind == "question":
            yield from self._answered()
            return
        of_kind = [section for section in self.sections if section.kind == kind and section.text and not section.question]
        often = Counter(section.heading.lower() for section in of_kind)
        for section in of_kind:
            query = f"{section.page}: {section.heading}" if kind == "term" else section.heading
            if often[section.heading.lower()] < COMMON and is_query(query):
                yield query, section.text

    def _answered(self) -> Iterator[Pair]:
        """A question under which little is said stands in a table of contents: the longest text is its answer."""
        answers: dict[str, str] = {}
        for section in self.sections:
            if section.question:
                answers[section.question] = max(answers.get(section.question, ""), without_mark(section.text), key=len)
        yield from answers.items()

    def _linked(self) -> Iterator[Pair]:
        """Words that lead to one section alone and are not its heading."""
        targets: dict[str, dict[int, Section]] = {}
        for words, place in self.links:
            section = self.places.get(place) or self.places.get(place.partition("#")[0])
            if section is not None and section.text:
                targets.setdefault(words, {})[id(section)] = section
        for words, sections in targets.items():
            [section, *others] = sections.values()
            if not others and is_query(words) and words.lower() not in section.heading.lower():
                yield words, section.passage


def is_query(text: str) -> bool:
    """A few words, mostly letters, and no program's."""
    letters = sum(character.isalpha() and character.isascii() for character in text)
    return (
        len(text.split()) in WORDS
        and len(text) <= 120
        and not PROGRAM.search(text)
        and letters >= 0.7 * len(text.replace(" ", ""))
    )


class Page:
    """Reads one HTML page into a manual; `name` is its path inside the manual's folder."""

    def __init__(self, manual: Manual, name: str) -> None:
        self.manual, self.name, self.title = manual, name, ""
        self._waiting: list[str] = []  # ids before their heading
        self._section: Section | None = None
        self._text: list[str] = []

    def read(self, content: bytes) -> None:
        document = html.document_fromstring(content, parser=html.HTMLParser(encoding="utf-8"))
        self.title = re.split(r" [—|–-] | :: ", clean(document.findtext(".//title") or ""))[0]
        for element in [e for e in document.iter() if isinstance(e, html.HtmlElement) and left_out(e)]:
            element.drop_tree()
        heading = None  # the one that is open
        for event, element in etree.iterwalk(document, events=("start", "end")):
            if event == "start":
                self._note(element)
                kind = kind_of(element, heading is not None)
                if kind:
                    heading = element
                    self._begin(clean(element.text_content()), kind)
                elif heading is None:
                    self._text.append(element.text or "")
            else:
                heading = None if heading is element else heading
                if heading is None:
                    self._text.append((" " if element.tag in BLOCKS else "") + (element.tail or ""))
        self._end()

    def _note(self, element: html.HtmlElement) -> None:
        """Where links lead, and from where."""
        identity = element.get("id") or (element.get("name") if element.tag == "a" else None)
        if identity:
            self._waiting.append(identity)
        if element.tag == "a" and element.get("href"):
            self.manual.links.append((clean(element.text_content()), self._place(element.get("href"))))

    def _place(self, href: str) -> str:
        """`page#id` inside the manual."""
        path, _, identity = href.partition("#")
        page = posixpath.normpath(posixpath.join(posixpath.dirname(self.name), unquote(path))) if path else self.name
        return f"{page}#{unquote(identity)}" if identity else page

    def _begin(self, heading: str, kind: Kind) -> None:
        self._end()
        self._section = Section(self.title, heading, kind)
        self.manual.sections.append(self._section)
        for place in (self.name, *(f"{self.name}#{identity}" for identity in self._waiting)):
            self.manual.places.setdefault(place, self._section)
        self._waiting = []

    def _end(self) -> None:
        if self._section is not None:
            self._section.text = clean("".join(self._text))[:LONGEST]
        self._section, self._text = None, []


def kind_of(element: html.HtmlElement, inside: bool) -> Kind | None:
    """What an element begins, perhaps inside of a heading; None: nothing.

    A bold question, and a paragraph that is wholly bold, begins with "Q:" or is of a class of questions, is like a heading.
    """
    if element.tag == "dt":
        return "term"
    if HEADING.fullmatch(element.tag):
        return "heading"
    of_questions = "question" in (element.get("class") or "").lower()
    if inside or not (of_questions or element.tag in BOLD or element.tag == "p"):
        return None
    text = element.text_content()
    alone = of_questions or element.tag in BOLD or Q.match(text) or is_bold(element)
    return "question" if alone and len(text) < 300 and asked(clean(text)) else None


def is_bold(paragraph: html.HtmlElement) -> bool:
    """No word of it stands outside of elements that are bold or lead somewhere."""
    plain = (paragraph.text or "") + "".join(child.tail or "" for child in paragraph)
    return not plain.strip() and any(child.tag in BOLD for child in paragraph.iter())


def left_out(element: html.HtmlElement) -> bool:
    """Not the manual's prose: programs, forms, and what every page has."""
    return element.tag in LEFT_OUT or any(map(FURNITURE.fullmatch, (element.get("class") or "").split()))


def clean(text: str) -> str:
    """One line without paragraph signs and without numbering."""
    return NUMBERING.sub("", " ".join(re.sub("[¶§]|\\(#\\)", " ", text).split()))


def read_html(folder: Path) -> Manual:
    """All pages below a folder but a FAQ's: Python's is in a collection that the small checkpoint is measured on."""
    manual = Manual()
    for path in sorted(folder.rglob("*.htm*")):
        name = path.relative_to(folder)
        if path.is_file() and not path.is_symlink() and "faq" not in name.parts:
            Page(manual, name.as_posix().removesuffix(".gz")).read(content_of(path))
    return manual


def content_of(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def read_faqs(unpacked: Path) -> Iterator[Manual]:
    """Each file of `FAQS` that is called FAQ or lies in a folder of that name, a page or a plain text."""
    for path in (path for package in FAQS for path in sorted((unpacked / package / "usr/share").rglob("*"))):
        name = path.relative_to(unpacked).as_posix()
        named = "faq" in name.lower() and Path(name.removesuffix(".gz")).suffix.lower() in FAQ_SUFFIXES
        if not named or "_sources" in name or path.is_symlink() or not path.is_file():
            continue
        content, manual = content_of(path), Manual()
        if "htm" in path.name or b"<html" in content[:2000].lower():
            Page(manual, path.name).read(content)
        else:
            asked_and_said = read_text(content.decode("utf-8", "replace"))
            manual.sections = [Section("", question, "question", clean(said)[:LONGEST]) for question, said in asked_and_said]
        yield manual


def read_info(paths: list[Path]) -> Manual:
    """One Info manual in its files: nodes, their menus' and indexes' entries as links."""
    manual = Manual()
    text = "".join(gzip.decompress(path.read_bytes()).decode("utf-8", "replace") for path in paths)
    title = ""
    for node in re.split("\x1f\n", text)[1:]:
        head, _, body = node.partition("\n")
        name = re.search(r"Node: ([^,\n]+)", head)
        if name is None:
            continue
        body, _, menu = re.sub(r"\0\x08\[(image|index)[^\0]*\0\x08\]", "", body).partition("\n* Menu:")
        lines = body.strip("\n").split("\n")
        underlined = len(lines) > 1 and re.fullmatch(r"[*=.-]{3,}", lines[1].strip()) is not None
        heading = clean(lines[0]) if underlined else name[1]
        title = title or heading
        section = Section(title, heading, "heading", clean(" ".join(prose(lines[2 if underlined else 0 :])))[:LONGEST])
        manual.sections.append(section)
        manual.places.setdefault(name[1], section)
        for entry, place in re.findall(r"^\* ([^:\n]+?)(?: <\d+>)?:\s+([^.\n]+)\.", menu, re.MULTILINE):
            manual.links.append((clean(entry), place))
    return manual


def prose(lines: list[str]) -> Iterator[str]:
    """Lines that stand at the left or little indented: examples are indented by five."""
    return (line for line in lines if not line.startswith("     "))


@cache
def read_manuals(unpacked: Path) -> tuple[Manual, ...]:
    """All of them."""
    manuals = []
    for package, pattern in MANUALS.items():
        found = sorted((unpacked / package / "usr/share").glob(pattern))
        if pattern.startswith("info/"):
            manuals.append(read_info(sorted(found, key=lambda path: [int(n) for n in re.findall("[0-9]+", path.name)])))
        else:
            manuals.extend(read_html(folder) for folder in found)
    return tuple(manuals)
