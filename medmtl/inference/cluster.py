"""A job on Ray: each worker is one process of a job that several share (:mod:`medmtl.inference.shards`).

Ray finds the places, starts the workers and says when one has died; all else goes through the output folder, as under
``torchrun``, and the results have the same bytes. Ray is an extra, and is imported when it is asked for.

To the workers go a :class:`~medmtl.inference.cluster_share.Part` and nothing that comes from a file; back come lines
of JSON.
"""

import contextlib
import json
import queue
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from medmtl.errors import EnvironmentFailure, NothingUsable, SafetyRefusal, TrainingInterrupted, UserError
from medmtl.files import disk_errors
from medmtl.inference.cluster_ray import Cluster, connected, first_line, lines, places, threads
from medmtl.inference.cluster_share import LOG, POLL_S, STOP, Part
from medmtl.inference.folder import check_folders
from medmtl.inference.job import Job, Summary
from medmtl.inference.shards import Shard
from medmtl.signals import signals

__all__ = ["Cluster", "predict_on_ray"]

_TALK = ".ray-"  # folder in OUT of a job: its request to stop, and how far the first worker is
_LOCK = "lock"  # in it
_KINDS = {kind.exit_code: kind for kind in (UserError, NothingUsable, EnvironmentFailure, SafetyRefusal)}


@dataclass
class _Heard:
    """What came of the workers."""

    summary: Summary | None = None  # of the first one
    errors: list[Exception] = field(default_factory=list)  # the first is the cause of the others
    signal: int = signal.SIGTERM  # that ended a worker before its share was done

    def add(self, told: Mapping[str, Any]) -> None:
        if "error" in told:
            self.errors.append(_KINDS[told["exit_code"]](*told["error"], where=told["where"]))
        elif "defect" in told:
            self.errors.append(RuntimeError(f"in worker {told['rank']}:\n{told['defect']}"))
        elif "summary" in told and told["rank"] == 0:
            self.summary = Summary(**told["summary"])
        elif "interrupted" in told:
            self.signal = told["interrupted"]


def predict_on_ray(job: Job, cluster: Cluster, *, console: Console | None = None) -> Summary:
    """:func:`~medmtl.inference.pipeline.predict`, by ``cluster.workers`` processes.

    Raises ``E-RAY-EXTRA`` where Ray is not installed, ``E-RAY-START`` and ``E-RAY-PLACES`` (EnvironmentFailure) when
    it does not answer or cannot run all workers at once, ``E-RAY-WORKER`` when a worker dies, TrainingInterrupted
    after SIGINT or SIGTERM (the workers finish their batches first), and the error of a worker as it is.
    """
    console = console or Console(stderr=True)
    _check(job)
    check_folders(job)
    with connected(cluster) as ray, signals("batch") as caught:
        found = places(ray, cluster, job.device)
        machines = f"at most {found.beside} on a machine" if cluster.address else "of this machine"
        console.print(f"{cluster.workers} workers of Ray {ray.__version__}, {machines}", highlight=False)
        with _talk(job.out.absolute()) as talk:
            part = Part(_absolute(job, found.device), cluster.workers, found.beside, threads(), talk)
            heard = _follow(lines(ray, part, found), talk, console, caught)
    summary = _result(heard, caught)
    return replace(summary, paths={name: job.out / file for name, file in summary.paths.items()})


def _check(job: Job) -> None:
    """Refuse what has no meaning on Ray."""
    if job.shard != Shard():
        raise UserError("E-RAY-JOB", "--ray under torchrun", "use one of them; unset RANK and WORLD_SIZE", where="RANK")
    if job.device not in ("auto", "cpu", "cuda"):
        what = f"device {job.device!r}, but Ray gives each worker its GPU"
        raise UserError("E-RAY-JOB", what, "choose auto, cpu or cuda", where="--device")


def _absolute(job: Job, device: str) -> Job:
    """The job for a process with another working directory; links stay, since they may be what machines share."""
    bundle, source, out = (path.absolute() for path in (job.bundle, job.source, job.out))
    also = tuple(path.absolute() for path in job.also)
    return replace(job, bundle=bundle, also=also, source=source, out=out, device=device)


@contextlib.contextmanager
def _talk(out: Path) -> Iterator[Path]:
    """A folder in OUT of this job alone, so that a worker that sees it sees the right OUT.

    The lock in it goes with the process: what a killed one left is removed, the folder of one that waits is not.
    """
    folder = out / f"{_TALK}{secrets.token_hex(8)}"
    with disk_errors(folder):
        folder.mkdir(parents=True)
        lock = FileLock(folder / _LOCK, timeout=5)  # somebody may look just now whether it is held
        lock.acquire()
    try:
        for other in set(out.glob(f"{_TALK}*")) - {folder}:
            _remove_if_left(other)
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    """Remove what a command said to its workers, unless it lives."""
    with contextlib.suppress(Timeout, OSError):
        with FileLock(folder / _LOCK, timeout=0):
            pass  # NFS removes no folder with an open file
        shutil.rmtree(folder, ignore_errors=True)


def _follow(told: Iterator[str], talk: Path, console: Console, caught: Sequence[int]) -> _Heard:
    """Wait for the workers; tell all to stop when a signal came or one has failed; show how far the first one is."""
    heard, shown = _Heard(), 0
    arrived: queue.Queue[str | Exception | None] = queue.Queue()

    def listen() -> None:
        try:
            for line in told:
                arrived.put(line)
        except Exception as error:
            arrived.put(error)
        arrived.put(None)

    threading.Thread(target=listen, daemon=True).start()  # waiting for Ray leaves no time to look at signals
    while True:
        if caught or heard.errors:
            with contextlib.suppress(OSError):  # on a full disk: tried again until it is there
                (talk / STOP).touch()
        shown += _show(talk / LOG, shown, console)
        with contextlib.suppress(queue.Empty):
            match arrived.get(timeout=POLL_S):
                case None:
                    _show(talk / LOG, shown, console)
                    return heard
                case str(line):
                    heard.add(json.loads(line))
                case error:
                    heard.errors.append(_lost(error))


def _show(log: Path, start: int, console: Console) -> int:
    """Print the lines of a file behind ``start``; their bytes."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            new = file.read()
    except OSError:  # not there yet
        return 0
    new = new[: new.rfind(b"\n") + 1]
    console.print(new.decode("utf-8", "replace"), end="", highlight=False, markup=False)
    return len(new)


def _lost(error: Exception) -> EnvironmentFailure:
    return EnvironmentFailure(
        "E-RAY-WORKER",
        f"a worker did not begin, or ended before its share was done: {first_line(error)}",
        "see that every machine has the same medmtl, and memory for its workers; run again: what is done is kept",
        where="--ray",
    )


def _result(heard: _Heard, caught: Sequence[int]) -> Summary:
    if heard.errors and not caught:
        raise heard.errors[0]
    if heard.summary is None:
        raise TrainingInterrupted(caught[0] if caught else heard.signal)
    return heard.summary
