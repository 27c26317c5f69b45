"""Colour as RGB of eight bits, whatever it was stored as: RGB, YBR or a palette (PS3.3 C.7.6.3.1.2, C.7.9)."""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_color_lut

from medmtl.io.dicom.record import Header, Pixels
from medmtl.io.reasons import refusal

Array = npt.NDArray[Any]


def pixel_elements(header: Header) -> Dataset:
    """The data set up to its pixels, for the look-up tables in it."""
    try:
        return dcmread(header.path, force=True, stop_before_pixels=True)
    except Exception as error:
        raise refusal("E-DCM-PIXELS", f"the look-up table cannot be read ({type(error).__name__})") from error


def rgb_of(values: Array, pixels: Pixels) -> Array:
    """uint8 [rows, columns, 3] of decoded colour; more bits than eight are scaled down."""
    if pixels.stored <= 8 and values.dtype.itemsize == 1:
        return values.astype(np.uint8, copy=False)
    top = (1 << pixels.stored) - 1
    return np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)


def palette_rgb(values: Array, elements: Dataset) -> tuple[Array, int]:
    """uint8 [rows, columns, 3] of palette indices, and how many of them lie outside the palette.

    What lies below the first entry takes its colour, what lies above the last one that of the last (PS3.3 C.7.6.3.1.5).
    A palette that cannot be used is refused (``E-DCM-PALETTE``).
    """
    try:
        count, first, _ = (int(number) for number in elements.RedPaletteColorLookupTableDescriptor)
        count = count or 2**16
        outside = int(np.count_nonzero((values < first) | (values.astype(np.int64) >= first + count)))
        colours = apply_color_lut(values, elements)
    except Exception as error:  # the tables can be damaged in any way
        raise refusal("E-DCM-PALETTE", f"the palette cannot be used ({type(error).__name__})") from error
    colours = colours[..., :3]
    if colours.dtype.itemsize == 1 or int(colours.max()) <= 255:  # some writers declare 16 bits and fill eight
        return colours.astype(np.uint8), outside
    return np.round(colours / 257).astype(np.uint8), outside
