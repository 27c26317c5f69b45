"""Segmentations and structure sets for tests: drawn on phantoms, by functions of space that know no voxels."""

import highdicom as hd
import numpy as np
import pydicom
from dicom_made import item, write
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import RTStructureSetStorage

CENTRE = np.array([-23.7, 41.3, -118.2])  # RAS, of the phantoms
SEGMENTS = {1: (4.0, 9.0), 2: (-3.0, 7.0)}  # segment -> (shift along x, radius) of a ball with a corner cut off


def inside(points, segment):
    """Whether RAS points [..., 3] belong to a segment: no symmetry is left for a wrong axis to hide in."""
    shift, radius = SEGMENTS[segment]
    away = points - CENTRE - [shift, 2.0, -3.0]
    return (np.linalg.norm(away, axis=-1) < radius) & (away @ [1.0, 0.7, -0.4] < 0.6 * radius)


def voxel_centres(affine, shape):
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


def described(number, kind=None, label=None):
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label or f"thing {number}",
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=kind or (codes.SCT.Liver if number == 1 else codes.SCT.Spleen),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def write_seg(path, sources, pixels, *, how="BINARY", descriptions=None, **more):
    seg = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=how,
        segment_descriptions=descriptions or [described(1), described(2)],
        series_instance_uid="1.2.826.0.1.3680043.8.498.1",
        series_number=99,
        sop_instance_uid=f"1.2.826.0.1.3680043.8.498.2.{abs(hash(path.name)) % 10**9}",
        instance_number=1,
        manufacturer="medmtl",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
        **more,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return path


def sources_of(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def frame_points(source):
    """RAS points [rows, columns, 3] of the pixels of a slice: straight from its header."""
    row, column = np.split(np.array(source.ImageOrientationPatient, float), 2)
    down, right = map(float, source.PixelSpacing)
    r, c = np.meshgrid(range(source.Rows), range(source.Columns), indexing="ij")
    lps = np.array(source.ImagePositionPatient, float) + c[..., None] * right * row + r[..., None] * down * column
    return lps * [-1, -1, 1]


def marked(sources):
    """[N, rows, columns, segments]"""
    return np.stack([np.stack([inside(frame_points(s), n) for n in SEGMENTS], -1) for s in sources]).astype(np.uint8)


def contour(points, kind="CLOSED_PLANAR"):
    ds = Dataset()
    ds.ContourGeometricType, ds.NumberOfContourPoints = kind, len(points)
    ds.ContourData = [f"{value:.4f}" for value in np.ravel(points)]
    return ds


def write_rtstruct(path, sources, regions, names=("GTV", "Dr. Quack")):
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = RTStructureSetStorage, "1.2.3.4.5", "RTSTRUCT"
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID"):
        setattr(ds, keyword, sources[0].get(keyword))
    ds.SeriesInstanceUID = "1.2.3.4"
    images = Items([item(ReferencedSOPInstanceUID=s.SOPInstanceUID)[0] for s in sources])
    series = item(SeriesInstanceUID=sources[0].SeriesInstanceUID, ContourImageSequence=images)
    study = item(RTReferencedSeriesSequence=series)
    ds.ReferencedFrameOfReferenceSequence = item(RTReferencedStudySequence=study)
    ds.StructureSetROISequence = Items(
        [item(ROINumber=n, ROIName=name)[0] for n, name in zip(regions, names, strict=False)]
    )
    ds.ROIContourSequence = Items(
        [item(ReferencedROINumber=n, ContourSequence=Items(contours))[0] for n, contours in regions.items()]
    )
    return write(path, ds)


def outline(source, polygon):
    """Points (LPS) of a polygon of (column, row) on a slice."""
    row, column = np.split(np.array(source.ImageOrientationPatient, float), 2)
    down, right = map(float, source.PixelSpacing)
    return [np.array(source.ImagePositionPatient, float) + c * right * row + r * down * column for c, r in polygon]
