"""How a signal ends a job without loss: after the work at hand."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


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
        log.warning("signal %d: finishing the %s, then saving; once more to stop at once", number, piece)

    with suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
        for wanted in (signal.SIGINT, signal.SIGTERM):
            before[wanted] = signal.signal(wanted, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
