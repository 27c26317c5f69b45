"""How far a job is: bars on a terminal, a line now and then elsewhere. Numbers only, never a name."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_REPORT_S = 30.0  # how often a line is printed where there is no terminal


class Progress:
    """One stage after the other: files, then volumes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars: Bars | None = None
        self.stage, self.total, self.done, self.failed = "", 0, 0, 0
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.bars = Bars(
                TextColumn("{task.description:>8}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """A stage of ``total`` pieces, of which ``done`` were dealt with by an earlier run."""
        self.stage, self.total, self.done, self.failed = stage, total, done, 0
        self.began = self.printed = time.monotonic()
        if self.bars is not None:
            self.task = self.bars.add_task(stage, total=total, completed=done, note="")

    def advance(self, pieces: int = 1, failed: int = 0) -> None:
        self.done, self.failed = self.done + pieces, self.failed + failed
        note = f"{self.failed} refused" if self.failed else ""
        if self.bars is not None:
            self.bars.update(self.task, completed=self.done, note=note)
        elif time.monotonic() - self.printed > _REPORT_S:
            self.printed = time.monotonic()
            self.console.print(f"{self.done}/{self.total} {self.stage}  {note}", highlight=False, markup=False)
