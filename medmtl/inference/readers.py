"""Processes that read small pictures while the network computes.

Decoding releases the interpreter's lock, but of a small picture most of the work is Python's own, and each operation of
the network would wait for the thread that does it: reading in threads takes a third to a half of the throughput on
patches of 64 px, of which this gives some back (``benchmarks/inference.py``). The processes run the very code that
threads run, so results are the same bits.

They are forked, as torch's loaders do it: at once there, with all that the job has imported. A fork copies no other
thread, whose locks would stay locked, so a program that has any reads in threads alone. Nor are processes a condition
where they are: of one that could not start, or was killed, the thread that asked it does the work.

Pictures come back through memory that both hold, the rest through a pipe, pickled as multiprocessing does it: only the
job and the processes that it started hold an end of it, and no file is ever unpickled.
"""

import contextlib
import gc
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medmtl.inference.listing import Input
from medmtl.inference.reading import Loaded, Reader
from medmtl.process import hold_memory

LEAST = 128  # pictures of a job: with fewer there is nothing to gain
LARGEST = 2**20  # pixels: of a larger picture, decoding takes longer than Python, and sending it costs too
_TOGETHER = 16  # pictures that a process is asked for at once
_ANSWER = 2**25  # bytes of them that go through memory; more of them go through the pipe
_PATIENCE_S = 60.0  # for them: a file system may be slow
_BROKEN = (EOFError, OSError, pickle.UnpicklingError)


def worthwhile(item: Input) -> bool:
    """Whether an input is a picture that a process should read: small, by its header, and alone in its file."""
    alone = item.kind == "raster" and item.pages == 1 and item.refused is None
    return alone and bool(item.shape) and math.prod(item.shape[:2]) <= LARGEST


@dataclass(frozen=True)
class _Line:
    """The job's end of what it has in common with a process."""

    process: BaseProcess
    pipe: "Connection[bytes, bytes]"
    memory: mmap.mmap  # of two answers: one is read while the next is written


@dataclass
class Readers:
    """Processes that have one reader; those that have nothing to do wait in ``idle``."""

    idle: "SimpleQueue[_Line]" = field(default_factory=SimpleQueue)

    def read(self, inputs: Sequence[Input]) -> list[Loaded]:
        """What ``Reader.loaded`` says of each; of those that no process has read, nothing."""
        try:
            line = self.idle.get_nowait()
        except Empty:
            return []
        pipe = line.pipe
        found: list[Loaded] = []
        answer, asked = b"", inputs[:0]
        try:
            for start in range(0, len(inputs), _TOGETHER):
                part = inputs[start : start + _TOGETHER]
                pipe.send_bytes(pickle.dumps(part, protocol=5))  # never while it may be sending, too
                found += _unpacked(answer, asked, line.memory)  # while it reads the next ones
                if not pipe.poll(_PATIENCE_S):
                    return found  # it hangs, and is not asked again
                answer, asked = pipe.recv_bytes(), part
        except _BROKEN:
            return found  # nor is one that was killed
        found += _unpacked(answer, asked, line.memory)
        self.idle.put(line)
        return found


@contextmanager
def reading_apart(reader: Reader, count: int) -> Iterator[Readers]:
    """``count`` processes for ``reader`` that end with the block; none where forking is not safe."""
    readers = Readers()
    started = [one for one in (_start(reader) for _ in range(count if forkable() else 0)) if one is not None]
    for line in started:
        readers.idle.put(line)
    try:
        yield readers
    finally:
        for line in started:
            line.process.kill()
            line.process.join()
            line.pipe.close()
            line.memory.close()


def forkable() -> bool:
    """Whether nothing of this process gets lost or stays locked in a copy of it that reads pictures.

    Every thread that runs Python counts, whether ``threading`` knows it or not. What torch and the libraries of linear
    algebra have of threads does no harm: they wait for work, which a copy with one thread does not give them.
    """
    alone = len(sys._current_frames()) == 1 and not multiprocessing.current_process().daemon
    return alone and sys.platform.startswith("linux")


def _start(reader: Reader) -> _Line | None:
    """A process that serves the other end of a pipe; None where the system has no room for it."""
    try:
        memory = mmap.mmap(-1, 2 * _ANSWER)  # taken from the machine as it is written to
        here, there = multiprocessing.Pipe()
    except OSError:
        return None
    process = multiprocessing.get_context("fork").Process(target=_live, args=(there, memory, reader), daemon=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on: it counts the libraries' threads
            process.start()
    except OSError:  # no memory, no descriptor
        here.close()
        return None
    finally:
        there.close()
    return _Line(process, here, memory)


def _live(pipe: "Connection[bytes, bytes]", memory: mmap.mmap, reader: Reader) -> None:
    """The life of a process. What it got of the job it lets go: its terminal, signals, lock and the others' pipes."""
    gc.freeze()  # nothing of the job is ever collected here: it would close descriptors that are others by then
    os.setsid()  # an interrupt of the terminal is for the job, which ends its readers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):  # libraries quote what they complain about
        os.dup2(nothing, descriptor)
    held = {int(place.name) for place in Path("/proc/self/fd").iterdir()}
    for descriptor in held - {0, 1, 2, pipe.fileno()}:
        with contextlib.suppress(OSError):  # the one that listed them
            os.close(descriptor)
    torch.set_num_threads(1)
    hold_memory()  # pictures: blocks of the same sizes again and again
    serve(pipe, memory, reader)


def serve(pipe: "Connection[bytes, bytes]", memory: mmap.mmap, reader: Reader) -> None:
    """Answer until the pipe ends, so that a killed job leaves no process behind."""
    start = 0  # of an answer's half of the memory
    with contextlib.suppress(*_BROKEN):
        while True:
            inputs: Sequence[Input] = pickle.loads(pipe.recv_bytes())  # of the job that started this process
            try:
                answer = _packed([reader.loaded(item) for item in inputs], memory, start)
            except Exception:  # a defect: the job meets it by itself, where it is told
                answer = _packed([], memory, start)
            pipe.send_bytes(answer)
            start = _ANSWER - start


def _packed(found: Sequence[Loaded], memory: mmap.mmap, start: int) -> bytes:
    """What was read; of an array for which the memory has room, where it lies there."""
    end = start + _ANSWER

    def kept(array: object) -> object:
        nonlocal start
        if not isinstance(array, np.ndarray) or start + array.nbytes > end:
            return array
        place = _Place(array.shape, array.dtype.str, start)
        place.of(memory)[...] = array
        start += -(-array.nbytes // 64) * 64
        return place

    return pickle.dumps(
        [
            {
                **vars(replace(one, item=None, image=None)),  # type: ignore[arg-type]  # the job has its item
                "image": None if one.image is None else kept(one.image.numpy()),
                "shown": kept(one.shown),
            }
            for one in found
        ],
        protocol=5,
    )


def _unpacked(answer: bytes, inputs: Sequence[Input], memory: mmap.mmap) -> list[Loaded]:
    """What was read of ``inputs``; nothing where reading them met a defect."""

    def copied(kept: Any) -> Any:
        return kept.of(memory).copy() if isinstance(kept, _Place) else kept

    loaded: list[Loaded] = []
    told = pickle.loads(answer) if inputs else []
    for one, item in zip(told, inputs, strict=bool(told)):
        image = copied(one["image"])
        tensor = None if image is None else torch.from_numpy(image)
        loaded.append(Loaded(**{**one, "item": item, "image": tensor, "shown": copied(one["shown"])}))
    return loaded


@dataclass(frozen=True)
class _Place:
    """Where an array lies in the memory."""

    shape: tuple[int, ...]
    kind: str
    start: int  # byte

    def of(self, memory: mmap.mmap) -> npt.NDArray[Any]:
        return np.ndarray(self.shape, self.kind, memory, self.start)
