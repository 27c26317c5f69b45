"""Segmentations (PS3.3 A.51, A.101) as masks on the voxels of the image that they were drawn on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from highdicom.seg import Segmentation, SegmentationTypeValues, segread

from medmtl.errors import UserError
from medmtl.io.dicom.lattice import Lattice
from medmtl.io.reasons import refusal
from medmtl.io.volume import Floats

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Plane:
    """A frame and where its pixels lie: the first one's centre, then the way to the next along a row and a column."""

    number: int  # of the frame, from 1
    segment: int | None  # None in a label map, whose values are segment numbers
    first: Floats
    right: Floats
    down: Floats


def segment_masks(path: Path, wanted: Mapping[str, Sequence[int]], lattice: Lattice) -> dict[str, Mask]:
    """Masks [I, J, K] of 0 and 1 by name; ``wanted`` says of which segments each is made.

    A frame's pixels must lie on voxels of the image, wherever its first pixel and its rows and columns run: nothing is
    interpolated. What has no frame is background.

    Raises UserError: ``E-SEG-READ`` (damaged), ``E-SEG-KIND`` (fractional), ``E-SEG-PLACE`` (other voxels than the
    image's, or marked ones outside it).
    """
    masks = {name: np.zeros(lattice.shape, np.uint8, order="F") for name in wanted}
    segments = {number for numbers in wanted.values() for number in numbers}
    for plane, values in _frames(path, segments):
        columns, rows, voxels = _placed(plane, values, lattice)
        numbers = values[rows, columns] if plane.segment is None else np.full(len(rows), plane.segment)
        for name, mask in masks.items():
            mine = voxels[np.isin(numbers, wanted[name])]
            mask[tuple(mine.T)] = 1
    return masks


def _frames(path: Path, segments: set[int]) -> Iterator[tuple[_Plane, npt.NDArray[Any]]]:
    """The frames that hold any of the ``segments``, with their pixels [rows, columns]; other values are 0."""
    try:
        seg = segread(path)
        if seg.segmentation_type == SegmentationTypeValues.FRACTIONAL:
            raise refusal("E-SEG-KIND", "the segmentation holds fractions, not segments")
        described = [int(item.SegmentNumber) for item in seg.SegmentSequence]
        for number in range(1, seg.number_of_frames + 1):
            plane = _plane(seg, number)
            if plane.segment in described and plane.segment not in segments:
                continue
            values = seg.get_stored_frame(number)
            marks = values[values != 0] if plane.segment is None else plane.segment
            if not np.isin(marks, described).all():  # what it marks would be lost without a word
                raise refusal("E-SEG-READ", f"frame {number} marks a segment that the segmentation does not describe")
            yield plane, np.where(np.isin(values, list(segments)), values, 0) if plane.segment is None else values
    except UserError:
        raise
    except Exception as error:  # highdicom and pydicom raise whatever a damaged part makes them raise
        raise refusal("E-SEG-READ", f"the segmentation cannot be read ({type(error).__name__})") from error


def _plane(seg: Segmentation, number: int) -> _Plane:
    shared = seg.SharedFunctionalGroupsSequence[0]
    frame = seg.PerFrameFunctionalGroupsSequence[number - 1]

    def group(name: str) -> Any:
        return (frame if name in frame else shared)[name].value[0]

    for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
        if name not in frame and name not in shared:
            raise refusal("E-SEG-PLACE", "the segmentation does not say where its frames lie in the patient")
    cosines = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, np.float64)
    first = np.array(group("PlanePositionSequence").ImagePositionPatient, np.float64)
    if cosines.shape != (6,) or first.shape != (3,):
        raise refusal(
            "E-SEG-READ", f"the place of frame {number} is {first.size} and {cosines.size} numbers, not 3 and 6"
        )
    down, right = (float(value) for value in group("PixelMeasuresSequence").PixelSpacing)
    labels = seg.segmentation_type == SegmentationTypeValues.LABELMAP
    return _Plane(
        number,
        None if labels else int(group("SegmentIdentificationSequence").ReferencedSegmentNumber),
        first,
        right * cosines[:3],
        down * cosines[3:],
    )


def _placed(
    plane: _Plane, values: npt.NDArray[Any], lattice: Lattice
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Columns, rows and voxels [N, 3] of what is marked in a frame."""
    height, width = values.shape
    corners = np.array([[c, r] for c in (0, width - 1) for r in (0, height - 1)])
    steps = np.stack([plane.right, plane.down])
    found = lattice.indices(plane.first + corners @ steps)
    axes = lattice.indices(plane.first + steps) - lattice.indices(plane.first[None])
    off = lattice.off_mm(found)
    # rows and columns of the frame must each be one of the image's: half as many, twice as far apart, fit its corners
    if not off <= lattice.tolerance_mm or not (np.abs(np.rint(axes)).sum(axis=1) == 1).all():
        what = f"frame {plane.number} lies up to {off:.3g} mm off the voxels of the image"
        raise refusal("E-SEG-PLACE", what if off > lattice.tolerance_mm else f"{what}, whose size is another")
    rows, columns = np.nonzero(values)
    voxels = np.rint(found[0]) + np.stack([columns, rows], axis=1) @ np.rint(axes)
    inside = lattice.holds(voxels)
    if not inside.all():
        what = f"{np.count_nonzero(~inside):,} marked pixels of frame {plane.number} lie outside the image"
        raise refusal("E-SEG-PLACE", what)
    return columns, rows, voxels.astype(np.intp)
