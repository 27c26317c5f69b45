"""An analytic phantom in patient space, and the grid of frames that a scanner lays over it.

Two systems of coordinates occur: the phantom is a function of RAS+ millimetres, as :class:`medmtl.io.volume.Volume`
has them; a :class:`Grid` is in LPS+, as DICOM has them. ``RAS`` converts either into the other.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CENTRE_LPS = (23.7, -41.3, -118.2)  # away from the origin, so that a lost sign shows
LOW, HIGH = -1000.0, 1500.0


@dataclass(frozen=True)
class Phantom:
    """A smooth intensity without any symmetry: ``scale * v(x) + offset`` with v(x) in (-1000, 1500), x in RAS+ mm.

    v = 250 + 1250 tanh(u / 1250), u = g·(x - c) + Σ a_b exp(-½ (x - c_b)ᵀ P_b (x - c_b)): a ramp of 11 to 17 HU/mm and
    seven oblique ellipsoids with standard deviations of 4 to 9 mm. Nowhere in a grid around the centre does a shift of
    0.1 mm leave all voxels within 1 HU, whatever its direction. ``seed`` draws another body.
    """

    seed: int = 0
    scale: float = 1.0
    offset: float = 0.0

    def value(self, points_mm: npt.ArrayLike) -> Floats:
        """Intensity at RAS+ points [..., 3] mm."""
        points = np.asarray(points_mm, np.float64) - self._centre
        raw = points @ self._ramp
        for place, precision, amplitude in zip(*self._blobs, strict=True):
            away = points - place
            raw = raw + amplitude * np.exp(-0.5 * np.einsum("...i,ij,...j->...", away, precision, away))
        half = (HIGH - LOW) / 2
        return np.asarray(self.scale * ((HIGH + LOW) / 2 + half * np.tanh(raw / half)) + self.offset)

    def gradient(self, points_mm: npt.ArrayLike) -> Floats:
        """Intensity per mm along x, y, z at points [..., 3], by central differences over 0.02 mm."""
        points = np.asarray(points_mm, np.float64)
        return np.stack(
            [(self.value(points + step) - self.value(points - step)) / 0.02 for step in 0.01 * np.eye(3)], -1
        )

    def curvature(self, points_mm: npt.ArrayLike) -> Floats:
        """The six second derivatives (xx, xy, xz, yy, yz, zz) per mm² at points [..., 3], over 0.5 mm."""
        points = np.asarray(points_mm, np.float64)
        twice = np.stack([self.gradient(points + s) - self.gradient(points - s) for s in 0.25 * np.eye(3)], -1) / 0.5
        return np.asarray(twice[..., *np.triu_indices(3)])

    @cached_property
    def _centre(self) -> Floats:
        return RAS[:3, :3] @ np.array(CENTRE_LPS)

    @cached_property
    def _ramp(self) -> Floats:
        return np.array([11.0, -13.0, 17.0])

    @cached_property
    def _blobs(self) -> tuple[Floats, Floats, Floats]:
        """Places [7, 3] from the centre, precision matrices [7, 3, 3], amplitudes [7]."""
        rng = np.random.default_rng((self.seed, 20))
        places = rng.uniform((-16, -16, -11), (16, 16, 11), (7, 3))
        turns = np.linalg.qr(rng.standard_normal((7, 3, 3)))[0]
        precisions = turns @ (np.eye(3) / rng.uniform(4, 9, (7, 1, 3)) ** 2) @ turns.transpose(0, 2, 1)
        return places, precisions, rng.uniform(150, 400, 7) * np.where(np.arange(7) % 2, -1, 1)


@dataclass(frozen=True)
class Grid:
    """Frames of ``rows`` x ``columns`` pixels at ``offsets_mm`` along the slice normal, around ``centre`` (LPS mm).

    ``direction`` holds three LPS unit vectors: of growing column index, of growing row index, and their cross product,
    the normal. ``spacing_mm`` is (between columns, between rows), so PixelSpacing is its reverse.
    ``shear`` moves each frame within its own plane by that many mm per mm along the normal, along the direction of
    growing row index: a tilted gantry.
    """

    columns: int = 56
    rows: int = 48
    offsets_mm: tuple[float, ...] = tuple(2.5 * k for k in range(12))
    spacing_mm: tuple[float, float] = (0.8, 0.9)
    direction: tuple[tuple[float, float, float], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    shear: float = 0.0
    centre: tuple[float, ...] = CENTRE_LPS

    def __len__(self) -> int:
        return len(self.offsets_mm)

    @cached_property
    def axes(self) -> Floats:
        """[3, 3]: columns are unit vectors along column index, row index, normal (LPS)."""
        axes = np.array(self.direction, np.float64).T
        assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9) and np.linalg.det(axes) > 0
        return axes

    def centre_of(self, k: int) -> tuple[float, ...]:
        """LPS mm of the middle of frame ``k``."""
        depth = self.offsets_mm[k] - (self.offsets_mm[0] + self.offsets_mm[-1]) / 2
        _, across, normal = self.axes.T
        return tuple((np.array(self.centre) + depth * (normal + self.shear * across)).tolist())

    def part(self, kept: range) -> "Grid":
        """The same frames at the same places, but for those that are not kept."""
        middle = (np.array(self.centre_of(kept[0])) + self.centre_of(kept[-1])) / 2
        return replace(self, offsets_mm=tuple(self.offsets_mm[k] for k in kept), centre=tuple(middle.tolist()))

    def position(self, k: int) -> Floats:
        """LPS mm of the centre of frame ``k``'s first pixel, as in ImagePositionPatient."""
        along, across, _ = self.axes.T
        corner = np.array(self.centre_of(k)) - along * self.spacing_mm[0] * (self.columns - 1) / 2
        return np.asarray(corner - across * self.spacing_mm[1] * (self.rows - 1) / 2)

    def points(self, k: int) -> Floats:
        """RAS+ mm [rows, columns, 3] of the pixels of frame ``k``."""
        row, column = np.meshgrid(np.arange(self.rows), np.arange(self.columns), indexing="ij")
        along, across, _ = self.axes.T
        lps = (
            self.position(k)
            + column[..., None] * self.spacing_mm[0] * along
            + row[..., None] * self.spacing_mm[1] * across
        )
        return lps @ RAS[:3, :3]

    def affine(self) -> Floats:
        """RAS+ affine of the volume [columns, rows reversed, frames]; its step is the mean one (one frame: 2.5 mm)."""
        along, across, normal = self.axes.T
        first, last = self.position(0), self.position(len(self) - 1)
        step = (last - first) / (len(self) - 1) if len(self) > 1 else 2.5 * normal
        lps = np.eye(4)
        lps[:3, 0], lps[:3, 1], lps[:3, 2] = along * self.spacing_mm[0], -across * self.spacing_mm[1], step
        lps[:3, 3] = first + across * self.spacing_mm[1] * (self.rows - 1)
        return np.asarray(RAS @ lps)


def turned(x_deg: float = 0, y_deg: float = 0, z_deg: float = 0) -> tuple[tuple[float, float, float], ...]:
    """A ``Grid.direction`` turned about the patient's axes, x first."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians((x_deg, y_deg, z_deg))):
        one = np.eye(3)
        i, j = [a for a in range(3) if a != axis]
        one[i, i] = one[j, j] = np.cos(angle)
        one[j, i] = np.sin(angle) * (-1 if axis == 1 else 1)
        one[i, j] = -one[j, i]
        turn = one @ turn
    return tuple((float(a), float(b), float(c)) for a, b, c in turn.T)
