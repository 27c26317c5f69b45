"""What a job says of how far it is: numbers, at its end, and now and then on the way."""

import contextlib
import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from medmtl import progress as module
from medmtl.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def _said(console):
    return console.file.getvalue().splitlines()


def test_the_last_stage_is_told_of_at_the_end(clock):
    console = Console(file=io.StringIO(), width=100)
    with Progress(console, failed="refused") as progress:
        progress.begin("files", 5)
        progress.advance(5)
        progress.begin("volumes", 10, 4)
        clock[0] += 3
        progress.advance(6, failed=1)
    assert _said(console) == ["10/10 volumes  2.0 volumes/s  1 refused  3.0 s"]


def test_a_line_now_and_then_without_a_terminal(clock):
    console = Console(file=io.StringIO(), width=100)
    with contextlib.suppress(KeyboardInterrupt), Progress(console) as progress:
        progress.begin("images", 40)
        clock[0] += 20
        progress.advance(10, computed=5)  # too early to be told
        clock[0] += 20
        progress.advance(10, failed=2, computed=5)
        raise KeyboardInterrupt
    line = "20/40 images  0.2 images/s  2 failed  40 s left"
    assert _said(console) == [line, line]


def test_what_stops_before_the_first_line_says_nothing(clock):
    console = Console(file=io.StringIO())
    with contextlib.suppress(ValueError), Progress(console) as progress:
        progress.begin("files", 5)
        raise ValueError
    with Progress(console):  # no stage
        pass
    assert not _said(console)
