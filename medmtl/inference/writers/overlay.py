"""A dense task's label map as a PNG mask, and as outlines and translucent colour over the image it belongs to."""

from pathlib import Path

import numpy as np

from medmtl.io.raster import write_png

# Okabe and Ito 2008, told apart with any colour vision; black and grey left out, they look like anatomy
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_OPACITY = 0.35
_FAST = 1  # of zlib: photographs get 1 % larger than at 6, in half the time
_UNSEEN = 0.5  # brightness of what the network did not look at


def colour(label: int) -> tuple[int, int, int]:
    """The colour of a foreground class, counted from 1; they repeat after seven."""
    return COLOURS[(label - 1) % len(COLOURS)]


def write_mask(path: Path, labels: np.ndarray) -> Path:
    """``labels`` [H, W] as a grey PNG whose pixel values are class indices."""
    return write_png(path, labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16))


def write_overlay(path: Path, image: np.ndarray, labels: np.ndarray, *, seen: np.ndarray) -> Path:
    """``labels`` [H, W] over ``image`` [1 or 3, H, W] in [0, 1]; where not ``seen`` [H, W] the image is darkened."""
    return write_png(path, overlay(image, labels, seen=seen), level=_FAST)


def overlay(image: np.ndarray, labels: np.ndarray, *, seen: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: every foreground class filled translucently and outlined (inside its edge) in its colour."""
    assert image.shape[1:] == labels.shape == seen.shape, (image.shape, labels.shape, seen.shape)
    canvas = np.repeat(image, 3, axis=0) if image.shape[0] == 1 else image
    canvas = canvas.transpose(1, 2, 0) * 255 * np.where(seen, 1.0, _UNSEEN)[..., None]
    edge = outline(labels, width=max(1, min(labels.shape) // 400))
    for label in np.unique(labels[labels > 0]):
        own = labels == label
        canvas[own] = (1 - _OPACITY) * canvas[own] + _OPACITY * np.array(colour(int(label)))
        canvas[own & edge] = colour(int(label))
    return np.rint(canvas).clip(0, 255).astype(np.uint8)


def outline(labels: np.ndarray, *, width: int = 1) -> np.ndarray:
    """bool [H, W]: foreground pixels with another label at most ``width`` pixels up, down, left or right of them.

    The border of the image is no edge: a region goes on beyond it.
    """
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        rows = np.moveaxis(labels, axis, 0)
        mark = np.moveaxis(edge, axis, 0)  # a view
        for distance in range(1, min(width, len(rows) - 1) + 1):
            differs = rows[distance:] != rows[:-distance]
            mark[distance:] |= differs
            mark[:-distance] |= differs
    return edge & (labels > 0)
