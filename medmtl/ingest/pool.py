"""Worker processes that may die: what they were doing is reported, a new one takes their place, the work goes on.

:class:`concurrent.futures.ProcessPoolExecutor` breaks as a whole when one process is killed, and cannot tell whose
fault it was. Here every worker has its own pipe and one item at hand, so a death names its item, and no more items are
in memory than there are workers.
"""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

_Item = TypeVar("_Item")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PRELOAD = "medmtl.ingest.preload"
_TRIES = 2  # a process that dies may have been the victim of another one's memory


def start_server() -> Any:
    """Begin to start the server that workers are forked from, if it does not run; returns the multiprocessing context.

    It imports what workers need while the caller imports what it needs itself, so call it early. Spawns where there
    are no fork servers.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", _PRELOAD])
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    return context


@dataclass(frozen=True)
class Lost:
    """Why there is no result: the worker was killed (``died``), took too long, or raised what it should not."""

    why: Literal["died", "timeout", "raised"]
    detail: str  # signal or exit status, seconds, or the name of the exception
    trace: str = ""


@dataclass
class _Worker:
    process: Any
    pipe: "Connection[Any, Any]"
    item: Any = None
    tries: int = 0
    since: float = 0.0


@dataclass
class Pool:
    """Up to ``processes`` workers, started when there is work for them; each computes on one thread.

    ``memory`` is the address space that one worker may use, in bytes: beyond it, it gets a MemoryError instead of the
    machine a shortage. Interrupts of the terminal reach workers, too, and are ignored there: they end with the pool.
    What libraries print in a worker goes to the file ``log``, since it may quote a patient's data.
    """

    processes: int
    timeout_s: float = 900.0
    memory: int | None = None
    log: Path | None = None
    _workers: list[_Worker] = field(default_factory=list)
    _context: Any = None

    def __enter__(self) -> "Pool":
        self._context = start_server()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.pipe.close()
            if worker.item is not None:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()

    def map(
        self, function: Callable[[_Item], Any], items: Iterable[_Item], *, stopped: Callable[[], bool] = lambda: False
    ) -> "Iterator[tuple[_Item, Any | Lost]]":
        """Each item with its result, in the order in which they end. When ``stopped``, what is at hand is finished."""
        waiting = deque((item, 1) for item in items)
        while True:
            while waiting and not stopped() and (worker := self._free()):
                (worker.item, worker.tries), worker.since = waiting.popleft(), time.monotonic()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died idle: found out below
                    worker.pipe.send((function, worker.item))
            busy = [worker for worker in self._workers if worker.item is not None]
            if not busy:
                return
            for item, tries, result in self._results(busy):
                if isinstance(result, Lost) and result.why == "died" and tries < _TRIES and not stopped():
                    waiting.appendleft((item, tries + 1))
                else:
                    yield item, result

    def _free(self) -> _Worker | None:
        for worker in self._workers:
            if worker.item is None:
                return worker
        if len(self._workers) == self.processes:
            return None
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, self.memory, self.log), daemon=True)
        process.start()
        there.close()
        self._workers.append(_Worker(process, here))
        return self._workers[-1]

    def _results(self, busy: Sequence[_Worker]) -> Iterator[tuple[Any, int, Any]]:
        """What has ended now, after waiting for it for half a second at most (so that a signal is seen soon)."""
        ready = connection.wait([w.pipe for w in busy], timeout=0.5)
        for worker in busy:
            if worker.pipe in ready:
                try:
                    result = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join(5)
                    result = Lost("died", _ending(worker.process.exitcode))
                    self._drop(worker)
            elif time.monotonic() - worker.since > self.timeout_s:
                result = Lost("timeout", f"{self.timeout_s:g} s")
                self._drop(worker)
            else:
                continue
            item, worker.item = worker.item, None
            yield item, worker.tries, result

    def _drop(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)


def _serve(pipe: "Connection[Any, Any]", memory: int | None, log: Path | None) -> None:
    """The life of a worker: it ends when its pipe does, so a killed job leaves none behind."""
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if memory is not None:
        with contextlib.suppress(ImportError, ValueError, OSError):  # no such limit on this system
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, item = pipe.recv()
            try:
                result = function(item)
            except Exception as error:  # a defect, or a library's surprise: the item's fate, not the job's
                result = Lost("raised", type(error).__name__, traceback.format_exc())
            pipe.send(result)


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
