"""Progress of a job over images."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_REPORT_S = 30.0  # how often a line is printed where there is no terminal


class ImageProgress:
    """A bar with images per second and the time left; where there is no terminal, a line now and then."""

    def __init__(self, total: int, console: Console) -> None:
        self.total, self.console = total, console
        self.bars: Bars | None = None
        self.done = self.computed = self.failed = 0
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> "ImageProgress":
        if self.console.is_terminal:
            self.bars = Bars(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar = self.bars.add_task("images", total=self.total, note="")
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()
        elif self.printed != self.began or kind is None:
            self._print()

    def advance(self, images: int, computed: int, failed: int) -> None:
        """``images`` more are dealt with; ``computed`` of them in this run, the others were done."""
        self.done, self.computed, self.failed = self.done + images, self.computed + computed, self.failed + failed
        if self.bars is not None:
            self.bars.update(self.bar, completed=self.done, note=self._note())
        elif time.monotonic() - self.printed > _REPORT_S:
            self._print()

    def _note(self) -> str:
        rate = self.computed / max(time.monotonic() - self.began, 1e-9)
        return f"{rate:.1f} images/s" + (f"  {self.failed} failed" if self.failed else "")

    def _print(self) -> None:
        self.printed = time.monotonic()
        spent = self.printed - self.began
        left = (self.total - self.done) * spent / max(self.done, 1)
        clock = f"{left:.0f} s left" if self.done < self.total else f"{spent:.1f} s"
        self.console.print(f"{self.done}/{self.total} images  {self._note()}  {clock}", highlight=False, markup=False)
