import pytest

from .conftest import Takes, load, rows

SMALL = ["--hidden", "16", "--layers", "1", "--tokens", "6", "--prompt", "3", "--k", "1,4", "--batches", "1,2", "--rounds", "1"]


def test_times_are_per_text_and_beside_them_their_ratios(takes: Takes, capsys: pytest.CaptureFixture[str]) -> None:
    takes(0.010, 0.030, 0.020, 0.040, 0.011, 0.036, 0.080, 0.120)  # masked, decoded for k 1, then 4; one text, then two
    load("bench/parallel").main(SMALL)
    assert rows(capsys.readouterr().out) == [
        ["1", "1", "10.00", "20.00", "1.00", "1.00", "1.00", "2.00"],
        ["1", "4", "11.00", "80.00", "1.10", "1.30", "4.00", "7.27"],  # 3 + 6 + 4 tokens to 3 + 6 + 1
        ["2", "1", "15.00", "20.00", "1.00", "1.00", "1.00", "1.33"],
        ["2", "4", "18.00", "60.00", "1.20", "1.30", "3.00", "3.33"],
    ]


def test_both_ways_encode_the_same_tokens_and_give_k_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel = load("bench/parallel")
    seen: dict[tuple[str, int], tuple[int, int]] = {}
    make = parallel.checkpoint

    def noting(*arguments: object) -> object:
        model, way = make(*arguments), arguments[2]
        [vectors] = model.encode_document(parallel.texts_of(1, 6))
        [row] = model.encoder.rows(parallel.texts_of(1, 6), "passage")
        seen[way.how, way.k] = (len(row.ids), len(vectors))  # type: ignore[attr-defined]
        return model

    monkeypatch.setattr(parallel, "checkpoint", noting)
    parallel.main(SMALL)
    assert seen == {("masked", 1): (10, 1), ("decoded", 1): (9, 1), ("masked", 4): (13, 4), ("decoded", 4): (9, 4)}
