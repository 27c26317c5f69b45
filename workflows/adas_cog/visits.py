"""Images joined with tables: which visit an image is of, and what is a target and what is known of that case."""

import datetime
from collections.abc import Iterable, Mapping
from enum import StrEnum

from medmtl.data.adas_cog import MONTHS
from medmtl.data.case import Case
from workflows.adas_cog import cells
from workflows.adas_cog.images import Folder
from workflows.adas_cog.sessions import Session, Study
from workflows.adas_cog.tables import SCORES, case_name, subject_name
from workflows.preparation import LeftOut, Remark

_TIE_DAYS = 7  # two visits that are nearer to one another than this, as an image sees it, are equally near
_BY_CODE = "name the folder by its visit code (bl, m06, ...)"


class Domain(StrEnum):
    """What the column ``domain`` holds."""

    SCANNER = "scanner"  # manufacturer and field strength
    FIELD = "field"  # field strength alone
    SITE = "site"


def visit_of(folder: Folder, date: datetime.date | None, study: Study, *, within_days: int) -> int:
    """Months of the visit that an image is of: by the folder's code, else by the nearest date of the subject's visits.

    Raises LeftOut where the subject is in no table, where no visit is near enough, or where it is not certain which;
    what :meth:`Study.visits_of` raises where none of the subject's rows is used.
    """
    if folder.rid is None:
        raise LeftOut(
            "no folder above it names a subject of the tables",
            "name the subject's folder by PTID or RID; folders are numbered in the order of their paths",
        )
    visits = study.visits_of(folder.rid)
    if folder.months is not None:
        return folder.months
    date = folder.date or date
    if date is None:
        raise LeftOut(f"nothing says which visit {folder.below} is of", "name a folder bl, m06, ..., or by its date")
    return _nearest(date, visits, within_days)


def _nearest(date: datetime.date, visits: Mapping[int, Session], within_days: int) -> int:
    """Months of the visit with the nearest date, where that is certain."""
    apart = sorted((_apart(date, s.dates.days), months) for months, s in visits.items() if s.dates.days)
    doubtful = sorted((_apart(date, s.dates.doubtful), months) for months, s in visits.items() if s.dates.doubtful)
    if doubtful and doubtful[0][0] <= min([within_days, *(days + _TIE_DAYS for days, _ in apart[:1])]):
        may = " or ".join(f"m{months:02d}" for days, months in doubtful if days <= doubtful[0][0] + _TIE_DAYS)
        what = f"it may be of {may}, of which the tables give no date that can be trusted"
        raise LeftOut(what, f"{_BY_CODE}, or correct the visit's date")
    if not apart or apart[0][0] > within_days:
        nearest = f"the nearest is {apart[0][0]} days away" if apart else "its visits have no dates"
        raise LeftOut(f"no visit within {within_days} days ({nearest})", "raise --within-days, or name it by its code")
    if len(apart) > 1 and apart[1][0] - apart[0][0] <= _TIE_DAYS:
        (days, months), (more, other) = apart[:2]
        raise LeftOut(f"as near to m{months:02d} as to m{other:02d} ({days} and {more} days)", _BY_CODE)
    return apart[0][1]


def _apart(date: datetime.date, days: Iterable[datetime.date]) -> int:
    return min(abs((day - date).days) for day in days)


def contradiction(folder: Folder, date: datetime.date | None, study: Study, *, within_days: int) -> Remark | None:
    """A remark on an image whose folder says one visit and whose own date another one. The folder counts."""
    date = folder.date or date
    visits = study.subjects.get(folder.rid, {}) if folder.rid is not None else {}
    session = visits.get(folder.months) if folder.months is not None else None
    if date is None or session is None or not session.dates.days:
        return None
    apart = _apart(date, (*session.dates.days, *session.screened))
    if apart <= within_days:
        return None
    others = sorted((_apart(date, s.dates.days), s.months) for s in visits.values() if s.dates.days)
    nearer = f", {others[0][0]} from m{others[0][1]:02d}'s" if others[0][0] <= within_days else ""
    return Remark(
        f"the folder's visit code counts, but its own date is {apart} days from this visit's{nearer}",
        "check the folder's visit code and the visit's date",
    )


def case_of(rid: int, months: int, image: str, seen: Mapping[str, str], study: Study, domain: Domain) -> Case:
    """The case of an image; ``seen`` is what its headers say. Raises LeftOut where it has no label at all."""
    visits = study.visits_of(rid)
    session = visits.get(months)
    facts = session.facts if session else {}
    subject = [visits[months] for months in sorted(visits)]
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
    baseline = visits.get(0)
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
    first = next((s.dates.days[0] for s in subject if s.months == 0 and s.dates.days), None)
    days = session.dates.days if session else ()
    years = (days[0] - first).days / 365.25 if first and days else months / 12
    return f"{float(start) + years:.1f}"
