"""Cells of a study's tables, read and checked: scores, visits, diagnoses, dates. An empty answer is a missing value."""

import datetime
import math
import re

from medmtl.errors import UserError

MISSING = frozenset({"", "-1", "-4", "-1.0", "-4.0", "na", "n/a", "nan", "null"})  # -1 and -4 as ADNI uses them
CDR = ("0", "0.5", "1", "2", "3")
_BASELINE = frozenset({"bl", "m0", "m00"})
SCREENING = frozenset({"sc", "scmri"})
_MONTH = re.compile(r"m(\d{1,3})")
_DIAGNOSES = {
    "cn": "CN", "nl": "CN", "smc": "CN", "normal": "CN",
    "mci": "MCI", "emci": "MCI", "lmci": "MCI",
    "ad": "AD", "dementia": "AD",
}  # fmt: skip
_SEXES = {"f": "F", "female": "F", "2": "F", "m": "M", "male": "M", "1": "M"}  # ADNI codes 1 male, 2 female
_BANDS = ((65, "under_65"), (75, "65_to_74"), (85, "75_to_84"))


def number(cell: str, *, what: str, high: float, low: float = 0) -> str:
    """A score in [low, high] without superfluous digits; empty where it is missing."""
    if cell.lower() in MISSING:
        return ""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not low <= value <= high:  # NaN fails as well
        raise UserError(
            "E-PREP-SCORE",
            f"{what} = {cell!r} is not a number from {low:g} to {high:g}",
            "correct the cell, or empty it if the score is missing",
        )
    return f"{value:.6g}"


def cdr(cell: str) -> str:
    """The global Clinical Dementia Rating, one of ``CDR``."""
    value = number(cell, what="CDR", high=3)
    if value and value not in CDR:
        raise UserError("E-PREP-SCORE", f"CDR = {cell!r} is none of {', '.join(CDR)}", "correct the cell")
    return value


def months_of(code: str) -> int | None:
    """Months since the baseline that a visit code says; None where it says none (``sc``, ``f``, ``uns1``)."""
    code = code.strip().lower().removeprefix("ses-")
    if code in _BASELINE:
        return 0
    match = _MONTH.fullmatch(code)
    return int(match[1]) if match else None


def diagnosis(cell: str) -> str:
    """CN, MCI or AD; of a change (``MCI to Dementia``) what it ended with; empty where unknown."""
    return _DIAGNOSES.get(cell.lower().rpartition(" to ")[2].strip(), "")


def sex(cell: str) -> str:
    return _SEXES.get(cell.lower(), "")


def field_strength(cell: str) -> str:
    """``1.5T`` of ``1.5 Tesla MRI``; empty where there is no number between 0.2 and 12."""
    match = re.search(r"\d+(\.\d+)?", cell)
    return f"{float(match[0]):.2g}T" if match and 0.2 <= float(match[0]) <= 12 else ""


def date(cell: str) -> datetime.date | None:
    """An ISO date, an American one (8/26/2005) or DICOM's (20050826), whatever follows; None where it is none.

    A year before 1900 or after 2100 is none: nobody's head was scanned then.
    """
    for pattern, order in (
        (r"(\d{4})-(\d{1,2})-(\d{1,2})", (0, 1, 2)),
        (r"(\d{4})(\d{2})(\d{2})(?!\d)", (0, 1, 2)),
        (r"(\d{1,2})/(\d{1,2})/(\d{4})", (2, 0, 1)),
    ):
        if match := re.match(pattern, cell):
            year, month, day = (int(match.groups()[n]) for n in order)
            try:
                return datetime.date(year, month, day) if 1900 <= year <= 2100 else None
            except ValueError:
                return None
    return None


def age_band(age: str) -> str:
    return next((band for high, band in _BANDS if float(age) < high), "85_and_over") if age else ""
