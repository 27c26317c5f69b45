"""ADNI-like folders with tables, or OASIS-1 -> ``manifest.csv``.

    python -m workflows.adas_cog.prepare SOURCE OUT [--layout auto] [--domain scanner] [--within-days 120]

``adni``
    A tree of subjects and visits with DICOM series or NIfTI files (``images.py`` says how folders are read), and in
    ``SOURCE`` itself tables with ``RID`` and ``VISCODE2`` or ``VISCODE`` (``tables.py`` lists the columns).
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
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from medmtl.data.adas_cog import MONTHS
from medmtl.data.case import Case
from medmtl.errors import UserError
from workflows.adas_cog import oasis
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
from workflows.adas_cog.tables import Row, Session, case_name, open_tables, read_sessions
from workflows.adas_cog.visits import Domain, Sessions, case_of, known_subjects, visit_of
from workflows.preparation import USED, LeftOut, Place, Remark, Report, command, header, remarked

_IMAGES = "images"  # the report's name for the tree


class Layout(StrEnum):
    AUTO = "auto"
    ADNI = "adni"
    OASIS = "oasis"


@dataclass(frozen=True)
class _Image:
    """A candidate, and the folder that it is in."""

    folder: Folder
    candidate: Candidate


def prepare(
    source: Path,
    out: Path,
    *,
    layout: Layout = Layout.AUTO,
    domain: Domain = Domain.SCANNER,
    within_days: int = 120,
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
        cases = _oasis(source, out, report, console)
    elif layout in (Layout.AUTO, Layout.ADNI) and tables:
        if unread:
            console.print(f"tables that nothing reads: {', '.join(unread)}", markup=False, soft_wrap=True)
        sessions = read_sessions(tables, report)
        cases = _adni(source, out, report, sessions, domain=domain, within_days=within_days, console=console)
    else:
        raise UserError(
            "E-PREP-SOURCE",
            f"nothing of layout {layout.value!r} in the folder",
            "it should hold participants.csv (OASIS-1), or tables with RID and VISCODE2 or VISCODE; see --help",
            where=source.name,
        )
    report.settle(cases, out, source.name)
    return report


def _oasis(source: Path, out: Path, report: Report, console: Console) -> list[Case]:
    cases: dict[str, Case] = {}
    for place, row in track(oasis.places(source), description="Reading images", console=console):
        try:
            if place.case_id.casefold() in cases:
                raise UserError("E-PREP-TWICE", "the same session is in an earlier row", "remove one of the rows")
            cases[place.case_id.casefold()], remarks = oasis.read_row(source, out, place, row)
            report.add(place, USED, *remarked(remarks))
        except UserError as problem:
            report.refuse(place, problem)
    return list(cases.values())


def _adni(
    source: Path, out: Path, report: Report, sessions: Sessions, *, domain: Domain, within_days: int, console: Console
) -> list[Case]:
    folders = find_folders(source, known_subjects(sessions))
    visits: dict[tuple[int, int], list[_Image]] = defaultdict(list)
    for folder in track(folders, description="Reading headers", console=console):
        for key, image in _images(source, folder, sessions, within_days, report):
            visits[key].append(image)
    cases: dict[tuple[int, int], Case] = {}
    for key, images in track(sorted(visits.items()), description="Reading images", console=console):
        case = _case(key, images, out, report, sessions, domain)
        if case is not None:
            cases[key] = case
    for session in sessions.values():
        for row in session.rows:
            _account(row, session, cases, report)
    return list(cases.values())


def _images(
    source: Path, folder: Folder, sessions: Sessions, within_days: int, report: Report
) -> list[tuple[tuple[int, int], _Image]]:
    """The images of a folder by (RID, months); everything else of it goes into the report."""
    found: list[tuple[tuple[int, int], _Image]] = []
    problems: list[UserError | LeftOut] = []
    for candidate in candidates(source, folder):
        if not isinstance(candidate, Candidate):
            problems.append(candidate)
            continue
        try:
            months = visit_of(folder, candidate.date, sessions, within_days=within_days)
            found.append(((folder.rid or 0, months), _Image(folder, candidate)))
        except LeftOut as problem:
            problems.append(problem)
    if not found and not problems:
        problems.append(LeftOut(f"no image among its files ({other_files(folder)})"))
    name = case_name(*found[0][0]) if found else ""
    for each in refusals(problems):
        report.refuse(Place(_IMAGES, folder.number, name), each)
    return found


def _case(
    key: tuple[int, int], images: list[_Image], out: Path, report: Report, sessions: Sessions, domain: Domain
) -> Case | None:
    """The case of a visit, of its largest image that can be read; the others are left out with a word."""
    case: Case | None = None
    for image in sorted(images, key=lambda image: (-_voxels(image), image.folder.number)):
        place = Place(_IMAGES, image.folder.number, case_name(*key))
        if case is not None:
            report.refuse(place, LeftOut("another image of this visit is used", "keep one in the visit's folder"))
            continue
        try:
            case, remarks = _made(key, image, out, sessions, domain)
            report.add(place, USED, *remarked(remarks))
        except (UserError, LeftOut) as problem:
            report.refuse(place, problem)
    return case


def _made(
    key: tuple[int, int], image: _Image, out: Path, sessions: Sessions, domain: Domain
) -> tuple[Case, list[Remark]]:
    """The case of one image, which is put in place."""
    path = out / "images" / f"{case_name(*key)}.nii.gz"
    case = case_of(*key, path.relative_to(out).as_posix(), image.candidate.facts, sessions, domain)
    remarks = list(place_volume(check_volume(image.candidate.read()), path))
    if key not in sessions:
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
            report.refuse(row.place, LeftOut("no image of this visit", "add the image, or do without"))
            return
        remarks.append(Remark("no image of this visit; its total is a target of the baseline image"))
    report.add(row.place, USED, *remarked(remarks))


def main(
    source: Annotated[Path, typer.Argument(help="Folder of ADNI-like images and tables, or of OASIS-1.")],
    out: Annotated[Path, typer.Argument(help="Folder to write manifest.csv and images to.")],
    layout: Annotated[Layout, typer.Option(help="How SOURCE is laid out.")] = Layout.AUTO,
    domain: Annotated[Domain, typer.Option(help="What the column domain holds.")] = Domain.SCANNER,
    within_days: Annotated[
        int, typer.Option(min=0, help="How far an image's date may be from its visit's in the tables.")
    ] = 120,
) -> None:
    """Turn MRI of the head with cognitive scores into a manifest."""

    def run(console: Console) -> Iterable[str]:
        return prepare(source, out, layout=layout, domain=domain, within_days=within_days, console=console).summary()

    command(run, out)


if __name__ == "__main__":
    typer.run(main)
