"""How far a job is: bars on a terminal, a line now and then elsewhere. Numbers only, never a name."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_REPORT_S = 30.0  # how often a line is printed where there is no terminal


def bars(console: Console) -> Bars:
    """Bars with the field ``note``; the caller starts and stops them."""
    columns = TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")
    return Bars(*columns, TimeRemainingColumn(), console=console)


class Progress:
    """One stage after the other, as files and then volumes; ``failed`` is the word for pieces that came to nothing."""

    def __init__(self, console: Console, *, failed: str = "failed") -> None:
        self.console, self.word = console, failed
        self.bars: Bars | None = None
        self.stage, self.total, self.done, self.computed, self.failed = "", 0, 0, 0, 0
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.bars = bars(self.console)
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()
        elif self.stage and (kind is None or self.printed != self.began):
            self._print()

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """A stage of ``total`` pieces, of which ``done`` were dealt with by an earlier run."""
        self.stage, self.total, self.done, self.computed, self.failed = stage, total, done, 0, 0
        self.began = self.printed = time.monotonic()
        if self.bars is not None:
            self.task = self.bars.add_task(stage, total=total, completed=done, note="")

    def advance(self, pieces: int = 1, failed: int = 0, *, computed: int | None = None) -> None:
        """``pieces`` more are dealt with; ``computed`` of them (default: all) in this run, the others were done."""
        self.done, self.failed = self.done + pieces, self.failed + failed
        self.computed += pieces if computed is None else computed
        if self.bars is not None:
            self.bars.update(self.task, completed=self.done, note=self._note())
        elif time.monotonic() - self.printed > _REPORT_S:
            self._print()

    def _note(self) -> str:
        rate = self.computed / max(time.monotonic() - self.began, 1e-9)
        return f"{rate:.1f} {self.stage}/s" + (f"  {self.failed} {self.word}" if self.failed else "")

    def _print(self) -> None:
        self.printed = time.monotonic()
        spent = self.printed - self.began
        left = (self.total - self.done) * spent / max(self.done, 1)
        clock = f"{left:.0f} s left" if self.done < self.total else f"{spent:.1f} s"
        line = f"{self.done}/{self.total} {self.stage}  {self._note()}  {clock}"
        self.console.print(line, highlight=False, markup=False)
