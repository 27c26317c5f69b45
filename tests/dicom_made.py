"""Small DICOM files for tests, written with pydicom: a CT slice, changed as a test needs it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medmtl.io.dicom.header import Header, read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import Plan, Policy, plan

DEFLATED, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
AXIAL = [1, 0, 0, 0, 1, 0]


def pattern(rows=6, columns=5, seed=0, low=0, high=4096, dtype=np.uint16):
    return np.random.default_rng(seed).integers(low, high, (rows, columns)).astype(dtype)


def ct(pixels=None, *, number=0, series="1.2.3", **changes) -> Dataset:
    """A CT slice of 12 bits, 2.5 mm above the one before; ``changes`` by keyword, None deletes."""
    pixels = pattern(seed=number) if pixels is None else pixels
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{series}.{number + 1}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2", series, "1.9"
    ds.Modality, ds.PatientID, ds.PatientName = "CT", "ID-77", "Nobody^Nora"
    ds.Manufacturer, ds.KVP, ds.ImageType = "ACME", 120, ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber, ds.SliceThickness = number + 1, 2.5
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-10, -20, 2.5 * number], AXIAL
    ds.PixelSpacing = [0.8, 0.7]
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    change(ds, **changes)
    return ds


def change(ds: Dataset, **changes) -> Dataset:
    for keyword, value in changes.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    return ds


def write(path: Path, ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "1.2.3")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3")
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_all(folder: Path, slices: Sequence[Dataset]) -> list[Header]:
    return [read_header(write(folder / f"IM{n:04d}", ds)) for n, ds in enumerate(slices)]


def planned(folder: Path, slices: Sequence[Dataset], policy: Policy = Policy()) -> Plan:
    return plan(write_all(folder, slices), policy)


def loaded(folder: Path, slices: Sequence[Dataset], policy: Policy = Policy()):
    """The only volume of the slices."""
    found = planned(folder, slices, policy)
    assert not found.refused, found.refused[0].error
    (stack,) = found.volumes
    return load(stack)


def item(**values) -> Items:
    return Items([change(Dataset(), **values)])


def raw(ds: Dataset, keyword: str, value: bytes) -> Dataset:
    """Put bytes into an element that pydicom would not write."""
    element = ds[keyword]
    element.VR = "UN"
    element._value = value
    return ds


def codes(plan: Plan) -> list[str]:
    return [refused.error.code for refused in plan.refused]


def notes(item) -> set[str]:
    return {note.code for note in item.notes}
