"""ADNI-like folders with tables, or OASIS-1 -> ``manifest.csv``.

    python -m workflows.adas_cog.prepare SOURCE OUT [--layout auto] [--domain scanner] [--within-days 120] [--fill-nan]

``adni``
    A tree of subjects and visits with DICOM series or NIfTI files (``images.py`` says how folders are read), and in
    ``SOURCE`` itself tables with ``RID`` and ``VISCODE2`` or ``VISCODE`` (``tables.py`` lists the columns,
    ``sessions.py`` says what a screening gives, ``dates.py`` which dates are not used).
``oasis``
    ``participants.csv`` (``session_id, subject_id, file, sex, age, educ, mmse, cdr``) and the NIfTI files it names.

``OUT`` gets ``manifest.csv``, ``images/`` (NIfTI with nothing but voxels and geometry, one per subject and visit, named
by RID and month) and ``prepare_report.csv``, which accounts for every row of every table and for every folder with
images. A baseline image has the totals of later visits as further targets (``adas13_m6``, ``_m12``, ``_m24``), whether
these have an image or not. Run again it changes nothing; interrupted it goes on.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from medmtl.data.adas_cog import MONTHS
from medmtl.data.case import Case
from medmtl.errors import UserError
from workflows.adas_cog import ixi, oasis
from workflows.adas_cog.images import (
    Candidate,
    Folder,
    candidates,
    check_volume,
    find_folders,
    other_files,
    place_volume,
    refusals,
)
from workflows.adas_cog.sessions import Session, Study, read_study
from workflows.adas_cog.tables import Row, case_name, open_tables, subject_name
from workflows.adas_cog.visits import Domain, case_of, contradiction, visit_of
from workflows.preparation import USED, LeftOut, Place, Remark, Report, command, header, remarked

_IMAGES = "images"  # the report's name for the tree


class Layout(StrEnum):
    AUTO = "auto"
    ADNI = "adni"
    OASIS = "oasis"
    IXI = "ixi"


@dataclass(frozen=True)
class _Image:
    """A candidate, and the folder that it is in."""

    folder: Folder
    candidate: Candidate


@dataclass(frozen=True)
class _Job:
    """A study that is being prepared, and how."""

    source: Path
    out: Path
    report: Report
    study: Study
    domain: Domain
    within_days: int
    fill_nan: bool


def prepare(
    source: Path,
    out: Path,
    *,
    layout: Layout = Layout.AUTO,
    domain: Domain = Domain.SCANNER,
    within_days: int = 120,
    fill_nan: bool = False,
    console: Console | None = None,
) -> Report:
    """Write ``out/manifest.csv`` and what it needs; see the module's docstring.

    Raises UserError where the source is not understood, NothingUsable where no row is usable.
    """
    if not source.is_dir():
        raise UserError("E-PREP-SOURCE", "no such folder", "give the folder of the data set", where=str(source))
    report, console = Report(), console or Console(quiet=True)
    tables, unread = open_tables(source)
    if layout in (Layout.AUTO, Layout.OASIS) and header(source / oasis.TABLE) >= oasis.COLUMNS:
        cases = _listed(oasis, source, out, report, console, fill_nan=fill_nan)
    elif layout in (Layout.AUTO, Layout.IXI) and header(source / ixi.TABLE) >= ixi.COLUMNS:
        cases = _listed(ixi, source, out, report, console, fill_nan=fill_nan)
    elif layout in (Layout.AUTO, Layout.ADNI) and tables:
        if unread:
            console.print(f"tables that nothing reads: {', '.join(unread)}", markup=False, soft_wrap=True)
        study = read_study(tables, report)
        cases = _adni(_Job(source, out, report, study, domain, within_days, fill_nan), console)
    else:
        raise UserError(
            "E-PREP-SOURCE",
            f"nothing of layout {layout.value!r} in the folder",
            "it should hold participants.csv (OASIS-1 or IXI), or tables with RID and VISCODE2 or VISCODE; see --help",
            where=source.name,
        )
    report.settle(cases, out, source.name)
    return report


def _listed(
    kind: ModuleType, source: Path, out: Path, report: Report, console: Console, *, fill_nan: bool
) -> list[Case]:
    """The cases of a table that names its images: OASIS-1's or IXI's."""
    cases: dict[str, Case] = {}
    for place, row in track(kind.places(source), description="Reading images", console=console):
        try:
            if place.case_id.casefold() in cases:
                raise UserError("E-PREP-TWICE", "the same session is in an earlier row", "remove one of the rows")
            cases[place.case_id.casefold()], remarks = kind.read_row(source, out, place, row, fill_nan=fill_nan)
            report.add(place, USED, *remarked(remarks))
        except UserError as problem:
            report.refuse(place, problem)
    return list(cases.values())


def _adni(job: _Job, console: Console) -> list[Case]:
    visits: dict[tuple[int, int], list[_Image]] = defaultdict(list)
    for folder in track(find_folders(job.source, job.study.names), description="Reading headers", console=console):
        for key, image in _images(job, folder):
            visits[key].append(image)
    cases: dict[tuple[int, int], Case] = {}
    for key, images in track(sorted(visits.items()), description="Reading images", console=console):
        case = _case(job, key, images)
        if case is not None:
            cases[key] = case
    for session in (session for subject in job.study.subjects.values() for session in subject.values()):
        for row in session.rows:
            _account(row, session, cases, job.report)
    return list(cases.values())


def _images(job: _Job, folder: Folder) -> list[tuple[tuple[int, int], _Image]]:
    """The images of a folder by (RID, months); everything else of it goes into the report."""
    found: list[tuple[tuple[int, int], _Image]] = []
    problems: list[UserError | LeftOut] = []
    for candidate in candidates(job.source, folder, fill_nan=job.fill_nan):
        if not isinstance(candidate, Candidate):
            problems.append(candidate)
            continue
        try:
            months = visit_of(folder, candidate.date, job.study, within_days=job.within_days)
            found.append(((folder.rid or 0, months), _Image(folder, candidate)))
        except (UserError, LeftOut) as problem:
            problems.append(problem)
    if not found and not problems:
        what = f"no image among its files ({other_files(folder)})"
        problems.append(LeftOut(what, "nothing, unless it should have one: copy that again"))
    name = case_name(*found[0][0]) if found else subject_name(folder.rid) if folder.rid is not None else ""
    for each in refusals(problems):
        job.report.refuse(Place(_IMAGES, folder.number, name), each)
    return found


def _case(job: _Job, key: tuple[int, int], images: list[_Image]) -> Case | None:
    """The case of a visit, of its largest image that can be read; the others are left out with a word."""
    case: Case | None = None
    for image in sorted(images, key=lambda image: (-_voxels(image), image.folder.number)):
        place = Place(_IMAGES, image.folder.number, case_name(*key))
        if case is not None:
            job.report.refuse(place, LeftOut("another image of this visit is used", "keep one in the visit's folder"))
            continue
        try:
            case, remarks = _made(job, key, image)
            job.report.add(place, USED, *remarked(remarks))
        except (UserError, LeftOut) as problem:
            job.report.refuse(place, problem)
    return case


def _made(job: _Job, key: tuple[int, int], image: _Image) -> tuple[Case, list[Remark]]:
    """The case of one image, which is put in place."""
    path = job.out / "images" / f"{case_name(*key)}.nii.gz"
    case = case_of(*key, path.relative_to(job.out).as_posix(), image.candidate.facts, job.study, job.domain)
    remarks = list(place_volume(check_volume(image.candidate.read()), path))
    astray = contradiction(image.folder, image.candidate.date, job.study, within_days=job.within_days)
    if astray is not None:
        remarks.append(astray)
    rid, months = key
    if months not in job.study.subjects[rid]:
        remarks.append(Remark("no row of a table for this visit, hence no score", "add the row"))
    elif all(target == "age" or target.startswith("adas13_m") for target in case.targets):
        remarks.append(Remark("no score of this visit"))
    return case, remarks


def _voxels(image: _Image) -> int:
    i, j, k = (*image.candidate.shape, 1, 1, 1)[:3]
    return i * j * k


def _account(row: Row, session: Session, cases: Mapping[tuple[int, int], Case], report: Report) -> None:
    """What became of a row of a table: used for its image, or as a later total of the baseline image, or not at all."""
    remarks = list(row.remarks)
    if (row.rid, row.months) not in cases:
        later = (
            (row.rid, 0) in cases and row.months in MONTHS and session.facts.get("adas13") == row.facts.get("adas13")
        )
        if "adas13" not in row.facts or not later:
            remarks.insert(0, Remark("no image of this visit", "add the image, or do without"))
            report.refuse(row.place, LeftOut(*remarked(remarks)))
            return
        remarks.append(Remark("no image of this visit; its total is a target of the baseline image"))
    elif not row.needed:
        remarks.insert(0, Remark("a screening; the baseline visit has all that it says", "nothing"))
        report.refuse(row.place, LeftOut(*remarked(remarks)))
        return
    report.add(row.place, USED, *remarked(remarks))


def main(
    source: Annotated[Path, typer.Argument(help="Folder of ADNI-like images and tables, of OASIS-1 or of IXI.")],
    out: Annotated[Path, typer.Argument(help="Folder to write manifest.csv and images to.")],
    layout: Annotated[Layout, typer.Option(help="How SOURCE is laid out.")] = Layout.AUTO,
    domain: Annotated[Domain, typer.Option(help="What the column domain holds.")] = Domain.SCANNER,
    within_days: Annotated[
        int, typer.Option(min=0, help="How far an image's date may be from its visit's in the tables.")
    ] = 120,
    fill_nan: Annotated[
        bool, typer.Option("--fill-nan", help="Replace NaN by the lowest value, in up to 0.1 % of the voxels.")
    ] = False,
) -> None:
    """Turn MRI of the head with cognitive scores into a manifest."""

    def run(console: Console) -> Iterable[str]:
        report = prepare(
            source, out, layout=layout, domain=domain, within_days=within_days, fill_nan=fill_nan, console=console
        )
        return report.summary()

    command(run, out)


if __name__ == "__main__":
    typer.run(main)
