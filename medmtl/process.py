"""This process on its machine: which device it computes on, and how a signal ends it without loss."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch

from medmtl import distributed as dist
from medmtl.errors import UserError

log = logging.getLogger(__name__)


def device_named(name: str) -> torch.device:
    """``auto`` (this rank's GPU if there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``."""
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise UserError("E-DEV-NAME", f"unknown device {name!r}", "choose auto, cpu, cuda or cuda:N", where="device")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not count):
        return torch.device("cpu")
    number = int(index) if index else dist.local_rank()
    if number >= count:
        raise UserError("E-DEV-CUDA", f"no device {name} is available", "choose auto or cpu", where="device")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextmanager
def signals(piece: str) -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted in the list instead of ending the process; a second one acts at once.

    ``piece`` is what will be finished first (a step, a batch), for the message.
    """
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for seen in before:
            signal.signal(seen, signal.SIG_DFL)
        log.warning("signal %d: finishing this %s, then saving; once more to stop at once", number, piece)

    with suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
        for wanted in (signal.SIGINT, signal.SIGTERM):
            before[wanted] = signal.signal(wanted, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
