"""Do the masked positions say what a passage is about?

Of a random sample of passages: the share with at least one content word of the passage among the words that its
positions predict (the best 10 of each), beside the share with a word of another passage, as the mean over all other
passages of the sample, so no draw decides. Words are compared, not token ids: a prediction counts only when it is a
whole word of the text; stop words and single letters never count. Then the predictions for the collection's first
passages, as they come.

Usage: words.py CHECKPOINT PASSAGES [--texts 500] [--top 10] [--show 5]

PASSAGES is a .tsv, a .jsonl or a BEIR folder.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from common import errors_in_a_line, make_parser, print_table

from colbert_diffusion import DiffusionCheckpoint
from colbert_diffusion.common.errors import UserError
from colbert_diffusion.encoding.lexical import content_words
from colbert_diffusion.texts.collection import read_collection

Predicted = list[list[str]]  # of a passage: for each position its words, best first


def shares(predicted: Sequence[Predicted], passages: Sequence[str]) -> tuple[float, float]:
    """Of the passages those with a content word of their own among their predictions, and of any other passage's.

    Raises:
        UserError: there are fewer than two passages.
    """
    count = len(passages)
    if count < 2:
        raise UserError(f"{count} passages: another passage to compare with needs at least 2")
    said = [{word.lower() for position in positions for word in position} for positions in predicted]
    words = [set(content_words(passage)) for passage in passages]
    own = sum(not s.isdisjoint(w) for s, w in zip(said, words, strict=True))
    pairs = sum(not s.isdisjoint(w) for s in said for w in words)
    return own / count, (pairs - own) / (count * (count - 1))


def show(number: int, passage: str, positions: Predicted) -> None:
    """A passage's beginning and a line for each position."""
    start = " ".join(passage.split())
    print(f"\n{number}. {start[:200]}{'...' if len(start) > 200 else ''}\n")
    print_table(("position", "predictions"), ((place, " ".join(words)) for place, words in enumerate(positions, 1)))


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", help="folder or hub id")
    parser.add_argument("passages", type=Path)
    parser.add_argument("--texts", type=int, default=500, help="passages drawn with a fixed seed")
    parser.add_argument("--top", type=int, default=10, help="predictions of a position")
    parser.add_argument("--show", type=int, default=5, help="passages whose predictions are printed")
    given = parser.parse_args(arguments)
    collection = read_collection(given.passages)
    sample = random.Random(0).sample(list(collection), min(given.texts, len(collection)))
    checkpoint = DiffusionCheckpoint(given.checkpoint)
    own, other = shares(checkpoint.predict_words(sample, top=given.top), sample)
    first = list(collection[: given.show])
    predicted = checkpoint.predict_words(first, top=given.top)
    factor = f"{own / other:.2f}" if other else "-"
    columns = ("passages", "predictions", "with a word of the passage", "of another passage", "factor")
    row = (len(sample), f"{checkpoint.config.k_passage} x {given.top}", f"{own:.3f}", f"{other:.3f}", factor)
    print_table(columns, [row])
    for number, (passage, positions) in enumerate(zip(first, predicted, strict=True)):
        show(number, passage, positions)


if __name__ == "__main__":
    main()
