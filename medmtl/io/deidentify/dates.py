"""DICOM dates, date-times and ages moved by whole days: intervals stay exact, clock times stay as they are.

DA is ``YYYYMMDD``, DT ``YYYYMMDDHHMMSS.FFFFFF&ZZXX`` with everything after the year optional (PS3.5 table 6.2-1).
"""

import re
from datetime import date, timedelta

EARLIEST = date(1900, 1, 1)
OLDEST_YEARS = 89  # an age above this identifies (HIPAA 45 CFR 164.514(b)(2)(i)(C)); it is written as 90
_DA = re.compile(r"(\d{4})(\d\d)(\d\d)|(\d{4})\.(\d\d)\.(\d\d)")  # with dots: ACR-NEMA, still seen
_DT = re.compile(r"(\d{8})((?:\d{2}){0,3}(?:(?<=\d{14})\.\d{1,6})?)([+-]\d{4})?")
_AGE = re.compile(r"(\d{3})([DWMY])")
_PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}


def parse_date(text: str) -> date | None:
    """A DA value as a date; None for an empty, malformed or impossible one, and for a range."""
    match = _DA.fullmatch(text.strip(" \0"))
    if match is None:
        return None
    year, month, day = (int(part) for part in match.groups() if part is not None)
    try:
        return date(year, month, day)
    except ValueError:
        return None


def shifted_date(text: str, days: int) -> str | None:
    """``text`` (DA) moved by ``days``; None where it is no date, or would fall before 1900."""
    day = parse_date(text)
    if day is None or day.toordinal() + days < EARLIEST.toordinal():
        return None
    return f"{day + timedelta(days=days):%Y%m%d}"


def shifted_datetime(text: str, days: int) -> str | None:
    """``text`` (DT) moved by ``days``; the time, its fraction and its offset from UTC stay as they are.

    None where it is no date-time or would fall before 1900, and where it has no day: a year or a month alone cannot
    be moved by days.
    """
    match = _DT.fullmatch(text.strip(" \0"))
    day = shifted_date(match[1], days) if match else None
    return None if match is None or day is None else day + match[2] + (match[3] or "")


def capped_age(text: str) -> str | None:
    """An AS value (``045Y``, ``018M``), or ``090Y`` for everybody above 89 years; None where it is malformed."""
    match = _AGE.fullmatch(text.strip(" \0").upper())
    if match is None:
        return None
    years = int(match[1]) / _PER_YEAR[match[2]]
    return "090Y" if years >= OLDEST_YEARS + 1 else match[0]
