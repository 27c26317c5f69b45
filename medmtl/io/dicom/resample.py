"""Uneven or tilted slices as an even, upright grid: shifted in their plane and between each other, linearly."""

from typing import Any

import numpy as np
import numpy.typing as npt

from medmtl.io.dicom.stack import Regrid

Array = npt.NDArray[Any]


def regridded(array: Array, regrid: Regrid, *, colour: bool, air: int | None) -> Array:
    """``array`` [I, J, N] (and T, or 3 for colour) on the even grid of ``regrid``, in the same type.

    A voxel that does not lie between acquired ones is never extrapolated: it gets the lowest value of the image, in a
    CT not above ``air``; black in colour.
    """
    if array.ndim == 3:
        return _volume(array, regrid, 0 if colour else _background(array, air))
    fill = 0 if colour else _background(array, air)
    volumes = [_volume(array[..., index], regrid, fill) for index in range(array.shape[3])]
    return np.asfortranarray(np.stack(volumes, axis=-1))


def _background(array: Array, air: int | None) -> float:
    low = float(array.min())
    return low if air is None else min(low, air)


def _volume(array: Array, regrid: Regrid, fill: float) -> Array:
    extra_i, extra_j = (int(np.ceil(shift - 1e-6)) for shift in np.max(regrid.shifts_px, axis=0))
    shape = (array.shape[0] + extra_i, array.shape[1] + extra_j, regrid.count)
    out = np.empty(shape, array.dtype, order="F")
    offsets = np.asarray(regrid.offsets_mm)
    planes: dict[int, Array] = {}
    for k in range(regrid.count):
        depth = min(k * regrid.step_mm, offsets[-1])
        below = int(np.clip(np.searchsorted(offsets, depth, side="right") - 1, 0, len(offsets) - 2))
        weight = float((depth - offsets[below]) / (offsets[below + 1] - offsets[below]))
        planes = {n: planes[n] if n in planes else _shifted(array, n, regrid, shape[:2]) for n in (below, below + 1)}
        plane = _between(planes[below], planes[below + 1], weight)
        plane = np.where(np.isnan(plane), fill, plane)
        out[:, :, k] = np.round(plane) if array.dtype.kind in "iu" else plane
    return out


def _between(first: Array, second: Array, weight: float) -> Array:
    if weight < 1e-6 or weight > 1 - 1e-6:
        return first if weight < 0.5 else second
    return (1 - weight) * first + weight * second


def _shifted(array: Array, number: int, regrid: Regrid, shape: tuple[int, ...]) -> Array:
    """Slice ``number`` [I, J] on the wider grid, NaN where it has no pixels."""
    extra_j = shape[1] - array.shape[1]
    right, down = regrid.shifts_px[number]
    plane = np.full(shape, np.nan)
    plane[: array.shape[0], : array.shape[1]] = array[:, :, number]
    return _moved(_moved(plane, right, 0), extra_j - down, 1)  # j counts from the last row


def _moved(plane: Array, by: float, axis: int) -> Array:
    """``plane`` displaced by ``by`` >= 0 pixels along ``axis``, linear between pixels; NaN where nothing comes from."""
    whole = int(np.floor(by + 1e-6))
    part = max(by - whole, 0.0)
    moved = _rolled(plane, whole, axis)
    return moved if part < 1e-6 else (1 - part) * moved + part * _rolled(plane, whole + 1, axis)


def _rolled(plane: Array, by: int, axis: int) -> Array:
    rolled = np.full_like(plane, np.nan)
    source, target = [slice(None)] * 2, [slice(None)] * 2
    source[axis], target[axis] = slice(0, plane.shape[axis] - by), slice(by, None)
    rolled[tuple(target)] = plane[tuple(source)]
    return rolled
