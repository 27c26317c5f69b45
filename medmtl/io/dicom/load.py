"""Loads the voxels of a planned volume: one pass over its frames, into one array in the memory order of NIfTI."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medmtl.io.dicom.assemble import matrix_of
from medmtl.io.dicom.colour import palette_rgb, pixel_elements, rgb_of
from medmtl.io.dicom.decode import stored_frames
from medmtl.io.dicom.mosaic import check_tiles, mosaic_side
from medmtl.io.dicom.pixelsize import PHYSICAL
from medmtl.io.dicom.record import Header
from medmtl.io.dicom.resample import regridded
from medmtl.io.dicom.stack import Slice, Stack
from medmtl.io.dicom.values import apply_lut, clean, inverted, output_dtype, scale_of, write_scaled
from medmtl.io.reasons import refusal
from medmtl.io.volume import Note, Volume

Array = npt.NDArray[Any]
AIR_HU = -1024
_HU_AIR, _HU_TOP = (-3100, -200), 35000  # a CT without rescale is one in HU if its lowest value is air's, or below


def load(stack: Stack) -> Volume:
    """Decode the frames of ``stack`` into one volume, [I, J, K], [I, J, K, T] or [I, J, K, 3], in modality units.

    Raises UserError: ``E-FILE-CHANGED`` (since its header was read), ``E-DCM-CODEC`` (no decoder), ``E-DCM-PIXELS``
    and ``E-DCM-TRUNCATED`` (damaged), ``E-DCM-RESCALE``, ``E-DCM-PALETTE``.
    """
    array, notes = _colour(stack) if stack.colour else _grey(stack)
    if stack.regrid:
        air = AIR_HU if stack.first.modality == "CT" else None
        array = regridded(array, stack.regrid, colour=stack.colour, air=air)
    assert array.shape == stack.shape, f"{array.shape} is not {stack.shape}"
    return Volume(
        array,
        stack.affine,
        colour=stack.colour,
        spacing=stack.spacing,
        time_step_s=stack.time_step_s,
        units=stack.units,
        notes=(*stack.notes, *notes),
    )


@dataclass
class _Range:
    """The lowest and highest real value so far, and where padding was: [K] masks, None where a slice has none."""

    low: float = np.inf
    high: float = -np.inf
    masks: dict[int, Array] = field(default_factory=dict)
    padding: set[float] = field(default_factory=set)

    def add(self, *values: float) -> None:
        self.low, self.high = min(self.low, *values), max(self.high, *values)


def _grey(stack: Stack) -> tuple[Array, list[Note]]:
    dtype, certain = output_dtype(stack.slices)
    assumed = [item for item in stack.slices if _assumes_hu(item)]
    track = not certain or bool(assumed)
    out, found = _filled(stack, dtype, track=track)
    if not certain and found.low <= found.high and not (found.low >= -(2**15) and found.high < 2**15):
        if found.low >= 0 and found.high < 2**16:
            out = out.view(np.uint16)
        else:
            out, found = _filled(stack, np.dtype(np.int32), track=track)
    notes = [*_inversion_note(stack), *_empty_tiles_note(stack, out), *_replace_padding(stack, out, found)]
    if assumed:
        notes.append(_check_hu(found))
    return _with_time(out, stack.times), notes


def _filled(stack: Stack, dtype: np.dtype[Any], *, track: bool) -> tuple[Array, _Range]:
    """All slices [I, J, K * T] as ``dtype``, and what was found on the way."""
    rows, columns = matrix_of(stack.first)
    out = np.empty((columns, rows, len(stack.slices)), dtype, order="F")
    found = _Range()
    for number, item, values in _frames(stack.slices):
        pixels = item.header.pixels
        assert pixels is not None
        values = clean(values, pixels)
        mask = _padding_mask(values, item.header)
        scale = scale_of(item.header, item.frame)
        if mask is not None:
            found.masks[number] = mask[::-1].T
            found.padding.update(scale.apply(value) for value in pixels.padding or ())
        if pixels.lut:
            values = apply_lut(values, item.header)
        if mask is not None or track or found.masks:
            real = values if mask is None else values[~mask]
            if real.size:
                found.add(scale.apply(float(real.min())), scale.apply(float(real.max())))
        write_scaled(values, scale, out[:, :, number].T[::-1])
    return out, found


def _frames(slices: Sequence[Slice]) -> Iterator[tuple[int, Slice, Array]]:
    """(number in the volume, slice, stored values), file by file, so that each is opened once."""
    per_file: dict[int, list[int]] = defaultdict(list)
    for number, item in enumerate(slices):
        per_file[id(item.header)].append(number)
    for numbers in per_file.values():
        header = slices[numbers[0]].header
        indices = sorted({slices[number].frame.index for number in numbers})
        wanted = defaultdict(list)
        for number in numbers:
            wanted[slices[number].frame.index].append(number)
        for index, values in zip(indices, stored_frames(header, indices), strict=True):
            if header.mosaic_tiles:
                check_tiles(values, header.mosaic_tiles)
            for number in wanted[index]:
                yield number, slices[number], _tile(values, slices[number].frame.tile, header)


def _tile(values: Array, tile: int | None, header: Header) -> Array:
    if tile is None:
        return values
    rows, columns = matrix_of(header)
    down, across = divmod(tile, mosaic_side(header.mosaic_tiles))
    return values[down * rows : (down + 1) * rows, across * columns : (across + 1) * columns]


def _padding_mask(values: Array, header: Header) -> Array | None:
    """Where the image holds padding, (0028,0120) to (0028,0121); None where it does not."""
    assert header.pixels is not None
    padding = header.pixels.padding
    if padding is None:
        return None
    low, high = padding
    mask = values == low if low == high else (values >= low) & (values <= high)
    return mask if mask.any() else None


def _replace_padding(stack: Stack, out: Array, found: _Range) -> list[Note]:
    """Padding becomes background: air in a CT, else the lowest real value; zero stays where it is no signal.

    A CT's padding (-2000 and the like) would stretch every histogram, one of an inverted image would be the brightest
    thing in it.
    """
    if not found.masks or found.low > found.high:
        return []
    fill = min(found.low, AIR_HU) if stack.first.modality == "CT" else found.low
    if stack.first.modality != "CT" and found.padding == {0.0} and found.low >= 0:
        return []
    count = 0
    for number, mask in found.masks.items():
        plane = out[:, :, number]
        count += int(np.count_nonzero(mask & (plane != out.dtype.type(fill))))
        np.copyto(plane, out.dtype.type(fill), where=mask)
    return [Note("R-DCM-PADDING", f"{count:,} padding pixels were set to {fill:g}")] if count else []


def _inversion_note(stack: Stack) -> list[Note]:
    pixels = stack.first.pixels
    assert pixels is not None
    if pixels.photometric != "MONOCHROME1":
        return []
    if inverted(stack.first) or (pixels.lut and stack.first.modality not in PHYSICAL):
        return [Note("R-DCM-INVERTED", "MONOCHROME1: turned over in the range of its stored bits, after the rescale")]
    return [Note("W-DCM-MONOCHROME1", "shown with the lowest value white; the values are physical and stay")]


def _empty_tiles_note(stack: Stack, out: Array) -> list[Note]:
    """A word on mosaics [I, J, K * T] whose last tiles are of one value: slices that were stated, and not acquired?"""
    last = [n for n, item in enumerate(stack.slices) if item.frame.tile == item.header.mosaic_tiles - 1]
    empty = sum(bool(out[:, :, n].min() == out[:, :, n].max()) for n in last)
    return [Note("W-DCM-MOSAIC", f"the last slice of {empty} of {len(last)} mosaics is empty")] if empty else []


def _assumes_hu(item: Slice) -> bool:
    header = item.header
    missing = item.frame.slope is None or item.frame.intercept is None
    return header.modality == "CT" and missing and not (header.pixels and header.pixels.lut)


def _check_hu(found: _Range) -> Note:
    what = f"the CT states no rescale; its values are {found.low:g} to {found.high:g}"
    if not (_HU_AIR[0] <= found.low <= _HU_AIR[1] and found.high <= _HU_TOP):
        raise refusal("E-DCM-RESCALE", f"{what}, which are not HU")
    return Note("W-DCM-HU-ASSUMED", what)


def _colour(stack: Stack) -> tuple[Array, list[Note]]:
    out = np.empty((*stack_matrix(stack), len(stack.slices), 3), np.uint8, order="F")
    elements: dict[int, Any] = {}
    outside = 0
    for number, item, values in _frames(stack.slices):
        pixels = item.header.pixels
        assert pixels is not None
        if pixels.photometric == "PALETTE COLOR":
            key = id(item.header)
            if key not in elements:
                elements = {key: pixel_elements(item.header)}
            rgb, more = palette_rgb(clean(values, pixels), elements[key])
            outside += more
        else:
            rgb = rgb_of(values, pixels)
        out[:, :, number] = rgb[::-1].transpose(1, 0, 2)
    note = Note("W-DCM-PALETTE", f"{outside:,} pixels outside the palette have the colour of its nearer end")
    return out, [note] if outside else []


def stack_matrix(stack: Stack) -> tuple[int, int]:
    """(I, J) of the frames of a stack."""
    rows, columns = matrix_of(stack.first)
    return columns, rows


def _with_time(array: Array, times: int) -> Array:
    """[I, J, K * T], k faster than t, as [I, J, K, T]; no copy in Fortran order."""
    if times == 1:
        return array
    return array.reshape((*array.shape[:2], array.shape[2] // times, times), order="F")
