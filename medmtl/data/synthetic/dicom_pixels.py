"""Kinds of phantom folders: how intensities are stored, encoded and to be turned into the scanner's units."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medmtl.data.synthetic.dicom_geometry import edited, make
from medmtl.data.synthetic.dicom_header import Series, numbers
from medmtl.data.synthetic.dicom_phantom import Phantom
from medmtl.data.synthetic.dicom_truth import Kind, Truth
from medmtl.data.synthetic.dicom_write import SYNTAXES, lax, save_all

PADDED = -2000  # what General Electric stores outside the field of view


def _truth(series: Series, **more: object) -> Truth:
    whole = {"volumes": (series.expected(),), "phantom": series.phantom, "identifiers": series.identifiers()}
    return Truth(**whole | more)  # type: ignore[arg-type]


def _encoded(syntax: str, kind: str, out: Path, seed: int) -> Truth:
    """The plain series in another transfer syntax; all of these are lossless."""
    series = make(kind, seed)
    save_all(out, series.frames(), syntax)
    return _truth(series)


def _signed(bits: int, kind: str, out: Path, seed: int) -> Truth:
    series = replace(make(kind, seed), intercept=0.0, bits=bits, signed=True)
    save_all(out, series.frames())
    return _truth(series)


def _dirty(kind: str, out: Path, seed: int) -> Truth:
    """12 signed bits with something else in the four above them, as in files that keep an overlay there."""
    series = replace(make(kind, seed), intercept=0.0, signed=True)
    frames, rng = series.frames(), np.random.default_rng(11)
    for ds in frames:
        stored = np.frombuffer(ds.PixelData, "<u2")
        ds.PixelData = (stored & 0x0FFF | rng.integers(0, 16, stored.shape, np.uint16) << 12).astype("<u2").tobytes()
    save_all(out, frames)
    return _truth(series)


def _high_bit(kind: str, out: Path, seed: int) -> Truth:
    """12 bits in the upper end of 16: HighBit 15. Retired from the standard, so a refusal is as good."""
    series = make(kind, seed)
    frames = series.frames()
    for ds in frames:
        ds.HighBit, ds.PixelData = 15, (np.frombuffer(ds.PixelData, "<u2") << 4).tobytes()
    save_all(out, frames)
    return _truth(series, codes=("E-DCM-PIXELS",), either=True)


def _per_slice(kind: str, out: Path, seed: int) -> Truth:
    """Positron emission: each slice uses all of its 15 bits, so each has a slope of its own."""
    series = Series(kind, seed, phantom=Phantom(seed, 1.0, 1100.0), modality="PT", bits=16, signed=True, intercept=0.0)
    frames = []
    for k in range(len(series.grid)):
        own = replace(series, slope=round(0.09 * 1.21**k, 6))
        frames.append(own.frame(k))
    save_all(out, frames)
    return _truth(replace(series, slope=0.09 * 1.21 ** (len(frames) - 1)))


def _no_rescale(kind: str, out: Path, seed: int) -> Truth:
    """Stored values that are Hounsfield units already, and nothing that says so."""
    series = replace(make(kind, seed), intercept=0.0, bits=16, signed=True, rescale=False)
    save_all(out, series.frames())
    return _truth(series, notes=("W-DCM-HU-ASSUMED",))


def _padded(value: int, signed: bool, kind: str, out: Path, seed: int) -> Truth:
    """Nothing was measured outside a circle; PixelPaddingValue names the stored value that says so.

    The negative value is written as its unsigned twin 63536 under VR US, as General Electric does.
    """
    series = replace(make(kind, seed), bits=16, signed=signed)
    row, column = np.indices((series.grid.rows, series.grid.columns))
    outside = np.hypot(row - 20, column - 30) > 21
    frames = series.frames()
    for ds in frames:
        stored = np.frombuffer(ds.PixelData, "<i2" if signed else "<u2").reshape(outside.shape)
        ds.PixelData = np.where(outside, value, stored).astype(stored.dtype).tobytes()
        ds.add_new("PixelPaddingValue", "US", value % 2**16)
    with lax():
        save_all(out, frames)
    plain = series.expected()
    padding = np.repeat(outside[::-1].T[..., None], len(frames), -1)
    darkest = float(plain.voxels()[~padding].min()) + plain.tolerance
    shown = np.where(padding, darkest, plain.voxels())
    volume = replace(plain, voxels=partial(np.asarray, shown), padding=padding, floor=darkest)
    return _truth(series, notes=("R-DCM-PADDING",), volumes=(volume,))


def _monochrome1(kind: str, out: Path, seed: int) -> Truth:
    """Low stored values are bright: stored = 4095 - value."""
    series = make(kind, seed, modality="MR")
    frames = series.frames()
    for ds in frames:
        ds.PhotometricInterpretation = "MONOCHROME1"
        ds.PixelData = (4095 - np.frombuffer(ds.PixelData, "<u2")).astype("<u2").tobytes()
    save_all(out, frames)
    return _truth(series, notes=("R-DCM-INVERTED",))


def _philips(kind: str, out: Path, seed: int) -> Truth:
    """Displayed = 1.5 stored; precise = displayed / (1.5 x 0.004): private (2005,100E) beside the DICOM rescale.

    Either scale is right for all slices alike (Chenevert et al. 2014, doi:10.1593/tlo.13811).
    """
    series = replace(make(kind, seed, modality="MR"), slope=1.5, rescale=True)
    frames = series.frames()
    for ds in frames:
        ds.Manufacturer = "Philips Medical Systems"
        block = ds.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0D, "FL", 0.0)
        block.add_new(0x0E, "FL", 0.004)
    save_all(out, frames)
    volume = series.expected(others=((1 / (1.5 * 0.004), 0.0),))
    return _truth(series, notes=("W-DCM-PRIVATE-SCALE",), volumes=(volume,))


def _unscaled(text: str, kind: str, out: Path, seed: int) -> Truth:
    """A slope that cannot be: the true one was 0.5, and nothing says so."""
    series = replace(make(kind, seed), slope=0.5, bits=16)
    frames = series.frames()
    with lax():
        for ds in frames:
            del ds.RescaleSlope  # an element keeps the rules it was made under
            ds.RescaleSlope = text
        save_all(out, frames)
    return _truth(series, volumes=(), codes=("E-DCM-RESCALE",))


def _lut(kind: str, out: Path, seed: int) -> Truth:
    """Stored values count down; a Modality LUT turns them into the true ones. There is no rescale beside it."""
    series = replace(make(kind, seed, modality="MR"))
    frames = series.frames()
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 16])
    item.ModalityLUTType = "US"
    item.add_new("LUTData", "OW", np.arange(4096)[::-1].astype("<u2").tobytes())
    for ds in frames:
        ds.PixelData = (4095 - np.frombuffer(ds.PixelData, "<u2")).astype("<u2").tobytes()
        ds.ModalityLUTSequence = Sequence([item])
    save_all(out, frames)
    return _truth(series)


def _two_units(kind: str, out: Path, seed: int) -> Truth:
    """The upper slices are in other units, of another scale, and say so in RescaleType."""
    series = make(kind, seed)
    other = replace(series, phantom=Phantom(seed, 0.5, 100.0))
    upper = other.frames()[7:]
    for ds in upper:
        ds.RescaleType = "US"
    save_all(out, [*series.frames()[:7], *upper])
    return _truth(series, volumes=(), codes=("E-DCM-UNITS",))


def _burned_in(ds: Dataset, k: int) -> None:
    ds.BurnedInAnnotation = "YES"


def _intercept_lost(ds: Dataset, k: int) -> None:
    if k == 4:
        del ds.RescaleIntercept


def _slope_once(ds: Dataset, k: int) -> None:
    if k == 4:
        ds.RescaleSlope, ds.RescaleIntercept = numbers([0.0, 0.0])


KINDS: dict[str, Kind] = {
    **{
        name: Kind(f"transfer syntax {SYNTAXES[name].name}", partial(_encoded, name, name))
        for name in SYNTAXES
        if name != "explicit"
    },
    "signed-16": Kind("signed 16 bits", partial(_signed, 16, "signed-16")),
    "signed-12": Kind("signed 12 bits", partial(_signed, 12, "signed-12")),
    "signed-12-dirty": Kind("signed 12 bits under four bits of something else", partial(_dirty, "signed-12-dirty")),
    "high-bit": Kind("12 bits stored in the upper end of 16", partial(_high_bit, "high-bit")),
    "slope-per-slice": Kind("PET: a slope of its own in each slice", partial(_per_slice, "slope-per-slice")),
    "slope-missing": Kind("CT without RescaleSlope and RescaleIntercept", partial(_no_rescale, "slope-missing")),
    "slope-zero": Kind("RescaleSlope 0", partial(_unscaled, "0", "slope-zero")),
    "slope-nan": Kind("RescaleSlope NaN", partial(_unscaled, "NaN", "slope-nan")),
    "slope-zero-once": Kind(
        "RescaleSlope 0 in one slice", partial(edited, _slope_once, "slope-zero-once", codes=("E-DCM-RESCALE",))
    ),
    "slope-missing-once": Kind(
        "no RescaleIntercept in one slice",
        partial(edited, _intercept_lost, "slope-missing-once", codes=("E-DCM-RESCALE",)),
    ),
    "units-two": Kind("RescaleType HU, then US", partial(_two_units, "units-two")),
    "modality-lut": Kind("a Modality LUT instead of a rescale", partial(_lut, "modality-lut")),
    "padding-low": Kind("PixelPaddingValue -2000, written as 63536", partial(_padded, PADDED, True, "padding-low")),
    "padding-high": Kind("PixelPaddingValue 65535", partial(_padded, 65535, False, "padding-high")),
    "monochrome1": Kind("MR as MONOCHROME1", partial(_monochrome1, "monochrome1")),
    "philips-scaling": Kind("Philips private scale slope", partial(_philips, "philips-scaling")),
    "burned-in": Kind("BurnedInAnnotation YES", partial(edited, _burned_in, "burned-in")),
}
