"""The share of one Ray worker in a job. What came of it is told as JSON, errors too, and nothing is raised.

Ray is not imported here: what a worker does can be tried without it.
"""

import contextlib
import json
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from medmtl import __version__
from medmtl.errors import EnvironmentFailure, TrainingInterrupted, UserError
from medmtl.inference.job import Job
from medmtl.inference.pipeline import predict
from medmtl.inference.shards import Shard

POLL_S = 0.2
STOP, LOG = "stop", "log"  # in the job's folder


@dataclass(frozen=True)
class Part:
    """What each worker is told; which share is its own comes with the call."""

    job: Job  # with absolute paths
    world: int
    beside: int  # most workers on one machine, which share its memory
    threads: int  # of torch
    talk: Path
    version: str = __version__


def share(batch: Mapping[str, Any], part: Part) -> dict[str, list[str]]:
    """Of a worker: run its share of the job, and say as JSON what came of it; nothing is raised."""
    rank = int(batch["rank"][0])
    return {"told": [json.dumps({"rank": rank, **_told(rank, part)})]}


def _told(rank: int, part: Part) -> dict[str, Any]:
    threads = torch.get_num_threads()
    try:
        _check_worker(part)
        torch.set_num_threads(part.threads)
        with _stopping(part.talk), _console(rank, part.talk) as console:
            summary = predict(replace(part.job, shard=Shard(rank, part.world, part.beside)), console=console)
        paths = {name: path.relative_to(part.job.out).as_posix() for name, path in summary.paths.items()}
        return {"summary": {**vars(summary), "ignored_kinds": dict(summary.ignored_kinds), "paths": paths}}
    except UserError as error:
        return {"error": [error.code, error.what, error.remedy], "where": error.where, "exit_code": error.exit_code}
    except TrainingInterrupted as interrupted:
        return {"interrupted": interrupted.exit_code - 128}
    except MemoryError:
        what, remedy = "the memory of a worker is used up", "give fewer workers, or a lower --max-ram"
        return {"error": ["E-MEMORY", what, remedy], "where": "--ray", "exit_code": EnvironmentFailure.exit_code}
    except Exception:
        return {"defect": traceback.format_exc()}
    finally:
        torch.set_num_threads(threads)


def _check_worker(part: Part) -> None:
    """Refuse to run another version, or on a machine that does not see the job's folders."""
    if part.version != __version__:
        what = f"medmtl {__version__} on a worker, {part.version} where the job was started"
        raise UserError("E-RAY-VERSION", what, "install the same version on every machine", where="--ray")
    folders = {"OUT": part.talk, "SCANS": part.job.source, "BUNDLE": part.job.bundle, "--bundle": part.job.also}
    for name, path in folders.items():
        for one in path if isinstance(path, tuple) else (path,):
            if not one.is_dir():
                raise EnvironmentFailure(
                    "E-RAY-FOLDER",
                    f"a worker does not see {name}",
                    "put BUNDLE, SCANS and OUT where every machine of the cluster mounts them, under the same path",
                    where=str(part.job.out if path is part.talk else one),
                )


@contextlib.contextmanager
def _console(rank: int, talk: Path) -> Iterator[Console]:
    """Where a worker shows how far it is: the first one to whoever started the job, the others nowhere."""
    path = talk / LOG if rank == 0 else Path(os.devnull)
    with path.open("a", buffering=1, encoding="utf-8") as file:
        yield Console(file=file, width=200)


@contextlib.contextmanager
def _stopping(talk: Path) -> Iterator[None]:
    """While it lasts, the request to stop is a SIGTERM, and other ones are left to the job, which notes them."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            # before the job listens a signal is lost, and a second one would end the process at once
            if (talk / STOP).exists() and callable(signal.getsignal(signal.SIGTERM)):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)
