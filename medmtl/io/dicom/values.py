"""Stored values to modality units: unused bits, Modality LUT, rescale, inversion; and which type holds the result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.pixels import apply_modality_lut

from medmtl.io.dicom.colour import pixel_elements
from medmtl.io.dicom.pixelsize import PHYSICAL
from medmtl.io.dicom.record import Frame, Header, Pixels
from medmtl.io.dicom.stack import Slice
from medmtl.io.reasons import refusal

Array = npt.NDArray[Any]
_INT16, _INT32 = np.iinfo(np.int16), np.iinfo(np.int32)


@dataclass(frozen=True)
class Scale:
    """value = slope * stored + intercept; an inversion is a part of it."""

    slope: float
    intercept: float

    @property
    def whole(self) -> bool:
        """Whether whole numbers stay whole."""
        return self.slope == int(self.slope) and self.intercept == int(self.intercept)

    def apply(self, value: float) -> float:
        return self.slope * value + self.intercept


def clean(values: Array, pixels: Pixels) -> Array:
    """The stored bits alone, with their sign: what is above or below them (an overlay, noise) is removed, in place."""
    bits = values.dtype.itemsize * 8
    if values.dtype.kind == "f" or bits == pixels.stored or pixels.allocated == 1:
        return values
    if not values.flags.writeable:
        values = values.copy()
    low = pixels.high_bit + 1 - pixels.stored
    if not pixels.signed and low == 0:
        values &= values.dtype.type((1 << pixels.stored) - 1)
        return values
    values <<= bits - 1 - pixels.high_bit
    values >>= bits - pixels.stored  # arithmetic for signed types: the sign is spread
    return values


def stored_range(pixels: Pixels) -> tuple[int, int]:
    """The lowest and highest value that the stored bits can hold."""
    if pixels.signed:
        return -(1 << (pixels.stored - 1)), (1 << (pixels.stored - 1)) - 1
    return 0, (1 << pixels.stored) - 1


def scale_of(header: Header, frame: Frame) -> Scale:
    """The rescale of a frame, with MONOCHROME1 inverted where it means brightness and not a physical value.

    PS3.3 C.7.6.3.1.2: the lowest value is shown white. Turned over in the range of the stored bits after the rescale:
    v(lowest) + v(highest) - v(stored).
    """
    assert header.pixels is not None
    scale = Scale(1.0 if frame.slope is None else frame.slope, 0.0 if frame.intercept is None else frame.intercept)
    if header.pixels.lut:
        scale = Scale(1.0, 0.0)
    if not inverted(header):
        return scale
    low, high = stored_range(header.pixels)
    return Scale(-scale.slope, scale.apply(low) + scale.apply(high) - scale.intercept)


def inverted(header: Header) -> bool:
    """Whether the volume holds the image turned over; HU and Bq/ml are what they are, however they are shown."""
    pixels = header.pixels
    assert pixels is not None
    is_integer = pixels.element == "PixelData"
    return pixels.photometric == "MONOCHROME1" and header.modality not in PHYSICAL and is_integer and not pixels.lut


def apply_lut(values: Array, header: Header) -> Array:
    """int32 values of the Modality LUT (PS3.3 C.11.1.1), inverted in its own range if MONOCHROME1."""
    assert header.pixels is not None
    elements = pixel_elements(header)
    try:
        bits = int(elements.ModalityLUTSequence[0].LUTDescriptor[2])
        found = apply_modality_lut(values, elements).astype(np.int32)
    except Exception as error:  # the table can be damaged in any way
        raise refusal("E-DCM-RESCALE", f"the modality look-up table cannot be used ({type(error).__name__})") from error
    turned = header.pixels.photometric == "MONOCHROME1" and header.modality not in PHYSICAL
    return (1 << bits) - 1 - found if turned else found


def output_dtype(slices: Sequence[Slice]) -> tuple[np.dtype[Any], bool]:
    """The type of the volume, and whether it is certain to hold every value that the headers allow.

    uint8 for eight bits without a rescale, int16 for whole numbers of up to 16 bits, int32 beyond, else float32.
    An uncertain int16 is arithmetic modulo 2^16, of which the true range decides afterwards.
    """
    low, high = np.inf, -np.inf
    widest, plain = 0, True
    for item in slices:
        pixels = item.header.pixels
        assert pixels is not None
        scale = scale_of(item.header, item.frame)
        if pixels.element != "PixelData":
            return np.dtype(np.float64 if pixels.allocated == 64 else np.float32), True
        if not scale.whole or abs(scale.slope) > _INT16.max or abs(scale.intercept) > _INT32.max:
            return np.dtype(np.float32), True
        ends = [scale.apply(value) for value in stored_range(pixels)] if not pixels.lut else [0, 2**16 - 1]
        low, high = min(low, *ends), max(high, *ends)
        widest = max(widest, pixels.allocated, 16 if pixels.lut else 0)
        plain = plain and low >= 0 and high <= 255
    if plain:
        return np.dtype(np.uint8), True
    if low >= _INT16.min and high <= _INT16.max:
        return np.dtype(np.int16), True
    if widest <= 16:
        return np.dtype(np.int16), False
    fits = low >= _INT32.min and high <= _INT32.max
    return (np.dtype(np.int32), True) if fits else (np.dtype(np.float64), True)


def write_scaled(values: Array, scale: Scale, out: Array) -> None:
    """Write ``scale`` of ``values`` into ``out`` (same shape, any strides); integers wrap around modulo its size."""
    if out.dtype.kind == "f":
        if scale == Scale(1.0, 0.0):
            out[...] = values
            return
        np.multiply(values, out.dtype.type(scale.slope), out=out, casting="unsafe")
        out += out.dtype.type(scale.intercept)
        return
    slope, intercept = _wrapped(scale.slope, out.dtype), _wrapped(scale.intercept, out.dtype)
    same = values.view(out.dtype) if values.dtype.itemsize == out.dtype.itemsize else values.astype(out.dtype)
    if slope == 1:
        np.add(same, intercept, out=out)
    else:
        np.multiply(same, slope, out=out)
        out += intercept


def _wrapped(number: float, dtype: np.dtype[Any]) -> Any:
    """A whole number modulo 2^bits of an integer type."""
    modulo = int(number) % (1 << 8 * dtype.itemsize)
    return np.array(modulo, f"u{dtype.itemsize}").view(dtype)[()]
