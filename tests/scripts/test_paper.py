import json
import shutil
from pathlib import Path

import pytest

from ..conftest import PARITY, make_texts
from .conftest import load, refusal, rows


def test_a_release_is_projected_compared_and_shown_beside_what_is_published(
    beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = load("paper")
    facts = {
        "checkpoints": {"tiny": str(PARITY / "released-dream")},
        "beir": [str(beir)],
        "published": {"nDCG@10": {"tiny": 0.5}},
    }
    (tmp_path / "paper.json").write_text(json.dumps(facts))
    monkeypatch.setattr(paper, "FACTS", tmp_path / "paper.json")
    fit = tmp_path / "fit.tsv"
    fit.write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(make_texts(60))))
    arguments = [str(tmp_path / "out"), "--fit-on", str(fit), "--dim", "16"]
    paper.main([*arguments, "--plan"])
    assert capsys.readouterr().out.startswith("tiny: ")
    paper.main(arguments)
    printed = capsys.readouterr().out
    names = {row[0] for row in rows(printed)}
    assert {"BM25", "tiny dense", "tiny hybrid"} <= names
    assert "| tiny | nDCG@10 | 0.500 |" in printed
    shutil.copytree(tmp_path / "out" / "systems" / "tiny", tmp_path / "out" / "systems" / "asked-for-earlier")
    paper.main(arguments)
    assert {row[0] for row in rows(capsys.readouterr().out)} == names
    assert "choose from tiny" in refusal(paper.main, [*arguments, "--checkpoints", "other"], capsys)


def test_its_facts_name_what_the_package_can_read() -> None:
    paper = load("paper")
    facts = json.loads(paper.FACTS.read_text())
    assert len(facts["beir"]) == 7
    assert all(name.startswith("ir_datasets:") for collections in ("beir", "msmarco") for name in facts[collections])
    assert all(name.startswith("ielabgroup/diffretriever-") for name in facts["checkpoints"].values())
