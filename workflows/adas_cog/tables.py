"""ADNI-like tables -> one :class:`Row` per line; ``sessions.py`` joins them by subject and visit.

A table is read if it has ``RID`` and ``VISCODE2`` or ``VISCODE``, and any of the columns of ``COLUMNS``; case does not
matter, the first name of a list that is there counts. Items and totals may be in one table (``ADAS_ADNIGO23.csv``,
``ADASSCORES.csv``), diagnosis, age and MMSE in another (``ADNIMERGE.csv``): where two have the same score, the table
with the items counts.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medmtl.data.adas_cog import HIGH_11, HIGH_13, ITEMS
from medmtl.data.case import SPLITS
from medmtl.errors import UserError
from workflows.adas_cog import cells
from workflows.preparation import LeftOut, Place, Remark, Report, header, read_table

ROUNDED = 0.5  # how far a total may be from the sum of its items, which are thirds in some tables
COLUMNS: Mapping[str, tuple[str, ...]] = {
    **{name: (f"{name.upper()}SCORE", name.upper()) for name in ITEMS},
    "q13": ("Q13SCORE", "Q13", "Q14"),  # ADNI 1 counts number cancellation as 14
    "adas13": ("TOTAL13", "TOTALMOD", "ADAS13"),
    "adas11": ("TOTSCORE", "TOTAL11", "ADAS11"),
    "mmse": ("MMSE", "MMSCORE"),
    "cdr": ("CDGLOBAL", "CDR"),
    "cdrsb": ("CDRSB",),
    "diagnosis": ("DX",),
    "baseline_diagnosis": ("DX_BL",),
    "baseline_age": ("AGE",),
    "sex": ("PTGENDER", "SEX"),
    "education": ("PTEDUCAT",),
    "ptid": ("PTID",),
    "site": ("SITE", "SITEID"),
    "field_strength": ("FLDSTRENG",),
    "split": ("SPLIT",),
}
_DATE = ("EXAMDATE", "VISDATE")
_VISIT = ("VISCODE2", "VISCODE")  # ADNI 2 has codes of its own in VISCODE (v06), months in VISCODE2
_RANGES = {**{name: item.high for name, item in ITEMS.items()}, "adas13": HIGH_13, "adas11": HIGH_11,
           "mmse": 30, "cdrsb": 18}  # fmt: skip
SCORES = (*ITEMS, "adas13", "mmse", "cdr", "cdrsb")
_READERS: Mapping[str, Callable[[str], str]] = {
    "cdr": cells.cdr,
    "diagnosis": cells.diagnosis,
    "baseline_diagnosis": cells.diagnosis,
    "baseline_age": lambda cell: cells.number(cell, what="AGE", low=18, high=120),
    "sex": cells.sex,
    "education": lambda cell: cells.number(cell, what="PTEDUCAT", high=40),
    "field_strength": cells.field_strength,
}


@dataclass
class Row:
    """A line of a table: what it says of a visit. Empty cells are left out.

    A screening is of the baseline visit (month 0), and known by its code.
    """

    place: Place
    rid: int
    months: int
    date: datetime.date | None
    facts: Mapping[str, str]
    screening: str = ""
    needed: bool = True  # a screening only where the baseline lacks what it says
    remarks: list[Remark] = field(default_factory=list)

    @property
    def key(self) -> tuple[int, int, str]:
        """Which visit of whom: no two rows of a table have the same."""
        return self.rid, self.months, self.screening

    @property
    def has_items(self) -> bool:
        return any(name in self.facts for name in ITEMS)


def case_name(rid: int, months: int) -> str:
    """A visit's case id, made of the subject's number in the study, which is a pseudonym already."""
    return f"{subject_name(rid)}_m{months:02d}"


def subject_name(rid: int) -> str:
    return f"R{rid:04d}"


def open_tables(source: Path) -> tuple[list[Path], list[str]]:
    """Tables of ``source`` that are read, and the names of those that are not."""
    found, unread = [], []
    for path in sorted(source.glob("*.csv")):
        names = {name.upper() for name in header(path)}
        useful = names & {column for columns in COLUMNS.values() for column in columns}
        if "RID" in names and names & set(_VISIT) and useful:
            found.append(path)
        else:
            unread.append(path.name)
    return found, unread


def read_rows(tables: Sequence[Path], report: Report) -> tuple[list[Row], dict[str, int]]:
    """Rows that can be used, and what folders may be named by: RID and PTID -> RID, of refused rows too."""
    rows: list[Row] = []
    names: dict[str, int] = {}
    for path in tables:
        rows += _alone(_read(path, report, names), report)
    return rows, names


def _read(path: Path, report: Report, names: dict[str, int]) -> list[Row]:
    rows = []
    for line, raw in read_table(path, ()):
        upper = {name.upper(): cell for name, cell in raw.items()}
        place = Place(path.name, line, "")
        try:
            rid = _rid(upper)
            place = Place(path.name, line, subject_name(rid))
            ptid = upper.get("PTID", "")
            names |= {str(rid): rid} | ({} if ptid.lower() in cells.MISSING else {ptid.upper(): rid})
            months, screening = _visit(upper)
            place = Place(path.name, line, case_name(rid, months))
            date, remarks = _date(upper)
            rows.append(Row(place, rid, months, date, _facts(upper), screening, remarks=remarks))
        except (UserError, LeftOut) as problem:
            report.refuse(place, problem)
    return rows


def _rid(row: Mapping[str, str]) -> int:
    cell = row["RID"].removesuffix(".0")
    if not (cell.isascii() and cell.isdigit()):
        raise UserError("E-PREP-RID", f"RID {row['RID']!r} is no number", "give each row its subject's RID")
    return int(cell)


def _visit(row: Mapping[str, str]) -> tuple[int, str]:
    """Months since the baseline, and the code of a screening."""
    code = next((row[name] for name in _VISIT if row.get(name)), "")
    if code.lower() in cells.SCREENING:
        return 0, code.lower()
    months = cells.months_of(code)
    if months is None:
        raise LeftOut(f"visit code {code!r} names no month", "write bl, m06, m12, ... in VISCODE2")
    return months, ""


def _date(row: Mapping[str, str]) -> tuple[datetime.date | None, list[Remark]]:
    given = [cell for name in _DATE if (cell := row.get(name, "")).lower() not in cells.MISSING]
    found = next((date for cell in given if (date := cells.date(cell))), None)
    if given and not found:
        return None, [Remark("its date cannot be read", "write it as 2006-03-02")]
    return found, []


def _facts(row: Mapping[str, str]) -> dict[str, str]:
    """Every field that the row has, read and checked; a total that its items contradict is refused."""
    facts = {}
    for name, columns in COLUMNS.items():
        cell = next((row[column] for column in columns if column in row), "")
        if name in _RANGES:
            cell = cells.number(cell, what=name, high=_RANGES[name])
        elif cell.lower() in cells.MISSING:
            cell = ""
        elif name in _READERS:
            cell = _READERS[name](cell)
        if cell:
            facts[name] = cell
    if facts.get("split", "train") not in SPLITS:
        raise UserError("E-PREP-SPLIT", f"split {facts['split']!r}", f"write one of {', '.join(SPLITS)}, or nothing")
    if all(name in facts for name in ITEMS):
        total = sum(float(facts[name]) for name in ITEMS)
        if abs(total - float(facts.get("adas13", total))) > ROUNDED:
            raise UserError(
                "E-PREP-TOTAL",
                f"the total is {facts['adas13']}, the 13 items add up to {total:g}",
                "correct the item or the total",
            )
        facts.setdefault("adas13", f"{total:.6g}")
    return facts


def _alone(rows: list[Row], report: Report) -> list[Row]:
    """Rows of one table, of which no two are one visit; equal ones count once."""
    kept: dict[tuple[int, int, str], Row] = {}
    wrong: set[tuple[int, int, str]] = set()
    for row in rows:
        first = kept.setdefault(row.key, row)
        if first is row:
            continue
        if (first.facts, first.date) == (row.facts, row.date):
            report.refuse(row.place, LeftOut(f"repeats row {first.place.row}"))
        else:
            report.refuse(row.place, _twice(first.place.row))
            wrong.add(row.key)
    for key in wrong:  # nobody knows which of them is right
        report.refuse(kept[key].place, _twice(None))
    return [row for key, row in kept.items() if key not in wrong]


def _twice(row: int | None) -> UserError:
    which = "a later row" if row is None else f"row {row}"
    return UserError("E-PREP-TWICE", f"{which} says something else of the same visit", "keep one of the rows")
