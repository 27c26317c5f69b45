"""A polygon as pixels."""

import math

import numpy as np
import numpy.typing as npt

from medmtl.io.volume import Floats


def filled(polygon: Floats, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Pixels [I, J] whose centre lies inside the closed ``polygon`` [N, 2] of indices, by the even-odd rule.

    A centre on an edge belongs to the side of growing indices, so that polygons with a common edge neither overlap nor
    leave a gap. A polygon that crosses itself, or runs to a hole and back (a keyhole), is filled where a ray to the
    outside meets an odd number of edges. What lies outside the image is left out.
    """
    x, y = polygon.T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    inside = np.zeros(shape, bool)
    if len(polygon) < 3:
        return inside
    centres = np.arange(shape[0])
    for j in range(max(0, math.ceil(y.min())), min(shape[1] - 1, math.floor(y.max())) + 1):
        meets = (y <= j) != (next_y <= j)
        rise = next_y[meets] - y[meets]
        crossings = x[meets] + (j - y[meets]) * (next_x[meets] - x[meets]) / rise
        inside[:, j] = np.searchsorted(np.sort(crossings), centres, side="right") % 2 == 1
    return inside
