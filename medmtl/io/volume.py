"""An image in space: voxels, where they lie in the patient, and what was done to them on the way."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Note:
    """Something that a reader repaired (``R-...``) or that its user should know (``W-...``), with its numbers."""

    code: str
    what: str  # never a patient's name, an identifier or a path


@dataclass(frozen=True)
class Volume:
    """Voxels [I, J, K], over time [I, J, K, T], or in colour [I, J, K, 3] (uint8), and their place.

    Intensities are in modality units (HU, or the scanner's): rescaled, MONOCHROME1 inverted once, padding replaced.
    ``affine`` [4, 4] maps indices (i, j, k, 1) to millimetres in RAS+ (x to the right, y anterior, z superior), as in
    NIfTI. It is None where nothing says where the image lies (a photograph, a projection); ``spacing`` then holds what
    is known of the size of a pixel.
    """

    array: npt.NDArray[np.generic]
    affine: Floats | None
    colour: bool = False
    spacing: tuple[float, ...] | None = None  # mm along i, j, k; derived from the affine where there is one
    time_step_s: float | None = None  # between the volumes of a 4-D image
    units: str = ""  # "HU", "BQML", ...; empty where unknown
    notes: tuple[Note, ...] = ()
