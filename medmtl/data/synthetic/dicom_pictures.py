"""Kinds of phantom folders: one picture without a place in the patient, in grey or in colour."""

import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from medmtl.data.synthetic.dicom_header import Series, numbers
from medmtl.data.synthetic.dicom_phantom import Grid, Phantom
from medmtl.data.synthetic.dicom_truth import Array, Expected, Kind, Truth
from medmtl.data.synthetic.dicom_write import save

GRID = Grid(offsets_mm=(0.0,))
# R, G, B to Y, Cb, Cr (ITU-R BT.601, full range): DICOM PS3.3 C.7.6.3.1.2
TO_YBR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def _series(kind: str, seed: int, modality: str) -> Series:
    return Series(kind, seed, GRID, Phantom(seed, 1.0, 1100.0), modality, intercept=0.0, rescale=False)


def _picture(series: Series) -> Dataset:
    """A header without geometry, without pixels."""
    ds = series.header()
    ds.ImageType = ["DERIVED", "SECONDARY"] if series.modality == "OT" else ["ORIGINAL", "PRIMARY"]
    ds.InstanceNumber = 1
    for keyword in ("SliceThickness", "FrameOfReferenceUID", "ImagesInAcquisition"):
        delattr(ds, keyword)
    return ds


def _truth(series: Series, pixels: Array, tolerance: float, spacing: tuple[float, float] | None) -> Truth:
    """``pixels`` [rows, columns(, 3)] as the volume of one slice, axes as everywhere: columns, rows reversed."""
    shown = np.swapaxes(pixels[::-1], 0, 1)[:, :, None]
    picture = Expected(series.kind, shown.shape, None, partial(np.asarray, shown), tolerance, spacing=spacing)
    return Truth((picture,), notes=("W-DCM-NO-PLACE",), phantom=series.phantom, identifiers=series.identifiers())


def _grey(modality: str, inverted: bool, measured: bool, kind: str, out: Path, seed: int) -> Truth:
    """A radiograph or a screenshot of 12 bits; where ``measured``, only ImagerPixelSpacing says how large it is."""
    series = _series(kind, seed, modality)
    pixels = series.stored(series.phantom.value(GRID.points(0)))
    ds = _picture(series)
    series.put_pixels(ds, 4095 - pixels if inverted else pixels)
    del ds.PixelSpacing
    if inverted:
        ds.PhotometricInterpretation = "MONOCHROME1"
    if measured:
        ds.ImagerPixelSpacing = numbers(GRID.spacing_mm[::-1])
    if modality == "OT":
        ds.BurnedInAnnotation, ds.ConversionType = "YES", "WSD"
    save(out / "IM0001.dcm", ds)
    return _truth(series, pixels, 0.01, GRID.spacing_mm if measured else None)


def _painting(seed: int) -> np.ndarray:
    """uint8 [rows, columns, 3] whose channels are three different bodies."""
    channels = [Phantom(seed + n).value(GRID.points(0)) for n in range(3)]
    return np.stack([np.interp(one, (one.min(), one.max()), (0, 255)).round() for one in channels], -1).astype(np.uint8)


def _colour(ds: Dataset, pixels: np.ndarray, photometric: str, planar: int) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, photometric, planar
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.add_new("PixelData", "OW", (np.moveaxis(pixels, -1, 0) if planar else pixels).tobytes())


def _rgb(planar: int, kind: str, out: Path, seed: int) -> Truth:
    series, pixels = _series(kind, seed, "US"), _painting(seed)
    ds = _picture(series)
    _colour(ds, pixels, "RGB", planar)
    save(out / "IM0001.dcm", ds)
    return _truth(series, pixels, 0.01, None)


def _ybr(kind: str, out: Path, seed: int) -> Truth:
    """Rounding to YCbCr and back costs up to two steps."""
    series, pixels = _series(kind, seed, "US"), _painting(seed)
    ds = _picture(series)
    converted = (pixels @ TO_YBR.T + (0, 128, 128)).round().clip(0, 255).astype(np.uint8)
    _colour(ds, converted, "YBR_FULL", 0)
    save(out / "IM0001.dcm", ds)
    return _truth(series, pixels, 2.01, None)


def _jpeg(kind: str, out: Path, seed: int) -> Truth:
    """Baseline JPEG of quality 95, chroma not subsampled: YCbCr in the stream, as its header says."""
    series, pixels = _series(kind, seed, "US"), _painting(seed)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    ds = _picture(series)
    _colour(ds, pixels, "YBR_FULL", 0)
    ds.LossyImageCompression = "01"
    ds.add_new("PixelData", "OB", encapsulate([stream.getvalue()]))
    save(out / "IM0001.dcm", ds, "jpeg-baseline")
    return _truth(series, pixels, 12.0, None)


def _palette(outside: bool, kind: str, out: Path, seed: int) -> Truth:
    """8-bit indices into 200 colours of 16 bits, the first of which is for index 10.

    An index ``outside`` takes the first or last colour (PS3.3 C.7.6.3.1.5); a reader may also take it for damage.
    """
    series = _series(kind, seed, "US")
    index = _painting(seed)[..., 0].astype(int)
    index = index if outside else 10 + index * 199 // 255
    ds = _picture(series)
    table = np.stack([np.arange(200) * 300, 60000 - np.arange(200) * 250, (np.arange(200) * 7919) % 65536], -1)
    series.put_pixels(ds, index.astype(np.uint16))
    del ds.PixelSpacing
    ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = "PALETTE COLOR", 8, 8, 7
    ds.add_new("PixelData", "OW", index.astype(np.uint8).tobytes())
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [200, 10, 16])
        setattr(ds, f"{colour}PaletteColorLookupTableData", table[:, channel].astype("<u2").tobytes())
    save(out / "IM0001.dcm", ds)
    truth = _truth(series, table[np.clip(index - 10, 0, 199)] / 257, 1.01, None)
    return replace(truth, codes=("E-DCM-PALETTE",), either=True) if outside else truth


KINDS: dict[str, Kind] = {
    "radiograph": Kind("CR with ImagerPixelSpacing only", partial(_grey, "CR", False, True, "radiograph")),
    "radiograph-monochrome1": Kind("CR as MONOCHROME1", partial(_grey, "CR", True, True, "radiograph-monochrome1")),
    "screenshot": Kind("secondary capture with text in the pixels", partial(_grey, "OT", False, False, "screenshot")),
    "rgb": Kind("RGB by pixel", partial(_rgb, 0, "rgb")),
    "rgb-planar": Kind("RGB by plane", partial(_rgb, 1, "rgb-planar")),
    "ybr-full": Kind("YBR_FULL", partial(_ybr, "ybr-full")),
    "jpeg-baseline": Kind("colour in baseline JPEG", partial(_jpeg, "jpeg-baseline")),
    "palette": Kind("PALETTE COLOR of 16 bits, first entry 10", partial(_palette, False, "palette")),
    "palette-outside": Kind("PALETTE COLOR, values outside the table", partial(_palette, True, "palette-outside")),
}
