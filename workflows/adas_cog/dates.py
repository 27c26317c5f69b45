"""Dates of a subject's visits, checked across all tables: which can place an image and count years, and which cannot.

Of two dates that contradict each other nobody knows which is wrong, so neither is used. A visit is doubtful where

* another visit of the subject has the same date, in whichever table;
* its own dates are more than ``SPREAD_DAYS`` apart;
* its date is more than ``DRIFT_DAYS`` from where its code puts it. That is counted from the first visit with a date,
  which is doubtful itself unless most visits agree with it.

Its scores keep, since a row's visit code says whose they are; its rows have a remark each.
"""

import datetime
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workflows.adas_cog.tables import Row, case_name
from workflows.preparation import Remark

SPREAD_DAYS = 60  # examinations of one visit may lie weeks apart
DRIFT_DAYS = 183  # half a year: a visit further off would be another one; the wrong year is the commonest slip
_MONTH_DAYS = 365.25 / 12


@dataclass(frozen=True)
class Dates:
    """When a visit was. Either ``days`` or, where there are none to be trusted, ``doubtful`` ones.

    ``doubtful`` has every date that a table gives and the one that the visit's code leads to: an image that is near to
    one of these may be of this visit, hence of no other.
    """

    days: tuple[datetime.date, ...] = ()
    doubtful: tuple[datetime.date, ...] = ()


def check_dates(visits: Mapping[int, Sequence[Row]]) -> dict[int, Dates]:
    """The dates of one subject's visits by months; rows whose date is not used get a remark."""
    dated = {months: rows for months, found in sorted(visits.items()) if (rows := _dated(found))}
    doubtful = _shared(visits, dated) | _spread(dated)
    doubtful |= _drifted({months: rows for months, rows in dated.items() if months not in doubtful})
    known = {months: _days(rows) for months, rows in dated.items() if months not in doubtful}
    return {
        months: Dates(known[months]) if months in known else Dates(doubtful=(*_days(found), *_due(months, known)))
        for months, found in visits.items()
    }


def _dated(rows: Iterable[Row]) -> list[Row]:
    """The rows whose date is the visit's: those of a screening only where the baseline itself has none."""
    dated = [row for row in rows if row.date]
    return [row for row in dated if not row.screening] or dated


def _days(rows: Iterable[Row]) -> tuple[datetime.date, ...]:
    return tuple(row.date for row in rows if row.date)


def _shared(visits: Mapping[int, Sequence[Row]], dated: Mapping[int, Sequence[Row]]) -> set[int]:
    """Visits with a date that another one has too."""
    alike: dict[datetime.date, list[Row]] = defaultdict(list)
    for row in (row for rows in visits.values() for row in rows):
        if row.date:
            alike[row.date].append(row)
    doubtful = set()
    for rows in alike.values():
        for row in rows:
            others = [other for other in rows if other.months != row.months]
            if others:
                row.remarks.append(_unused(f"it is that of another visit too, {_named(others)}"))
                doubtful |= {row.months} if row in dated[row.months] else set()
    return doubtful


def _spread(dated: Mapping[int, Sequence[Row]]) -> set[int]:
    """Visits whose tables give dates too far apart."""
    doubtful = set()
    for months, rows in dated.items():
        days = _days(rows)
        apart = (max(days) - min(days)).days
        if apart > SPREAD_DAYS:
            doubtful.add(months)
            for row in rows:
                others = [other for other in rows if other is not row]
                row.remarks.append(_unused(f"this visit's are {apart} days apart, {_named(others)}"))
    return doubtful


def _drifted(dated: Mapping[int, Sequence[Row]]) -> set[int]:
    """Visits whose date is not where their code puts it."""
    if len(dated) < 2:
        return set()
    first, *others = sorted(dated)
    start = _days(dated[first])[0]
    off = {months: (_days(dated[months])[0] - _later(start, months - first)).days for months in others}
    doubtful = {months for months in others if abs(off[months]) > DRIFT_DAYS}
    for months in doubtful:
        what = f"it is {abs(off[months])} days from where m{months:02d} lies, counted from {_named(dated[first])}"
        for row in dated[months]:
            row.remarks.append(_unused(what))
    if 2 * len(doubtful) < len(dated):
        return doubtful
    for row in dated[first]:
        wrong = [other for months in sorted(doubtful) for other in dated[months]]
        row.remarks.append(_unused(f"those of later visits contradict it, {_named(wrong)}"))
    return doubtful | {first}


def _due(months: int, known: Mapping[int, Sequence[datetime.date]]) -> tuple[datetime.date, ...]:
    """When a visit should have been, counted from the first one whose date can be trusted."""
    return tuple(_later(known[first][0], months - first) for first in sorted(known)[:1])


def _later(day: datetime.date, months: int) -> datetime.date:
    return day + datetime.timedelta(round(months * _MONTH_DAYS))


def _named(rows: Iterable[Row]) -> str:
    return ", ".join(f"{row.place.table} row {row.place.row} ({case_name(row.rid, row.months)})" for row in rows)


def _unused(why: str) -> Remark:
    return Remark(f"its date is not used: {why} (E-PREP-DATE)", "correct the date or the visit code")
