"""Rows of all tables -> one :class:`Session` per subject and visit, and the subjects of whom nothing can be used.

A screening (``sc``) fills what the baseline visit lacks: ADNI rates CDR and MMSE and asks for demographics there, the
ADAS at the baseline. It never replaces anything, and gives items and totals of the ADAS together or not at all.
"""

import datetime
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmtl.data.adas_cog import ITEMS
from medmtl.errors import UserError
from workflows.adas_cog.dates import Dates, check_dates
from workflows.adas_cog.tables import ROUNDED, Row, read_rows
from workflows.preparation import LeftOut, Remark, Report

_ADAS = frozenset({*ITEMS, "adas13", "adas11"})


@dataclass(frozen=True)
class Session:
    """What all tables say of one visit."""

    rid: int
    months: int
    facts: Mapping[str, str]
    dates: Dates
    rows: tuple[Row, ...]

    @property
    def screened(self) -> tuple[datetime.date, ...]:
        """Dates of the screening, which is weeks before the baseline."""
        return tuple(row.date for row in self.rows if row.screening and row.date)


@dataclass(frozen=True)
class Study:
    """What all tables say: visits by subject (RID) and months, and how folders may name a subject."""

    subjects: Mapping[int, Mapping[int, Session]]
    names: Mapping[str, int]  # RID and PTID, of subjects without a usable row too
    torn: Mapping[int, str]  # subjects in more than one part of a split -> these parts

    def visits_of(self, rid: int) -> Mapping[int, Session]:
        """The visits of a subject of the tables; raises why there are none."""
        if rid in self.torn:
            raise _torn(self.torn[rid])
        if rid not in self.subjects:
            raise LeftOut("no row of its subject is used", "see what this report says of the subject's rows")
        return self.subjects[rid]


def read_study(tables: Sequence[Path], report: Report) -> Study:
    """Everything that the tables say; rows that cannot be used are in the report."""
    rows, names = read_rows(tables, report)
    torn = _torn_subjects(rows)
    subjects: dict[int, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.rid in torn:
            report.refuse(row.place, _torn(torn[row.rid]))
        else:
            subjects[row.rid][row.months].append(row)
    return Study({rid: _sessions(rid, visits) for rid, visits in subjects.items()}, names, torn)


def _torn_subjects(rows: Sequence[Row]) -> dict[int, str]:
    parts: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        parts[row.rid] |= {row.facts["split"]} if "split" in row.facts else set()
    return {rid: " and ".join(sorted(found)) for rid, found in parts.items() if len(found) > 1}


def _torn(parts: str) -> UserError:
    return UserError("E-PREP-SPLIT", f"the subject is in {parts}", "give each subject one split")


def _sessions(rid: int, visits: Mapping[int, Sequence[Row]]) -> dict[int, Session]:
    ordered = {  # the screening last, tables with items first
        months: sorted(rows, key=lambda row: (row.screening, not row.has_items)) for months, rows in visits.items()
    }
    dates = check_dates(ordered)
    return {months: Session(rid, months, _merged(rows), dates[months], tuple(rows)) for months, rows in ordered.items()}


def _merged(rows: Sequence[Row]) -> dict[str, str]:
    """The facts of all rows of a visit, of which the first that has one counts."""
    facts: dict[str, str] = {}
    for row in rows:
        if row.screening:
            facts |= _filling(row, facts, dated=any(other.date for other in rows if not other.screening))
            continue
        for name, cell in row.facts.items():
            if name == "adas13" and abs(float(facts.get(name, cell)) - float(cell)) > ROUNDED:
                first = rows[0].place.table
                row.remarks.append(Remark(f"adas13 = {cell} is not used: {first} has {facts[name]} for this visit"))
            facts.setdefault(name, cell)
    return facts


def _filling(row: Row, facts: Mapping[str, str], *, dated: bool) -> dict[str, str]:
    """What a screening says that the visit lacks; ``dated``: the visit has a date of its own."""
    closed = {*facts, *(_ADAS if _ADAS & set(facts) else ())}
    gives = {name: cell for name, cell in row.facts.items() if name not in closed}
    lacking = [*gives, *(["its date"] if row.date and not dated else [])]
    row.needed = bool(lacking)
    if lacking:
        row.remarks.append(Remark(f"a screening, which gives what the baseline visit lacks: {', '.join(lacking)}"))
    return gives
