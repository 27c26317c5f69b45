"""What can be measured of a colposcopy image itself, for the failure analysis: glare and blur."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from medmtl.io.raster import read_image

_BRIGHT, _PALE = 0.9, 0.15  # a highlight's least brightness, and its largest saturation


def measures(path: Path) -> dict[str, str]:
    """``glare``: share of pixels that are specular highlights (value at least 0.9, saturation at most 0.15).

    ``sharpness``: standard deviation of the Laplacian of the mean of the channels over the pixels that are no
    highlight, after averaging to about 384 px, so that cameras of different size compare. Low is blurred.
    """
    pixels = read_image(path, channels=3)
    step = max(1, round(max(pixels.shape[1:]) / 384))
    rows, columns = (length // step * step for length in pixels.shape[1:])
    small = pixels[:, :rows, :columns].reshape(3, rows // step, step, columns // step, step).mean((2, 4))
    value, least = small.max(0), small.min(0)
    glare = (value >= _BRIGHT) & (value - least <= _PALE * value)
    edges = ndimage.laplace(small.mean(0))
    away = ~ndimage.binary_dilation(glare, iterations=2)
    sharpness = float(np.std(edges[away])) if away.any() else 0.0
    return {"glare": f"{glare.mean():.4f}", "sharpness": f"{sharpness:.4f}"}
