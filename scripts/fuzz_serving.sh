#!/usr/bin/env bash
# Thousands of requests that schemathesis makes up from a running server's OpenAPI; see fuzz_serving.py.
# Usage: bash scripts/fuzz_serving.sh URL [--requests 10000] [--token TOKEN]; FOLDER=... keeps the environment for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
FOLDER=${FOLDER:-$(mktemp -d)}
if [ ! -x "$FOLDER/bin/schemathesis" ]; then
    python3 -m venv "$FOLDER"
    "$FOLDER/bin/pip" install -q "schemathesis>=4,<5"
fi
exec "$FOLDER/bin/python" scripts/fuzz_serving.py "$@"
