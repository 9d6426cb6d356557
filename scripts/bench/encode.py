"""Encoding throughput beside a plain transformers loop on the same texts, in one run.

The plain loop is what one writes first: fixed batches in input order, padded to the longest, the same weights, ids
and positions read. Both count real tokens (prompt, text, masks and tail; padding excluded). The two take turns, so
that a machine's drift hits both; the ratio is of the medians.

Usage: encode.py TEXTS [--checkpoint FOLDER] [--texts 1000] [--batch 32] [--rounds 3] [--batch-tokens N]
"""

import statistics
from collections.abc import Callable

import torch
from common import errors_in_a_line, in_turns, make_parser

from colbert_diffusion import DiffusionCheckpoint, default_checkpoint
from colbert_diffusion.encoding.prompts import pad
from colbert_diffusion.texts.collection import read_collection


def plain_loop(checkpoint: DiffusionCheckpoint, texts: list[str], batch: int) -> torch.Tensor:
    """Tokenise a batch, pad it to its longest row, run the model, read the masked positions."""
    encoder = checkpoint.encoder
    prompt, k = encoder.prompts["passage"], checkpoint.config.k_passage
    vectors = []
    for start in range(0, len(texts), batch):
        rows = [prompt.row(ids) for ids in encoder.backbone.tokenize(texts[start : start + batch], prompt.room)]
        ids, lengths = pad([row.ids for row in rows], encoder.backbone.filler_id)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        with torch.inference_mode():
            states = encoder.backbone.model(
                input_ids=ids.to(checkpoint.device), attention_mask=mask.to(checkpoint.device)
            ).last_hidden_state
            positions = torch.tensor([row.first_mask for row in rows])[:, None] + torch.arange(k)
            read = states.take_along_dim(positions[:, :, None].to(states.device), dim=1)
            vectors.append(encoder.projection(read).cpu())
    return torch.cat(vectors)


@errors_in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("collection")
    parser.add_argument("--checkpoint", default=default_checkpoint())
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int)
    options = parser.parse_args(arguments)

    texts = list(read_collection(options.collection)[: options.texts])
    checkpoint = DiffusionCheckpoint(options.checkpoint, batch_tokens=options.batch_tokens)
    prompt = checkpoint.encoder.prompts["passage"]
    tokens = sum(len(prompt.row(ids).ids) for ids in checkpoint.encoder.backbone.tokenize(texts, prompt.room))
    print(f"{len(texts)} passages, {tokens:,} tokens, {checkpoint.device}, {checkpoint.encoder.backbone.dtype}")

    runs: dict[str, Callable[[], object]] = {
        "engine": lambda: checkpoint.encode_document(texts),
        "plain loop": lambda: plain_loop(checkpoint, texts, options.batch),
    }
    plain_loop(checkpoint, texts[: options.batch], options.batch)  # warm up
    times = in_turns(runs, options.rounds)
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        spread = f"{min(times[name]):.1f}-{max(times[name]):.1f} s"
        print(f"{name:>10}: {tokens / value:8,.0f} tokens/s  {len(texts) / value:6.1f} passages/s  ({spread})")
    print(f"ratio engine / plain loop: {median['plain loop'] / median['engine']:.2f}")


if __name__ == "__main__":
    main()
