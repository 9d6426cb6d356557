#!/usr/bin/env bash
# Other people's clients on our server and vectors, each in an environment of its own; see check_clients.py.
# Usage: [WORK=FOLDER] [NBITS=4] [PYTHON=...] bash scripts/check_clients.sh COLLECTION QUERIES [dspy] [fast-plaid] [pylate]
# Without names: all three. fast-plaid and PyLate need torch 2.11, several GB to download. Environments, vectors and
# indexes stay in WORK, which the next run goes on with. With PYTHON nothing is installed into .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
collection=${1:?"name a collection"} queries=${2:?"name its queries"}
shift 2
[ $# -gt 0 ] || set -- dspy fast-plaid pylate
WORK=${WORK:-$(mktemp -d)} NBITS=${NBITS:-4}
if [ -z "${PYTHON:-}" ]; then
    bash scripts/install.sh cpu,small,serve
    PYTHON=.venv/bin/python
fi
mkdir -p "$WORK"
echo "in $WORK"

# environment NAME PACKAGE...: its python
environment() {
    local folder=$WORK/env-$1
    shift
    if [ ! -f "$folder/installed" ]; then
        python3 -m venv "$folder"
        "$folder/bin/pip" install -q "$@"
        touch "$folder/installed"
    fi
    echo "$folder/bin/python"
}

"$PYTHON" -m colbert_diffusion encode "$collection" "$WORK/vectors"
"$PYTHON" scripts/check_clients.py ours "$collection" "$queries" "$WORK" --nbits "$NBITS"

failed=0
for client in "$@"; do
    case $client in
    dspy)
        python=$(environment dspy "dspy>=3")
        "$PYTHON" -m colbert_diffusion serve "$WORK/index" --port 0 2>"$WORK/serve.log" &
        server=$!
        trap 'kill $server 2>/dev/null || true' EXIT
        until url=$(grep -o 'http://\S*' "$WORK/serve.log"); do
            kill -0 $server || { cat "$WORK/serve.log" && exit 2; }
            sleep 1
        done
        DSPY_CACHEDIR=$(mktemp -d) "$python" scripts/check_clients.py dspy "$WORK" "$url/api/search" || failed=1
        kill $server
        wait $server || true
        ;;
    fast-plaid)
        python=$(environment fast-plaid torch==2.11.0 fast-plaid==1.7.0.2110 safetensors)
        "$python" scripts/check_clients.py fast-plaid "$WORK" || failed=1
        ;;
    pylate)
        python=$(environment pylate pylate==1.6.0 safetensors) # pins a fast-plaid of its own
        "$python" scripts/check_clients.py pylate "$WORK" || failed=1
        ;;
    *)
        echo "unknown client $client: dspy, fast-plaid or pylate" >&2
        exit 2
        ;;
    esac
done
exit $failed
