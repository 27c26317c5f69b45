"""Pictures of a case for its report: the three planes of a volume where most was found, a strip of axial slices."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmtl.inference.prediction import CasePrediction, DenseMap
from medmtl.inference.writers.overlay import overlay
from medmtl.io.affine import spacing_mm
from medmtl.io.orient import turn_to
from medmtl.io.volume import Volume

Array = npt.NDArray[np.generic]
PLANES = ("sagittal", "coronal", "axial")  # perpendicular to an axis of LPS
SIDE, SMALL, STRIP = 340, 150, 6  # pixels of the longer side; slices in the strip


@dataclass(frozen=True)
class Picture:
    """PNG as text for ``src``, and what it shows."""

    src: str
    caption: str


@dataclass(frozen=True)
class _Grid:
    """A volume turned so that its axes run to the left, to the back and up (as nearly as flips can)."""

    image: Array  # [X, Y, Z] or [X, Y, Z, 3]
    labels: npt.NDArray[np.integer]
    seen: npt.NDArray[np.bool_]
    spacing: tuple[float, float, float]
    placed: bool


def pictures(case: CasePrediction, dense: DenseMap | None) -> list[Picture]:
    """The image with what was found in it; without a map, the image alone."""
    if not isinstance(case.image, Volume):
        shape = case.image.shape[1:]
        labels, seen = (dense.labels, dense.inside) if dense else (np.zeros(shape, int), np.ones(shape, bool))
        return [Picture(_png(_sized(case.image, labels, seen, (1.0, 1.0), 2 * SIDE)), "")]
    grid = _turned(case.image, dense)
    window = _window(grid.image)
    if not grid.placed:
        k = _fullest(grid.labels, 2)
        return [Picture(_plane(grid, 2, k, window, 2 * SIDE), f"slice {k + 1} of {grid.labels.shape[2]}")]
    shown = []
    for axis in (2, 1, 0):
        n = _fullest(grid.labels, axis)
        caption = f"{PLANES[axis]}, slice {n + 1} of {grid.labels.shape[axis]}"
        shown.append(Picture(_plane(grid, axis, n, window, SIDE), caption))
    return shown


def strip(case: CasePrediction, dense: DenseMap) -> list[Picture]:
    """Axial slices, evenly over those in which something was found; none where that is a single one or a picture."""
    if not isinstance(case.image, Volume):
        return []
    grid = _turned(case.image, dense)
    where = np.flatnonzero((grid.labels > 0).any(axis=(0, 1)))
    if not grid.placed or len(where) < 2:
        return []
    chosen = np.unique(where[np.round(np.linspace(0, len(where) - 1, STRIP)).astype(int)])
    window = _window(grid.image)
    return [Picture(_plane(grid, 2, int(k), window, SMALL), f"slice {k + 1}") for k in chosen]


def _turned(volume: Volume, dense: DenseMap | None) -> _Grid:
    image = volume.array if volume.colour or volume.array.ndim == 3 else volume.array[..., 0]
    shape = image.shape[:3]
    labels = dense.labels if dense else np.zeros(shape, np.uint8)
    seen = dense.inside if dense else np.ones(shape, bool)
    if volume.affine is None:  # rows from the last to the first, as a scanner shows them
        known = volume.spacing or ()
        sizes = (float(known[0]), float(known[1]), 1.0) if len(known) >= 2 else (1.0, 1.0, 1.0)
        return _Grid(image[:, ::-1], labels[:, ::-1], seen[:, ::-1], sizes, placed=False)
    turn, affine = turn_to(volume.affine, shape, "LPS")
    turned_labels, turned_seen = turn.apply(labels).astype(labels.dtype), turn.apply(seen).astype(bool)
    return _Grid(turn.apply(image), turned_labels, turned_seen, spacing_mm(affine), placed=True)


def _fullest(labels: npt.NDArray[np.integer], axis: int) -> int:
    """The slice along ``axis`` with the most foreground; the middle one where there is none."""
    found = (labels > 0).sum(axis=tuple(n for n in range(3) if n != axis))
    return int(found.argmax()) if found.any() else labels.shape[axis] // 2


def _window(image: Array) -> tuple[float, float]:
    """The 1st and the 99th percentile of about a million finite values; 0 and 255 of a colour image."""
    if image.dtype == np.uint8 and image.ndim == 4:
        return 0.0, 255.0
    step = max(1, round((image.size / 1e6) ** (1 / 3)))
    values = image[::step, ::step, ::step].astype(np.float64)
    values = values[np.isfinite(values)]
    low, high = (float(v) for v in np.percentile(values, (1, 99))) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _plane(grid: _Grid, axis: int, n: int, window: tuple[float, float], side: int) -> str:
    """A slice as PNG: left in the picture is the patient's right or front, the top is the front or the head."""
    image, labels, seen = (np.swapaxes(np.moveaxis(a, axis, 0)[n], 0, 1) for a in (grid.image, grid.labels, grid.seen))
    if axis != 2:
        image, labels, seen = image[::-1], labels[::-1], seen[::-1]
    across, down = (size for other, size in enumerate(grid.spacing) if other != axis)
    low, high = window
    grey = np.clip((np.nan_to_num(image.astype(np.float64), nan=low) - low) / (high - low), 0, 1)
    channels = np.moveaxis(grey, -1, 0) if grey.ndim == 3 else grey[None]
    return _png(_sized(channels, labels, seen, (down, across), side))


def _sized(image: Array, labels: Array, seen: Array, spacing: tuple[float, float], side: int) -> npt.NDArray[np.uint8]:
    """``image`` [C, H, W] in [0, 1] with its map, so that pixels are square and the longer side is ``side``."""
    height, width = labels.shape[0] * spacing[0], labels.shape[1] * spacing[1]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    channels = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        for channel in image
    ]
    nearest = [_nearest(labels, size), _nearest(seen, size).astype(bool)]
    return overlay(np.stack(channels).clip(0, 1), nearest[0], seen=nearest[1])


def _nearest(array: Array, size: tuple[int, int]) -> Array:
    """[H, W] at (width, height) pixels, the nearest value of each."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(size[::-1], array.shape, strict=True)
    )
    return array[np.ix_(rows, columns)]


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def shown(sequence: Sequence[Picture]) -> str:
    """Figures side by side; captions hold numbers and words of ours alone."""
    return "".join(
        f'<figure><img alt="{item.caption}" src="{item.src}"><figcaption>{item.caption}</figcaption></figure>'
        for item in sequence
    )
