"""Where slices lie: directions, distances, tilt, and the affine of what they make up together.

DICOM's patient system is LPS; an affine is RAS+, so x and y change their sign. Lengths are mm.
"""

import math
from dataclasses import dataclass

import numpy as np

from medmtl.io.dicom.stack import Policy
from medmtl.io.volume import Floats

_UNIT = 1e-3  # how far direction cosines may be from orthonormal: rounded text, not another geometry
_SIDEWAYS_MM = 0.05  # how far slices may be shifted in their plane over a whole stack and count as upright
_LINE_MM = 0.1  # how far a position may lie off the line of a tilted stack


@dataclass(frozen=True)
class Axes:
    """Unit vectors (LPS): along a row, along a column, and their cross product, the slices' normal."""

    row: Floats
    column: Floats
    normal: Floats


@dataclass(frozen=True)
class Spacing:
    """How slices follow each other along the normal."""

    step_mm: float  # of the even grid that fits: their mean distance if they are even, else the typical one
    even: bool
    missing_mm: tuple[float, ...] = ()  # along the normal from the first slice; () where the gaps make no sense
    gaps_mm: tuple[float, ...] = ()


@dataclass(frozen=True)
class Shift:
    """How slices are displaced in their plane against each other: (along a row, along a column) in mm."""

    offsets_mm: Floats  # [N, 2], of each slice against the first
    angle_deg: float  # between the line through the positions and the normal; 0 if upright
    straight: bool  # all positions lie on one line


def axes_of(orientation: tuple[float, ...]) -> Axes | None:
    """The axes of (0020,0037), made exactly orthonormal; None if it is not meant to be that."""
    row, column = np.array(orientation[:3], np.float64), np.array(orientation[3:], np.float64)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not all(abs(length - 1) <= _UNIT for length in lengths) or abs(row @ column) > _UNIT:
        return None
    row = row / lengths[0]
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return Axes(row, column, np.cross(row, column))


def spacing_of(depths: Floats, policy: Policy) -> Spacing:
    """Whether ``depths`` [N], ascending and N >= 2, are even; if not, whether slices are missing between them."""
    gaps = np.diff(depths)
    mean = float((depths[-1] - depths[0]) / len(gaps))
    grid = depths[0] + mean * np.arange(len(depths))
    worst = max(float(np.abs(gaps - mean).max()), float(np.abs(depths - grid).max()))
    if worst <= tolerance_mm(mean, policy):
        return Spacing(mean, even=True)
    for unit in (float(np.median(gaps)), float(gaps.min())):
        counts = np.round(gaps / unit)
        allowed = np.maximum(tolerance_mm(unit, policy), 0.05 * unit) * np.maximum(counts, 1)
        if counts.min() >= 1 and counts.max() >= 2 and (np.abs(gaps - counts * unit) <= allowed).all():
            return Spacing(unit, False, _missing(depths, counts), tuple(gaps.tolist()))
    return Spacing(float(np.median(gaps)), even=False, gaps_mm=tuple(gaps.tolist()))


def tolerance_mm(step: float, policy: Policy) -> float:
    """How far a slice may be from its place; never so much that a missing slice would pass."""
    return max(policy.spacing_relative * step, min(policy.spacing_mm, 0.25 * step))


def shift_of(positions: Floats, depths: Floats, axes: Axes) -> Shift:
    """How the slices at ``positions`` [N, 3] are displaced in their plane."""
    apart = positions - positions[0]
    sideways = np.stack([apart @ axes.row, apart @ axes.column], axis=1)
    if np.abs(sideways).max() <= _SIDEWAYS_MM:
        return Shift(sideways, 0.0, straight=True)
    along = depths - depths[0]
    slope = along @ sideways / (along @ along)
    straight = bool(np.abs(sideways - along[:, None] * slope).max() <= _LINE_MM)
    return Shift(sideways, math.degrees(math.atan(float(np.linalg.norm(slope)))), straight)


def affine_of(first: Floats, axes: Axes, spacing: tuple[float, float], rows: int, step: Floats) -> Floats:
    """RAS+ affine of [I, J, K]: i along a row, j from the last row to the first, k from slice to slice.

    ``first``: the centre of the first slice's first pixel (LPS). ``spacing``: between rows, between columns.
    ``step`` [3]: from a slice to the next (LPS).
    """
    down = spacing[0] * axes.column
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = spacing[1] * axes.row, -down, step
    affine[:3, 3] = first + (rows - 1) * down
    affine[:2] *= -1
    return affine + 0.0  # no negative zeros


def _missing(depths: Floats, counts: Floats) -> tuple[float, ...]:
    places: list[float] = []
    for start, end, count in zip(depths[:-1], depths[1:], counts.astype(int), strict=True):
        places.extend(float(start - depths[0] + (end - start) * n / count) for n in range(1, count))
    return tuple(places)
