#!/usr/bin/env bash
# Make .venv and install the package into it, once; sourced by demo.sh and test.sh. Usage: install.sh [EXTRAS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${1:-cpu,small}
stamp=".venv/installed-$(cat requirements.txt pyproject.toml <(echo "$extras") | sha256sum | cut -c1-16)"
[ -f "$stamp" ] && exit 0
echo "installing into .venv (torch, transformers, ColBERT: about 1.7 GB, one to three minutes)"
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install -q -r requirements.txt
.venv/bin/python -m pip install -q -e ".[$extras]"
touch "$stamp"
