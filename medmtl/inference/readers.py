"""Processes that read small pictures while the network computes.

Decoding releases the interpreter's lock, but of a small picture most of the work is Python's own, and each operation of
the network would wait for the thread that does it: reading in threads takes a third to a half of the throughput on
patches of 64 px, of which this gives some back (``benchmarks/inference.py``). The processes run the very code that
threads run, so results are the same bits.

They are no condition for a job: until one has started (it imports torch), where it cannot, and after it was killed, the
thread that asked it reads by itself. What goes through their pipes is pickled, as multiprocessing does it: only the job
and the processes that it started hold an end of them, and no file is ever unpickled.
"""

import contextlib
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import torch

from medmtl.inference.listing import Input
from medmtl.inference.reading import Loaded, Reader
from medmtl.io.dicom.quiet import quiet
from medmtl.process import hold_memory

LEAST = 3000  # pictures of a job: fewer are read before a process has started
LARGEST = 2**20  # pixels: of a larger picture, decoding takes longer than Python, and sending it costs too
_TOGETHER = 16  # pictures that a process is asked for at once
_PATIENCE_S = 60.0  # for them: a file system may be slow
_MODULE = "medmtl.inference.readers"
_BROKEN = (EOFError, OSError, pickle.UnpicklingError)


def worthwhile(item: Input) -> bool:
    """Whether an input is a picture that a process should read: small, by its header, and alone in its file."""
    alone = item.kind == "raster" and item.pages == 1 and item.refused is None
    return alone and bool(item.shape) and math.prod(item.shape[:2]) <= LARGEST


@dataclass
class Readers:
    """Processes that have one reader; those that have nothing to do wait in ``idle``."""

    idle: "SimpleQueue[Connection[bytes, bytes]]" = field(default_factory=SimpleQueue)

    def read(self, inputs: Sequence[Input]) -> list[Loaded]:
        """What ``Reader.loaded`` says of each; of those that no process has read, nothing."""
        try:
            pipe = self.idle.get_nowait()
        except Empty:
            return []
        found: list[Loaded] = []
        answer, asked = b"", inputs[:0]
        try:
            for start in range(0, len(inputs), _TOGETHER):
                part = inputs[start : start + _TOGETHER]
                pipe.send_bytes(pickle.dumps(part, protocol=5))  # never while it may be sending, too
                found += _unpacked(answer, asked)  # while it reads the next ones
                if not pipe.poll(_PATIENCE_S):
                    return found  # it hangs, and is not asked again
                answer, asked = pipe.recv_bytes(), part
        except _BROKEN:
            return found  # nor is one that was killed
        self.idle.put(pipe)
        return found + _unpacked(answer, asked)


@contextmanager
def reading_apart(reader: Reader, count: int) -> Iterator[Readers]:
    """``count`` processes for ``reader``, which start while the caller goes on, and end with the block."""
    readers = Readers()
    words = pickle.dumps(reader, protocol=5)
    started = [one for one in (_start() for _ in range(count)) if one is not None]
    threads = [Thread(target=_introduce, args=(pipe, words, readers), daemon=True) for _, pipe in started]
    for thread in threads:
        thread.start()
    try:
        yield readers
    finally:
        for process, _ in started:
            process.kill()
            process.wait()
        for thread in threads:  # their pipes have ended
            thread.join()
        for _, pipe in started:
            pipe.close()


def _start() -> "tuple[subprocess.Popen[bytes], Connection[bytes, bytes]] | None":
    """A process that serves the other end of a pipe; None where the system has no room for it.

    Not by multiprocessing, which would run the main module of whoever calls a second time.
    """
    try:
        here, there = Pipe()
    except OSError:
        return None
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(_path()),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(there.fileno())],
            pass_fds=[there.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # libraries quote what they complain about
            start_new_session=True,  # an interrupt of the terminal is for the job, which ends its readers
        )
    except (OSError, ValueError, TypeError):  # no memory, no descriptor; an interpreter that is not told
        here.close()
        return None
    finally:
        there.close()
    return process, here


def _path() -> list[str]:
    """``sys.path`` without relative places; where the current folder was deleted, without what they stood for."""
    try:
        here = Path.cwd()
    except OSError:
        here = Path()
    return [str(here / place) for place in sys.path if (here / place).is_absolute()]


def _introduce(pipe: "Connection[bytes, bytes]", words: bytes, readers: Readers) -> None:
    """Tell a process its reader, and offer it when it says that it is ready."""
    with contextlib.suppress(*_BROKEN):
        pipe.send_bytes(words)
        pipe.recv_bytes()
        readers.idle.put(pipe)


def serve(pipe: "Connection[bytes, bytes]") -> None:
    """The life of a process: it ends when its pipe does, so a killed job leaves none behind."""
    torch.set_num_threads(1)
    hold_memory()  # pictures: blocks of the same sizes again and again
    with quiet(), contextlib.suppress(*_BROKEN):
        reader: Reader = pickle.loads(pipe.recv_bytes())  # of the job that started this process
        pipe.send_bytes(b"ready")
        while True:
            inputs: Sequence[Input] = pickle.loads(pipe.recv_bytes())
            try:
                answer = _packed([reader.loaded(item) for item in inputs])
            except Exception:  # a defect: the job meets it by itself, where it is told
                answer = _packed([])
            pipe.send_bytes(answer)


def _packed(found: Sequence[Loaded]) -> bytes:
    """Tensors as arrays: torch would send them through shared memory, of which a container has little."""
    images = [None if one.image is None else one.image.numpy() for one in found]
    return pickle.dumps([vars(replace(one, image=None)) for one in found] + images, protocol=5)


def _unpacked(answer: bytes, inputs: Sequence[Input]) -> list[Loaded]:
    """What was read of ``inputs``; nothing where reading them met a defect."""
    if not inputs or not (parts := pickle.loads(answer)):
        return []
    told, images = parts[: len(inputs)], parts[len(inputs) :]
    return [
        Loaded(**{**one, "item": item, "image": None if image is None else torch.from_numpy(image)})
        for one, item, image in zip(told, inputs, images, strict=True)
    ]


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
