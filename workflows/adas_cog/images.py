"""Images of a tree of subjects and visits: which visit a folder is of, and its volume, from DICOM or NIfTI.

Below ``SOURCE`` a folder names the subject (``011_S_0002``, or the RID alone), one further below its visit: by a code
(``bl``, ``m06``, ``ses-m12``), or by a date (``2006-03-02_10_11_12.0``), as ADNI's archive packs them. Without either,
the acquisition date of the DICOM headers counts. A date belongs to the visit whose date in the tables is nearest.
"""

import datetime
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from medmtl.data.grid import VolumeGrid
from medmtl.errors import UserError
from medmtl.files import inside
from medmtl.ingest.sniff import empty, ignored_kind, kind_of, unknown
from medmtl.io.affine import spacing_mm
from medmtl.io.dicom.header import read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.record import Header, NotDicom
from medmtl.io.dicom.series import plan
from medmtl.io.dicom.stack import Stack
from medmtl.io.nifti import read_header as read_nifti_header
from medmtl.io.nifti import read_nifti, write_nifti
from medmtl.io.reasons import refusal
from medmtl.io.volume import Volume
from medmtl.io.voxels import finite
from workflows.adas_cog import cells
from workflows.preparation import LeftOut, Remark

_PTID = re.compile(r"\d{3}_S_(\d{4,5})", re.IGNORECASE)
_FEWEST_SLICES = 16  # fewer are a localizer
_HEAD_MM = (
    60  # a volume that reaches less far along any axis holds no head, not a child's, nor a brain without its skull
)
_HEAD = 4096  # bytes that tell a file's kind


@dataclass(frozen=True)
class Candidate:
    """An image that could be a visit's: how to read it, and how large it is."""

    read: Callable[[], Volume]
    shape: tuple[int, ...]
    date: datetime.date | None = None
    facts: Mapping[str, str] = field(default_factory=dict)  # manufacturer, field_strength


@dataclass(frozen=True)
class Folder:
    """A folder that holds image files; ``below`` is its path below the subject's folder."""

    number: int  # in the order of paths, from 1
    rid: int | None
    code: str  # of the visit, where the path has one
    date: datetime.date | None  # of the path
    below: str
    files: tuple[Path, ...]

    @property
    def months(self) -> int | None:
        return 0 if self.code.lower() in cells.SCREENING else cells.months_of(self.code)


def find_folders(source: Path, known: Mapping[str, int]) -> list[Folder]:
    """Every folder below ``source`` with files in it that are no tables; ``known``: PTID or RID -> RID."""
    found: list[Folder] = []
    for path, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(path)
        files = [here / name for name in sorted(names) if not name.startswith(".") and not name.endswith(".csv")]
        if files and here != source:
            found.append(_folder(len(found) + 1, here.relative_to(source).parts, files, known))
    return found


def _folder(number: int, parts: Sequence[str], files: Sequence[Path], known: Mapping[str, int]) -> Folder:
    at, rid = next(((n, rid) for n, part in enumerate(parts) if (rid := _subject(part, known)) is not None), (-1, None))
    rest = parts[at + 1 :] if rid is not None else ()
    code = next((part for part in rest if cells.months_of(part) is not None or part.lower() in cells.SCREENING), "")
    date = next((found for part in rest if (found := cells.date(part))), None)
    return Folder(number, rid, code, date, "/".join(rest), tuple(files))


def _subject(part: str, known: Mapping[str, int]) -> int | None:
    """The RID that a folder's name stands for, where a table knows it."""
    match = _PTID.fullmatch(part)
    return known.get(part.upper(), known.get(str(int(match[1])) if match else part.lstrip("0")))


def candidates(source: Path, folder: Folder, *, fill_nan: bool = False) -> Iterator[Candidate | UserError | LeftOut]:
    """What could be an image in a folder, and what is refused; a file whose name promises no image is passed over.

    ``fill_nan``: up to 0.1 % of the voxels may be NaN or infinite and get the lowest value, as ``medmtl ingest`` does.
    """
    nan: Literal["fill", "refuse"] = "fill" if fill_nan else "refuse"
    headers: list[Header] = []
    for file in folder.files:
        try:
            path = inside(source, file.relative_to(source).as_posix())
            kind = _kind(path)
            if kind == "nifti":
                shape = read_nifti_header(path).shape
                yield Candidate(partial(read_nifti, path, nan=nan), shape)
            elif kind in ("dicom", "maybe-dicom"):
                headers.append(read_header(path))
            elif kind == "other":
                yield from _unknown(file)
        except NotDicom:
            yield from _unknown(file)
        except UserError as error:
            yield UserError(error.code, error.what, error.remedy)
        except OSError as error:
            yield UserError("E-FILE-OPEN", f"a file cannot be read ({error.strerror})", "check its permissions")
    yield from _series(headers, fill_nan=fill_nan)


def _unknown(file: Path) -> Iterator[UserError]:
    """What is wrong with a file of unknown content whose name promises an image."""
    code, what = unknown(file.name)
    if code.startswith("E-"):
        yield refusal(code, f"a file of which {what}")


def _kind(path: Path) -> str:
    """What a file is by its first bytes; nothing where it is empty and need not be an image, or no regular file."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head and empty(path.name) == "E-FILE-EMPTY":
        raise UserError("E-FILE-EMPTY", "a file of 0 bytes", "copy it again")
    return kind_of(head) if head else ""


def _series(headers: Sequence[Header], *, fill_nan: bool) -> Iterator[Candidate | UserError | LeftOut]:
    found = plan(headers)
    for refused in found.refused:
        files = len(refused.headers)
        yield UserError(refused.error.code, f"{files} files: {refused.error.what}", refused.error.remedy)
    for stack in found.volumes:
        flat = stack.affine is None or stack.colour or stack.times > 1 or len(stack.slices) < _FEWEST_SLICES
        if flat:
            what = f"a series of {len(stack.slices)} slices that is no volume of the head"
            yield LeftOut(what, "nothing, if it is a localizer or another examination")
            continue
        facts = {"manufacturer": _manufacturer(str(stack.first.facts.get("Manufacturer", "")))}
        tesla = stack.first.facts.get("MagneticFieldStrength")
        facts["field_strength"] = cells.field_strength(f"{tesla}") if isinstance(tesla, float | int) else ""
        private = stack.first.private
        date = cells.date(private.get("AcquisitionDate", "") or private.get("StudyDate", ""))
        yield Candidate(partial(_decoded, stack, fill_nan), stack.shape, date, facts)


def _decoded(stack: Stack, fill_nan: bool) -> Volume:
    return finite(load(stack), fill=fill_nan)


def _manufacturer(name: str) -> str:
    """One name for the many spellings of a maker; unknown ones are kept."""
    for maker in ("GE", "Siemens", "Philips", "Toshiba", "Hitachi", "Canon", "UIH"):
        if name.upper().startswith(maker.upper()):
            return maker
    return name.strip().title()


def check_volume(volume: Volume) -> Volume:
    """A volume that training would take (``E-VOL-...`` of :meth:`VolumeGrid.place`) and that a head has room in."""
    VolumeGrid().place(volume)
    assert volume.affine is not None
    reach = [n * mm for n, mm in zip(volume.array.shape, spacing_mm(volume.affine), strict=True)]
    if min(reach) < _HEAD_MM:
        raise UserError(
            "E-VOL-DIMENSIONS",
            f"{' x '.join(f'{mm:.0f}' for mm in reach)} mm of {volume.array.shape} voxels are no volume of the head",
            "give the whole scan, not a slice, a slab or a localizer",
        )
    low, high = volume.array.min(), volume.array.max()
    if low == high:
        raise UserError("E-VOL-VALUES", f"every voxel is {low}", "check the image, or export it again")
    return volume


def place_volume(volume: Volume, path: Path) -> tuple[Remark, ...]:
    """Write voxels and geometry alone, unless the file holds them already. Returns what was repaired."""
    if not _holds(path, volume):
        write_nifti(path, replace(volume, notes=()))
    return tuple(Remark(f"{note.what} ({note.code})") for note in volume.notes if note.code.startswith("R-"))


def _holds(path: Path, volume: Volume) -> bool:
    try:
        found = read_nifti(path)
    except UserError:
        return False
    assert volume.affine is not None
    return (
        found.affine is not None
        and np.array_equal(found.array, volume.array)
        and np.allclose(found.affine, volume.affine, atol=1e-4)
    )


def refusals(problems: Sequence[UserError | LeftOut]) -> list[UserError | LeftOut]:
    """The problems of one folder, equal ones once, with their number."""
    alike: dict[str, list[UserError | LeftOut]] = defaultdict(list)
    for problem in problems:
        alike[str(problem)].append(problem)
    found: list[UserError | LeftOut] = []
    for same in alike.values():
        first = same[0]
        if len(same) > 1 and isinstance(first, UserError):
            first = UserError(first.code, f"{len(same)} times: {first.what}", first.remedy)
        found.append(first)
    return found


def other_files(folder: Folder) -> str:
    """What a folder without any image holds, by kind; nothing of the files' own names."""
    return ", ".join(sorted({ignored_kind(file.name) for file in folder.files}))
