"""A volume as a picture: three slices through one voxel side by side; and a map as colour over it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_GAP = 2  # pixels between the slices
_HEAT = ((0.0, 0.0, 0.0), (0.55, 0.0, 0.15), (0.95, 0.35, 0.0), (1.0, 0.9, 0.2))  # of 0, 1/3, 2/3 and 1
_OPACITY = 0.65
_WIDTH = 640  # pixels that a picture for people has at least
_BAR, _LINE, _SIZE = 16, 22, 14  # of the colour scale, of a line of words, of its letters, in pixels
_RULERS = (50, 20, 10, 5, 2, 1)  # mm
_ACROSS = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "R": "sagittal", "L": "sagittal"}
Array = npt.NDArray[Any]


def montage(array: Array, at: Sequence[int], *, axes: str, spacing: Sequence[float]) -> Array:
    """The slices [h, w] of ``array`` [D, H, W] through the voxel ``at``, in one picture [h, w0 + w1 + w2]: 0 between.

    First the one across the first axis, then across the second and the third. ``axes`` says where these run (``SAR``):
    anterior and the head are up; right and left stay as they are, so SAR shows the right side of the patient on the
    right. Voxels become square, of the smallest ``spacing`` (mm), by repetition.
    """
    fine, panels = min(spacing), []
    for across in range(3):
        down, along = (axis for axis in range(3) if axis != across)
        panel = np.take(array, at[across], axis=across)
        if axes[down] in "AS":
            panel = panel[::-1]
        if axes[along] == "S":
            panel = panel[:, ::-1]
        panels.append(panel[np.ix_(_places(panel.shape[0], spacing[down] / fine),
                                   _places(panel.shape[1], spacing[along] / fine))])  # fmt: skip
    height = max(len(panel) for panel in panels)
    padded = []
    for panel in panels:
        top = (height - len(panel)) // 2
        padded.append(np.pad(panel, ((top, height - len(panel) - top), (0, _GAP))))
    return np.concatenate(padded, axis=1)[:, :-_GAP]


def focus(mask: Array | None, spatial: Sequence[int]) -> tuple[int, ...]:
    """A voxel worth cutting through: the middle of the foreground of ``mask``, or of the image where there is none."""
    if mask is None or not (mask > 0).any():
        return tuple(n // 2 for n in spatial)
    return tuple(int(np.median(places)) for places in np.nonzero(mask > 0))


def heat(picture: npt.NDArray[np.uint8], strength: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """``strength`` [H, W] over a picture [H, W, 3]: in [0, 1] from nothing over red to yellow, below 0 blue."""
    level = np.clip(np.abs(strength), 0, 1)
    colour = np.stack([np.interp(level, np.linspace(0, 1, 4), channel) for channel in zip(*_HEAT, strict=True)], -1)
    colour = np.where(strength[..., None] < 0, colour[..., ::-1], colour)
    alpha = _OPACITY * np.sqrt(level)[..., None]
    return np.rint((1 - alpha) * picture + alpha * 255 * colour).astype(np.uint8)


def labelled(
    picture: npt.NDArray[np.uint8], widths: Sequence[int], axes: str, *, millimetres: float, scale: tuple[float, float]
) -> npt.NDArray[np.uint8]:
    """A montage [h, w, 3] for people: enlarged to 640 pixels or more, its planes named, with a scale of its colours.

    Every pixel is repeated the same whole number of times. ``widths`` are those of the slices, ``millimetres`` the size
    of a pixel before, ``scale`` the values of the first and the last colour. Beneath the slices stands a ruler.
    """
    factor = max(1, math.ceil(_WIDTH / picture.shape[1]))
    large = picture.repeat(factor, 0).repeat(factor, 1)
    height, width = large.shape[:2]
    canvas = Image.new("RGB", (width, height + 4 * _LINE), "black")
    canvas.paste(Image.fromarray(large), (0, _LINE))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_SIZE)
    left = 0
    for letter, across in zip(axes, widths, strict=True):
        draw.text((left + 4, 3), _ACROSS[letter], "white", font)
        left += (across + _GAP) * factor
    per_mm = factor / millimetres
    ruler = next((mm for mm in _RULERS if mm * per_mm < width / 3), _RULERS[-1])
    top, length = height + _LINE + 6, round(ruler * per_mm)
    draw.rectangle((4, top + 4, 3 + length, top + 6), "white")
    draw.text((12 + length, top - 3), f"{ruler} mm", "white", font)
    strength = np.linspace(-1.0 if scale[0] < 0 else 0.0, 1.0, width - 8)
    bar = heat(np.zeros((_BAR, width - 8, 3), np.uint8), np.tile(strength, (_BAR, 1)))
    canvas.paste(Image.fromarray(bar), (4, height + 2 * _LINE + 2))
    for x, value, anchor in ((4, scale[0], "la"), (width - 4, scale[1], "ra")):
        draw.text((x, height + 3 * _LINE), f"{value:.3g}", "white", font, anchor)
    return np.asarray(canvas)


def panel_widths(shape: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """The widths in pixels of the slices of a :func:`montage`."""
    fine = min(spacing)
    return [round(shape[along] * (spacing[along] / fine)) for along in (2, 2, 1)]


def _places(length: int, ratio: float) -> npt.NDArray[np.int64]:
    """Which of ``length`` voxels each of ``length * ratio`` pixels shows."""
    return np.minimum((np.arange(round(length * ratio)) / ratio).astype(np.int64), length - 1)
