"""A small multi-site study of drawn colposcopy images: known Swede scores, missing labels, a comorbidity that misleads.

A patient has one cervix, one to several pictures of it, and the five signs of the Swede score, 0 to 2 each. Four are
drawn (uptake of acetic acid, margin, vessels, size); the fifth, iodine staining, is scored but cannot be seen here, as
it cannot in an acetic-acid image. Histology follows the severity behind the signs and exists for some patients only,
more often where the score is high.

**Inflammation misleads.** It is independent of severity. In an inflamed cervix the lesion is veiled, and harmless white
patches look like one whatever the score: a model that is good elsewhere fails here, and a failure analysis must rank
``meta.comorbidity`` first. Atrophy is a comorbidity that does nothing of the kind.

The columns are those of ``workflows.cervical_screening.prepare``; ``meta.truth_...`` is what was drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmtl.data.case import Case, write_manifest
from medmtl.data.synthetic.cervix import Patient, Signs, draw_cervix
from medmtl.data.synthetic.painting import Generator, parts, photograph
from medmtl.errors import UserError
from medmtl.io.raster import write_png

SUSPICIOUS, CIN2PLUS, ACETOWHITE = ("unsuspicious", "suspicious"), ("below_cin2", "cin2plus"), ("absent", "present")
COMORBIDITIES = {"none": 0.60, "inflammation": 0.28, "atrophy": 0.12}
_SPLIT = {"common": (0.60, 0.12), "rare": (0.30, 0.15)}  # shares of patients in train and val; the rest is test
_NO_SWEDE, _NO_MASK, _NO_ACETOWHITE, _NO_COMORBIDITY, _OFF_BY_ONE = 0.12, 0.35, 0.10, 0.08, 0.20
_GREEN, _BLURRED = 0.07, 0.08  # shares of images through the green filter, and out of focus


@dataclass(frozen=True)
class Site:
    """A clinic's colposcope: gain of red, green and blue, blur, grain, JPEG quality, and how ill its patients are."""

    gain: tuple[float, float, float]
    blur: float
    grain: float
    quality: int
    severity: float


SITES = (
    Site((1.00, 0.96, 0.96), 0.008, 0.010, 92, 0.0),
    Site((0.96, 0.88, 0.98), 0.014, 0.020, 80, 0.3),
    Site((1.05, 0.97, 0.90), 0.018, 0.022, 75, 0.6),
    Site((0.88, 0.92, 0.92), 0.012, 0.014, 88, 0.1),
)


def write_colposcopy_study(
    out: Path, *, cases: int = 480, groups: int = 160, domains: int = 3, seed: int = 0, size: int = 96
) -> Path:
    """Draw the study into ``out`` and return the path of its manifest; the same arguments give the same bytes.

    ``groups`` patients are dealt to ``domains`` sites in turn and share ``cases`` images, at least one each; the last
    site is rare in ``train``. ``size`` is the side of an image in px.
    """
    if not (1 <= domains <= len(SITES) and 3 * domains <= groups <= cases and size >= 32):
        raise UserError(
            "E-SYN-SIZE",
            f"cases={cases}, groups={groups}, domains={domains}, size={size}",
            f"choose 1 to {len(SITES)} domains, at least 3 groups of each, at least as many cases, and size >= 32",
            where="synthetic study",
        )
    rng = np.random.default_rng((seed, 0))
    patients = sorted(_patients(rng, groups, domains, seed), key=lambda patient: patient.name)
    owner = np.sort(np.concatenate([np.arange(groups), rng.integers(0, groups, cases - groups)]))
    rows = [
        _write_case(out, f"COL_{index:04d}", patients[number], np.random.default_rng((seed, 1, index)), size)
        for index, number in enumerate(owner)
    ]
    return write_manifest(out / "manifest.csv", rows)


def _patients(rng: Generator, groups: int, domains: int, seed: int) -> Iterator[Patient]:
    for site in range(domains):
        members = np.arange(site, groups, domains)
        places = parts(rng, len(members), _SPLIT["rare" if site == domains - 1 and domains > 1 else "common"])
        for place in ("train", "val", "test"):
            here = [int(member) for member, where in zip(members, places, strict=True) if where == place]
            for member, comorbidity in zip(here, _dealt(rng, len(here)), strict=True):
                yield _patient(rng, member, site, place, comorbidity, (seed, 2, member))


def _dealt(rng: Generator, count: int) -> list[str]:
    """Comorbidities in random order, each as often as its share says, give or take one."""
    bounds = np.cumsum(list(COMORBIDITIES.values()))
    levels = np.searchsorted(bounds, (rng.permutation(count) + rng.uniform(0, 1)) / max(count, 1))
    return [list(COMORBIDITIES)[min(int(level), len(bounds) - 1)] for level in levels]


def _patient(rng: Generator, member: int, site: int, split: str, comorbidity: str, seed: tuple[int, ...]) -> Patient:
    severity = rng.normal(SITES[site].severity, 1.3)
    seen = severity + rng.normal(0, 0.6, (5, 2))
    levels = [int(first > -0.4) + int(second > 0.8) for first, second in seen]
    if not levels[0]:  # nothing takes up the acid: no lesion whose margin, vessels or size could be scored
        levels = [0, 0, 0, 0, levels[4]]
    tissue = severity + rng.normal(0, 0.4)
    age = int(np.clip(rng.normal(38, 11), 18, 72))
    return Patient(
        f"P{member:03d}",
        site,
        split,
        Signs(*levels),
        ("normal", "CIN1", "CIN2", "CIN3")[int(tissue > -0.5) + int(tissue > 0.2) + int(tissue > 1.2)],
        comorbidity,
        age,
        f"TZ{1 + int(age + rng.normal(0, 8) > 38) + int(age + rng.normal(0, 8) > 50)}",
        ("negative", "positive")[int(severity + rng.normal(0, 1) > 0.2)],
        seed,
    )


def _write_case(out: Path, case_id: str, patient: Patient, rng: Generator, size: int) -> Case:
    own = np.random.default_rng((*patient.seed, 7))  # what a patient's record says, the same for every picture
    light, lesion = draw_cervix(patient, np.random.default_rng(patient.seed), rng, size)
    filtered, blurred = rng.random() < _GREEN, rng.random() < _BLURRED
    if filtered:
        light = light[..., 1:2] * 1.2 * np.array([0.18, 1.0, 0.38])
    site = SITES[patient.site]
    image = photograph(
        out / "images" / f"{case_id}.jpg",
        light,
        gain=site.gain,
        blur=site.blur + (0.05 if blurred else 0),
        grain=site.grain,
        quality=site.quality,
        rng=rng,
    )
    targets, meta = _record(patient, own)
    if rng.random() >= _NO_ACETOWHITE:
        targets["acetowhite"] = ACETOWHITE[patient.signs.uptake > 0]
    if rng.random() >= _NO_MASK and not filtered:
        targets["lesion"] = write_png(out / "masks" / f"{case_id}.png", lesion).relative_to(out).as_posix()
    meta |= {
        "filter": "green" if filtered else "acetic",
        "quality": "blurred" if blurred else "ok",
        "truth_lesion_share": f"{lesion.mean():.4f}",
    }
    domain = f"site-{'ABCD'[patient.site]}"
    return Case(case_id, patient.name, image.relative_to(out).as_posix(), domain, patient.split, targets, meta)


def _record(patient: Patient, own: Generator) -> tuple[dict[str, str], dict[str, str]]:
    """Scores and histology of a patient as far as they were written down, and what is known besides."""
    score, biopsy = patient.signs.score, patient.grade
    written = int(np.clip(score + own.choice((-1, 1)), 0, 10)) if own.random() < _OFF_BY_ONE else score
    targets: dict[str, str] = {}
    if own.random() >= _NO_SWEDE:
        targets |= {"swede": str(written), "suspicious": SUSPICIOUS[written >= 5]}
    if own.random() < (0.75 if written >= 4 else 0.3):  # who is biopsied depends on what was seen
        targets["cin2plus"] = CIN2PLUS[biopsy in ("CIN2", "CIN3")]
    decade = patient.age // 10 * 10
    meta = {
        "visit": str(int(own.integers(1, 4))),
        "age": str(patient.age),
        "age_band": f"{decade}-{decade + 9}",
        "transformation_zone": patient.zone,
        "truth_swede": str(score),
        "truth_grade": biopsy,
        "truth_comorbidity": patient.comorbidity,
    }
    if own.random() >= _NO_COMORBIDITY:
        meta["comorbidity"] = patient.comorbidity
    if own.random() >= 0.2:
        meta["hpv"] = patient.hpv
    return targets, meta
