"""Turning a volume so that its axes run where one wants them: permutation and flips, nothing is interpolated."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from medmtl.io.volume import Floats

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


def is_axes(codes: str) -> bool:
    """Whether ``codes`` names three different anatomical directions, as RAS, SAR or LPS."""
    return len(codes) == 3 and {min(code, _OPPOSITE.get(code, "?")) for code in codes} == {"L", "A", "I"}


@dataclass(frozen=True)
class Turn:
    """How the axes of one array become those of another: ``out.shape[n] == array.shape[source[n]]``, then flipped."""

    source: tuple[int, int, int]
    flipped: tuple[int, ...]  # axes of the result that run the other way

    def apply(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """``array`` [I, J, K, ...] turned, a view."""
        rest = range(3, array.ndim)
        return np.flip(array.transpose(*self.source, *rest), self.flipped)

    def undo(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The inverse, a view."""
        order = [int(n) for n in np.argsort(self.source)]
        return np.flip(array, self.flipped).transpose(*order, *range(3, array.ndim))


def turn_to(affine: Floats, shape: tuple[int, ...], codes: str) -> tuple[Turn, Floats]:
    """The turn of a volume [I, J, K] with this affine (RAS+) to axes that point along ``codes``; and the new affine.

    As nearly as flips and permutations can: an oblique volume stays oblique.

    An axis points along R if its index grows towards the patient's right.
    """
    assert is_axes(codes), codes
    ornt = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(codes)))
    source, flipped = [0, 0, 0], []
    for axis, (target, direction) in enumerate(ornt):
        source[int(target)] = axis
        if direction < 0:
            flipped.append(int(target))
    turned: Floats = affine @ inv_ornt_aff(ornt, shape[:3])
    return Turn((source[0], source[1], source[2]), tuple(sorted(flipped))), turned
