"""Progress bars for long work: on rank 0's terminal, and nowhere else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from medmtl import distributed as dist


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that is advanced by calling it with how many more are done; it leaves nothing behind."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=dist.rank() != 0 or not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)
