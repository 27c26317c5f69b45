"""What became of every file: ``ingest_report.json``, ``.csv`` and ``.html``. Equal results give equal bytes."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmtl import __version__
from medmtl.files import write_atomic
from medmtl.ingest.cases import CasePlan, PlannedCase
from medmtl.ingest.ledger import Entry
from medmtl.ingest.naming import Namer, cell
from medmtl.ingest.study import csv_text, write_table
from medmtl.ingest.walk import Aside
from medmtl.io.reasons import REMEDY

REPORT, TABLE, PAGE = "ingest_report.json", "ingest_report.csv", "ingest_report.html"
STATUSES = ("accepted", "repaired", "refused", "ignored")
_WORST = {"refused": 0, "repaired": 1, "accepted": 2, "ignored": 3}
HEADS = ("file", "kind", "status", "code", "what", "remedy", "case")


@dataclass(frozen=True)
class Row:
    """A file of the source and what became of it."""

    path: str  # private, unless names are kept
    kind: str
    status: str
    code: str = ""
    what: str = ""
    remedy: str = ""
    case: str = ""


def rows_of(plan: CasePlan, asides: Sequence[Aside], entries: Mapping[str, Entry], *, planned: bool) -> list[Row]:
    """Every file once, sorted by path. ``planned``: nothing was made, what can be made counts as accepted."""
    rows = [Row(fate.path, fate.kind, fate.status, fate.code, fate.what, fate.remedy) for fate in plan.fates]
    rows += [
        Row(aside.path, aside.kind, "refused" if aside.code.startswith("E-") else "ignored", aside.code, aside.what,
            REMEDY[aside.code])
        for aside in asides
    ]  # fmt: skip
    of_file: dict[str, list[Row]] = {}
    for case in plan.cases:
        row = _row(case, entries.get(case.id), planned)
        for file in case.files:
            of_file.setdefault(file.path, []).append(row)
    rows += [_together(path, several) for path, several in of_file.items()]
    return sorted(rows, key=lambda row: row.path.encode("utf-8", "surrogateescape"))


def _row(case: PlannedCase, entry: Entry | None, planned: bool) -> Row:
    if case.refused is not None:
        code, what = case.refused
        return Row("", case.kind, "refused", code, what, REMEDY[code])
    if entry is None:
        if planned:
            notes = case.stack.notes if case.stack is not None else ()
            return _noted(case, tuple((note.code, note.what) for note in notes))
        return Row("", case.kind, "refused", "E-ING-SKIPPED", "not tried", REMEDY["E-ING-SKIPPED"])
    if entry.status == "failed":
        return Row("", case.kind, "refused", entry.code, entry.message, entry.remedy)
    return _noted(case, entry.notes)


def _noted(case: PlannedCase, notes: Sequence[tuple[str, str]]) -> Row:
    codes = " ".join(dict.fromkeys(code for code, _ in notes))
    remedies = "; ".join(dict.fromkeys(REMEDY.get(code, "") for code, _ in notes))
    status = "repaired" if any(code.startswith("R-") for code, _ in notes) else "accepted"
    return Row("", case.kind, status, codes, "; ".join(what for _, what in notes), remedies, case.id)


def _together(path: str, rows: Sequence[Row]) -> Row:
    """A file that several volumes are made of: the worst of them, and every case."""
    worst = min(rows, key=lambda row: _WORST[row.status])
    cases = " ".join(row.case for row in rows if row.case)
    return Row(path, worst.kind, worst.status, worst.code, worst.what, worst.remedy, cases)


def write_reports(
    out: Path,
    private: Path,
    rows: Sequence[Row],
    plan: CasePlan,
    entries: Mapping[str, Entry],
    *,
    namer: Namer,
    warnings: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the private table, the tables, the page, and last ``ingest_report.json``; returns its tree."""
    from medmtl.ingest.page import page

    ids = [namer.file_id(row.path) for row in rows]
    write_table(
        private / "files.csv",
        ["path", *HEADS],
        ([row.path, name, row.kind, row.status, row.code, row.what, row.remedy, row.case]
         for row, name in zip(rows, ids, strict=True)),
    )  # fmt: skip
    shown = sorted(
        (
            dict(zip(HEADS, (cell(name), row.kind, row.status, row.code, row.what, row.remedy, row.case), strict=True))
            for row, name in zip(rows, ids, strict=True)
        ),
        key=lambda row: row["file"],
    )
    tree = _tree(rows, shown, plan, entries, warnings, settings)
    text = csv_text(HEADS, ([row[name] for name in HEADS] for row in shown))
    write_atomic(out / TABLE, text.encode("utf-8", "backslashreplace"))
    write_atomic(out / PAGE, page(tree, out).encode("utf-8", "backslashreplace"))
    write_atomic(out / REPORT, json.dumps(tree, indent=1) + "\n")
    return tree


def _tree(
    rows: Sequence[Row],
    shown: Sequence[Mapping[str, str]],
    plan: CasePlan,
    entries: Mapping[str, Entry],
    warnings: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    count = Counter(row.status for row in rows)
    codes = Counter(code for row in rows for code in row.code.split())
    volumes = Counter(_volume_status(case, entries.get(case.id)) for case in plan.cases)
    done = [case for case in plan.cases if (entry := entries.get(case.id)) and entry.status == "ok"]
    return {
        "medmtl": __version__,
        "settings": dict(settings),
        "counts": {status: count[status] for status in STATUSES},
        "volumes": {status: volumes[status] for status in ("ok", "failed", "skipped")},
        "codes": dict(sorted(codes.items())),
        "ignored": dict(sorted(Counter(row.kind for row in rows if row.status == "ignored").items())),
        "domains": dict(sorted(Counter(case.domain for case in done).items())),
        "groups": len({case.group for case in done}),
        "warnings": list(warnings),
        "cases": [_case(case, entries[case.id]) for case in done],
        "files": list(shown),
        "use": "research use only, not a medical device",
    }


def _volume_status(case: PlannedCase, entry: Entry | None) -> str:
    if case.refused is not None:
        return "failed"
    return "skipped" if entry is None else entry.status


def _case(case: PlannedCase, entry: Entry) -> dict[str, Any]:
    return {
        "case": case.id,
        "group": case.group,
        "domain": case.domain,
        "image": entry.image,
        "files": len(case.files),
        "notes": [{"code": code, "what": what} for code, what in entry.notes],
        **entry.facts,
    }
