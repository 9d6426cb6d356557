"""Ids are found by hash and compared where they lie: two of one hash are told apart."""

import pytest

from colbert_diffusion.texts import lookup
from colbert_diffusion.texts.lookup import Lookup

IDS = [f"id-{number}" for number in range(50)]


def looked_up(ids: list[str]) -> Lookup:
    return Lookup(ids, len(ids), ids.__getitem__)


def test_every_id_is_found_at_its_first_place_and_no_other_is() -> None:
    table = looked_up([*IDS, "id-7"])
    assert [table.find(identifier) for identifier in IDS] == list(range(50))
    assert [table.find(other) for other in ("", "id-", "id-50", "ID-7")] == [None] * 4
    assert table.repeats()
    assert not looked_up(IDS).repeats()


@pytest.mark.parametrize("hashes", [1, 3])
def test_ids_of_one_hash_are_told_apart(hashes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "hash_of", lambda identifier: len(identifier) * 7 % hashes)
    table = looked_up(IDS)
    assert [table.find(identifier) for identifier in IDS] == list(range(50))
    assert [table.find(other) for other in ("id-50", "xx-07", "")] == [None] * 3
