"""Whether a run will be able to read its cases: every label's cell, every mask, and the header of every image.

Of all parts alike, before a run trains, so that no bad row of the test part waits until the model is there. Headers say
how large an image is; its pixels are checked as they are read, and whether a volume's mask lies where its image lies.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import ExifTags, Image

from medmtl.data.case import Case
from medmtl.data.loader import stored_mask
from medmtl.data.target import AnnotatorsTarget, MaskTarget, Target
from medmtl.errors import UserError
from medmtl.files import inside
from medmtl.io.nifti import read_header
from medmtl.io.raster import FORMATS, pages

_SHOWN = 12  # problems listed in one message
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


def check_cases(
    cases: Sequence[Case], targets: Mapping[str, Target], root: Path, *, volumes: bool, name: str = "manifest.csv"
) -> None:
    """Refuse the cases that a run could not read, each with its row, under the code of the first.

    ``targets`` are the readers by column, ``name`` is the manifest's. What the labels are goes nowhere.
    """
    problems = [problem for case in cases for problem in _problems(case, targets, root, volumes)]
    if not problems:
        return
    first = problems[0][1]
    codes = {error.code for _, error in problems}
    listed = [f"{place}: {error.code + ' ' if len(codes) > 1 else ''}{error.what}" for place, error in problems]
    more = f" (and {len(listed) - _SHOWN} more)" if len(listed) > _SHOWN else ""
    raise type(first)(first.code, "; ".join(listed[:_SHOWN]) + more, first.remedy, where=name) from first


def _problems(case: Case, targets: Mapping[str, Target], root: Path, volumes: bool) -> Iterator[tuple[str, UserError]]:
    """(Where, what) is wrong with one case."""
    place = f"row {case.row}, case {case.case_id}"
    try:
        size = _size(inside(root, case.image), volumes)
    except UserError as error:
        size = None
        yield f"{place}, image", _bare(error)
    for column, reader in targets.items():
        for cell_of in reader.columns(column) if isinstance(reader, AnnotatorsTarget) else (column,):
            cell = case.targets.get(cell_of)
            try:
                if cell is not None:
                    _check_cell(case, cell, reader, root, size, volumes)
            except UserError as error:
                yield f"{place}, target.{cell_of}", _bare(error)


def _bare(error: UserError) -> UserError:
    """The error alone: where it was raised, its traceback would keep an image."""
    return type(error)(error.code, error.what, error.remedy, where=error.where)


def _check_cell(case: Case, cell: str, reader: Target, root: Path, size: tuple[int, ...] | None, volumes: bool) -> None:
    if not isinstance(reader, MaskTarget | AnnotatorsTarget):
        reader.read(case, cell, root)
        return
    found = _size(inside(root, cell), volumes)
    if size is not None and found != size:
        raise UserError(
            "E-TGT-SIZE",
            f"the mask has {_times(found)} {'voxels' if volumes else 'px'}, its image {_times(size)}",
            "make the mask on the image's own grid",
        )
    if volumes:
        stored_mask(case, cell, len(reader.classes), root)
    else:
        MaskTarget(reader.classes).read(case, cell, root)


def _size(path: Path, volumes: bool) -> tuple[int, ...]:
    """[H, W], upright, or [I, J, K] of a file, from its header; what is no image is refused as its reader would."""
    if volumes:
        return read_header(path).shape
    try:
        with Image.open(path, formats=FORMATS) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # of a file that is missing, damaged or hostile a decoder raises anything: the reader has words
        pages(path)
        raise


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
