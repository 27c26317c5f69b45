"""A volume as a picture: three slices through one voxel side by side; and a map as colour over it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_GAP = 2  # pixels between the slices
_HEAT = ((0.0, 0.0, 0.0), (0.55, 0.0, 0.15), (0.95, 0.35, 0.0), (1.0, 0.9, 0.2))  # of 0, 1/3, 2/3 and 1
_OPACITY = 0.65
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


def _places(length: int, ratio: float) -> npt.NDArray[np.int64]:
    """Which of ``length`` voxels each of ``length * ratio`` pixels shows."""
    return np.minimum((np.arange(round(length * ratio)) / ratio).astype(np.int64), length - 1)
