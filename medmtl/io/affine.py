"""Affines [4, 4] from voxel indices to millimetres, compared by what they do to the corners of an image."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from medmtl.io.volume import Floats


def spacing_mm(affine: Floats) -> tuple[float, float, float]:
    """The size of a voxel along i, j and k."""
    i, j, k = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return i, j, k


def corners_mm(affine: Floats, shape: Sequence[int]) -> Floats:
    """World coordinates [8, 3] of the centres of the corner voxels of an image [I, J, K, ...]."""
    indices = np.array(list(product(*((0, size - 1) for size in shape[:3]))), dtype=np.float64)
    return np.asarray(indices @ affine[:3, :3].T + affine[:3, 3])


def corner_distance_mm(first: Floats, second: Floats, shape: Sequence[int]) -> float:
    """How far apart two affines put the same corner at most; for affine maps, no voxel inside is farther off."""
    apart = corners_mm(first, shape) - corners_mm(second, shape)
    return float(np.linalg.norm(apart, axis=1).max())


def angle_deg(first: Floats, second: Floats) -> float:
    """The largest angle between the i axes, the j axes or the k axes of two affines: 180 where one is flipped."""
    cosines = np.sum(_directions(first) * _directions(second), axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


def shear_deg(affine: Floats) -> float:
    """How far the axes are from standing at right angles to each other; 0 for a rotation with zooms."""
    axes = _directions(affine)
    cosines = [abs(float(axes[:, a] @ axes[:, b])) for a, b in ((0, 1), (0, 2), (1, 2))]
    return float(np.degrees(np.arcsin(min(1.0, max(cosines)))))


def volume_factor(affine: Floats) -> float:
    """Volume of a voxel over that of a box with its edges: its sign is the handedness, 0 means axes in one plane."""
    return float(np.linalg.det(_directions(affine)))


def _directions(affine: Floats) -> Floats:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return np.asarray(affine[:3, :3] / np.where(lengths > 0, lengths, 1))
