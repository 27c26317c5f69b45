"""What voxels must be before anything is made of them, and how a picture lies in a volume."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medmtl.io.reasons import refusal
from medmtl.io.volume import Note, Volume

MOST_FILLED = 1e-3  # of the voxels


def finite(volume: Volume, *, fill: bool) -> Volume:
    """Refuse voxels that are no number (``E-ING-NAN``); with ``fill``, up to 0.1 % of them become the lowest value."""
    array = volume.array
    if array.dtype.kind != "f" or (np.isfinite(array.min()) and np.isfinite(array.max())):
        return volume
    good = np.isfinite(array)  # type: ignore[call-overload]
    bad = array.size - int(np.count_nonzero(good))
    found = f"{bad:,} of {array.size:,} voxels ({100 * bad / array.size:.3g} %) are NaN or infinite"
    if not fill or bad > MOST_FILLED * array.size:
        raise refusal("E-ING-NAN", found)
    lowest = array.min(where=good, initial=np.inf)
    note = Note("R-ING-NAN", f"{found}; they hold the lowest finite value, {lowest:g}")
    return replace(volume, array=np.where(good, array, lowest), notes=(*volume.notes, note))


def not_constant(volume: Volume) -> Volume:
    """Refuse an image of one value (``E-ING-EMPTY``)."""
    array = volume.array
    if array.min() == array.max():
        raise refusal("E-ING-EMPTY", f"all {array.size:,} voxels are {array.flat[0]}")
    return volume


def upright_picture(volume: Volume) -> npt.NDArray[Any] | None:
    """A projection or photograph as rows and columns from the top, [H, W] or [H, W, 3], where PNG holds its values
    exactly (8 or 16 bits without sign); None where it does not, or the volume is no single picture."""
    array = volume.array
    if array.shape[2] != 1 or (array.ndim == 4) != volume.colour:
        return None
    if array.dtype.kind not in "ui" or int(array.min()) < 0 or int(array.max()) > 65535:  # type: ignore[call-overload]
        return None
    upright = np.swapaxes(array[:, ::-1, 0], 0, 1)
    return upright.astype(np.uint8 if volume.colour or array.dtype == np.uint8 else np.uint16)
