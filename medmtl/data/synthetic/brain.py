"""A small study of drawn brains: three-dimensional scans over two years, ADAS-Cog items, masks, three scanners.

What can be read from an image is regional atrophy (``truth.csv``); the items depend on it with loadings of their own
(``brain_course.LOADINGS``), on education, and on luck. So the total is best predicted by what its items need, memory
items need the hippocampi, and a later score needs the diagnosis' pace beside the image. Visits, items and whole scores
are missing as in a study of the elderly: the worse off, the sooner.

The columns are those of ``workflows.adas_cog.prepare``; ``meta.truth_<region>`` is the atrophy. The same cohort as raw
files with tables: :mod:`medmtl.data.synthetic.brain_source`.
"""

import csv
import io
from pathlib import Path

import numpy as np

from medmtl.data.adas_cog import MONTHS
from medmtl.data.case import Case, write_manifest
from medmtl.data.synthetic.brain_anatomy import REGIONS, Anatomy, draw_anatomy
from medmtl.data.synthetic.brain_course import Subject, Visit, draw_cohort
from medmtl.data.synthetic.brain_scanner import SCANNERS, draw_pose, scan, turned_to
from medmtl.errors import UserError
from medmtl.files import write_atomic
from medmtl.io.nifti import write_nifti
from medmtl.io.volume import Volume

_NO_MASK = 0.4
_BANDS = ((65, "under_65"), (75, "65_to_74"), (85, "75_to_84"))


def write_brain_study(
    out: Path,
    *,
    cases: int = 300,
    groups: int = 150,
    domains: int = 3,
    seed: int = 0,
    spacing_mm: float = 4.0,
    head: bool = False,
) -> Path:
    """Draw the study into ``out`` and return the path of its manifest; the same arguments give the same bytes.

    ``groups`` subjects share ``cases`` images, each subject's baseline first, at most four each. Voxels are about
    ``spacing_mm`` wide. With ``head``, skull and scalp are in the image; without, it is skull-stripped.
    """
    check_size(cases=cases, groups=groups, domains=domains, spacing_mm=spacing_mm)
    cohort = draw_cohort(images=cases, subjects=groups, scanners=domains, seed=seed)
    rows, truth = [], []
    for subject in cohort:
        for visit in subject.visits:
            if visit.imaged:
                image, labels = draw_scan(subject, visit, seed=seed, spacing_mm=spacing_mm, head=head)
                axes = SCANNERS[subject.scanner].axes
                rows.append(_case(out, subject, visit, turned_to(image, axes), turned_to(labels, axes), seed))
                truth.append((rows[-1].case_id, *visit.atrophy, *_volumes_ml(labels)))
    _write_truth(out / "truth.csv", truth)
    return write_manifest(out / "manifest.csv", rows)


def check_size(*, cases: int, groups: int, domains: int, spacing_mm: float) -> None:
    """Refuse numbers that make no study."""
    enough = 1 <= domains <= len(SCANNERS) and 3 * domains <= groups <= cases <= len(MONTHS) * groups
    if not (enough and 1 <= spacing_mm <= 8):
        raise UserError(
            "E-SYN-SIZE",
            f"cases={cases}, groups={groups}, domains={domains}, spacing_mm={spacing_mm:g}",
            f"choose 1 to {len(SCANNERS)} domains, at least 3 groups of each, 1 to {len(MONTHS)} cases per group, "
            "and voxels of 1 to 8 mm",
            where="synthetic study",
        )


def draw_scan(subject: Subject, visit: Visit, *, seed: int, spacing_mm: float, head: bool) -> tuple[Volume, Volume]:
    """(image, labels) of a visit on the scanner's grid: the same head each time, lying otherwise, more atrophied."""
    anatomy: Anatomy = draw_anatomy(np.random.default_rng((seed, 2, subject.rid)))
    rng = np.random.default_rng((seed, 3, subject.rid, visit.months))
    scanner = SCANNERS[subject.scanner]
    pose = draw_pose(rng)
    return scan(anatomy, visit.atrophy, scanner, pose=pose, rng=rng, spacing_mm=spacing_mm, head=head)


def case_name(subject: Subject, visit: Visit) -> str:
    """The id of a subject's visit, as ``workflows.adas_cog.prepare`` makes it."""
    return f"R{subject.rid:04d}_m{visit.months:02d}"


def _case(out: Path, subject: Subject, visit: Visit, image: Volume, labels: Volume, seed: int) -> Case:
    name = case_name(subject, visit)
    path = write_nifti(out / "images" / f"{name}.nii.gz", image)
    targets = scores(visit)
    if visit.months == 0:
        targets |= {f"adas13_m{at.months}": number(at.adas13) for at in subject.visits}
    if np.random.default_rng((seed, 4, subject.rid, visit.months)).random() >= _NO_MASK:
        mask = write_nifti(out / "masks" / "regions" / f"{name}.nii.gz", labels)
        targets["regions"] = mask.relative_to(out).as_posix()
    scanner = SCANNERS[subject.scanner]
    meta = {
        "visit": f"m{visit.months:02d}",
        "age": f"{visit.age:.1f}",
        "age_band": next((band for high, band in _BANDS if visit.age < high), "85_and_over"),
        "sex": "F" if subject.female else "M",
        "education": str(subject.education),
        "diagnosis": visit.diagnosis,
        "baseline_diagnosis": subject.diagnosis,
        "baseline_adas13": number(subject.baseline_adas13),
        "field_strength": f"{scanner.tesla:g}T",
        **{f"truth_{region}": f"{value:.4f}" for region, value in visit.atrophy._asdict().items()},
    }
    image_path = path.relative_to(out).as_posix()
    known = {key: cell for key, cell in targets.items() if cell}
    described = {key: cell for key, cell in meta.items() if cell}
    return Case(name, f"R{subject.rid:04d}", image_path, scanner.name, subject.split, known, described)


def scores(visit: Visit) -> dict[str, str]:
    """The cells of a visit's own scores; empty where one is missing."""
    cells = {name: number(score) for name, score in visit.items.items()}
    cdr = {"mmse": number(visit.mmse), "cdr": number(visit.cdr)}
    return {**cells, "adas13": number(visit.adas13), **cdr, "age": f"{visit.age:.1f}"}


def number(value: float | None) -> str:
    """A cell: nothing where there is no value."""
    return "" if value is None else f"{value:g}"


def _volumes_ml(labels: Volume) -> tuple[float, ...]:
    """What each region measures in the labels, background left out."""
    assert labels.affine is not None
    voxel_ml = abs(float(np.linalg.det(labels.affine[:3, :3]))) / 1000
    return tuple(float((labels.array == n).sum()) * voxel_ml for n in range(1, len(REGIONS)))


def _write_truth(path: Path, rows: list[tuple[object, ...]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    atrophy = ("hippocampus", "cortex", "ventricles")
    writer.writerow(("case_id", *(f"atrophy_{name}" for name in atrophy), *(f"{name}_ml" for name in REGIONS[1:])))
    writer.writerows([row[0], *(f"{value:.4f}" for value in row[1:])] for row in sorted(rows))  # type: ignore[str-bytes-safe]
    write_atomic(path, stream.getvalue())
