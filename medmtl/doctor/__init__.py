"""Whether this machine can do the work: what is installed, what can be read, and the room that there is.

Every check is a line with a verdict and, unless all is well, what to do. Nothing is changed, but for two small files
in the current folder that are written, locked and removed again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medmtl import __version__
from medmtl.doctor import machine, software
from medmtl.doctor.line import Line
from medmtl.doctor.store import store
from medmtl.errors import ENVIRONMENT, OK, UserError

__all__ = ["Line", "as_text", "as_tree", "examine", "exit_code"]


def examine(folder: Path | None = None, *, uri: str | None = None) -> tuple[Line, ...]:
    """Everything about this machine and ``folder`` (None: the current one). ``uri``: MLflow's store, as in training.

    A check that fails in a way that nobody foresaw is a FAIL line, and the others go on.
    """
    folder = folder or Path()
    checks: Sequence[tuple[str, Callable[[], Iterable[Line]]]] = (
        ("python", software.python),
        ("packages", software.packages),
        ("torchvision", software.torchvision),
        ("GPU", software.gpu),
        ("codec", software.codecs),
        ("memory", machine.memory),
        ("threads", machine.threads),
        ("/dev/shm", machine.shared_memory),
        ("disk", lambda: machine.disk(folder)),
        ("locks", lambda: machine.locks(folder)),
        ("MLflow", lambda: store(uri)),
    )
    return tuple(line for name, check in checks for line in _guarded(name, check))


def exit_code(lines: Iterable[Line]) -> int:
    """0, or 5 where something does not work."""
    return ENVIRONMENT if any(line.verdict == "FAIL" for line in lines) else OK


def _guarded(name: str, check: Callable[[], Iterable[Line]]) -> list[Line]:
    try:
        return list(check())
    except UserError as error:
        return [Line(name, "FAIL", error.what, error.remedy)]
    except Exception as error:
        what = f"the check itself failed ({type(error).__name__}: {error})"
        return [Line(name, "FAIL", what, "install medmtl anew, with the versions of constraints.txt")]


def as_tree(lines: Sequence[Line]) -> dict[str, Any]:
    """The lines as one JSON object."""
    counts = {verdict: sum(line.verdict == verdict for line in lines) for verdict in ("PASS", "WARN", "FAIL")}
    return {"medmtl": __version__, "ok": not counts["FAIL"], "counts": counts, "lines": [vars(line) for line in lines]}


def as_text(lines: Sequence[Line]) -> Iterator[str]:
    """A line each, and how many of each verdict there are."""
    for line in lines:
        yield f"{line.verdict}  {line.name}: {line.found}" + (f" — {line.remedy}" if line.remedy else "")
    yield ", ".join(f"{count} {verdict}" for verdict, count in as_tree(lines)["counts"].items())
