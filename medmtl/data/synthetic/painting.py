"""What drawn studies have in common: smooth noise, soft edges, curves, and photographs as JPEG files."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from medmtl.files import write_atomic

Generator = np.random.Generator


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows y and columns x of the pixel centres, [size, size] each, from -1 to 1."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def noise(rng: Generator, size: int, length: float) -> np.ndarray:
    """A smooth random field [size, size] of mean 0 and deviation 1; ``length`` is its grain in units of the grid."""
    field = ndimage.gaussian_filter(rng.standard_normal((size, size)), length * size / 2, mode="wrap")
    return (field - field.mean()) / field.std()


def soft(height: np.ndarray, width: float) -> np.ndarray:
    """0 below and 1 above the zero of ``height``, over about ``width``."""
    return 1 / (1 + np.exp(-np.clip(height / width, -30, 30)))


def blend(image: np.ndarray, colour: Sequence[float] | np.ndarray, share: np.ndarray) -> np.ndarray:
    """``image`` [H, W, 3] with ``share`` [H, W] of ``colour`` ([3] or [H, W, 3]) over it."""
    return image * (1 - share[..., None]) + np.asarray(colour) * share[..., None]


def line_distance(y: np.ndarray, x: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distance [H, W] to the broken line through ``points`` [n, 2] (y, x)."""
    least = np.full(y.shape, np.inf)
    for (y0, x0), (along_y, along_x) in zip(points[:-1], np.diff(points, axis=0), strict=True):
        dy, dx = y - y0, x - x0
        share = np.clip((dy * along_y + dx * along_x) / max(along_y**2 + along_x**2, 1e-12), 0, 1)
        np.minimum(least, (dy - share * along_y) ** 2 + (dx - share * along_x) ** 2, out=least)
    return np.sqrt(least)


def wander(rng: Generator, start: np.ndarray, angle: float, *, steps: int, length: float, bend: float) -> np.ndarray:
    """A path [steps + 1, 2] (y, x) from ``start`` whose direction drifts: a vessel or a hair."""
    angles = angle + np.cumsum(rng.normal(0, bend, steps))
    moves = length / steps * np.column_stack([np.sin(angles), np.cos(angles)])
    return start + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])


def harmonics(rng: Generator, angle: np.ndarray, strength: float, *, orders: range) -> np.ndarray:
    """A periodic random function of ``angle`` (-pi to pi) with deviation ``strength``, rougher with higher ``orders``.

    Amplitudes fall with the order. It is tabulated at 256 angles and interpolated.
    """
    order = np.array(orders)
    turns = np.linspace(-np.pi, np.pi, 257)
    amplitude = rng.normal(0, 1, (2, len(order))) / order
    waves = amplitude[0] @ np.cos(np.outer(order, turns)) + amplitude[1] @ np.sin(np.outer(order, turns))
    return np.interp(angle, turns, strength * waves / np.sqrt((1 / order**2).sum()))


def photograph(
    path: Path, light: np.ndarray, *, gain: Sequence[float], blur: float, grain: float, quality: int, rng: Generator
) -> Path:
    """Write light [H, W, 3] as a camera would: ``blur`` (in units of the grid), ``gain`` per channel, grain, JPEG."""
    sigma = blur * len(light) / 2
    seen = ndimage.gaussian_filter(light, (sigma, sigma, 0)) * np.asarray(gain) + rng.normal(0, grain, light.shape)
    stream = io.BytesIO()
    Image.fromarray((np.clip(seen, 0, 1) * 255).round().astype(np.uint8)).save(
        stream, format="JPEG", quality=quality, subsampling=0
    )
    return write_atomic(path, stream.getvalue())


def parts(rng: Generator, count: int, shares: tuple[float, float]) -> list[str]:
    """``count`` >= 3 places in random order: the shares in train and val, the rest in test, at least one in each."""
    train = min(max(1, round(shares[0] * count)), count - 2)
    val = min(max(1, round(shares[1] * count)), count - train - 1)
    places = ["train"] * train + ["val"] * val + ["test"] * (count - train - val)
    return [places[i] for i in rng.permutation(count)]
