"""The drawn cohort as raw files: series in a tree of subjects and visits, with tables laid out as ADNI's.

``dicom``: ``ADNI/<PTID>/MPRAGE/<date>_10_11_12.0/I<number>/*.dcm``, the visit being known by its date alone. ``nifti``:
``ADNI/<PTID>/<visit code>/T1w.nii.gz``. Beside them ``ADAS.csv`` (``RID, VISCODE2, Q1SCORE``, ...) and
``ADNIMERGE.csv``. Scores that are missing are blank, -1 or -4, as there.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from medmtl.data.synthetic.brain import check_size, draw_scan, number
from medmtl.data.synthetic.brain_course import Subject, Visit, draw_cohort
from medmtl.data.synthetic.brain_scanner import SCANNERS, grid_of, turned_to
from medmtl.data.synthetic.dicom_header import Person, Series, numbers
from medmtl.data.synthetic.dicom_write import save
from medmtl.files import write_atomic
from medmtl.io.nifti import write_nifti
from medmtl.io.volume import Volume

ADAS, MERGED = "ADAS.csv", "ADNIMERGE.csv"
_MISSING = ("", "-1", "-4")
_ADAS_COLUMNS = ("RID", "VISCODE", "VISCODE2", "EXAMDATE", *(f"Q{n}SCORE" for n in range(1, 14)), "TOTSCORE", "TOTAL13")
_MERGED_COLUMNS = (
    "RID", "PTID", "VISCODE", "SITE", "EXAMDATE", "DX_bl", "DX", "AGE", "PTGENDER", "PTEDUCAT", "CDRSB", "CDGLOBAL",
    "ADAS11", "ADAS13", "MMSE", "FLDSTRENG", "Month",
)  # fmt: skip
_BASELINE_NAME = {"CN": "CN", "MCI": "LMCI", "AD": "AD"}
_NAME = {"CN": "CN", "MCI": "MCI", "AD": "Dementia"}


def write_brain_source(
    out: Path,
    *,
    format: Literal["dicom", "nifti"] = "dicom",
    cases: int = 30,
    groups: int = 15,
    domains: int = 3,
    seed: int = 0,
    spacing_mm: float = 4.0,
    head: bool = True,
) -> Path:
    """Write the tree and its tables into ``out`` and return it; the cohort of ``write_brain_study`` with this seed."""
    check_size(cases=cases, groups=groups, domains=domains, spacing_mm=spacing_mm)
    cohort = draw_cohort(images=cases, subjects=groups, scanners=domains, seed=seed)
    for subject in cohort:
        for visit in subject.visits:
            if visit.imaged:
                image, _ = draw_scan(subject, visit, seed=seed, spacing_mm=spacing_mm, head=head)
                if format == "dicom":
                    _write_series(series_folder(out, subject, visit), subject, visit, image, spacing_mm, head)
                else:
                    axes = SCANNERS[subject.scanner].axes
                    folder = out / "ADNI" / subject.ptid / visit.code
                    write_nifti(folder / "T1w.nii.gz", turned_to(image, axes))
    rng = np.random.default_rng((seed, 5))
    _write_table(out / ADAS, _ADAS_COLUMNS, (_adas_row(s, v, rng) for s in cohort for v in s.visits))
    _write_table(out / MERGED, _MERGED_COLUMNS, (_merged_row(s, v) for s in cohort for v in s.visits))
    return out


def series_folder(out: Path, subject: Subject, visit: Visit) -> Path:
    """Where the DICOM files of a visit are: as ADNI's archive packs them."""
    moment = f"{visit.date.isoformat()}_10_11_12.0"
    return out / "ADNI" / subject.ptid / "MPRAGE" / moment / f"I{1000 * subject.rid + visit.months}"


def _write_series(folder: Path, subject: Subject, visit: Visit, image: Volume, spacing_mm: float, head: bool) -> None:
    scanner, grid = SCANNERS[subject.scanner], grid_of(SCANNERS[subject.scanner], spacing_mm, head=head)
    person = Person(f"Drawn^Subject{subject.rid}", subject.ptid, "19300101", "", "", "", "")
    kind = f"brain {subject.rid} {visit.months}"
    series = Series(kind, grid=grid, modality="MR", person=person, intercept=0.0)
    ds = series.header()
    ds.Manufacturer, ds.MagneticFieldStrength = scanner.manufacturer, f"{scanner.tesla:g}"
    ds.ImageType, ds.SequenceVariant, ds.MRAcquisitionType = ["ORIGINAL", "PRIMARY", "M"], "MP", "3D"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = visit.date.strftime("%Y%m%d")
    ds.SeriesDescription = ds.ProtocolName = "MPRAGE"
    ds.ImageOrientationPatient = numbers(grid.axes.T[:2].ravel())
    for k in range(len(grid)):
        ds.SOPInstanceUID, ds.InstanceNumber = series.instance_uid(k), k + 1
        ds.ImagePositionPatient = numbers(grid.position(k))
        ds.SliceLocation = numbers([grid.offsets_mm[k]])[0]
        series.put_pixels(ds, np.ascontiguousarray(image.array[:, ::-1, k].T).astype(np.uint16))
        save(folder / f"IM{k + 1:04d}.dcm", ds)


def _adas_row(subject: Subject, visit: Visit, rng: np.random.Generator) -> tuple[str, ...]:
    scores = (*visit.items.values(), visit.adas11, visit.adas13)
    cells = [number(score) if score is not None else str(rng.choice(_MISSING)) for score in scores]
    return (str(subject.rid), visit.code, visit.code, visit.date.isoformat(), *cells)


def _merged_row(subject: Subject, visit: Visit) -> tuple[str, ...]:
    scores = (visit.cdrsb, visit.cdr, visit.adas11, visit.adas13, visit.mmse)
    return (
        str(subject.rid),
        subject.ptid,
        visit.code,
        str(subject.site),
        visit.date.isoformat(),
        _BASELINE_NAME[subject.diagnosis],
        _NAME[visit.diagnosis],
        f"{subject.visits[0].age:.1f}",
        "Female" if subject.female else "Male",
        str(subject.education),
        *(number(score) for score in scores),
        f"{SCANNERS[subject.scanner].tesla:g} Tesla MRI",
        str(visit.months),
    )


def _write_table(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(path, stream.getvalue())
