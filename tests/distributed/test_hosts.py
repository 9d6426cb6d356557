"""Two network namespaces as two hosts, a Ray node in each: one is cut off, for a while or for good, and the index is whole."""

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from colbert_diffusion import build_index
from colbert_diffusion.encoding import vectors as vector_files
from colbert_diffusion.seam import building

from ..conftest import make_texts
from ..seam.test_building import assert_same_index

NAMES = (f"cd-a-{os.getpid()}", f"cd-b-{os.getpid()}")
HEAD, OTHER = "10.213.77.1", "10.213.77.2"
SHARD, CHUNK, TEXTS = 500, 2000, 8000  # a shard is more than what Ray sends along with an answer: it stays where it was made

IP = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")

DRIVER = """
import sys
import colbert_diffusion.distributed.cluster
import colbert_diffusion.encoding.vectors
import colbert_diffusion.seam.building
from colbert_diffusion.distributed import RayCluster
from colbert_diffusion.index.by_path import build_index

colbert_diffusion.distributed.cluster.OVERDUE, colbert_diffusion.distributed.cluster.LATE = 5.0, 1.0
colbert_diffusion.encoding.vectors.SHARD = int(sys.argv[1])
colbert_diffusion.seam.building.CHUNK = int(sys.argv[2])
if __name__ == "__main__":
    address, checkpoint, texts, index = sys.argv[3:]
    with RayCluster(address) as cluster:
        import ray

        if len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) < 2:
            sys.exit("the other host is not there")
        build_index(index, texts, checkpoint, cluster=cluster, verbose=0)
"""


def ip(*arguments: str) -> None:
    subprocess.run([str(IP), *arguments], check=True, capture_output=True, text=True)


def delete(name: str) -> None:
    subprocess.run([str(IP), "netns", "del", name], capture_output=True)


def can_divide() -> bool:
    """Whether this machine lets us make network namespaces."""
    if IP is None:
        return False
    try:
        ip("netns", "add", NAMES[0])
    except subprocess.CalledProcessError:
        return False
    delete(NAMES[0])
    return True


pytestmark = pytest.mark.skipif(not can_divide(), reason="network namespaces need iproute2 and root")


class Hosts:
    """Two of them with a link, each with a Ray node of one CPU."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mine = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.environment = {
            **mine,
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        }
        for name in NAMES:
            delete(name)
            ip("netns", "add", name)
        ip("link", "add", "cd-a", "netns", NAMES[0], "type", "veth", "peer", "name", "cd-b", "netns", NAMES[1])
        for name, device, address in zip(NAMES, ("cd-a", "cd-b"), (HEAD, OTHER), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", device, "up")
        head = ["--head", f"--node-ip-address={HEAD}", "--port=6379", "--include-dashboard=false", f"--temp-dir={folder}"]
        self._ray(0, *head)
        self._ray(1, f"--address={HEAD}:6379", f"--node-ip-address={OTHER}")

    def _ray(self, host: int, *options: str) -> None:
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--num-cpus=1",
            "--object-store-memory=300000000",
            *options,
        ]
        self.popen(host, *command).wait(120)

    def popen(self, host: int, *command: str) -> "subprocess.Popen[bytes]":
        inside = [str(IP), "netns", "exec", NAMES[host], *command]
        return subprocess.Popen(inside, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def link(self, state: str) -> None:
        ip("-n", NAMES[1], "link", "set", "cd-b", state)

    def end(self, host: int) -> None:
        """Kill all that runs on a host."""
        listed = subprocess.run([str(IP), "netns", "pids", NAMES[host]], capture_output=True, text=True)
        subprocess.run(["kill", "-9", *listed.stdout.split()], capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    folder = Path("/tmp") / f"cd-{os.getpid()}"  # Ray's sockets lie in it: their paths may have 107 characters
    made = Hosts(folder)
    yield made
    for host in (0, 1):
        made.end(host)
        delete(NAMES[host])
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hosts") / "c.tsv"
    path.write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(make_texts(TEXTS, seed=8))))
    return path


@pytest.fixture(scope="module")
def alone(collection: Path, tiny_checkpoint: Path) -> Path:
    """What one process makes of it."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_files, "SHARD", SHARD)
        patch.setattr(building, "CHUNK", CHUNK)
        torch.set_num_threads(1)
        build_index(collection.parent / "one" / "i", collection, tiny_checkpoint, verbose=0)
        torch.set_num_threads(threads)
    return collection.parent / "one"


@pytest.mark.parametrize("healed_after", [12.0, None])
def test_a_host_that_is_cut_off_or_lost_delays_the_index_and_changes_nothing(
    healed_after: float | None, hosts: Hosts, collection: Path, alone: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    files = [tmp_path / "driver.py", SHARD, CHUNK, f"{HEAD}:6379", tiny_checkpoint, collection, tmp_path / "many" / "i"]
    driver = hosts.popen(0, sys.executable, *map(str, files))
    deadline = time.monotonic() + 240
    shards = tmp_path / "many" / "i.partial"
    while len(done := list(shards.rglob("*.safetensors"))) < 3 and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.01)
    hosts.link("down")
    assert 3 <= len(done) < TEXTS // SHARD
    if healed_after is None:
        hosts.end(1)
    else:
        time.sleep(healed_after)
        hosts.link("up")
    assert driver.wait(300) == 0
    assert_same_index(alone, tmp_path / "many")
