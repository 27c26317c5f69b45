"""A ledger: JSON objects, one per line, only ever appended and synced; the last line of each input counts.

It is the resume state of a job and names every file that the job wrote. A kill can cut the last line, which then
counts as absent; any other damage is an error.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from medmtl.errors import UserError
from medmtl.files import disk_errors, inside

_Entry = TypeVar("_Entry")


class LedgerDamaged(UserError):
    """A line before the last one is not what was written."""


def begin_ledger(path: Path) -> None:
    """Make the file if there is none, and cut off the rest of a line that a kill left."""
    with disk_errors(path):
        path.touch()
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as stream:
                stream.truncate(whole)


def read_entries(path: Path, entry: Callable[[Mapping[str, Any]], _Entry], *, code: str) -> Iterator[_Entry]:
    """Every whole line as an ``entry``, in order; LedgerDamaged with ``code`` where that cannot be."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            yield entry(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LedgerDamaged(
                code,
                "the line is damaged or of another version",
                "start anew with --overwrite, or choose another folder",
                where=f"{path.name} line {number}",
            ) from error


def remove_outputs(folder: Path, names: Iterable[str]) -> None:
    """Remove files that a ledger names, never one outside ``folder``."""
    for name in names:
        path = inside(folder, name)
        with disk_errors(path):
            path.unlink(missing_ok=True)
