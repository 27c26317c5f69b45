"""The background of a volume: what surrounds the patient, or what was left when all but the brain was cut away.

Most files hold one value there, their lowest. After spline interpolation, bias correction or a registration they do
not: a sharp edge rings, in waves of both signs that fade to numbers like 1e-9 but not to 0. One voxel below the
background would then make all air a part of the foreground.
"""

import numpy as np
import torch
from torch import Tensor

from medmtl.io.volume import Floats

_SAMPLE = 2_000_000  # voxels that are looked at, evenly spread
_SHARE = 0.3  # of all voxels are background; the commonest grey level of noisy air, which is none, has fewer
_WIDTH = 1e-3  # of the range of intensities: how far on either side a voxel counts for the share
_LOWEST = 0.05  # of all voxels hold the lowest value, and no value is more frequent: then it is the background
_WRONG = 0.05  # of the foreground may be what rings upwards: on brains, between too much air and too little tissue
_DEEP = 0.1  # of the foreground's range: what lies that far below the background is no ringing but signal


def above_background(image: Tensor) -> Tensor:
    """Intensities less their background, which is 0 and the lowest value of what is returned.

    The background is the lowest value where that is the most frequent one. Else it is the value that at least 30 % of
    the voxels hold, to 1e-3 of the range of intensities, if there is one: what lies below it becomes 0, and so does
    what lies above it by no more than that, or than ringing reaches. This is read from below, where nothing else is:
    the smallest distance that is exceeded downwards by at most 5 % as many voxels as upwards (or by one voxel).

    Where more than ringing lies below (over 10 % of the foreground's range, as where tissue has mean 0), and where no
    value is frequent (noisy air), it is the lowest value again, and all that is above that is foreground. Ringing that
    was cut off at the background leaves no trace below it, and stays foreground too.
    """
    lowest = float(image.min())
    background, ringing = _frequent(image, lowest) or (lowest, 0.0)
    if background > lowest:
        image = torch.where(image <= background + ringing, background, image)
    return image - background if background else image


def _frequent(image: Tensor, lowest: float) -> tuple[float, float] | None:
    """(A background above the lowest value, how far ringing reaches there), or None."""
    share = int((image == lowest).sum()) / image.numel()
    if share > 0.5:
        return None
    values = np.sort(image.flatten()[:: max(1, image.numel() // _SAMPLE)].double().numpy())
    if share >= max(_LOWEST, np.unique(values, return_counts=True)[1].max() / len(values)):
        return None
    width = _WIDTH * float(np.subtract(*np.percentile(values, (99.5, 0.5))))
    last = np.searchsorted(values, values + 2 * width, side="right")
    first = int(np.argmax(last - np.arange(len(values))))
    held = values[first : last[first]]
    if len(held) < _SHARE * len(values):
        return None
    background = float(held[len(held) // 2])
    ringing = _ringing(background - values[values < background][::-1], values[values > background] - background)
    return None if ringing is None else (background, max(ringing, width))


def _ringing(below: Floats, above: Floats) -> float | None:
    """How far voxels ring, of ascending distances below and above the background; None where signal lies below."""
    reach = np.concatenate(([0.0], below))
    deeper = len(below) - np.searchsorted(below, reach, side="right")
    higher = len(above) - np.searchsorted(above, reach, side="right")
    enough = np.flatnonzero((deeper <= np.maximum(_WRONG * higher, 1)) & (higher > 0))
    if not len(enough) or reach[enough[0]] > _DEEP * np.percentile(above, 99.5):
        return None
    return float(reach[enough[0]])
