"""From index folders to Ray Serve: replicas behind one address, and a new build taken over by all of them.

Where nothing changed, nothing is done. Else new replicas start beside the old ones, which answer until those are ready. The
parts of an index are applications of their own, named by its build: those of both are there until the last is answered.
"""

import logging
import signal
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..common import fingerprint
from ..common.errors import UserError
from ..common.optional import extra, need
from ..index.parts import divide
from ..serving.service import Limits
from .replicas import APPLICATION, PARTS, PATIENCE, Part, Served, Whole, part_name

COMMON: dict[str, Any] = {  # of every deployment
    "max_ongoing_requests": Limits.pending,
    "graceful_shutdown_timeout_s": 30.0,  # that accepted requests have to finish in a replica that is stopped
    "max_constructor_retry_count": 3,  # until a deployment counts as failed
}
BUSY = 16  # requests that a replica answers at a time before Ray adds another


class Size(NamedTuple):
    """How much runs.

    replicas: of the application, at least and at most; between them Ray follows the requests.
    cpus, gpus: of a replica; its models and searches compute with as many threads.
    parts: that the vectors of an index are divided into, each in a replica of its own beside those; 0: every replica has all.
    """

    replicas: tuple[int, int] = (1, 1)
    cpus: int = 1
    gpus: float = 0
    parts: int = 0


def deploy(served: Served, size: Size, host: str, port: int) -> str:
    """Start or update the application on the cluster that this process has joined, and return its address.

    Raises:
        UserError: numbers that make no sense, the cluster has no room, or a replica cannot open an index.
    """
    serve = _ray("ray.serve")
    _check(served, size)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    _check_address(host, port)
    running = {name for name, about in serve.status().applications.items() if about.status == "RUNNING"}
    parts = {part_name(served.states[0], number, size.parts): number for number in range(size.parts)}
    fresh = {name: number for name, number in parts.items() if name not in running}
    identity = _identity(served, size)
    if fresh or APPLICATION not in running or _identity_there() != identity:
        _check_room(size, len(fresh) + (0 if APPLICATION in running else size.replicas[0]))
        part = serve.deployment(Part).options(**COMMON, ray_actor_options={"num_cpus": size.cpus})
        _run([(part.bind(served, number, size.parts), name, None) for name, number in fresh.items()])
        _run([(_application(size).bind(served, size.parts, identity), APPLICATION, "/")])
    if old := [name for name in serve.status().applications if name.startswith(PARTS) and name not in parts]:
        time.sleep(PATIENCE)  # whoever asked them has an answer by then
        for name in old:
            serve.delete(name)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _ray(module: str) -> Any:
    return need(module, "replicas", extra("ray"))


def _identity(served: Served, size: Size) -> str:
    """Of all that decides what is answered, and how."""
    token = served.options.get("token_file")
    return fingerprint.of_texts([__version__, repr(served), repr(size), Path(token).read_text() if token else ""])


def _identity_there() -> str | None:
    """Of the application that runs; None: it does not say."""
    serve = _ray("ray.serve")
    try:
        found: str = serve.get_app_handle(APPLICATION).identity.remote().result(timeout_s=PATIENCE)
    except TimeoutError:
        return None
    return found


def _check(served: Served, size: Size) -> None:
    least, most = size.replicas
    if not 1 <= least <= most or size.parts < 0:
        raise UserError(
            f"{least} to {most} replicas and {size.parts} parts; expected at least 1 replica and no more than at most"
        )
    if size.parts and len(served.indexes) > 1:
        raise UserError(f"parts are those of one index, there are {len(served.indexes)}; serve them one by one")
    if size.parts:
        divide(served.indexes[0], size.parts)


def _check_address(host: str, port: int) -> None:
    """Raises UserError where Ray Serve runs already and listens elsewhere: it keeps its address without a word."""
    options = _ray("ray.serve.context")._get_global_client().http_config  # Ray publishes it nowhere
    if (options.host, options.port) != (host, port):
        raise UserError(
            f"Ray Serve runs on this cluster and listens on {options.host}, port {options.port}; take those, or "
            "end it with `serve shutdown`"
        )


def _free(size: Size, replicas: int) -> tuple[bool, str]:
    """Whether so many could start now, and the numbers."""
    free = _ray("ray").available_resources()
    cpus, gpus = replicas * size.cpus, replicas * size.gpus
    said = f"{cpus} CPUs and {gpus:g} GPUs, the cluster has {free.get('CPU', 0):g} and {free.get('GPU', 0):g} free"
    return bool(free.get("CPU", 0) >= cpus and free.get("GPU", 0) >= gpus), said


def _check_room(size: Size, replicas: int) -> None:
    """Raises UserError where Ray would wait for nodes for ever."""
    enough, said = _free(size, replicas)
    if not enough:
        raise UserError(f"{replicas} new replicas want {said}; ask for fewer or add nodes")


def _application(size: Size) -> Any:
    """Its deployment; without room for new replicas beside the old ones, these make room one after the other."""
    serve = _ray("ray.serve")
    least, most = size.replicas
    follow = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": BUSY}
    return serve.deployment(serve.ingress()(Whole)).options(
        **COMMON,
        **({"num_replicas": least} if least == most else {"autoscaling_config": follow}),
        max_queued_requests=2 * Limits.pending,
        max_surge_percent=100 if _free(size, least)[0] else 0,
        ray_actor_options={"num_cpus": size.cpus, "num_gpus": size.gpus},
    )


def _run(applications: list[tuple[Any, str, str | None]]) -> None:
    """(deployment, name, route) side by side, until all of them run.

    Raises:
        UserError: one does not.
    """
    if not applications:
        return
    serve = _ray("ray.serve")
    target = _ray("ray.serve.api").RunTarget
    try:
        serve.run_many([target(*one) for one in applications])
    except RuntimeError as error:
        about = serve.status().applications
        found = [deployment.message for _, name, _ in applications for deployment in about[name].deployments.values()]
        for _, name, route in applications:
            if route is None:  # parts that nobody asks
                serve.delete(name)
        raise UserError(_reason("\n".join([str(error), *found]))) from error


def _reason(text: str) -> str:
    """The line of ours in Ray's report of a replica that failed, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = [line.partition("UserError: ")[2] for line in lines if "UserError: " in line]
    return f"a replica could not start: {(ours or lines)[-1]:.400}"


def stay() -> None:
    """Until this process is told to stop; what it started ends with it."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
