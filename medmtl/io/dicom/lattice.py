"""The voxels of an image, found from where they lie in the patient: for masks that were drawn on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medmtl.io.dicom.geometry import tolerance_mm
from medmtl.io.dicom.stack import Policy
from medmtl.io.volume import Floats, Volume

_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Lattice:
    """Voxel centres [I, J, K] of an image with this affine (RAS+)."""

    affine: Floats
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, image: Volume) -> "Lattice | None":
        """That of an image; None where nothing says where it lies."""
        if image.affine is None:
            return None
        i, j, k = image.array.shape[:3]
        return cls(image.affine, (i, j, k))

    @cached_property
    def step_mm(self) -> float:
        """From slice to slice."""
        return float(np.linalg.norm(self.affine[:3, 2]))

    @property
    def tolerance_mm(self) -> float:
        """How far a voxel that was drawn on may be from one of the image: as far as slices may be off an even grid."""
        return tolerance_mm(self.step_mm, Policy())

    @cached_property
    def _inverse(self) -> Floats:
        return np.asarray(np.linalg.inv(self.affine))

    def indices(self, points: Floats | Sequence[Sequence[float]]) -> Floats:
        """Indices [N, 3], with fractions, of points [N, 3] in DICOM's patient system (LPS mm)."""
        ras = np.asarray(points, np.float64) * _RAS
        with np.errstate(over="ignore", invalid="ignore"):  # of damaged numbers: what is not finite lies nowhere
            return np.asarray(ras @ self._inverse[:3, :3].T + self._inverse[:3, 3])

    def off_mm(self, indices: Floats) -> float:
        """How far indices [N, 3] are at most from the voxel centres nearest to them."""
        return float(np.linalg.norm((indices - np.rint(indices)) @ self.affine[:3, :3].T, axis=1).max())

    def holds(self, indices: Floats) -> np.ndarray:
        """Which of the rounded indices [N, 3] are voxels of the image."""
        return np.asarray(((indices >= 0) & (indices < self.shape)).all(axis=1))
