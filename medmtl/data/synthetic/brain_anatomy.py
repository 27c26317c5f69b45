"""Drawn brains: smoothly warped analytic shapes in millimetres, whose sizes follow regional atrophy.

World axes are RAS+ with the origin in the middle of the brain. Each surface is the zero of a *depth*: roughly the
distance in mm to it, positive inside. A voxel's share of a tissue is linear in depth over one voxel, which is what a
scanner's partial volume does to a flat border.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Generator = np.random.Generator
REGIONS = ("outside", "cortex", "white_matter", "ventricles", "hippocampi")  # labels 0 to 4
_RADII = (66.0, 82.0, 60.0)  # of the inner skull, mm
_CORTEX_MM = 5.0  # thickness without atrophy
_SKULL_MM, _SCALP_MM = 6.0, 5.0


class Atrophy(NamedTuple):
    """How far each region is gone: 0 in youth, 1 in the severest disease."""

    hippocampus: float
    cortex: float
    ventricles: float  # how far they are widened


@dataclass(frozen=True)
class Anatomy:
    """What does not change between the visits of a subject."""

    radii: tuple[float, float, float]  # of the inner skull, mm
    warp: tuple[Array, Array, Array]  # wave vectors [n, 3] rad/mm, displacements [n, 3] mm, phases [n]
    folds: tuple[Array, Array]  # wave vectors [m, 3] rad/mm, phases [m]
    lean: float  # share by which the right hippocampus is larger than the left


class Tissues(NamedTuple):
    """Shares of each voxel, each [I, J, K] in [0, 1]; what is left of ``inside`` is cerebrospinal fluid."""

    inside: Array  # the inner skull
    cortex: Array
    white_matter: Array
    ventricles: Array  # with the temporal horns, which open where the hippocampi shrink
    hippocampi: Array
    bone: Array
    scalp: Array


def draw_anatomy(rng: Generator) -> Anatomy:
    """A head of its own size, shape and folds."""
    size, shape = rng.normal(1, 0.03), rng.normal(1, 0.025, 3)
    rx, ry, rz = (float(r * size * s) for r, s in zip(_RADII, shape, strict=True))
    waves = rng.normal(0, 2 * np.pi / 140, (4, 3)), rng.normal(0, 1.6, (4, 3)), rng.uniform(0, 2 * np.pi, 4)
    directions = rng.normal(0, 1, (6, 3))
    directions *= 2 * np.pi / rng.uniform(16, 26, (6, 1)) / np.linalg.norm(directions, axis=1, keepdims=True)
    folds = directions.astype(np.float32), rng.uniform(0, 2 * np.pi, 6).astype(np.float32)
    vectors, moves, phases = (array.astype(np.float32) for array in waves)
    return Anatomy((rx, ry, rz), (vectors, moves, phases), folds, float(rng.normal(0, 0.04)))


def tissues(anatomy: Anatomy, atrophy: Atrophy, points_mm: tuple[Array, Array, Array], voxel_mm: float) -> Tissues:
    """What is at the points (x, y, z, [I, J, K] each): later shapes lie over earlier ones, shares add up to 1."""
    x, y, z = _warped(anatomy, points_mm)
    skull = _depth((x, y, z), (0, 0, 0), anatomy.radii)
    inside = _share(skull, voxel_mm)
    pia = skull - (1 + 3 * atrophy.cortex) - (1.5 + 5 * atrophy.cortex) * _folds(anatomy, (x, y, z))
    brain, core = _share(pia, voxel_mm), _share(pia - _CORTEX_MM * (1 - 0.4 * atrophy.cortex), voxel_mm)
    either = np.abs(x), y, z  # both sides at once
    horns = _share(_depth(either, _HIPPOCAMPUS, _times(_HIPPOCAMPUS_RADII, 1.1)), voxel_mm)
    hippocampi = _share(_hippocampal_depth(anatomy, atrophy, (x, y, z)), voxel_mm)
    fluid = np.maximum(_share(_ventricular_depth(atrophy, either), voxel_mm), horns * (1 - hippocampi))
    hippocampi = hippocampi * (1 - _share(_ventricular_depth(atrophy, either), voxel_mm))
    solid = brain * (1 - fluid) * (1 - hippocampi)
    bone = _share(skull + _SKULL_MM, voxel_mm) - inside
    scalp = _share(skull + _SKULL_MM + _SCALP_MM, voxel_mm) - bone - inside
    return Tissues(
        inside, solid * (1 - core), solid * core, fluid * brain, hippocampi * brain, bone, np.maximum(scalp, 0)
    )


_HIPPOCAMPUS, _HIPPOCAMPUS_RADII = (28.0, -14.0, -18.0), (8.0, 19.0, 8.0)


def _hippocampal_depth(anatomy: Anatomy, atrophy: Atrophy, points: tuple[Array, Array, Array]) -> Array:
    x, y, z = points
    left, right = (
        _depth((x, y, z), (side * _HIPPOCAMPUS[0], *_HIPPOCAMPUS[1:]), _times(_HIPPOCAMPUS_RADII, size))
        for side, size in ((-1, _shrunk(atrophy) - anatomy.lean / 2), (1, _shrunk(atrophy) + anatomy.lean / 2))
    )
    return np.maximum(left, right)


def _shrunk(atrophy: Atrophy) -> float:
    """The hippocampi's length by that without atrophy; their volume goes with its third power."""
    return float(1 - 0.4 * atrophy.hippocampus)


def _ventricular_depth(atrophy: Atrophy, either: tuple[Array, Array, Array]) -> Array:
    """The lateral ventricles, which arch over the middle, and the third one between them."""
    across, y, z = either
    wide = atrophy.ventricles
    arched = z + 0.004 * (y + 5) ** 2
    body = _depth((across, y, arched), (10 + 3 * wide, -5, 14), (4 + 9 * wide, 28 + 10 * wide, 7 + 8 * wide))
    third = _depth((across, y, z), (0, -4, -4), (1.5 + 4 * wide, 12, 9))
    return np.maximum(body, third)


def _times(radii: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    a, b, c = radii
    return a * factor, b * factor, c * factor


def _warped(anatomy: Anatomy, points: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    x, y, z = points
    moved = [x.copy(), y.copy(), z.copy()]
    for vector, move, phase in zip(*anatomy.warp, strict=True):
        wave = np.sin(vector[0] * x + vector[1] * y + vector[2] * z + phase)
        for axis in range(3):
            moved[axis] += move[axis] * wave
    return moved[0], moved[1], moved[2]


def _folds(anatomy: Anatomy, points: tuple[Array, Array, Array]) -> Array:
    """How deep a sulcus is here, 0 (gyrus) to 1: a sum of waves with wavelengths of 16 to 26 mm, squashed."""
    x, y, z = points
    total = np.zeros_like(x)
    for vector, phase in zip(*anatomy.folds, strict=True):
        total += np.cos(vector[0] * x + vector[1] * y + vector[2] * z + phase)
    return np.clip(0.5 + total / 3, 0, 1)


def _depth(
    points: tuple[Array, Array, Array], centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> Array:
    """Distance to an ellipsoid, positive inside, exact to first order at its surface: ``k (1 - k) / |p / r^2|``.

    ``k = |p / r|``. Near the centre, where that quotient loses its meaning, it is at least (1 - k) times the least
    radius.
    """
    relative = [(p - np.float32(c)) / np.float32(r) for p, c, r in zip(points, centre, radii, strict=True)]
    k = np.sqrt(sum(u * u for u in relative))
    slope = np.sqrt(sum((u / np.float32(r)) ** 2 for u, r in zip(relative, radii, strict=True)))
    return np.asarray((1 - k) * np.maximum(k / np.maximum(slope, 1e-6), min(radii)), np.float32)


def _share(depth: npt.NDArray[np.floating], voxel_mm: float) -> Array:
    return np.asarray(np.clip(depth / np.float32(voxel_mm) + np.float32(0.5), 0, 1), np.float32)


def labels(found: Tissues) -> npt.NDArray[np.uint8]:
    """The region [I, J, K] that most of each voxel is of, as an index of ``REGIONS``; fluid of sulci is outside."""
    parts = found.cortex, found.white_matter, found.ventricles, found.hippocampi
    rest = 1 - sum(parts)
    return np.stack([rest, *parts]).argmax(0).astype(np.uint8)
