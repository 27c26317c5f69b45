"""Ray: connected or started, its places found, and the workers on them. The only place that knows its names.

Without an address Ray is started for this job alone and ends with it. Who can speak to Ray can run code as its user,
and Ray asks nobody who he is unless told to. Therefore that Ray listens on the loopback alone, wants a token of this
process, has no dashboard and keeps its sockets and logs in a private folder. A cluster that exists is as safe as
those who run it made it.
"""

import contextlib
import functools
import logging
import os
import secrets
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmtl.errors import EnvironmentFailure, SafetyRefusal, UserError
from medmtl.inference.cluster_share import Part, share

_STORE = 80 * 2**20  # bytes of Ray's object store, a little above its least: only lines of JSON pass through
_PLACES_S = 60.0  # for places that somebody else holds to become free
_ENDING_S = 60.0  # for Ray Data to see that its work is done, on a busy machine
_ASKED = "RAY_gcs_server_port_wait_time_s"  # how often an address is asked: by default twenty times, 40 s each
_LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Cluster:
    """Where a job runs: on so many workers of the Ray at ``address``; None: of one that is started for this job."""

    workers: int
    address: str | None = None  # HOST:PORT, or auto: that of this machine

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError("E-RAY-JOB", f"{self.workers} workers", "give 1 or more", where="--ray")
        if self.address is not None and "://" in self.address:
            remedy = "give HOST:PORT of its head, or auto, on a machine of the cluster"
            raise UserError("E-RAY-JOB", "Ray Client is not supported", remedy, where="--ray-address")


@dataclass(frozen=True)
class Places:
    """What each worker takes, where they are, and how many are on one machine at most."""

    use: Mapping[str, float]  # CPU, and GPU where it has one
    strategy: Any  # of Ray's scheduling
    beside: int

    @property
    def device(self) -> str:
        return "cuda" if "GPU" in self.use else "cpu"


def threads() -> int:
    """Threads of torch in each worker: one, as ``torchrun`` has it, unless OMP_NUM_THREADS says otherwise."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isdecimal() else 1


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """The library, connected to the cluster or to one that is started for this job; what it took is given back."""
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"address": cluster.address}
        variables = {"RAY_USAGE_STATS_ENABLED": "0"}
        if cluster.address is not None:
            variables |= {_ASKED: os.environ.get(_ASKED, "1")}
        else:
            root = os.environ.get("RAY_TMPDIR", "/tmp")  # short: the name of a socket has 107 characters at most
            private = tempfile.TemporaryDirectory(prefix="ray-", dir=root, ignore_cleanup_errors=True)
            options = _own(cluster, stack.enter_context(private))
            # Ray takes a loopback address for the machine's public one, except where it is told that it is no part
            # of a cluster; the variable is named for the systems where that is so by default
            variables |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
            variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token()}
        stack.enter_context(_environment(variables))
        ray = _library()
        stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # Ray takes it
        stack.callback(ray.shutdown)
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:  # ConnectionError, RuntimeError, ValueError, OSError: by cause
            raise EnvironmentFailure(
                "E-RAY-START",
                f"Ray does not start or answer: {_cause(error)}",
                "see that it runs there, with the same versions of Ray and Python; where it wants a token, set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
                where=cluster.address or "--ray",
            ) from error
        if cluster.address is None and ray.util.get_node_ip_address() not in _LOOPBACK:
            raise SafetyRefusal(
                "E-RAY-OPEN",
                "Ray would listen on the network",
                "start it where nothing has imported Ray before, with a version that medmtl was tested with",
                where="--ray",
            )
        yield ray


def _own(cluster: Cluster, folder: str) -> dict[str, Any]:
    """Options of a Ray for one job. Its CPUs are a number: whether they are there is up to the user."""
    return {
        "address": "local",
        "num_cpus": cluster.workers * threads(),
        "object_store_memory": _STORE,
        "include_dashboard": False,
        "_temp_dir": str(Path(folder) / "r"),  # which Ray opens to everybody
    }


def _library() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(
            "E-RAY-EXTRA", f"Ray is not installed ({error})", "pip install 'medmtl[ray]'", where="--ray"
        ) from error
    return ray


@functools.cache
def _token() -> str:
    """The token of this process: Ray reads it once."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


def places(ray: Any, cluster: Cluster, device: str) -> Places:
    """Places for all workers at once, since they wait for one another; ``E-RAY-PLACES`` where there are not so many."""
    from ray.util.placement_group import placement_group, placement_group_table
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    use = _use(ray.cluster_resources(), cluster.workers, device)
    group = placement_group([dict(use)] * cluster.workers, strategy="SPREAD")
    if not group.wait(_PLACES_S):
        free = {name: ray.available_resources().get(name, 0) for name in use}
        raise _no_place(
            f"{cluster.workers} workers of {_said(use)} found no place within {_PLACES_S:.0f} s; {_said(free)} free",
            "wait for the other jobs of the cluster, or give fewer workers",
        )
    nodes = placement_group_table(group)["bundles_to_node_id"]
    return Places(use, PlacementGroupSchedulingStrategy(group), max(Counter(nodes.values()).values()))


def _use(has: Mapping[str, float], workers: int, device: str) -> dict[str, float]:
    """What each worker takes, of what the cluster has: a GPU too if that is said, or if there are enough."""
    gpu = device == "cuda" or (device == "auto" and has.get("GPU", 0) >= workers)
    use = {"CPU": float(threads())} | ({"GPU": 1.0} if gpu else {})
    for name, each in use.items():
        fit = int(has.get(name, 0) // each)
        if fit < workers:
            other = "choose --device cpu" if name == "GPU" else "add machines, or set OMP_NUM_THREADS to 1"
            raise _no_place(
                f"{workers} workers need {each * workers:g} {name}, the cluster has {has.get(name, 0):g}",
                f"give --ray {fit} or less" if fit else other,
            )
    return use


def _no_place(what: str, remedy: str) -> EnvironmentFailure:
    return EnvironmentFailure("E-RAY-PLACES", what, remedy, where="--ray")


def _said(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{count:g} {name}" for name, count in resources.items())


def lines(ray: Any, part: Part, found: Places) -> Iterator[str]:
    """What the workers say, each when it ends; raises an error of Ray when one dies."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ranks = ray.data.from_items([{"rank": rank} for rank in range(part.world)], override_num_blocks=part.world)
    told = ranks.map_batches(
        share,
        batch_size=1,
        fn_kwargs={"part": part},
        compute=ray.data.TaskPoolStrategy(size=part.world),  # tasks run in the main thread, which signals need
        num_cpus=found.use["CPU"],
        num_gpus=found.use.get("GPU"),
        scheduling_strategy=found.strategy,
        max_retries=0,  # one that is started again would wait for a job that has ended
    )
    try:
        for batch in told.iter_batches(batch_size=None, prefetch_batches=0):  # read ahead, each waits for the next
            yield from (str(line) for line in batch["told"])
    finally:
        _await_executor()


def _await_executor() -> None:
    """Wait for Ray Data's thread, which it does for 2 s only: where it asks Ray later, Ray aborts this process."""
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):
            thread.join(_ENDING_S)


def _cause(error: BaseException) -> str:
    """What went wrong, and what began it: Ray tells a refused token as a failed connection, a traceback its cause."""
    began = error
    while began.__cause__ is not None:
        began = began.__cause__
    told = " ".join(str(error).split())[:300] or first_line(error)
    last = str(began).strip().splitlines()[-1:]
    return told + (f" ({first_line(last[0])})" if last and began is not error else "")


def first_line(error: object) -> str:
    found = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (found or [type(error).__name__])[0][:300]
