"""Drawn courses of disease: subjects, their visits, regional atrophy that progresses, and the scores that follow it.

Atrophy rises with age and diagnosis, at each subject's own pace. An item's expected share of its maximum is linear in
its *burden*, the atrophy that its loadings weigh, above the burden that it forgives, less what education makes up for.
Memory items (Q1, Q4, Q8) load on the hippocampi, the others on cortex and ventricles.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from medmtl.data.adas_cog import ITEMS, MONTHS, NOT_IN_11
from medmtl.data.synthetic.brain_anatomy import Atrophy, Generator
from medmtl.data.synthetic.painting import parts

DIAGNOSES = ("CN", "MCI", "AD")
_SHARES = (0.35, 0.4, 0.25)
_ONSET = {"CN": (0.0, 0.0, 0.0), "MCI": (0.26, 0.13, 0.16), "AD": (0.46, 0.36, 0.38)}  # beyond age, per region
_PACE = {"CN": 0.015, "MCI": 0.05, "AD": 0.09}  # per year
_CONVERTED = 0.55  # mean atrophy from which on MCI is called AD
_NO_SCORE, _NO_ITEM, _MISSED = 0.05, 0.01, 0.10  # of imaged visits, of items, of other visits
_SPLIT = {"common": (0.62, 0.14), "rare": (0.35, 0.15)}  # shares of subjects in train and val; the rest is test


class Loading(NamedTuple):
    """How an item depends on the regions' atrophy: shares that add up to 1, and what of the burden is forgiven."""

    hippocampus: float
    cortex: float
    ventricles: float
    forgiven: float = 0.15
    gain: float = 0.7


LOADINGS: Mapping[str, Loading] = MappingProxyType(
    {
        "q1": Loading(0.80, 0.15, 0.05, 0.0, 0.95),
        "q2": Loading(0.10, 0.70, 0.20),
        "q3": Loading(0.10, 0.75, 0.15),
        "q4": Loading(0.90, 0.05, 0.05, 0.0, 1.1),
        "q5": Loading(0.20, 0.70, 0.10),
        "q6": Loading(0.10, 0.70, 0.20),
        "q7": Loading(0.40, 0.40, 0.20),
        "q8": Loading(0.80, 0.15, 0.05, 0.05, 0.9),
        "q9": Loading(0.40, 0.40, 0.20),
        "q10": Loading(0.10, 0.80, 0.10),
        "q11": Loading(0.15, 0.75, 0.10),
        "q12": Loading(0.10, 0.80, 0.10),
        "q13": Loading(0.05, 0.45, 0.50, 0.05),
    }
)
HALVES = frozenset({"q1", "q8"})  # means over trials; the other items are whole numbers


@dataclass(frozen=True)
class Visit:
    """One examination: what is true of the brain, and what was noted down. A score that is not there is None."""

    months: int
    date: datetime.date
    age: float
    diagnosis: str
    atrophy: Atrophy
    imaged: bool
    items: Mapping[str, float | None]
    mmse: int | None
    cdr: float | None
    cdrsb: float | None

    @property
    def code(self) -> str:
        """The visit code as ADNI writes it."""
        return "bl" if self.months == 0 else f"m{self.months:02d}"

    @property
    def adas13(self) -> float | None:
        """The sum of all items, None where one is missing."""
        return total(self.items)

    @property
    def adas11(self) -> float | None:
        """The sum without delayed recall and number cancellation."""
        return total({name: score for name, score in self.items.items() if name not in NOT_IN_11})


@dataclass(frozen=True)
class Subject:
    """Somebody who never lived; ``rid`` counts from 1, ``scanner`` is an index."""

    rid: int
    scanner: int
    split: str
    diagnosis: str  # at the first visit
    female: bool
    education: int  # years
    visits: tuple[Visit, ...]

    @property
    def site(self) -> int:
        return 10 + 7 * self.scanner

    @property
    def ptid(self) -> str:
        """The participant's number in ADNI's form: site, S, four digits."""
        return f"{self.site:03d}_S_{self.rid:04d}"

    @property
    def baseline_adas13(self) -> float | None:
        return self.visits[0].adas13 if self.visits[0].months == 0 else None


def total(items: Mapping[str, float | None]) -> float | None:
    """The sum of the scores, None where one is missing."""
    known = [score for score in items.values() if score is not None]
    return float(sum(known)) if len(known) == len(items) else None


def draw_cohort(*, images: int, subjects: int, scanners: int, seed: int) -> tuple[Subject, ...]:
    """``subjects`` courses with ``images`` images in all: one of each baseline, the others of later visits by lot.

    Subjects are dealt to ``scanners`` in turn, on which they stay; the last scanner is rare in ``train``.
    """
    rng = np.random.default_rng((seed, 0))
    split: dict[int, str] = {}
    for scanner in range(scanners):
        members = range(scanner, subjects, scanners)
        share = _SPLIT["rare" if scanner == scanners - 1 and scanners > 1 else "common"]
        split |= dict(zip(members, parts(rng, len(members), share), strict=True))
    later = [(n, months) for n in range(subjects) for months in MONTHS[1:]]
    chosen = {later[i] for i in rng.permutation(len(later))[: images - subjects]}
    return tuple(
        _draw_subject(n, n % scanners, split[n], {0, *(m for m in MONTHS if (n, m) in chosen)}, (seed, 1, n))
        for n in range(subjects)
    )


def _draw_subject(number: int, scanner: int, split: str, imaged: set[int], seed: tuple[int, ...]) -> Subject:
    rng = np.random.default_rng(seed)
    diagnosis = str(rng.choice(DIAGNOSES, p=_SHARES))
    age = float(np.clip(rng.normal(73, 7), 55, 90))
    education = int(np.clip(round(rng.normal(15.5, 2.8)), 6, 20))
    start, pace = _draw_atrophy(rng, diagnosis, age)
    first = datetime.date(2006, 1, 9) + datetime.timedelta(int(rng.integers(0, 900)))
    visits, gone = [], False
    for months in MONTHS:
        atrophy = Atrophy(*(float(np.clip(s + p * months / 12, 0, 1)) for s, p in zip(start, pace, strict=True)))
        drawn = _draw_visit(rng, months, first, age, diagnosis, atrophy, education, months in imaged)
        # who is worse off drops out sooner; nobody who was imaged later has dropped out before
        gone = gone or (months > 0 and float(rng.random()) < _MISSED + 0.3 * float(np.mean(atrophy)) * (months > 6))
        if months in imaged or (not gone and float(rng.random()) >= _MISSED):
            visits.append(drawn)
    return Subject(number + 1, scanner, split, diagnosis, bool(rng.random() < 0.5), education, tuple(visits))


def _draw_atrophy(rng: Generator, diagnosis: str, age: float) -> tuple[np.ndarray, np.ndarray]:
    """Regional atrophy at the first visit, and per year."""
    common = rng.normal(0, 0.05)
    start = 0.15 + 0.008 * (age - 70) + np.array(_ONSET[diagnosis]) + common + rng.normal(0, 0.10, 3)
    pace = _PACE[diagnosis] * rng.lognormal(0, 0.5) * rng.lognormal(0, 0.2, 3)
    return np.clip(start, 0.01, 1), pace


def _draw_visit(
    rng: Generator,
    months: int,
    first: datetime.date,
    age: float,
    diagnosis: str,
    atrophy: Atrophy,
    education: int,
    imaged: bool,
) -> Visit:
    days = round(months * 30.44) + (int(rng.integers(-12, 13)) if months else 0)
    items: dict[str, float | None] = {}
    for name, score in expected_items(atrophy, education).items():
        step = 0.5 if name in HALVES else 1.0
        noisy = score + rng.normal(0, 0.07) * ITEMS[name].high
        items[name] = float(np.clip(round(noisy / step) * step, 0, ITEMS[name].high))
        if rng.random() < _NO_ITEM:
            items[name] = None
    severity = float(np.dot((0.45, 0.35, 0.20), atrophy)) - 0.006 * (education - 15)
    mmse = int(np.clip(round(30 - 20 * max(0.0, severity - 0.12) + rng.normal(0, 1.2)), 0, 30))
    boxes = float(np.clip(round(2 * (14 * max(0.0, severity - 0.22) + rng.normal(0, 0.5))) / 2, 0, 18))
    if rng.random() < _NO_SCORE:
        items = dict.fromkeys(items)
    worse = diagnosis == "MCI" and float(np.mean(atrophy)) > _CONVERTED
    return Visit(
        months,
        first + datetime.timedelta(days),
        age + days / 365.25,
        "AD" if worse else diagnosis,
        atrophy,
        imaged,
        MappingProxyType(items),
        None if rng.random() < _NO_SCORE else mmse,
        None if rng.random() < _NO_SCORE else global_cdr(boxes),
        boxes,
    )


def expected_items(atrophy: Atrophy, education: float) -> dict[str, float]:
    """Each item's score without noise, not rounded."""
    scores = {}
    for name, loading in LOADINGS.items():
        burden = float(np.dot(loading[:3], atrophy)) - loading.forgiven
        share = loading.gain * burden - 0.008 * (education - 15)
        scores[name] = ITEMS[name].high * float(np.clip(share, 0, 1))
    return scores


def global_cdr(boxes: float) -> float:
    """The global rating that usually goes with a sum of boxes (O'Bryant et al. 2008, table 3; 3 is not drawn)."""
    bounds: Sequence[tuple[float, float]] = ((0.0, 0.0), (4.0, 0.5), (9.0, 1.0))
    return next((rating for high, rating in bounds if boxes <= high), 2.0)
