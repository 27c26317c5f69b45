"""Structure sets (RTSTRUCT, PS3.3 A.19) as masks: closed contours, filled on the slices of their image."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medmtl.errors import UserError
from medmtl.io.dicom.elements import Elements, tag_of
from medmtl.io.dicom.lattice import Lattice
from medmtl.io.dicom.parse import parse, regular_file
from medmtl.io.dicom.polygon import filled
from medmtl.io.dicom.record import Limits
from medmtl.io.dicom.seg import Mask
from medmtl.io.reasons import refusal
from medmtl.io.volume import Floats, Note

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
_OFF = 0.1  # of the distance between slices: how far a contour may lie off its slice
_WANTED = frozenset(tag_of(name) for name in ("SpecificCharacterSet", "StructureSetROISequence", "ROIContourSequence"))


def contour_masks(
    path: Path, wanted: Mapping[str, Sequence[int]], lattice: Lattice
) -> tuple[dict[str, Mask], dict[str, list[Note]]]:
    """Masks [I, J, K] of 0 and 1 by name, and what there is to say of each; ``wanted``: of which regions it is made.

    Several contours of one region on one slice are filled by the even-odd rule, so that one inside another is a hole;
    regions of one mask are united. A mask without a closed contour is left out, with a note.

    Raises UserError: ``E-SEG-READ`` (damaged), ``E-SEG-PLACE`` (a contour that lies on no slice of the image).
    """
    contours, open_ones = _contours(path)
    masks: dict[str, Mask] = {}
    notes: dict[str, list[Note]] = defaultdict(list)
    for name, numbers in wanted.items():
        skipped = sum(open_ones[number] for number in numbers)
        if skipped:
            notes[name].append(Note("W-SEG-LEFT-OUT", f"{skipped} points or open lines were left out"))
        if not any(contours[number] for number in numbers):
            if not skipped:
                notes[name].append(Note("W-SEG-LEFT-OUT", "it has no closed contour, and makes no mask"))
            continue
        mask = np.zeros(lattice.shape, bool, order="F")
        for number in numbers:
            mask |= _region(contours[number], lattice)
        masks[name] = mask.astype(np.uint8)
        slices = np.flatnonzero(mask.any(axis=(0, 1)))
        if len(slices) and (missing := int(slices[-1] - slices[0]) + 1 - len(slices)):
            notes[name].append(Note("W-SEG-GAPS", f"{missing} slices between the first and the last have no contour"))
    return masks, dict(notes)


def _region(contours: Sequence[Floats], lattice: Lattice) -> np.ndarray:
    region = np.zeros(lattice.shape, bool, order="F")
    for points in contours:
        indices = lattice.indices(points)
        if not np.isfinite(indices).all():
            raise refusal("E-SEG-PLACE", "a contour lies farther from the image than numbers reach")
        k = round(float(np.median(indices[:, 2])))
        off = float(np.abs(indices[:, 2] - k).max())
        if not off <= _OFF or not 0 <= k < lattice.shape[2]:
            what = f"a contour lies {off * lattice.step_mm:.3g} mm off slice {k + 1} of {lattice.shape[2]}"
            raise refusal("E-SEG-PLACE", what)
        region[:, :, k] ^= filled(indices[:, :2], lattice.shape[:2])
    return region


def _contours(path: Path) -> tuple[dict[int, list[Floats]], dict[int, int]]:
    """The closed contours [N, 3] (LPS mm) of each region by its number, and how many others it has."""
    closed: dict[int, list[Floats]] = defaultdict(list)
    others: dict[int, int] = defaultdict(int)
    try:
        with regular_file(path) as (stream, status):
            elements = parse(stream, status.st_size, Limits(), _WANTED).elements
            named = {item.integer("ROINumber") or 0 for item in elements.items("StructureSetROISequence")}
            for region in elements.items("ROIContourSequence"):
                number = region.integer("ReferencedROINumber") or 0
                if number not in named:  # what it encloses would be lost without a word
                    raise refusal(
                        "E-SEG-READ", f"contours are of region {number}, which the structure set does not name"
                    )
                for contour in region.items("ContourSequence"):
                    if contour.text("ContourGeometricType") in _CLOSED:
                        closed[number].append(_points(contour))
                    else:
                        others[number] += 1
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise refusal("E-SEG-READ", f"the contours cannot be read ({type(error).__name__})") from error
    return closed, others


def _points(contour: Elements) -> Floats:
    numbers = np.array(contour.content("ContourData").strip(b" \0").split(b"\\"), dtype=np.float64)
    if len(numbers) % 3 or not len(numbers) or not np.isfinite(numbers).all():
        raise refusal("E-SEG-READ", f"a contour of {len(numbers)} numbers, or of what is none")
    return numbers.reshape(-1, 3)
