"""``.watch.json``: the sign of life of a watched drop folder, and what it says about the watcher's health.

A beat is written after a step that ended: a look at the folder, a file read or written, a layer of the network, a batch
in the ledger. Nothing beats by the clock, so a watcher that hangs falls silent. How long it may be silent is in the
beat, for it depends on what is being done. Numbers and words of ours only: no file's name, which may name a patient.
"""

import contextlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

import psutil

from medmtl.errors import EnvironmentFailure
from medmtl.files import write_atomic

HEARTBEAT = ".watch.json"
State = Literal["waiting", "working", "stopped"]
# Waiting, a beat comes every few seconds; a slow network share takes longer to list. The longest step of work is a
# compressed series, which is decoded in another process that is ended after 900 s (medmtl/inference/isolated.py).
SILENT_S: Mapping[State, float] = {"waiting": 300.0, "working": 1200.0, "stopped": 0.0}
_EVERY_S = 5.0  # steps in between leave no beat
_AHEAD_S = 60.0  # of now that a beat may be: clocks are set
_MOST_BYTES = 4096


@dataclass(frozen=True)
class Beat:
    """What the file holds."""

    time: float  # of this beat, seconds since 1970
    state: State
    silent_s: float  # that may pass until the next
    pid: int
    host: str
    studies: int  # taken since the watch began
    ok: int  # inputs in the ledger
    failed: int


@dataclass(frozen=True)
class Health:
    """Whether a watcher is at work, and why (not), in one line."""

    ok: bool
    reason: str


@dataclass
class Heart:
    """Writes the beats of this process. Any thread may call :meth:`step`, the watcher's calls the others."""

    out: Path
    now: Callable[[], float] = time.time
    state: State = "waiting"
    studies: int = 0
    ok: int = 0
    failed: int = 0
    _last: float = -math.inf
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._pid, self._host = os.getpid(), socket.gethostname()

    def turn(self, state: State) -> None:
        """Say what is being done; at once, if it is something else."""
        if self._last != -math.inf and state == self.state:
            self.step()
        else:
            self.state = state
            self._beat()

    def took(self, ok: int, failed: int, *, studies: int = 1) -> None:
        """Say that so many studies more are dealt with, and what is in the ledger since."""
        self.studies, self.ok, self.failed = self.studies + studies, ok, failed
        self._beat()

    def step(self) -> None:
        """A step has ended: a beat, unless there was one a moment ago."""
        if abs(self.now() - self._last) >= _EVERY_S:  # a clock that was set back must not silence it
            self._beat()

    def _beat(self) -> None:
        """Without sync: after a power cut there is no watcher. A full disk is for the work to tell, and for silence."""
        with self._busy:
            now = self.now()
            beat = Beat(
                now, self.state, SILENT_S[self.state], self._pid, self._host,
                self.studies, self.ok, self.failed,
            )  # fmt: skip
            with contextlib.suppress(OSError, EnvironmentFailure):
                write_atomic(self.out / HEARTBEAT, json.dumps(asdict(beat)) + "\n", sync=False)
                self._last = now


def health(out: Path, *, max_age_s: float | None = None, now: float | None = None) -> Health:
    """What the beat in ``out`` says. ``max_age_s`` replaces the silence that the watcher itself allows."""
    beat = read_beat(out / HEARTBEAT)
    if isinstance(beat, str):
        return Health(False, beat)
    age = (time.time() if now is None else now) - beat.time
    doing = f"{beat.state}, {beat.studies} studies taken, {beat.ok} inputs with a result, {beat.failed} without"
    if beat.state == "stopped":
        return Health(False, f"the watcher was stopped {age:.0f} s ago")
    if dead := _dead(beat):
        return Health(False, f"{dead}; its last beat was {age:.0f} s ago ({doing})")
    if age < -_AHEAD_S:
        return Health(False, f"the last beat is {-age:.0f} s in the future: set the clock, or wait for the next beat")
    allowed = beat.silent_s if max_age_s is None else max_age_s
    if age > allowed:
        return Health(False, f"no beat for {age:.0f} s, {allowed:.0f} s are allowed ({doing})")
    return Health(True, f"{doing}; last beat {max(age, 0):.0f} s ago")


def read_beat(path: Path) -> Beat | str:
    """The beat in a file, or why there is none. The file may hold anything."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return f"no {HEARTBEAT} in that folder: nothing watches into it, or not yet"
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        tree = json.loads(content)
    except OSError as error:
        return f"{HEARTBEAT} cannot be read ({os.strerror(error.errno or 0)})"
    except (ValueError, RecursionError):
        return f"{HEARTBEAT} is no JSON: something else wrote it"
    return _beat(tree) or f"{HEARTBEAT} does not hold a beat of this version"


def _beat(tree: object) -> Beat | None:
    """The beat of a tree, if it is one: every field of its kind, finite and not negative."""
    if not isinstance(tree, dict) or set(tree) != {item.name for item in fields(Beat)}:
        return None
    numbers = {item.name: item.type for item in fields(Beat) if item.type in (int, float)}
    for name, kind in numbers.items():
        value = tree[name]
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
            return None
        if not 0 <= value < 2**53:  # NaN compares false
            return None
    if tree["state"] not in get_args(State) or not isinstance(tree["host"], str):
        return None
    return Beat(**tree)


def _dead(beat: Beat) -> str | None:
    """That the beat's process has ended, where this machine can tell. If another has its number, silence will tell."""
    if beat.host != socket.gethostname():
        return None
    try:
        there = psutil.Process(beat.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        there = False
    except psutil.Error:
        there = True
    return None if there else f"process {beat.pid} has ended"
