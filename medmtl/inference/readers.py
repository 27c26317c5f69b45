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
import ctypes
import gc
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
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

from medmtl.data.preprocess import Preprocess
from medmtl.inference.listing import Input
from medmtl.inference.reading import Loaded, Reader
from medmtl.process import hold_memory

LEAST = 128  # pictures of a job: with fewer there is nothing to gain
LARGEST = 2**18  # pixels: from there on, copying a picture costs more than a fifth of what reading it does
_TOGETHER = 16  # pictures that a process is asked for at once, if the memory holds them
_ANSWER = 2**25  # bytes of them that go through memory; what it does not hold goes through the pipe, at a higher price
_FLOAT = 4  # bytes
_PATIENCE_S = 60.0  # for the next byte of them: a file system may be slow
_BROKEN = (EOFError, OSError, pickle.UnpicklingError)
_PR_SET_PDEATHSIG = 1  # of prctl(2)


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

    preprocess: Preprocess
    idle: "SimpleQueue[_Line]" = field(default_factory=SimpleQueue)

    def read(self, inputs: Sequence[Input], stepped: Callable[[], None] = lambda: None) -> list[Loaded]:
        """What ``Reader.loaded`` says of each; of those that no process has read, nothing.

        ``stepped`` is told of each answer.
        """
        try:
            line = self.idle.get_nowait()
        except Empty:
            return []
        pipe = line.pipe
        found: list[Loaded] = []
        answer, asked = b"", inputs[:0]
        try:
            _hurry(pipe)
            for part in self._parts(inputs):
                pipe.send_bytes(pickle.dumps(part, protocol=5))  # never while it may be sending, too
                found += _unpacked(answer, asked, line.memory)  # while it reads the next ones
                answer, asked = pipe.recv_bytes(), part
                stepped()
            found += _unpacked(answer, asked, line.memory)
        except (*_BROKEN, MemoryError):  # of the job, which may have it for one picture at a time
            return found  # one that hangs, was killed or whose answer is lost is not asked again
        self.idle.put(line)
        return found

    def _parts(self, inputs: Sequence[Input]) -> Iterator[list[Input]]:
        """Consecutive inputs: as many as the memory holds the answer of, but one at least."""
        part: list[Input] = []
        held = 0
        for item in inputs:
            size = _room_of(item, self.preprocess)
            if part and (len(part) == _TOGETHER or held + size > _ANSWER):
                yield part
                part, held = [], 0
            part.append(item)
            held += size
        if part:
            yield part


def _room_of(item: Input, preprocess: Preprocess) -> int:
    """Bytes of the memory that a picture takes, by its header: as the network sees it, and as it is shown."""
    native = item.shape[:2]
    grid = preprocess.resize or native
    padded = [max(n, m) for n, m in zip(grid, preprocess.input_size or grid, strict=False)]  # refused later
    seen = preprocess.window or padded
    return sum(_rounded(_FLOAT * preprocess.channels * math.prod(shape)) for shape in (seen, native))


def _rounded(size: int) -> int:
    """Bytes that an array takes of the memory: the next one begins where a processor likes it to."""
    return -(-size // 64) * 64


def _hurry(pipe: "Connection[bytes, bytes]") -> None:
    """Let what waits for a byte from the pipe, or for room for one, fail with an OSError when patience ends."""
    fraction, whole = math.modf(_PATIENCE_S)
    patience = struct.pack("ll", int(whole), int(1e6 * fraction))  # a timeval
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, patience)


@contextmanager
def reading_apart(reader: Reader, count: int) -> Iterator[Readers]:
    """``count`` processes for ``reader`` that end with the block; none where forking is not safe."""
    readers = Readers(reader.preprocess)
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
    bound = threading.current_thread() is threading.main_thread()
    arguments = (there, memory, reader, os.getpid(), bound)
    process = multiprocessing.get_context("fork").Process(target=_live, args=arguments, daemon=True)
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


def _live(pipe: "Connection[bytes, bytes]", memory: mmap.mmap, reader: Reader, job: int, bound: bool) -> None:
    """The life of a process. What it got of the job it lets go: its terminal, signals, lock and the others' pipes."""
    _end_with(job, bound=bound)
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


def _end_with(job: int, *, bound: bool) -> None:
    """Have the kernel end this process when its job ends, whatever it is doing: a picture may be one that hangs.

    The kernel takes the thread that forked for the job. It is not asked unless that was the main one (``bound``), which
    ends last; without it, and where it cannot be asked, a process ends when it looks for the next question.
    """
    if bound:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != job:  # it ended before
        os._exit(0)


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
        start += _rounded(array.nbytes)
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
