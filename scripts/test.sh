#!/usr/bin/env bash
# Install, check style and types, prove ColBERT unedited, run every test.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh cpu,small,test
export HF_HUB_OFFLINE=1
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
.venv/bin/python third_party/verify.py
.venv/bin/python -m pytest
