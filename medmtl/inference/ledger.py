"""``cases.jsonl``: one line per input that was dealt with: resume state, report and exit code in one."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medmtl.errors import UserError
from medmtl.files import append_line, inside, sha256
from medmtl.inference.names import folded, name_of
from medmtl.ledger import begin_ledger, read_entries, remove_outputs

Status = Literal["ok", "failed", "skipped"]
Cell = str | float
_LINE = json.JSONEncoder(allow_nan=False)


@dataclass(frozen=True)
class Entry:
    """What became of one input: its results, or why there are none and what to do about it."""

    id: str
    path: str  # relative to the source, as are the keys of ``outputs`` to the output folder
    page: int
    sha256: str  # of the file's content; empty if it could not be read
    status: Status
    bundle: str
    settings: str
    code: str = ""
    message: str = ""
    remedy: str = ""
    seconds: float = 0.0
    outputs: Mapping[str, str] = field(default_factory=dict)  # file -> its SHA-256
    cells: Mapping[str, Cell] = field(default_factory=dict)  # the input's row of predictions.csv
    warnings: tuple[str, ...] = ()


def read_ledger(path: Path) -> tuple[Entry, ...]:
    """Every whole line, in order. The last one may be cut; any other damage is an error (``E-PRE-LEDGER``)."""
    return tuple(read_entries(path, _entry, code="E-PRE-LEDGER"))


def _entry(tree: Mapping[str, Any]) -> Entry:
    return Entry(**{**tree, "warnings": tuple(tree["warnings"])})


class Ledger:
    """The ledger of one output folder, for one bundle and one set of settings."""

    def __init__(self, path: Path, *, bundle: str, settings: str) -> None:
        """Open or begin the ledger, and cut off the rest of a line that a kill left.

        Raises ``E-PRE-OUT`` if it belongs to another bundle or other settings.
        """
        self.path, self.bundle, self.settings = path, bundle, settings
        begin_ledger(path)
        self.entries = {entry.id: entry for entry in read_ledger(path)}
        self.check(self.entries.values())

    @property
    def entries(self) -> dict[str, Entry]:
        """The last line of each input, by id."""
        return self._entries

    @entries.setter
    def entries(self, entries: dict[str, Entry]) -> None:
        self._entries = entries
        self._owners = {place: entry.id for entry in entries.values() for place in _places(entry)}

    def check(self, entries: Iterable[Entry]) -> None:
        """Refuse entries of another bundle or other settings (``E-PRE-OUT``)."""
        for entry in entries:
            other = "bundle" if entry.bundle != self.bundle else "settings" if entry.settings != self.settings else None
            if other:
                found, expected = getattr(entry, other), getattr(self, other)
                raise UserError(
                    "E-PRE-OUT",
                    f"the folder holds results of other {other} ({found}, now {expected})",
                    "start anew with --overwrite, or choose another folder",
                    where=str(self.path.parent),
                )

    def append(self, entries: Iterable[Entry]) -> None:
        """Add lines, written and synced together; files of an earlier result that no longer holds are removed.

        Raises ``E-PRE-OWNER``, and adds none, where a file lies under the name of another input's: one of the two
        results would be shown for both.
        """
        new = list(entries)
        owners = self._owners_with(new)
        for entry in new:
            before = self.entries.get(entry.id)
            old = set(before.outputs) - set(entry.outputs) if before else set()
            remove_outputs(self.path.parent, (name for name in old if self._owners.get(_place(name)) == entry.id))
        if new:
            append_line(self.path, "\n".join(_LINE.encode(vars(entry)) for entry in new))
        for entry in new:
            for place in _places(self._entries.get(entry.id)):
                if self._owners.get(place) == entry.id:
                    del self._owners[place]
            self._entries[entry.id] = entry
        self._owners |= owners

    def _owners_with(self, new: Iterable[Entry]) -> dict[str, str]:
        """Who owns the places of new entries; refuses one that another input owns."""
        owners: dict[str, str] = {}
        for entry in new:
            for name in entry.outputs:
                place = _place(name)
                owner = owners.setdefault(place, self._owners.get(place, entry.id))
                if owner != entry.id:
                    raise UserError(
                        "E-PRE-OWNER",
                        f"{name} of {entry.id} lies where the files of {owner} do, which may have been replaced",
                        "start anew with --overwrite, or choose another folder; if it comes back, report it",
                        where=str(self.path.parent),
                    )
        return owners

    def taken(self, case_id: str, name: str) -> bool:
        """Whether files of another input lie under a name."""
        return self._owners.get(folded(name), case_id) != case_id

    def done(self, case_id: str, content: str) -> bool:
        """Whether there is a result for this input with this content, and its files are still there and unchanged."""
        entry = self.entries.get(case_id)
        if entry is None or entry.status != "ok" or entry.sha256 != content:
            return False
        files = {inside(self.path.parent, name): digest for name, digest in entry.outputs.items()}
        return all(path.is_file() and sha256(path) == digest for path, digest in files.items())


def _place(output: str) -> str:
    return folded(name_of(output))


def _places(entry: Entry | None) -> set[str]:
    return {_place(name) for name in entry.outputs} if entry is not None else set()
