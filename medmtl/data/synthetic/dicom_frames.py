"""Kinds of phantom folders: many planes in one file, as enhanced multi-frame objects and as Siemens mosaics."""

import struct
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medmtl.data.synthetic.dicom_geometry import make, shuffled
from medmtl.data.synthetic.dicom_header import Series, made_uid, numbers
from medmtl.data.synthetic.dicom_phantom import Grid, turned
from medmtl.data.synthetic.dicom_truth import Kind, Truth
from medmtl.data.synthetic.dicom_write import save

ENHANCED = {"CT": uid.EnhancedCTImageStorage, "MR": uid.EnhancedMRImageStorage}
BARE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
        "RescaleType", "SliceThickness", "SliceLocation", "EchoTime", "WindowCenter", "WindowWidth",
        "ImagesInAcquisition")  # fmt: skip


@dataclass(frozen=True)
class Plane:
    """One frame of a multi-frame file: frame ``k`` of ``series``, at an echo and a time point."""

    series: Series
    k: int
    echo_ms: float | None = None
    time: int | None = None


def enhanced(planes: Several[Plane], *, per_frame_rescale: bool = False) -> Dataset:
    """An enhanced CT or MR object of these planes, in the order given."""
    base = planes[0].series
    ds = base.header()
    ds.SOPClassUID = ENHANCED[base.modality]
    ds.InstanceNumber, ds.ContentQualification, ds.PixelPresentation = 1, "PRODUCT", "MONOCHROME"
    ds.VolumetricProperties, ds.VolumeBasedCalculationTechnique = "VOLUME", "NONE"
    stored = [p.series.stored(p.series.phantom.value(p.series.grid.points(p.k))) for p in planes]
    base.put_pixels(ds, np.stack(stored))
    for keyword in BARE:
        if keyword in ds:
            delattr(ds, keyword)
    shared = Dataset()
    shared.PixelMeasuresSequence = _one(
        PixelSpacing=numbers(base.grid.spacing_mm[::-1]), SliceThickness=numbers([base.step_mm()])[0]
    )
    shared.PlaneOrientationSequence = _one(ImageOrientationPatient=numbers(base.grid.axes.T[:2].ravel()))
    kind = _one(FrameType=list(ds.ImageType))
    setattr(shared, f"{base.modality}ImageFrameTypeSequence", kind)
    if not per_frame_rescale:
        shared.PixelValueTransformationSequence = _rescale(base)
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence([_groups(p, per_frame_rescale) for p in planes])
    _dimensions(ds)
    return ds


def _one(**values: object) -> Sequence:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return Sequence([item])


def _rescale(series: Series) -> Sequence:
    intercept, slope = numbers([series.intercept, series.slope])
    kind = "HU" if series.modality == "CT" else "US"
    return _one(RescaleIntercept=intercept, RescaleSlope=slope, RescaleType=kind)


def _groups(plane: Plane, per_frame_rescale: bool) -> Dataset:
    """Per-frame functional groups."""
    item = Dataset()
    time = plane.time or 1
    echo = 1 if plane.echo_ms in (None, 30.0) else 2
    item.FrameContentSequence = _one(
        StackID="1", InStackPositionNumber=plane.k + 1, TemporalPositionIndex=time,
        DimensionIndexValues=[1, plane.k + 1, time, echo], FrameAcquisitionNumber=1,
    )  # fmt: skip
    item.PlanePositionSequence = _one(ImagePositionPatient=numbers(plane.series.grid.position(plane.k)))
    if plane.echo_ms is not None:
        item.MREchoSequence = _one(EffectiveEchoTime=plane.echo_ms)
    if plane.time is not None:
        item.TemporalPositionSequence = _one(TemporalPositionTimeOffset=1.5 * (plane.time - 1))
    if per_frame_rescale:
        item.PixelValueTransformationSequence = _rescale(plane.series)
    return item


def _dimensions(ds: Dataset) -> None:
    """Stack, position in it, time, echo."""
    organization = made_uid("dimensions", ds.SOPInstanceUID)
    ds.DimensionOrganizationSequence = _one(DimensionOrganizationUID=organization)
    pointers = ((0x00209056, 0x00209111), (0x00209057, 0x00209111), (0x00209128, 0x00209111), (0x00189082, 0x00189114))
    items: list[Dataset] = []
    for pointer, group in pointers:
        items += _one(
            DimensionOrganizationUID=organization, DimensionIndexPointer=pointer, FunctionalGroupPointer=group
        )
    ds.DimensionIndexSequence = Sequence(items)


def _truth(several: Several[Series], **more: object) -> Truth:
    names = tuple(dict.fromkeys(text for one in several for text in one.identifiers()))
    volumes = tuple(one.expected(f"{one.kind}-{n}") for n, one in enumerate(several))
    return Truth(**{"volumes": volumes, "phantom": several[0].phantom, "identifiers": names} | more)  # type: ignore[arg-type]


def _enhanced(
    modality: str, order: Several[int], syntax: str, codes: tuple[str, ...], kind: str, out: Path, seed: int
) -> Truth:
    series = make(kind, seed, Grid(direction=turned(12, -8, 5)), modality)
    save(out / "IM0001.dcm", enhanced([Plane(series, k) for k in order]), syntax)
    return _truth((series,), **({"volumes": (), "codes": codes} if codes else {}))


def _enhanced_slopes(kind: str, out: Path, seed: int) -> Truth:
    """Each frame has a rescale of its own."""
    series = replace(make(kind, seed, modality="MR"), bits=16)
    own = [replace(series, slope=round(0.05 * 1.2**k, 6), intercept=5.0 * k) for k in range(len(series.grid))]
    ds = enhanced([Plane(one, k) for k, one in enumerate(own)], per_frame_rescale=True)
    save(out / "IM0001.dcm", ds)
    return _truth((replace(series, slope=0.05 * 1.2 ** (len(own) - 1)),))


def _enhanced_several(what: str, kind: str, out: Path, seed: int) -> Truth:
    """Two echoes, or two time points, in one file; its frames are in no order."""
    base = make(kind, seed, modality="MR")
    later = replace(base, phantom=replace(base.phantom, scale=0.6, offset=900.0))
    planes = []
    for n, series in enumerate((base, later)):
        for k in range(len(base.grid)):
            echo, time = (30.0 + 50 * n, None) if what == "echo" else (None, n + 1)
            planes.append(Plane(series, k, echo, time))
    save(out / "IM0001.dcm", enhanced([planes[i] for i in shuffled(len(planes))]))
    return _truth((base, later))


def mosaic(
    series: Series, *, against: bool = False, csa: bool = True, instance: int = 1, stated: int | None = None
) -> Dataset:
    """All frames of ``series`` as tiles of one image, and where they lie in a CSA header, as Siemens writes it.

    The position is that of a whole image of the mosaic's size around the first tile's centre. ``against``: tiles run
    against the normal of the image plane, which SliceNormalVector alone tells. ``stated``: how many tiles the header
    says that there are.
    """
    count, grid = len(series.grid), series.grid
    side = int(np.ceil(np.sqrt(count)))
    order = range(count)[::-1] if against else range(count)
    tiles = np.zeros((side, grid.rows, side, grid.columns), np.uint16)
    for tile, k in enumerate(order):
        tiles[tile // side, :, tile % side] = series.stored(series.phantom.value(grid.points(k)))
    ds = series.header(instance - 1)
    ds.ImageType, ds.Manufacturer = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], "SIEMENS"
    ds.InstanceNumber = ds.AcquisitionNumber = instance
    ds.AcquisitionTime, ds.ContentTime = f"1011{14 + instance}", f"1011{14 + instance}"
    ds.SpacingBetweenSlices = numbers([series.step_mm()])[0]
    ds.AcquisitionMatrix, ds.InPlanePhaseEncodingDirection = [0, grid.columns, grid.rows, 0], "COL"
    along, across, normal = grid.axes.T
    corner = grid.position(order[0]) - along * grid.spacing_mm[0] * grid.columns * (side - 1) / 2
    ds.ImagePositionPatient = numbers(corner - across * grid.spacing_mm[1] * grid.rows * (side - 1) / 2)
    ds.ImageOrientationPatient = numbers(grid.axes.T[:2].ravel())
    series.put_pixels(ds, tiles.reshape(side * grid.rows, side * grid.columns))
    if csa:
        block = ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x08, "CS", "IMAGE NUM 4")
        block.add_new(0x09, "LO", "20180918")
        block.add_new(0x10, "OB", _csa(stated or count, -normal if against else normal, series.step_mm()))
        block.add_new(0x20, "OB", _protocol(grid, against))
    return ds


def _csa(count: int, normal: np.ndarray, thickness: float) -> bytes:
    """An image header in Siemens' SV10 format: 84 bytes for each tag, then items behind lengths of four integers."""
    tags: list[tuple[str, str, int, list[str]]] = [
        ("EchoLinePosition", "IS", 6, ["24"]),
        ("NumberOfImagesInMosaic", "US", 10, [str(count)]),
        ("SliceNormalVector", "FD", 4, [f"{value:.8f}" for value in normal]),
        ("SliceThickness", "DS", 3, [f"{thickness:.8f}"]),
        ("PhaseEncodingDirectionPositive", "IS", 6, ["1"]),
        ("B_value", "IS", 6, []),
    ]
    content = b"SV10\4\3\2\1" + struct.pack("<II", len(tags), 77)
    for name, vr, code, values in tags:
        items = [f"{value:<8}".encode() + b"\0" for value in values]
        items += [b""] * (6 - len(items) if items else 0)
        content += struct.pack("<64si4siii", name.encode(), max(1, len(values)), vr.encode(), code, len(items), 77)
        for item in items:
            length = len(item)
            content += struct.pack("<4i", length, length, 77 if length else 205, length) + item + bytes(-length % 4)
    return content + bytes(4)


def _protocol(grid: Grid, against: bool) -> bytes:
    """What other readers look for in the series header: the protocol's slices, from feet to head."""
    lines = [f"sSliceArray.lSize\t = \t{len(grid)}"]
    lines += [f"sSliceArray.asSlice[{k}].sPosition.dTra\t = \t{grid.position(k)[2]:.6f}" for k in range(len(grid))]
    lines += ["sSliceArray.ucImageNumbTra\t = \t0x1"] if against else []
    text = "\n".join(("### ASCCONV BEGIN ###", *lines, "### ASCCONV END ###", ""))
    return text.encode() + bytes(len(text) % 2)


def _mosaic(against: bool, kind: str, out: Path, seed: int) -> Truth:
    series = make(kind, seed, Grid(direction=turned(0, 0, 9), offsets_mm=tuple(2.75 * k for k in range(10))), "MR")
    save(out / "IM0001.dcm", mosaic(series, against=against))
    return _truth((series,))


def _mosaic_times(kind: str, out: Path, seed: int) -> Truth:
    """Three files, a volume each."""
    base = make(kind, seed, modality="MR")
    several = [replace(base, phantom=replace(base.phantom, scale=1 - 0.1 * n), first=1) for n in range(3)]
    for n, series in enumerate(several):
        save(out / f"IM{n + 1:04d}.dcm", mosaic(series, instance=n + 1))
    return _truth(several)


def _mosaic_fewer(kind: str, out: Path, seed: int) -> Truth:
    """A mosaic of 12 tiles whose private header states 10: who believes it loses the last two slices."""
    series = make(kind, seed, modality="MR")
    save(out / "IM0001.dcm", mosaic(series, stated=10))
    return _truth((series,), volumes=(), codes=("E-DCM-MOSAIC",))


def _mosaic_bare(kind: str, out: Path, seed: int) -> Truth:
    """A mosaic whose private header was stripped: nobody knows how many tiles it has, nor where they lie."""
    series = make(kind, seed, modality="MR")
    save(out / "IM0001.dcm", mosaic(series, csa=False))
    return _truth((series,), volumes=(), codes=("E-DCM-MOSAIC",))


ORDER = range(12)
_ENHANCED: dict[str, tuple[str, str, Several[int], str, tuple[str, ...]]] = {
    "enhanced-ct": ("enhanced CT", "CT", ORDER, "explicit", ()),
    "enhanced-ct-jpeg-2000": ("enhanced CT in JPEG 2000", "CT", ORDER, "jpeg-2000", ()),
    "enhanced-mr": ("enhanced MR", "MR", ORDER, "explicit", ()),
    "enhanced-mr-shuffled": ("enhanced MR, frames in no order", "MR", shuffled(12), "explicit", ()),
    "enhanced-gap": ("enhanced CT with a frame missing", "CT", [*ORDER[:5], *ORDER[6:]], "explicit", ("E-DCM-GAP",)),
}  # fmt: skip

KINDS: dict[str, Kind] = {
    **{
        name: Kind(what, partial(_enhanced, modality, order, syntax, codes, name))
        for name, (what, modality, order, syntax, codes) in _ENHANCED.items()
    },
    "enhanced-slopes": Kind("enhanced MR, a rescale in each frame", partial(_enhanced_slopes, "enhanced-slopes")),
    "enhanced-echoes": Kind("enhanced MR of two echoes", partial(_enhanced_several, "echo", "enhanced-echoes")),
    "enhanced-times": Kind("enhanced MR of two time points", partial(_enhanced_several, "time", "enhanced-times")),
    "mosaic": Kind("Siemens mosaic", partial(_mosaic, False, "mosaic")),
    "mosaic-against": Kind("Siemens mosaic, tiles against the normal", partial(_mosaic, True, "mosaic-against")),
    "mosaic-times": Kind("three Siemens mosaics, a time series", partial(_mosaic_times, "mosaic-times")),
    "mosaic-fewer": Kind("Siemens mosaic of more tiles than it states", partial(_mosaic_fewer, "mosaic-fewer")),
    "mosaic-bare": Kind("Siemens mosaic without its private header", partial(_mosaic_bare, "mosaic-bare")),
}
