"""Every kind of phantom folder is what it claims, meets its own truth, and has the same bytes for the same seed."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from phantoms_made import MAKER, digests, read, written
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLosslessSV1, SecondaryCaptureImageStorage

from medmtl.data.synthetic.dicom import KINDS, flaws, write_phantom
from medmtl.data.synthetic.dicom_header import PEOPLE
from medmtl.io.reasons import REMEDY


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MAKER:
    return written(tmp_path_factory.mktemp("phantoms"))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_truth_can_be_met(made: MAKER, kind: str) -> None:
    """Volumes satisfy themselves and not each other; what must be refused names codes that exist."""
    _, truth = made(kind)
    assert truth.volumes or truth.codes
    for n, want in enumerate(truth.volumes):
        voxels = want.voxels()
        assert voxels.shape == want.shape
        assert flaws(want, voxels, want.affine) == ""
        assert flaws(want, voxels + np.float64(4 * want.tolerance), want.affine) or want.phantom is None
        assert all(flaws(other, voxels, want.affine) for other in truth.volumes[n + 1 :])
    assert set(truth.codes) | set(truth.notes) <= set(REMEDY)


@pytest.mark.parametrize("kind", ["axial", "jpeg-lossless", "rle", "deflated", "signed-12-dirty", "mosaic", "junk"])
def test_the_seed_decides_the_bytes(tmp_path: Path, made: MAKER, kind: str) -> None:
    for name, seed in (("again", 0), ("other", 5)):
        write_phantom(tmp_path / name, kind, seed=seed)
    first, again, other = (digests(folder) for folder in (made(kind)[0], tmp_path / "again", tmp_path / "other"))
    assert first == again
    assert first.keys() == other.keys() and first != other


# every kind is what it claims


def _positions(images: list[Dataset], axis: int = 2) -> list[float]:
    return sorted(round(float(ds.ImagePositionPatient[axis]), 3) for ds in images)


def _gaps(images: list[Dataset], axis: int = 2) -> list[float]:
    return np.diff(_positions(images, axis)).round(3).tolist()


def _distinct(images: list[Dataset]) -> tuple[int, int]:
    """How many SOP instances, and how many different pixels."""
    return len({ds.SOPInstanceUID for ds in images}), len({ds.PixelData for ds in images})


def _all(keyword: str, value: object) -> Callable[[list[Dataset]], bool]:
    return lambda images: bool(images) and all(ds.get(keyword) == value for ds in images)


def _syntax(name: str) -> Callable[[list[Dataset]], bool]:
    return lambda images: {ds.file_meta.TransferSyntaxUID.name for ds in images} == {name}


def _values(keyword: str) -> Callable[[list[Dataset]], list[object]]:
    return lambda images: [ds.get(keyword) for ds in images]


def _normal(images: list[Dataset]) -> np.ndarray:
    cosines = np.array(images[0].ImageOrientationPatient, float)
    return np.cross(cosines[:3], cosines[3:])


def _rows(ds: Dataset) -> list[int]:
    return np.unique(ds.pixel_array).tolist()


def _csa(ds: Dataset) -> str:
    return bytes(ds[0x0029, 0x1010].value).decode("latin-1")


def _per_frame(ds: Dataset, group: str, keyword: str) -> int:
    """How many values a keyword takes over the frames."""
    return len({item[group].value[0][keyword].value for item in ds.PerFrameFunctionalGroupsSequence})


def _in_space(images: list[Dataset], keyword: str) -> list[object]:
    return [ds.get(keyword) for ds in sorted(images, key=lambda ds: float(ds.SliceLocation))]


def _frame_positions(ds: Dataset) -> list[float]:
    return [
        float(item.PlanePositionSequence[0].ImagePositionPatient[2]) for item in ds.PerFrameFunctionalGroupsSequence
    ]


EVEN = [2.5] * 11
CLAIMS: dict[str, Callable[[list[Dataset]], object]] = {
    "axial": lambda d: _gaps(d) == EVEN and len(d) == 12,
    "head-down": lambda d: np.allclose(_normal(d), (0, 0, -1)),
    "prone": lambda d: np.allclose(np.array(d[0].ImageOrientationPatient, float), (-1, 0, 0, 0, -1, 0)),
    "sagittal": lambda d: np.allclose(np.abs(_normal(d)), (1, 0, 0)),
    "coronal": lambda d: np.allclose(np.abs(_normal(d)), (0, 1, 0)),
    "oblique": lambda d: np.allclose(np.abs(_normal(d))[2], np.cos(np.radians(20))),
    "double-oblique": lambda d: (np.abs(_normal(d)) > 0.1).all() and d[0].PixelSpacing == [1.1, 0.6],
    "uneven-slightly": lambda d: 0.005 < np.abs(np.array(_gaps(d)) - 2.5).max() < 0.025,
    "names-reversed": lambda d: _values("InstanceNumber")(d) == list(range(12, 0, -1)),
    "names-shuffled": lambda d: _values("InstanceNumber")(d) != sorted(_values("InstanceNumber")(d)),
    "instances-shuffled": lambda d: _in_space(d, "InstanceNumber") != sorted(_in_space(d, "InstanceNumber")),
    "instances-one": _all("InstanceNumber", 1),
    "ds-long": lambda d: max(len(v.original_string) for ds in d for v in ds.ImagePositionPatient) > 16,
    "window-multi": lambda d: all(len(ds.WindowCenter) == 2 for ds in d),
    "spacing-missing": _all("PixelSpacing", None),
    "spacing-zero": _all("PixelSpacing", [0, 0]),
    "spacing-negative": _all("PixelSpacing", [-0.9, 0.8]),
    "spacing-nan": lambda d: all(np.isnan(np.array(ds.PixelSpacing, float)).all() for ds in d),
    "position-missing": _all("ImagePositionPatient", None),
    "position-one": _all("ImagePositionPatient", [1, 2, 3]),
    "orientation-missing": _all("ImageOrientationPatient", None),
    "orientation-zero": _all("ImageOrientationPatient", [0] * 6),
    "gap-middle": lambda d: _gaps(d) == [2.5] * 4 + [5.0] + [2.5] * 5,
    "gap-end": lambda d: len(d) == 11 and _gaps(d) == [2.5] * 10 and d[0].ImagesInAcquisition == 12,
    "gap-alternate": lambda d: _gaps(d) == [5.0] * 5 and _values("InstanceNumber")(d) == [1, 3, 5, 7, 9, 11],
    "one-aside": lambda d: len({float(ds.ImagePositionPatient[0]) for ds in d}) == 2 and _gaps(d) == EVEN,
    "one-far": lambda d: max(_gaps(d)) > 40,
    "irregular": lambda d: Counter(_gaps(d)) == {2.5: 6, 3.2: 5},
    "tilt": lambda d: np.allclose(_gaps(d, 1), 2.5 * np.tan(np.radians(15)), atol=1e-3),
    "implicit": _syntax("Implicit VR Little Endian"),
    "big-endian": _syntax("Explicit VR Big Endian"),
    "deflated": _syntax("Deflated Explicit VR Little Endian"),
    "rle": _syntax("RLE Lossless"),
    "jpeg-lossless": _syntax(JPEGLosslessSV1.name),
    "jpeg-ls": _syntax("JPEG-LS Lossless Image Compression"),
    "jpeg-2000": _syntax("JPEG 2000 Image Compression (Lossless Only)"),
    "signed-16": lambda d: (d[0].PixelRepresentation, d[0].BitsStored) == (1, 16) and d[0].pixel_array.min() < 0,
    "signed-12": lambda d: (d[0].PixelRepresentation, d[0].BitsStored) == (1, 12) and d[0].pixel_array.min() < 0,
    "signed-12-dirty": lambda d: len(np.unique(np.frombuffer(d[0].PixelData, "<u2") >> 12)) == 16,
    "high-bit": lambda d: d[0].HighBit == 15 and not (np.frombuffer(d[0].PixelData, "<u2") & 15).any(),
    "slope-per-slice": lambda d: len(set(_values("RescaleSlope")(d))) == 12 and d[0].Modality == "PT",
    "slope-missing": lambda d: _all("RescaleSlope", None)(d) and _all("RescaleIntercept", None)(d),
    "slope-zero": _all("RescaleSlope", 0),
    "slope-nan": lambda d: all(np.isnan(float(ds.RescaleSlope)) for ds in d),
    "slope-zero-once": lambda d: Counter(map(float, _values("RescaleSlope")(d))) == {1: 11, 0: 1},
    "slope-missing-once": lambda d: sum("RescaleIntercept" in ds for ds in d) == 11,
    "units-two": lambda d: Counter(_values("RescaleType")(d)) == {"HU": 7, "US": 5},
    "modality-lut": lambda d: "RescaleSlope" not in d[0] and len(d[0].ModalityLUTSequence) == 1,
    "padding-low": lambda d: d[0].PixelPaddingValue == 63536 and d[0].pixel_array.min() == -2000,
    "padding-high": lambda d: d[0].PixelPaddingValue == 65535 == d[0].pixel_array.max(),
    "monochrome1": _all("PhotometricInterpretation", "MONOCHROME1"),
    "philips-scaling": lambda d: d[0][0x2005, 0x100E].value == pytest.approx(0.004) and d[0].RescaleSlope == 1.5,
    "burned-in": _all("BurnedInAnnotation", "YES"),
    "two-series": lambda d: Counter(_values("SeriesInstanceUID")(d)).most_common()[1][1] == 12 and len(d) == 24,
    "two-patients": lambda d: set(_values("PatientID")(d)) == {person.patient_id for person in PEOPLE},
    "two-echoes": lambda d: Counter(map(float, _values("EchoTime")(d))) == {30: 12, 80: 12},
    "two-b-values": lambda d: Counter(_values("DiffusionBValue")(d)) == {0: 12, 1000: 12},
    "two-acquisitions": lambda d: Counter(_values("AcquisitionNumber")(d)) == {1: 12, 2: 12},
    "two-parts": lambda d: Counter(ds.ImageType[2] for ds in d) == {"M": 12, "P": 12},
    "three-times": lambda d: Counter(_values("TemporalPositionIdentifier")(d)) == {1: 12, 2: 12, 3: 12},
    "between-echoes": lambda d: (
        _gaps(d) == [1.25] * 23 and Counter(map(float, _values("EchoTime")(d))) == {30: 12, 80: 12}
    ),
    "between-kernels": lambda d: _gaps(d) == [1.25] * 23 and len(set(_values("ConvolutionKernel")(d))) == 2,
    "two-references": lambda d: (
        list(Counter(_values("FrameOfReferenceUID")(d)).values()) == [6, 6] and _gaps(d) == EVEN
    ),
    "nothing-tells": lambda d: len(set(_positions(d))) == 12 < len(d) and len(set(_values("ContentTime")(d))) == 1,
    "clock-tells": lambda d: len(set(_positions(d))) == 12 and len(set(_values("ContentTime")(d))) == 24,
    "clock-crossed": lambda d: len(set(_positions(d))) == 12 and len(set(_values("ContentTime")(d))) == 24,
    "one-again": lambda d: sorted(Counter(_positions(d)).values()) == [1] * 11 + [2],
    "copied": lambda d: len(d) == 13 and _distinct(d) == (12, 12),
    "one-uid-twice": lambda d: len(d) == 13 and _distinct(d) == (12, 13),
    "localizer": lambda d: Counter(str(ds.ImageOrientationPatient) for ds in d).most_common()[1][1] == 1,
    "two-sizes": lambda d: Counter((ds.SeriesNumber, ds.Rows) for ds in d) == {(1, 48): 12, (1, 36): 10},
    "odd-size": lambda d: Counter(_values("Rows")(d)) == {48: 11, 36: 1} and _gaps(d) == EVEN,
    "odd-spacing": lambda d: Counter(str(ds.PixelSpacing) for ds in d).most_common()[1][1] == 1 and _gaps(d) == EVEN,
    "enhanced-ct": lambda d: d[0].SOPClassUID.name == "Enhanced CT Image Storage" and d[0].NumberOfFrames == 12,
    "enhanced-ct-jpeg-2000": _syntax("JPEG 2000 Image Compression (Lossless Only)"),
    "enhanced-mr": lambda d: d[0].SOPClassUID.name == "Enhanced MR Image Storage" and "PixelSpacing" not in d[0],
    "enhanced-mr-shuffled": lambda d: len(set(np.sign(np.diff(_frame_positions(d[0]))))) == 2,
    "enhanced-gap": lambda d: d[0].NumberOfFrames == 11,
    "enhanced-slopes": lambda d: _per_frame(d[0], "PixelValueTransformationSequence", "RescaleSlope") == 12,
    "enhanced-echoes": lambda d: _per_frame(d[0], "MREchoSequence", "EffectiveEchoTime") == 2,
    "enhanced-times": lambda d: _per_frame(d[0], "FrameContentSequence", "TemporalPositionIndex") == 2,
    "mosaic": lambda d: d[0].pixel_array.shape == (192, 224) and "NumberOfImagesInMosaic" in _csa(d[0]),
    "mosaic-against": lambda d: "-1.00000000" in _csa(d[0]),
    "mosaic-times": lambda d: len(d) == 3 and all("MOSAIC" in ds.ImageType for ds in d),
    "mosaic-fewer": lambda d: (
        "10      " in _csa(d[0])
        and "12      " not in _csa(d[0])
        and d[0].pixel_array[144:].reshape(48, 4, 56).any((0, 2)).tolist() == [False] * 4
        and d[0].pixel_array[96:144].reshape(48, 4, 56).any((0, 2)).all()
    ),
    "mosaic-bare": lambda d: "MOSAIC" in d[0].ImageType and (0x0029, 0x1010) not in d[0],
    "radiograph": lambda d: d[0].ImagerPixelSpacing == [0.9, 0.8] and "PixelSpacing" not in d[0],
    "radiograph-monochrome1": _all("PhotometricInterpretation", "MONOCHROME1"),
    "screenshot": lambda d: d[0].SOPClassUID == SecondaryCaptureImageStorage and d[0].BurnedInAnnotation == "YES",
    "rgb": lambda d: (d[0].PhotometricInterpretation, d[0].PlanarConfiguration) == ("RGB", 0),
    "rgb-planar": lambda d: (d[0].PhotometricInterpretation, d[0].PlanarConfiguration) == ("RGB", 1),
    "ybr-full": _all("PhotometricInterpretation", "YBR_FULL"),
    "jpeg-baseline": _syntax("JPEG Baseline (Process 1)"),
    "palette": lambda d: d[0].RedPaletteColorLookupTableDescriptor == [200, 10, 16] and _rows(d[0])[0] == 10,
    "palette-outside": lambda d: _rows(d[0])[0] < 10 and _rows(d[0])[-1] > 209,
    "truncated-pixels": lambda d: sorted(len(ds.PixelData) for ds in d)[:2] != [5376] * 2 and len(d) == 12,
    "truncated-last": lambda d: len(d[-1].PixelData) < 5376 == len(d[0].PixelData),
    "truncated-header": lambda d: len(d) in (11, 12) and sum("PixelData" in ds for ds in d) == 11,
    "zero-byte": lambda d: len(d) == 11,
    "long-element": lambda d: sum("PixelData" in ds for ds in d) == 11,
    "deep-sequence": lambda d: len(d) == 11,
    "absurd-size": lambda d: d[0].Rows * d[0].Columns * d[0].NumberOfFrames > 4e13 and len(d[0].PixelData) == 100,
    "junk": lambda d: len(d) >= 13 and {"DICOMDIR", "preamble.dcm"} <= {Path(str(ds.filename)).name for ds in d},
    "not-images": lambda d: {"SR", "DOC", "PR", "CT"} == set(_values("Modality")(d)),
    "no-preamble": lambda d: not d,
    "trailing-zeros": lambda d: all(Path(str(ds.filename)).read_bytes().endswith(bytes(512)) for ds in d),
    "names-odd": lambda d: any("\n" in str(ds.filename) for ds in d) and any("ä" in str(ds.filename) for ds in d),
    "nested": lambda d: len(Path(str(d[0].filename)).parts) > 100,
}


def test_every_kind_has_its_claim() -> None:
    assert set(CLAIMS) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_is_what_it_claims(made: MAKER, kind: str) -> None:
    assert CLAIMS[kind](read(made(kind)[0]))


def test_the_bare_data_set_can_be_read_all_the_same(made: MAKER) -> None:
    folder, truth = made("no-preamble")
    images = read(folder, force=True)
    assert len(images) == truth.volumes[0].shape[2] and all("PixelData" in ds for ds in images)
