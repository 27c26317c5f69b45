"""Whether a run will be able to read its cases: every label's cell, every mask, and the header of every image.

Of all parts alike, before a run trains, so that no bad row of the test part waits until the model is there. Headers say
how large an image is, of which colour, and of how many pages; they are judged by the functions that judge the pixels.
The pixels are checked as they are read (alpha that is not opaque), and whether a volume's mask lies where its image is.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from medmtl.data.case import Case
from medmtl.data.loader import stored_mask
from medmtl.data.preprocess import Preprocess
from medmtl.data.target import AnnotatorsTarget, MaskTarget, Target
from medmtl.errors import UserError
from medmtl.files import inside
from medmtl.io import raster
from medmtl.io.nifti import read_header

_SHOWN = 12  # problems listed in one message
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_SUBFILE = 254  # TIFF tag NewSubfileType: whether a page is a picture by itself
_NO_PICTURE = 0b101  # a smaller version of another page (pyramid, thumbnail), or its transparency mask


def check_cases(
    cases: Sequence[Case],
    targets: Mapping[str, Target],
    root: Path,
    preprocess: Preprocess,
    *,
    name: str = "manifest.csv",
) -> None:
    """Refuse the cases that a run could not read, each with its row, under the code of the first.

    ``targets`` are the readers by column, ``preprocess`` is what images are brought to, ``name`` is the manifest's.
    What the labels are goes nowhere.
    """
    problems = [problem for case in cases for problem in _problems(case, targets, root, preprocess)]
    if not problems:
        return
    first, several = problems[0][1], len({error.code for _, error in problems}) > 1
    listed = [f"{place}: {error.code + ' ' if several else ''}{error.what}" for place, error in problems]
    more = f" (and {len(listed) - _SHOWN} more)" if len(listed) > _SHOWN else ""
    remedies = dict.fromkeys(f"{error.code + ': ' if several else ''}{error.remedy}" for _, error in problems[:_SHOWN])
    raise type(first)(first.code, "; ".join(listed[:_SHOWN]) + more, "; ".join(remedies), where=name) from first


def _problems(
    case: Case, targets: Mapping[str, Target], root: Path, preprocess: Preprocess
) -> Iterator[tuple[str, UserError]]:
    """(Where, what) is wrong with one case."""
    place, volumes = f"row {case.row}, case {case.case_id}", preprocess.volume is not None
    try:
        size = _image_size(inside(root, case.image), preprocess)
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


def _image_size(path: Path, preprocess: Preprocess) -> tuple[int, ...]:
    """[H, W], upright, or [I, J, K] of an image; one that preprocessing would refuse is refused."""
    if preprocess.volume is not None:
        return _size(path, volumes=True)
    header = _header(path)
    raster.check_colour(raster.channels_of(header.mode, header.format, path.name), preprocess.channels, path.name)
    preprocess.grid(header.size)
    return header.size


def _size(path: Path, volumes: bool) -> tuple[int, ...]:
    """[H, W], upright, or [I, J, K] of a file, from its header; what is no image is refused as its reader would."""
    return read_header(path).shape if volumes else _header(path).size


class _Header(NamedTuple):
    """What an image file says of its pixels before they are decoded."""

    size: tuple[int, int]  # [H, W], upright
    mode: str  # of Pillow
    format: str | None


def _header(path: Path) -> _Header:
    """The header of a file that holds one image, of a size that may be decoded."""
    try:
        with Image.open(path, formats=raster.FORMATS) as image:
            mode, (height, width) = image.mode, _stored(image)
            exif = image.getexif()  # Pillow decodes a PNG that has none before its pixels: it may stand behind them
            turned = exif.get(ExifTags.Base.Orientation) in _TURNED
            header = _Header((width, height) if turned else (height, width), mode, image.format)
            pictures = _pictures(image)
    except Exception:  # of a file that is missing, damaged or hostile a decoder raises anything: the reader has words
        raster.read_image(path, channels=3)
        raise
    if height * width > raster.MAX_PIXELS:
        raster.pages(path)  # says so
    if pictures > 1:
        raise UserError(
            "E-IMG-PAGE",
            f"the file holds {pictures} pages, of which the first alone would be read",
            "split it into files of one page, each with a row of its own",
            where=path.name,
        )
    return header


def _stored(image: Image.Image) -> tuple[int, int]:
    """[H, W] as the pixels lie in the file: of a TIFF, Pillow has turned the size already, of no other format."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2[IMAGELENGTH]), int(image.tag_v2[IMAGEWIDTH])
    return image.height, image.width


def _pictures(image: Image.Image) -> int:
    """How many pages of a TIFF are pictures; 1 of every other format. A pyramid and a thumbnail are the first again."""
    if not isinstance(image, TiffImageFile):
        return 1
    count = 1
    for page in range(1, image.n_frames):
        image.seek(page)
        count += not int(image.tag_v2.get(_SUBFILE, 0)) & _NO_PICTURE
    return count


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
