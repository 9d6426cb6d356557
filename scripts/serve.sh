#!/usr/bin/env bash
# Serve indexes over HTTP, with a search page at http://127.0.0.1:8893
# Usage: [PORT=8893] bash scripts/serve.sh [INDEX...]; without one the demo's, which scripts/demo.sh builds first.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bash "$root/scripts/install.sh" cpu,small,serve
if [ $# -eq 0 ]; then
    [ -f "$root/demo/index/metadata.json" ] || bash "$root/scripts/demo.sh"
    set -- "$root/demo/index"
fi
exec "$root/.venv/bin/colbert-diffusion" serve "$@" --port "${PORT:-8893}"
