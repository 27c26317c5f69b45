"""A small picture of the middle of an image, for the report."""

import io

import numpy as np
from PIL import Image

from medmtl.io.volume import Volume

SIDE = 112  # pixels of the longer side


def thumbnail(image: Volume | np.ndarray) -> bytes:
    """PNG of the middle slice of a volume (first time point), or of a picture [H, W] or [H, W, 3].

    Intensities between the 1st and the 99th percentile; pixels are square in millimetres. The top row is the last
    index of the second axis, as scanners show it.
    """
    if isinstance(image, Volume):
        array = image.array[:, :, image.array.shape[2] // 2]
        if not image.colour and array.ndim == 3:
            array = array[..., 0]
        plane = np.swapaxes(array, 0, 1)[::-1]
        spacing = image.spacing or (1.0, 1.0)
        height, width = plane.shape[0] * spacing[1], plane.shape[1] * spacing[0]
    else:
        plane = image
        height, width = float(image.shape[0]), float(image.shape[1])
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    step = max(1, min(plane.shape[0] // (2 * size[1]), plane.shape[1] // (2 * size[0])))
    grey = _windowed(plane[::step, ::step])
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(grey)).resize(size, Image.Resampling.BILINEAR).save(stream, "PNG")
    return stream.getvalue()


def _windowed(plane: np.ndarray) -> np.ndarray:
    if plane.dtype == np.uint8:
        return plane
    values = plane.astype(np.float32)
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
