"""What colposcopists and pathologists write, as target and meta cells. An empty cell stays empty.

Two labels are called "suspicious disease" and are not the same: the Swede score of 5 or more (what was *seen*) and
CIN2+ (what the *tissue* showed). They are separate targets here, and neither is ever derived from the other.
"""

from collections.abc import Callable
from typing import Final

from medmtl.errors import UserError

SUSPICIOUS_FROM: Final = 5  # of 10; the usual cut-off for colposcopic suspicion of high-grade disease
SUSPICIOUS: Final = ("unsuspicious", "suspicious")
CIN2PLUS: Final = ("below_cin2", "cin2plus")
ACETOWHITE: Final = ("absent", "present")
_GRADES: Final = {
    **dict.fromkeys(("normal", "negative", "benign", "nocin", "cin0"), "normal"),
    **dict.fromkeys(("cin1", "cini", "cin1-", "lsil"), "CIN1"),
    **dict.fromkeys(("cin2", "cinii"), "CIN2"),
    **dict.fromkeys(("cin3", "ciniii", "cis"), "CIN3"),
    **dict.fromkeys(("cin2+", "cin2/3", "cin2-3", "hsil"), "CIN2+"),
    "ais": "AIS",
    **dict.fromkeys(("cancer", "carcinoma", "invasive", "invasivecancer", "scc", "adenocarcinoma"), "cancer"),
}
_BELOW: Final = ("normal", "CIN1")
_YES: Final = dict.fromkeys(("1", "yes", "true", "present", "positive", "pos", "+"), True)
_NO: Final = dict.fromkeys(("0", "no", "false", "absent", "negative", "neg", "-"), False)
_ZONES: Final = {**{name: f"TZ{i}" for i in (1, 2, 3) for name in (f"{i}", f"tz{i}", f"type{i}", f"type{'i' * i}")}}


def swede(cell: str) -> str:
    """A Swede score, a whole number from 0 to 10 (five signs of 0, 1 or 2), as a cell; E-PREP-SWEDE for others."""
    if not cell:
        return ""
    try:
        score = float(cell)
    except ValueError:
        score = -1.0
    if not (0 <= score <= 10 and score == int(score)):
        raise UserError(
            "E-PREP-SWEDE",
            f"Swede score {cell!r}; a whole number from 0 to 10 was expected",
            "correct the score, or empty the cell where it is unknown",
        )
    return str(int(score))


def swede_targets(cell: str) -> dict[str, str]:
    """``swede`` and, from it alone, ``suspicious``."""
    score = swede(cell)
    return {"swede": score, "suspicious": SUSPICIOUS[int(score) >= SUSPICIOUS_FROM]} if score else {}


def histology(cell: str) -> tuple[str, str]:
    """The grade in one spelling, and the cell of ``cin2plus``; E-PREP-CIN for a grade that is not known.

    LSIL counts as CIN1, HSIL as CIN2+ (LAST 2012), adenocarcinoma in situ and cancer are above CIN2.
    """
    if not cell:
        return "", ""
    grade = _GRADES.get(cell.lower().replace(" ", "").replace("_", ""))
    if grade is None:
        raise UserError(
            "E-PREP-CIN",
            f"histology {cell!r} is not a known grade",
            "write normal, CIN1, CIN2, CIN3, CIN2+, AIS or cancer, or empty the cell",
        )
    return grade, CIN2PLUS[grade not in _BELOW]


def flag(cell: str, names: tuple[str, str]) -> str:
    """A yes or no in any usual spelling as one of ``names`` (no, yes); empty stays empty."""
    if not cell:
        return ""
    known = _YES | _NO
    if cell.lower() not in known:
        raise UserError("E-PREP-FLAG", f"{cell!r} is neither yes nor no", "write 1 or 0, or empty the cell")
    return names[known[cell.lower()]]


def zone(cell: str) -> str:
    """The transformation zone as TZ1, TZ2 or TZ3 (IFCPC 2011)."""
    found = _ZONES.get(cell.lower().replace(" ", ""), "") if cell else ""
    if cell and not found:
        raise UserError("E-PREP-ZONE", f"transformation zone {cell!r}", "write 1, 2 or 3, or empty the cell")
    return found


def hpv(cell: str) -> str:
    """``positive`` or ``negative`` where that is what is written, otherwise the genotype as it is."""
    known = _YES | _NO
    return ("negative", "positive")[known[cell.lower()]] if cell.lower() in known else cell


def age(cell: str) -> dict[str, str]:
    """Age in years and its band of ten; E-PREP-AGE outside 10 to 110."""
    if not cell:
        return {}
    try:
        years = float(cell)
    except ValueError:
        years = -1.0
    if not 10 <= years <= 110:
        raise UserError("E-PREP-AGE", f"age {cell!r}", "write years between 10 and 110, or empty the cell")
    decade = int(years) // 10 * 10
    return {"age": f"{years:g}", "age_band": f"{decade}-{decade + 9}"}


META: Final[dict[str, Callable[[str], str]]] = {
    "visit": str,
    "transformation_zone": zone,
    "hpv": hpv,
    "comorbidity": str.lower,
    "filter": str.lower,
    "quality": str.lower,
}
"""Columns of a user's table that become ``meta.<name>``, and how their cells are read."""
