"""Dense results as DICOM Segmentations (PS3.3 A.51), through highdicom: on the source's planes, referring to them.

highdicom takes the images of one class and geometry as a source. What was read here may be a classic series, frames of
one or several multi-frame files in any order, tiles of a mosaic, or a grid that was resampled from any of these. It is
therefore given one stand-in for each plane, with the geometry that was checked when the volume was read, and the
references to the stand-ins are then put right: file and frame of each plane; no frame, but the series, for planes that
were interpolated.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as SegmentationImage
from pydicom import Dataset
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DSfloat

from medmtl.inference.prediction import CasePrediction, DenseMap
from medmtl.inference.writers.dicom_common import (
    algorithm,
    common,
    concept,
    header_of,
    made_uid,
    put_in_order,
    refusals,
    save,
    stand_in,
)
from medmtl.inference.writers.findings import NOTICE, TISSUE, Coding, coded, shortened
from medmtl.inference.writers.overlay import colour
from medmtl.io.dicom.stack import Slice, Stack

Kind = Literal["binary", "fractional", "labelmap"]
SERIES_NUMBER = 9001
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """Where a slice k of the volume lies (LPS mm, the centre of its first pixel), and the frame that it is."""

    position: tuple[float, float, float]
    source: Slice | None  # None where it was interpolated


def write(case: CasePrediction, out: Path, *, kind: Kind = "binary", coding: Mapping[str, Coding] = {}) -> list[Path]:
    """``<task>.seg.dcm`` of every dense task below ``out``: one segment for each foreground class, also of those that
    were not found; frames without any are left out.

    ``fractional`` holds probabilities in steps of 1/255 instead of labels; ``labelmap`` is the Label Map Segmentation
    of 2024, which few viewers read so far. Raises UserError ``E-OUT-SOURCE``, ``E-OUT-DICOM``, ``E-FILE-CHANGED``.
    """
    assert case.source.stack is not None
    header = header_of(case.source.stack)
    paths = []
    for number, (task, found) in enumerate(case.dense.items(), start=1):
        dense = found if found.labels.ndim == 3 else _as_volume(found)
        with refusals("DICOM segmentation"):
            ds = segmentation(case, task, dense, header, number=number, kind=kind, coding=coding)
            paths.append(save(out / f"{task}.seg.dcm", ds))
    return paths


def segmentation(
    case: CasePrediction, task: str, dense: DenseMap, header: Dataset, *, number: int, kind: Kind,
    coding: Mapping[str, Coding],
) -> SegmentationImage:  # fmt: skip
    """The segmentation of one task; ``header`` is that of the first source file."""
    stack = case.source.stack
    assert stack is not None
    assert dense.labels.shape == stack.shape[:3], f"{dense.labels.shape} for {stack.shape}"
    planes = planes_of(stack)
    described = [_described(case, task, dense, n, coding) for n in range(1, len(dense.classes))]
    pixels = frames_of(dense.probabilities[1:]) if kind == "fractional" else frames_of(dense.labels)
    codes = repr([(str(item.SegmentLabel), item.segmented_property_type.value) for item in described])
    content = hashlib.sha256(codes.encode())
    content.update(pixels.data)
    ds = SegmentationImage(
        source_images=_stand_ins(stack, header, planes),
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues(kind.upper()),
        segment_descriptions=described,
        series_instance_uid=made_uid(case.bundle, stack.first.series_uid, stack.key, "SEG"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=made_uid(
            case.bundle, stack.first.series_uid, stack.key, "SEG", task, kind, content.hexdigest()
        ),
        instance_number=number,
        content_label="RESEARCH_USE",
        content_description=shortened(f"{task}: {NOTICE}"),
        series_description="medmtl segmentation, research use only",
        **common(stack),
    )
    _refer(ds, stack, planes)
    if stack.affine is None and "PatientOrientation" not in ds:
        ds.PatientOrientation = header.get("PatientOrientation")  # type 2C where there is no frame of reference
    organisation = ds.DimensionOrganizationSequence[0].DimensionOrganizationUID
    put_in_order(ds, {organisation: made_uid(ds.SOPInstanceUID, "dimensions")})
    return ds


def _as_volume(dense: DenseMap) -> DenseMap:
    """The map of a picture, upright [H, W], on the grid [I, J, 1] of the DICOM object that it came from: the inverse of
    :func:`medmtl.io.voxels.upright_picture`."""
    chances = dense.probabilities.transpose(0, 2, 1)[:, :, ::-1, None]
    return DenseMap(chances, dense.labels.T[:, ::-1, None], dense.inside.T[:, ::-1, None], dense.classes)


def frames_of(array: np.ndarray) -> np.ndarray:
    """[I, J, K] as frames [K, rows, columns], or [classes, I, J, K] as [K, rows, columns, classes].

    j counts from the last row (:func:`medmtl.io.dicom.geometry.affine_of`), i along a row.
    """
    if array.ndim == 3:
        kept = np.uint8 if array.max(initial=0) < 256 else np.uint16
        return np.ascontiguousarray(array[:, ::-1].transpose(2, 1, 0).astype(kept))
    return np.ascontiguousarray(array[:, :, ::-1].transpose(3, 2, 1, 0).clip(0, 1))


def planes_of(stack: Stack) -> list[Plane]:
    """The slices k of a volume; of a time series those of its first time point."""
    count = stack.shape[2]
    if stack.regrid is None:
        return [Plane(item.frame.position or (0.0, 0.0, 0.0), item) for item in stack.slices[:count]]
    assert stack.affine is not None
    corner = RAS_TO_LPS @ stack.affine @ np.array([[0, stack.shape[1] - 1, k, 1] for k in range(count)], float).T
    return [Plane((float(x), float(y), float(z)), None) for x, y, z in corner[:3].T]


def _described(
    case: CasePrediction, task: str, dense: DenseMap, segment: int, coding: Mapping[str, Coding]
) -> SegmentDescription:
    label = dense.classes[segment]
    code = coded(label, coding, task=task)
    return SegmentDescription(
        segment_number=segment,
        segment_label=shortened(label),
        segmented_property_category=concept(code.category or TISSUE),
        segmented_property_type=concept(code),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm(case, task),
        tracking_uid=tracking_uid(case, task, segment),
        tracking_id=shortened(f"{task}.{label}"),
        display_color=CIELabColor.from_rgb(*colour(segment)),
    )


def tracking_uid(case: CasePrediction, task: str, segment: int) -> str:
    """The identity of what was segmented, the same in the segmentation and in the report."""
    stack = case.source.stack
    assert stack is not None
    return made_uid(case.bundle, stack.first.series_uid, stack.key, "tracking", task, segment)


def _stand_ins(stack: Stack, header: Dataset, planes: Sequence[Plane]) -> list[Dataset]:
    """A classic image for each plane, of which only the first carries the patient and the study."""
    if stack.affine is None:
        picture = stand_in(stack, header)
        picture.Rows, picture.Columns = stack.shape[1], stack.shape[0]
        return [picture]
    lps = (RAS_TO_LPS @ stack.affine)[:3, :3]
    sizes = np.linalg.norm(lps, axis=0)
    row, column = lps[:, 0] / sizes[0], -lps[:, 1] / sizes[1]
    step = float(abs(lps[:, 2] @ np.cross(row, column)))  # a sheared affine's third axis is no normal
    reference = stack.first.frame_of_reference_uid or made_uid(stack.first.series_uid, "frame of reference")
    images = []
    for n, plane in enumerate(planes):
        ds = stand_in(stack, header if n == 0 else Dataset(), n)
        ds.SOPClassUID, ds.FrameOfReferenceUID = CTImageStorage, reference
        ds.Rows, ds.Columns = stack.shape[1], stack.shape[0]
        ds.ImagePositionPatient = decimals(plane.position)
        ds.ImageOrientationPatient = decimals((*row, *column))
        ds.PixelSpacing = decimals((sizes[1], sizes[0]))
        ds.SliceThickness = decimals((stack.first.thickness_mm or step,))[0]
        if len(planes) > 1:
            ds.SpacingBetweenSlices = decimals((step,))[0]
        images.append(ds)
    return images


def decimals(values: Sequence[float]) -> list[DSfloat]:
    """Decimal strings of at most 16 characters."""
    return [DSfloat(round(float(value), 9) + 0.0, auto_format=True) for value in values]


def _refer(ds: SegmentationImage, stack: Stack, planes: Sequence[Plane]) -> None:
    """References to the stand-ins become those to the files and frames that the planes are."""
    count = stack.shape[2]
    headers = {id(item.header): item.header for item in stack.slices[:count]} if not stack.regrid else {}
    used = list(headers.values()) or list(stack.headers)
    references = [instance(header.sop_class_uid, header.sop_instance_uid) for header in used]
    ds.SourceImageSequence = references
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = stack.first.series_uid, references
    ds.ReferencedSeriesSequence = [series]
    place = {tuple(map(float, decimals(plane.position))): plane.source for plane in planes}
    for group in ds.PerFrameFunctionalGroupsSequence:
        if "PlanePositionSequence" in group:
            source = place[tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))]
        else:
            source = planes[0].source
        if source is None:
            group.DerivationImageSequence = []
        else:
            _refer_frame(group.DerivationImageSequence[0].SourceImageSequence[0], source)


def _refer_frame(item: Any, source: Slice) -> None:
    header, frame = source.header, source.frame
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.sop_class_uid, header.sop_instance_uid
    if len(header.frames) > 1 and frame.tile is None:
        item.ReferencedFrameNumber = frame.index + 1
    item.SpatialLocationsPreserved = "YES" if frame.tile is None else "NO"  # a tile is elsewhere in its mosaic


def instance(sop_class: str, sop_instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
    return item
