"""The page is text from this server alone."""

import re

import pytest
from fastapi.testclient import TestClient

from colbert_diffusion.serving.app import PAGE


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_needs_nothing_from_elsewhere_and_nothing_inline(client: TestClient, path: str) -> None:
    page = client.get(path)
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|https?://", page.text)
    scripts = re.findall(r"<script([^>]*)>([^<]*)</script>", page.text)
    assert all("src=" in attributes and not content for attributes, content in scripts)
    for linked in re.findall(r'(?:src|href)="(static/[^"]+)"', page.text):
        assert client.get(f"/{linked}").status_code == 200


def test_scripts_never_write_markup() -> None:
    for script in PAGE.glob("*.js"):
        text = script.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_page_offers_the_three_modes_by_names_that_the_search_knows_and_hides_them_at_first(client: TestClient) -> None:
    """Hidden until /api/indexes says that the index has words: the script shows them."""
    page = client.get("/").text
    switch = re.search(r'<div id="modes" role="radiogroup" aria-labelledby="by" hidden>(.*?)</div>', page, re.S)
    assert switch is not None
    offered = re.findall(r'<label><input type="radio" name="mode" value="(\w+)">', switch[1])
    described = client.get("/openapi.json").json()["components"]["schemas"]["SearchRequest"]["properties"]["mode"]
    assert sorted(offered) == sorted(described["anyOf"][0]["enum"]) == ["dense", "hybrid", "lexical"]
    script = (PAGE / "page.js").read_text()
    assert '$("modes").hidden = !served().lexical' in script
    assert 'asked.set("mode", chosenMode())' in script
