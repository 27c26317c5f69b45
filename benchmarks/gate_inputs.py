"""Wrong inputs for `benchmarks/gate.py`: corruptions of a picture or volume at graded strengths, and drawings.

A picture is float32 [3, H, W] in [0, 1]; sizes are shares of its shorter side. Kinds that are
``UNSEEN`` belong to the confirming half alone, so that no rule can have been chosen by them.
"""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, uniform_filter1d

from medmtl.io.volume import Volume

Array = npt.NDArray[np.float32]
Random = np.random.Generator
Change = Callable[[Array, Random], Array]
ChangeVolume = Callable[[Volume, Random], Volume]


def resized(image: Array, size: tuple[int, int]) -> Array:
    """The picture with ``size`` rows and columns, smoothed where it shrinks."""
    channels = [
        np.asarray(Image.fromarray(np.ascontiguousarray(one)).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        for one in image
    ]
    return np.stack(channels).astype(np.float32)


def quantised(image: Array) -> Array:
    """As a file with 8 bits holds it."""
    return (np.round(np.clip(image, 0, 1) * 255) / 255).astype(np.float32)


def _blur(image: Array, share: float) -> Array:
    sigma = share * min(image.shape[1:])
    return gaussian_filter(image, (0, sigma, sigma))


def _coarse(image: Array, factor: int) -> Array:
    height, width = image.shape[1:]
    return resized(resized(image, (height // factor, width // factor)), (height, width))


def _corner(image: Array) -> Array:
    return image[:, : image.shape[1] // 2, : image.shape[2] // 2]


def _jpeg(image: Array, quality: int) -> Array:
    stream = io.BytesIO()
    Image.fromarray((np.clip(image, 0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)).save(
        stream, format="JPEG", quality=quality
    )
    return np.asarray(Image.open(stream), np.float32).transpose(2, 0, 1) / 255


def _marks(image: Array, lines: int) -> Array:
    """White lines of text in the upper left and a ruler at the lower edge, as a device burns them in."""
    height, width = image.shape[1:]
    page = Image.fromarray((np.clip(image, 0, 1).transpose(1, 2, 0) * 255).astype(np.uint8))
    draw, size = ImageDraw.Draw(page), max(8, height // 16)
    for line in range(lines):
        draw.text((4, 2 + line * size), "DOE JANE 1970-01-01 ID 0042", fill=(255, 255, 255), font_size=size)
    for tick in range(0, width, max(4, width // 20)):
        draw.line((tick, height - size // 2, tick, height), fill=(255, 255, 255))
    return np.asarray(page, np.float32).transpose(2, 0, 1) / 255


def _occluded(image: Array) -> Array:
    changed = image.copy()
    height, width = image.shape[1:]
    changed[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 0
    return changed


def _salted(image: Array, share: float, rng: Random) -> Array:
    hit = rng.random(image.shape[1:])
    return np.where(hit < share / 2, 0, np.where(hit > 1 - share / 2, 1, image)).astype(np.float32)


def _shuffled(image: Array) -> Array:
    """The quarters in another order."""
    height, width = (n // 2 * 2 for n in image.shape[1:])
    rows = np.split(image[:, :height, :width], 2, axis=1)
    (a, b), (c, d) = (np.split(row, 2, axis=2) for row in rows)
    return np.concatenate([np.concatenate([d, a], 2), np.concatenate([b, c], 2)], 1)


PICTURES: dict[str, Change] = {
    **{f"noise {std}": lambda x, rng, s=std: x + rng.normal(0, s, x.shape) for std in (0.05, 0.1, 0.2, 0.4)},
    **{f"blur {share:.1%}": lambda x, rng, s=share: _blur(x, s) for share in (0.005, 0.01, 0.02, 0.04)},
    **{f"coarser {n}x": lambda x, rng, n=n: _coarse(x, n) for n in (4, 8)},
    **{f"jpeg {q}": lambda x, rng, q=q: _jpeg(x, q) for q in (30, 10, 5)},
    **{f"darker {f}": lambda x, rng, f=f: x * f for f in (0.7, 0.5, 0.25)},
    **{f"marks {n} lines": lambda x, rng, n=n: _marks(x, n) for n in (1, 4)},
    "inverted": lambda x, rng: 1 - x,
    "turned by 90": lambda x, rng: x.transpose(0, 2, 1)[:, ::-1],
    "grey": lambda x, rng: np.repeat(x.mean(0, keepdims=True), 3, 0),
    "red as blue": lambda x, rng: x[::-1],
    "a corner": lambda x, rng: _corner(x),
    "black": lambda x, rng: np.zeros_like(x),
}
PICTURES_UNSEEN: dict[str, Change] = {
    "salt and pepper 5%": lambda x, rng: _salted(x, 0.05, rng),
    "moved 4%": lambda x, rng: uniform_filter1d(x, max(3, int(0.04 * min(x.shape[1:]))), axis=2),
    "blue light": lambda x, rng: x * np.float32([[[0.6]], [[0.8]], [[1.0]]]),
    "overexposed": lambda x, rng: x * 1.6,
    "gamma 2.2": lambda x, rng: np.clip(x, 0, 1) ** 2.2,
    "centre covered": lambda x, rng: _occluded(x),
    "quarters shuffled": lambda x, rng: _shuffled(x),
}


def text_screen(size: tuple[int, int], rng: Random) -> Array:
    """Lines of black text on white, as a screenshot of a report."""
    page = Image.new("RGB", (size[1], size[0]), (255, 255, 255))
    draw, high = ImageDraw.Draw(page), max(7, size[0] // 24)
    for top in range(4, size[0] - high, int(1.4 * high)):
        words = "".join(rng.choice(list("abcdefghij klmno pqrstuvw xyz ")) for _ in range(90))
        draw.text((4, top), words, fill=(0, 0, 0), font_size=high)
    return np.asarray(page, np.float32).transpose(2, 0, 1) / 255


def scenery(size: tuple[int, int], rng: Random) -> Array:
    """A landscape as a holiday photograph has it: sky, sun, hills, grass with texture."""
    height, width = size
    rows, columns = np.mgrid[:height, :width] / np.float32([[[height]], [[width]]])
    image = np.stack([0.4 + 0.3 * rows, 0.6 + 0.2 * rows, np.full_like(rows, 0.9)])
    horizon = 0.5 + 0.1 * np.sin(6 * columns + rng.uniform(0, 6)) + 0.04 * np.sin(17 * columns + rng.uniform(0, 6))
    image = np.where(rows > horizon, np.float32([0.25, 0.5, 0.2])[:, None, None], image)
    image += np.where(rows > horizon, gaussian_filter(rng.normal(0, 0.25, size), 1), 0)
    sun = (rows - 0.15) ** 2 + (columns - rng.uniform(0.2, 0.8)) ** 2 < 0.005
    return np.where(sun, np.float32([1, 0.95, 0.7])[:, None, None], image).astype(np.float32)


def static(size: tuple[int, int], rng: Random) -> Array:
    return rng.random((3, *size)).astype(np.float32)


DRAWN: dict[str, Callable[[tuple[int, int], Random], Array]] = {
    "text on white": text_screen, "a landscape": scenery, "static": static,
}  # fmt: skip


# ---- volumes; strengths are shares of the 99th percentile, or voxels


def _with(volume: Volume, array: npt.NDArray[np.generic]) -> Volume:
    return replace(volume, array=np.ascontiguousarray(array, dtype=np.float32))


def _high(volume: Volume) -> float:
    return float(np.percentile(volume.array, 99))


def _rician(volume: Volume, share: float, rng: Random) -> Volume:
    """Noise of a magnitude image: in the air too (Gudbjartsson & Patz 1995)."""
    sigma = share * _high(volume)
    real = volume.array + rng.normal(0, sigma, volume.array.shape)
    return _with(volume, np.hypot(real, rng.normal(0, sigma, volume.array.shape)))


def _ghosted(volume: Volume, strength: float, copies: int = 4) -> Volume:
    """Every ``copies``-th line of k-space along the second axis weakened."""
    lines = np.fft.fft(volume.array, axis=1)
    weight = np.ones(lines.shape[1])
    weight[::copies] = 1 - strength
    weight[0] = 1
    return _with(volume, np.abs(np.fft.ifft(lines * weight[None, :, None], axis=1)))


def _turned(volume: Volume, order: tuple[int, int, int]) -> Volume:
    """The voxels along other axes, the affine unchanged: a header that lies."""
    return _with(volume, volume.array.transpose(order))


def _half(volume: Volume, axis: int) -> Volume:
    """The lower half along an axis."""
    index = [slice(None)] * 3
    index[axis] = slice(0, volume.array.shape[axis] // 2)
    return _with(volume, volume.array[tuple(index)])


def _voxels(volume: Volume, factor: float) -> Volume:
    """The header says voxels ``factor`` times as large."""
    assert volume.affine is not None
    return replace(volume, affine=volume.affine @ np.diag([factor, factor, factor, 1.0]))


def _bias(volume: Volume, strength: float) -> Volume:
    ramp = np.linspace(-1, 1, volume.array.shape[1])[None, :, None]
    return _with(volume, volume.array * np.exp(strength * ramp))


def _slab(volume: Volume) -> Volume:
    array = np.array(volume.array)
    third = array.shape[2] // 3
    array[:, :, third : 2 * third] = 0
    return _with(volume, array)


def _inverted(volume: Volume) -> Volume:
    return _with(volume, volume.array.max() - volume.array)


VOLUMES: dict[str, ChangeVolume] = {
    **{f"noise {s}": lambda x, rng, s=s: _rician(x, s, rng) for s in (0.05, 0.1, 0.2)},
    **{
        f"blur {s} vx": lambda x, rng, s=s: _with(x, gaussian_filter(np.asarray(x.array, np.float32), s))
        for s in (0.7, 1.5, 3)
    },
    **{f"ghosts {s}": lambda x, rng, s=s: _ghosted(x, s) for s in (0.3, 0.6)},
    **{f"voxels {f}x": lambda x, rng, f=f: _voxels(x, f) for f in (1.15, 1.5)},
    "inverted": lambda x, rng: _inverted(x),
    "axes turned": lambda x, rng: _turned(x, (1, 2, 0)),
    "upside down": lambda x, rng: _with(x, x.array[:, :, ::-1]),
    "left as right": lambda x, rng: _with(x, x.array[::-1]),
    "lower half": lambda x, rng: _half(x, 2),
    "one side": lambda x, rng: _half(x, 0),
}
VOLUMES_UNSEEN: dict[str, ChangeVolume] = {
    "shading 0.7": lambda x, rng: _bias(x, 0.7),
    "slices missing": lambda x, rng: _slab(x),
    "front as back": lambda x, rng: _with(x, x.array[:, ::-1]),
    "half as bright": lambda x, rng: _with(x, x.array * 0.5),
}
