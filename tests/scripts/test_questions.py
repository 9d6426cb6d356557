"""scripts/pairs/questions.py, and the questions that manuals.py finds in pages"""

import gzip
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import load

SAID = "says enough of what it is about to be the passage of a pair, and then some more of it to be safe"


@pytest.fixture(scope="module")
def questions() -> ModuleType:
    return load("pairs/questions")


@pytest.fixture(scope="module")
def manuals() -> ModuleType:
    return load("pairs/manuals")


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("How do I undo a commit?", "How do I undo a commit?"),
        ("3.2.1) Where  are\n  the logs?", "Where are the logs?"),
        ("Q12: Why is it slow?", "Why is it slow?"),
        ("**Q**: Why is it slow?", "Why is it slow?"),
        ("[Q] - Why is it slow?", "Why is it slow?"),
        ("## Is it free? ##", "Is it free?"),
        ("Subject: 1.05. Who wrote this?", "Who wrote this?"),
        ("b) Can I sell it? ------", "Can I sell it?"),
        ("I have a disk. What now?", "I have a disk. What now?"),
        ("A page is gone, why is it?", "A page is gone, why is it?"),
        ("Why are traces in C++ (a language) so large?", "Why are traces in C++ (a language) so large?"),
    ],
)
def test_a_question_is_kept_without_what_numbers_it(text: str, question: str, questions: ModuleType) -> None:
    assert questions.asked(text) == question


@pytest.mark.parametrize(
    "text",
    [
        "How to undo a commit",
        "Why?",
        "and so what is it?",
        "Combien de pages?",
        "What " + "a " * 30 + "b?",
        "Is 1 + 2 = 3 * 4 / 5?",
        "",
    ],
)
def test_other_lines_are_no_questions(text: str, questions: ModuleType) -> None:
    assert questions.asked(text) is None


def test_a_plain_texts_question_has_what_is_said_up_to_the_next(questions: ModuleType) -> None:
    text = f"""
FAQ of a program

1. How do I start?
2. Where are the
   logs?

1. How do I start?
------------------
It {SAID}.

And more.\r

Q2: Where are the
    logs?
A: In a folder. Is that all? Yes.

Is it free?

  It is.

Would anyone read this? No, since it goes on
as a text does.

Who may change it?
    Everyone.
"""
    assert [(question, " ".join(said.split())) for question, said in questions.read_text(text)][1:] == [
        ("How do I start?", f"It {SAID}. And more."),
        ("Where are the logs?", "A: In a folder. Is that all? Yes."),
        ("Is it free?", "It is. Would anyone read this? No, since it goes on as a text does."),
        ("Who may change it?", "Everyone."),
    ]


@pytest.mark.parametrize(
    ("said", "answer"),
    [("A: Yes.", "Yes."), ("**A**: Yes.", "Yes."), ("[A] - Yes.", "Yes."), ("Answer: Yes.", "Yes."), ("A page.", "A page.")],
)
def test_an_answer_has_no_mark(said: str, answer: str, questions: ModuleType) -> None:
    assert questions.without_mark(said) == answer


def test_files_named_faq_are_read_in_pages_and_in_plain_text(manuals: ModuleType, tmp_path: Path) -> None:
    page = f"""<html><body><h1>Contents</h1><ul><li><b>How do I start?</b></li></ul>
<h2>1.1 How do I start?</h2><p>It {SAID}.</p><h3>Notes</h3><p>None.</p>
<p><b>Is it free?</b></p><p>A: It {SAID}.</p><p>Would <b>you</b> ask why it is so?</p>
<p>Q: Who made it?</p><p>It {SAID}.</p><div class="question">May I sell it?</div><p>It {SAID}.</p></body></html>"""
    files = {
        "lsof/usr/share/doc/a/html/faq.html": page,
        "lsof/usr/share/doc/a/html/_sources/faq.rst.txt": "What of a page's source?\n\nIt is the page again.\n",
        "cvs/usr/share/doc/a/FAQ.gz": f"Why is it slow?\n\nIt {SAID}.\n",
        "python3.11-doc/usr/share/doc/python3.11/html/faq/general.html": f"<h1>What is this made of?</h1><p>It {SAID}.</p>",
        "cvs/usr/share/doc/a/faq.png": "Is this a text?\n\nNo.\n",
        "cvs/usr/share/doc/a/README": "Is this one?\n\nNo.\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    found = [dict(manual.pairs("question")) for manual in manuals.read_faqs(tmp_path)]
    assert found == [
        {"Why is it slow?": f"It {SAID}."},
        {
            "How do I start?": f"It {SAID}.",
            "Is it free?": f"It {SAID}. Would you ask why it is so?",
            "Who made it?": f"It {SAID}.",
            "May I sell it?": f"It {SAID}.",
        },
    ]


def test_a_manuals_question_is_no_heading(manuals: ModuleType, tmp_path: Path) -> None:
    page = f"<h1>Why is it slow at first?</h1><p>It {SAID}.</p><h2>How it is made</h2><p>It {SAID}, again.</p>"
    (tmp_path / "index.html").write_text(page)
    manual = manuals.read_html(tmp_path)
    assert dict(manual.pairs("heading")) == {"How it is made": f"It {SAID}, again."}
    assert dict(manual.pairs("question")) == {"Why is it slow at first?": f"It {SAID}."}
