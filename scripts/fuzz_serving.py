"""Fuzz a running server from its own OpenAPI and say what became of it: statuses, 5xx, alive, resident memory.

schemathesis runs with one seed after another, valid and invalid requests alike, until enough were answered; the
server's /metrics counts them. Memory is read at the start, after the first runs (allocators fill up), and at the end.
Exits with 1 when anything but 503 was a 5xx, or the process is gone or another one.

Run it with an interpreter that has schemathesis beside it: scripts/fuzz_serving.sh makes one.

Usage: fuzz_serving.py URL [--requests 10000] [--token TOKEN]
"""

import argparse
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

ANSWERED = re.compile(r'^colbert_diffusion_requests_total\{method="\w+",route="(\S+)",status="(\d+)"\} (\S+)$', re.MULTILINE)
WARM = 1000  # requests
EXAMPLES = 60  # of each operation, phase and seed


class State(NamedTuple):
    """Of the server, by its own account."""

    statuses: Counter[int]
    resident: float  # bytes
    started: float  # when its process did


def look(url: str, token: str | None) -> State:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urlopen(Request(f"{url}/metrics", headers=headers), timeout=60) as answer:
        text = answer.read().decode()
    statuses: Counter[int] = Counter()
    for route, status, count in ANSWERED.findall(text):
        if route != "/metrics":
            statuses[int(status)] += int(float(count))
    gauge = {name: float(value) for name, value in re.findall(r"^(process_\w+) (\S+)$", text, re.MULTILINE)}
    return State(statuses, gauge["process_resident_memory_bytes"], gauge["process_start_time_seconds"])


def fuzz(url: str, token: str | None, seed: int) -> None:
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--continue-on-failure"]
    command += ["--checks", "not_a_server_error", "--max-examples", str(EXAMPLES), "--seed", str(seed), "--no-shrink"]
    command += ["--suppress-health-check", "all", "--request-timeout", "60", "--mode", "all"]
    command += ["-H", f"Authorization: Bearer {token}"] if token else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: a check failed, which the counts below say too
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    if done.returncode:
        print(done.stdout[-3000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="http://127.0.0.1:8893")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--token")
    options = parser.parse_args()
    url = options.url.rstrip("/")

    first = now = look(url, options.token)
    warm: State | None = None
    seed = answered = 0
    while answered < options.requests:
        fuzz(url, options.token, seed)
        now = look(url, options.token)
        answered, seed = (now.statuses - first.statuses).total(), seed + 1
        if warm is None and answered >= min(WARM, options.requests):
            warm = now
        print(f"{answered:,} requests, resident {now.resident / 2**20:.0f} MiB", flush=True)

    statuses = now.statuses - first.statuses
    broken = {status: count for status, count in statuses.items() if status >= 500 and status != 503}
    alive = now.started == first.started
    mib = [state.resident / 2**20 for state in (first, warm or now, now)]
    print(f"statuses: {', '.join(f'{status}: {count:,}' for status, count in sorted(statuses.items()))}")
    print(f"5xx but 503: {sum(broken.values())}; the same process: {'yes' if alive else 'NO'}")
    print("resident MiB at the start, warm, at the end: {:.0f}, {:.0f}, {:.0f}".format(*mib))
    sys.exit(0 if alive and not broken else 1)


if __name__ == "__main__":
    main()
