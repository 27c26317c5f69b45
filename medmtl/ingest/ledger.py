"""``cases.jsonl`` of an ingested study: one line per volume that was dealt with. It is the resume state.

Nothing in a line comes from the source but what the study itself may show.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from medmtl.files import append_line, inside, sha256
from medmtl.ledger import begin_ledger, read_entries, remove_outputs

# What may be otherwise next time, though the files are the same: these volumes are tried again.
PASSING = ("E-FILE-CHANGED", "E-FILE-OPEN", "E-ING-BUG", "E-ING-MEMORY", "E-ING-TIMEOUT", "E-ING-WORKER")


@dataclass(frozen=True)
class Output:
    """A file of the study: its digest, and what tells without reading it that it is still the same."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Entry:
    """What became of one volume."""

    id: str  # case id
    signature: str  # of its source files, how they were stacked, and every setting that the image depends on
    status: Literal["ok", "failed"]
    code: str = ""
    message: str = ""
    remedy: str = ""
    seconds: float = 0.0
    outputs: Mapping[str, Output] = field(default_factory=dict)  # path below the study -> file
    image: str = ""  # which of them is the image
    notes: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # shape, spacing, orientation, units


class Ledger:
    """The ledger of one study."""

    def __init__(self, path: Path) -> None:
        """Open or begin it, and cut off the rest of a line that a kill left. ``E-ING-LEDGER`` if it is damaged."""
        self.path = path
        begin_ledger(path)
        self.entries = {entry.id: entry for entry in read_entries(path, _entry, code="E-ING-LEDGER")}

    def append(self, entry: Entry) -> None:
        """Add a line; files of an earlier result that the new one does not have are removed."""
        before = self.entries.get(entry.id)
        append_line(self.path, json.dumps(asdict(entry), allow_nan=False))
        self.entries[entry.id] = entry
        remove_outputs(self.path.parent, set(before.outputs) - set(entry.outputs) if before else ())

    def done(self, case_id: str, signature: str) -> Entry | None:
        """The result that still holds: same signature, and its files are there unchanged."""
        entry = self.entries.get(case_id)
        if entry is None or entry.signature != signature or entry.code in PASSING:
            return None
        return entry if all(_unchanged(self.path.parent, name, out) for name, out in entry.outputs.items()) else None


def output_of(root: Path, path: Path) -> tuple[str, Output]:
    """A file that was just written, for the ledger."""
    info = path.stat()
    return path.relative_to(root).as_posix(), Output(sha256(path), info.st_size, info.st_mtime_ns)


def _unchanged(root: Path, name: str, expected: Output) -> bool:
    """By size and time; by content if the time differs, as after a copy of the study."""
    path = inside(root, name)
    try:
        info = path.stat()
    except OSError:
        return False
    if info.st_size != expected.size:
        return False
    return info.st_mtime_ns == expected.mtime_ns or sha256(path) == expected.sha256


def _entry(tree: Mapping[str, Any]) -> Entry:
    outputs = {path: Output(**value) for path, value in tree["outputs"].items()}
    notes = tuple((code, what) for code, what in tree["notes"])
    return Entry(**{**tree, "outputs": outputs, "notes": notes})
