#!/usr/bin/env bash
# MS MARCO's 8.8 million passages with one checkpoint: plan, index, search dev, measure.
# Usage: [CHECKPOINT=FOLDER] [DATA=msmarco] [RANKS=N] [NBITS=2] [INDEX=FOLDER] [PYTHON=...] bash scripts/index_msmarco.sh [--limit N]
# DATA has collection.tsv, queries.dev.small.tsv and qrels.dev.small.tsv; what is absent is fetched through ir_datasets.
# Interrupted, the same command goes on. With --limit N: see msmarco.py. With PYTHON nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    bash scripts/install.sh cpu,small,evaluate
    PYTHON=.venv/bin/python
    ls "${DATA:-msmarco}"/{collection,queries.dev.small,qrels.dev.small}.tsv >/dev/null 2>&1 || $PYTHON -m pip install -q ir_datasets
fi
CHECKPOINT=${CHECKPOINT:-colbert_diffusion/models/small} DATA=${DATA:-msmarco} NBITS=${NBITS:-2}
RANKS=${RANKS:-$("$PYTHON" -c "import torch; print(max(1, torch.cuda.device_count()))")} # one process per GPU
run() { "$PYTHON" -m colbert_diffusion "$@"; }

data=$("$PYTHON" scripts/msmarco.py "$DATA" "$@")
INDEX=${INDEX:-$data.index}
if [ ! -e "$INDEX" ] && [ ! -e "$INDEX.partial" ]; then
    run plan --passages "$(wc -l <"$data/collection.tsv")" --checkpoint "$CHECKPOINT" --nbits "$NBITS" --index "$INDEX"
fi
if [ ! -f "$INDEX/metadata.json" ]; then
    run index "$data/collection.tsv" "$INDEX" --checkpoint "$CHECKPOINT" --nbits "$NBITS" --ranks "$RANKS"
fi
hours=$(awk "BEGIN { printf \"%.2f\", $SECONDS / 3600 }")
run evaluate "$data" --split dev.small --index "$INDEX" --checkpoint "$CHECKPOINT" \
    --measures "RR@10 R@50 R@1000" --out "$INDEX.dev"
echo "index: $(du -sh "$INDEX" | cut -f1) in $INDEX, $hours hours of this run; TREC run: $INDEX.dev/plaid.trec"
