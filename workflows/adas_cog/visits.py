"""Images joined with tables: which visit an image is of, and what is a target and what is known of that case."""

import datetime
from collections.abc import Iterable, Mapping
from enum import StrEnum

from medmtl.data.adas_cog import MONTHS
from medmtl.data.case import Case
from workflows.adas_cog import cells
from workflows.adas_cog.images import Folder
from workflows.adas_cog.tables import SCORES, Session, case_name, subject_name
from workflows.preparation import LeftOut

Sessions = Mapping[tuple[int, int], Session]


class Domain(StrEnum):
    """What the column ``domain`` holds."""

    SCANNER = "scanner"  # manufacturer and field strength
    FIELD = "field"  # field strength alone
    SITE = "site"


def known_subjects(sessions: Sessions) -> dict[str, int]:
    """Names of folders -> RID: the PTID of the tables, and the RID itself."""
    names = {str(rid): rid for rid, _ in sessions}
    return names | {s.facts["ptid"].upper(): s.rid for s in sessions.values() if "ptid" in s.facts}


def visit_of(folder: Folder, date: datetime.date | None, sessions: Sessions, *, within_days: int) -> int:
    """Months of the visit that an image is of: by the folder's code, else by the nearest date of the subject's visits.

    Raises LeftOut where the subject is in no table, or no visit is near enough.
    """
    if folder.rid is None:
        raise LeftOut(
            "no folder above it names a subject of the tables",
            "name the subject's folder by PTID or RID; folders are numbered in the order of their paths",
        )
    if folder.months is not None:
        return folder.months
    date = folder.date or date
    if date is None:
        raise LeftOut(f"nothing says which visit {folder.below} is of", "name a folder bl, m06, ..., or by its date")
    apart = [
        (abs((day - date).days), months)
        for (rid, months), session in sessions.items()
        if rid == folder.rid
        for day in session.dates
    ]
    if not apart or min(apart)[0] > within_days:
        nearest = f"the nearest is {min(apart)[0]} days away" if apart else "its visits have no dates"
        raise LeftOut(f"no visit within {within_days} days ({nearest})", "raise --within-days, or name it by its code")
    return min(apart)[1]


def case_of(rid: int, months: int, image: str, seen: Mapping[str, str], sessions: Sessions, domain: Domain) -> Case:
    """The case of an image; ``seen`` is what its headers say. Raises LeftOut where it has no label at all."""
    session = sessions.get((rid, months))
    facts = session.facts if session else {}
    subject = [sessions[key] for key in sorted(sessions) if key[0] == rid]
    age = _age(months, session, subject)
    targets = {name: facts[name] for name in SCORES if name in facts}
    if months == 0:
        targets |= {
            f"adas13_m{s.months}": s.facts["adas13"] for s in subject if s.months in MONTHS and "adas13" in s.facts
        }
    targets |= {"age": age} if age else {}
    if not targets:
        raise LeftOut("no label at all", "give a score of this visit, or the subject's AGE")
    field = seen.get("field_strength") or facts.get("field_strength") or _first(subject, "field_strength")
    site = facts.get("site") or _first(subject, "site")
    domains = {
        Domain.SCANNER: " ".join(part for part in (seen.get("manufacturer", ""), field) if part),
        Domain.FIELD: field,
        Domain.SITE: f"site {site}" if site else "",
    }
    baseline = sessions.get((rid, 0))
    meta = {
        "visit": f"m{months:02d}",
        "age": age,
        "age_band": cells.age_band(age),
        "sex": _first(subject, "sex"),
        "education": _first(subject, "education"),
        "diagnosis": facts.get("diagnosis", ""),
        "baseline_diagnosis": _first(subject, "baseline_diagnosis"),
        "baseline_adas13": baseline.facts.get("adas13", "") if baseline else "",
        "field_strength": field,
        "site": site,
    }
    described = {name: cell for name, cell in meta.items() if cell}
    split = _first(subject, "split")
    return Case(case_name(rid, months), subject_name(rid), image, domains[domain], split, targets, described)


def _first(subject: Iterable[Session], name: str) -> str:
    return next((session.facts[name] for session in subject if name in session.facts), "")


def _age(months: int, session: Session | None, subject: list[Session]) -> str:
    """Age at the visit: that at the baseline (ADNI's AGE), and the time between the two dates, else the months."""
    start = _first(subject, "baseline_age")
    if not start:
        return ""
    first = next((s.dates[0] for s in subject if s.months == 0 and s.dates), None)
    dates = session.dates if session else ()
    years = (dates[0] - first).days / 365.25 if first and dates else months / 12
    return f"{float(start) + years:.1f}"
