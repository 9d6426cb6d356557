#!/usr/bin/env bash
# The paper's own table (arXiv 2605.07210) from its released checkpoints: seven BEIR collections, MS MARCO dev, DL19 and DL20.
# Usage: [OUT=paper] [SYSTEMS=scripts/paper.json] bash scripts/paper.sh [--plan]; a GPU of 24 GB or more; goes on where it was.
# Needs `pip install ir_datasets` and the hub. Published nDCG@10, mean of the seven (read off its figure, within .002; "card":
# the checkpoint's card): Dream 1 .654, Dream 4-16 .671, LLaDA 1 .643 (card), LLaDA 4-4 .645, BM25 .472; of the systems whose
# checkpoints are not released: PromptReps .658 and .664, DiffEmbed .639 and .595, RepLLaMA .565. LLaDA 1's card, dense: MS MARCO
# dev RR@10 .424, DL19 nDCG@10 .715, DL20 .715.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-paper} SYSTEMS=${SYSTEMS:-scripts/paper.json}
beir="nq hotpotqa/test scifact/test trec-covid fiqa/test arguana quora/test"
marco="dev/small trec-dl-2019/judged trec-dl-2020/judged"
.venv/bin/colbert-diffusion compare $(printf -- 'ir_datasets:beir/%s ' $beir) --systems "$SYSTEMS" --out "$OUT/beir" "$@"
.venv/bin/colbert-diffusion compare $(printf -- 'ir_datasets:msmarco-passage/%s ' $marco) --systems "$SYSTEMS" --out "$OUT/marco" \
    --measures "RR@10 nDCG@10 R@100 R@1000" "$@"
