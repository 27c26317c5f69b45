"""What is seen of one image: its size, intensities, and how it looks to a network.

*How it looks* is measured on the image as a network sees it, resized and windowed but not normalised, so that a number
means the same for every size of file: brightness and colours, and the energy in its finest details. With
``h_1, h_2, h_3`` the diagonal Haar details of the grey image, of its half and of its quarter in size:

- ``noise``: ``log(median |h_1| / 0.6745)``, the logarithm of the noise's standard deviation (Donoho & Johnstone 1994),
- ``noise_2, noise_3``: how much it changes with every halving; white noise halves, structure does not,
- ``detail, detail_2``: the same of the root mean square, to which edges count too (h_1, and from h_1 to h_2).

Of a volume, details are those of its slices, where there is tissue. ``layout`` is the mean grey of 3 x 3 (x 3) parts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from medmtl.data.grid import Grid, RangeIntensity
from medmtl.data.preprocess import Preprocess
from medmtl.io.volume import Volume

LABELS = ("modality", "body_part")  # meta columns of a study, and what DICOM headers say
_SAMPLE = 1_000_000  # values that a quantile looks at, evenly spread
_CENTRE = {2: 1024, 3: 160}  # how much of an axis details are looked for in
_GREY = 1e-3  # added before a logarithm: a quarter of a grey level
_TISSUE = 0.05  # mean of a 2 x 2 block of a slice above which it is no air
_BLOCKS = 20  # of tissue, without which all blocks count

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Facts:
    """The properties of one image; lengths in px or mm, intensities in units that ``look`` describes."""

    kind: Literal["picture", "volume"]
    channels: int
    numbers: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)  # empty where unknown
    features: tuple[float, ...] | None = None  # of the encoder, for fingerprints of format 1
    appearance: Mapping[str, float] = field(default_factory=dict)
    layout: Mapping[str, float] = field(default_factory=dict)


def look(
    pixels: Tensor,
    *,
    seen: Tensor | None = None,
    volume: Volume | None = None,
    grid: Grid | None = None,
    preprocess: Preprocess,
    labels: Mapping[str, str] | None = None,
) -> Facts:
    """The facts of a decoded image ``pixels`` [C, *S] in [0, 1], before any other preprocessing.

    ``seen``: what ``preprocess.seen`` makes of it, where that is known already.

    ``numbers`` are the file's: intensities of a picture, and of a volume scaled by its own percentiles (MR), are in
    [0, 1]; of a volume with a fixed range (CT) they are the file's own. Sizes of a volume are along the tensor's axes,
    however it is stored.
    """
    values = pixels.numpy()
    if volume is not None and preprocess.volume is not None:
        if isinstance(preprocess.volume.intensity, RangeIntensity):
            values = np.asarray(volume.array)[None]
        assert grid is not None
        numbers = _size_of_volume(volume, grid)
    else:
        numbers = {"height_px": float(values.shape[1]), "width_px": float(values.shape[2])}
    known = {name: text for name in LABELS if (text := (labels or {}).get(name, "").strip().upper())}
    if volume is not None and grid is not None:
        known["plane"] = _plane(numbers)
    kind: Literal["picture", "volume"] = "picture" if preprocess.volume is None else "volume"
    seen = preprocess.seen(pixels) if seen is None else seen
    intensities, looked = _intensities(values), seen.numpy()
    return Facts(
        kind,
        len(pixels),
        {**numbers, **intensities},
        known,
        appearance={**(intensities if _same(values, looked) else _intensities(looked)), **_details(seen)},
        layout=_layout(seen),
    )


def _size_of_volume(volume: Volume, grid: Grid) -> dict[str, float]:
    native = [volume.array.shape[axis] for axis in grid.turn.source]
    new = np.linalg.norm(grid.affine[:3, :3], axis=0)
    old = [float(size) / ratio for size, ratio in zip(new, grid.ratios, strict=True)]
    spacing = {f"spacing_{axis}_mm": size for axis, size in zip("dhw", old, strict=True)}
    return spacing | {f"extent_{axis}_mm": n * size for axis, n, size in zip("dhw", native, old, strict=True)}


def _plane(numbers: Mapping[str, float]) -> str:
    """Along which axis of the tensor the slices are stacked, or that the voxels are cubes (within a fifth)."""
    sizes = {axis: numbers[f"spacing_{axis}_mm"] for axis in "dhw"}
    axis = max(sizes, key=lambda name: sizes[name])
    return "isotropic" if sizes[axis] < 1.2 * min(sizes.values()) else f"slices along {axis}"


def _intensities(values: npt.NDArray[Any]) -> dict[str, float]:
    flat = values.reshape(len(values), -1)
    flat = flat[:, :: max(1, flat.size // _SAMPLE)]
    low, middle, high = _percentiles(flat, (1, 50, 99))
    flat = flat.astype(np.float64)
    found = {"mean": (mean := _mean(flat)), "std": _mean((flat - mean) ** 2) ** 0.5}
    found |= {"p01": low, "p50": middle, "p99": high}
    if len(flat) == 3:
        found |= {f"{name}_mean": _mean(row) for name, row in zip(("red", "green", "blue"), flat, strict=True)}
    return found


def _mean(values: npt.NDArray[Any]) -> float:
    """``values.mean()``, to the bit. Of a picture of 64 px its checks take longer than the sum."""
    return float(values.dtype.type(np.add.reduce(values, axis=None) / values.size))


def _median(values: npt.NDArray[Any]) -> float:
    """``numpy.median(values)``, to the bit, likewise."""
    middle, odd = divmod(values.size, 2)
    parted = np.partition(values, [middle] if odd else [middle - 1, middle], axis=None)
    if np.isnan(parted[middle:].max()):  # where a sort puts them
        return math.nan
    return float(parted[middle] if odd else (parted[middle - 1] + parted[middle]) / values.dtype.type(2))


def _same(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Whether two arrays are one: nothing was resized or cut."""
    return a.__array_interface__ == b.__array_interface__


def _percentiles(values: npt.NDArray[Any], wanted: Sequence[float]) -> list[float]:
    """``numpy.percentile(values.astype(float64), wanted)``, to the bit; this sort takes a tenth of the time."""
    ordered = np.sort(values, axis=None)
    if np.isnan(ordered[-1]):  # where a sort puts them
        return [math.nan] * len(wanted)
    found = []
    for percent in wanted:
        at = percent / 100 * (len(ordered) - 1)
        below = math.floor(at)
        share, low, high = at - below, float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
        found.append(high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share)
    return found


def _details(seen: Tensor) -> dict[str, float]:
    """The energy of the finest details of [C, *S], and the saturation of colours; {} of an image below 8 px."""
    spatial = seen.shape[1:]
    if min(spatial[-2:]) < 8:
        return {}
    most = _CENTRE[len(spatial)]
    part = seen[(slice(None), *(slice(max(0, n - most) // 2, max(0, n - most) // 2 + most) for n in spatial))].numpy()
    low, bands = part.mean(0), []
    for _ in range(3):
        high, low = _haar(low)
        tissue = low > _TISSUE
        bands.append(high[tissue] if part.ndim == 4 and tissue.sum() > _BLOCKS else high)
    noise = [math.log(_median(np.abs(band)) / 0.6745 + _GREY) for band in bands]
    detail = [math.log(_mean(band**2) ** 0.5 + _GREY) for band in bands]
    found = {"noise": noise[0], "noise_2": noise[1] - noise[0], "noise_3": noise[2] - noise[1]}
    found |= {"detail": detail[0], "detail_2": detail[1] - detail[0]}
    return found | ({"saturation": _mean(part.max(0) - part.min(0))} if len(part) == 3 else {})


def _haar(grey: Floats) -> tuple[Floats, Floats]:
    """Diagonal details (orthonormal) and means of 2 x 2 blocks of the last two axes."""
    grey = grey[..., : grey.shape[-2] // 2 * 2, : grey.shape[-1] // 2 * 2]
    a, b, c, d = grey[..., ::2, ::2], grey[..., ::2, 1::2], grey[..., 1::2, ::2], grey[..., 1::2, 1::2]
    return ((a - b - c + d) / 2).astype(np.float32), ((a + b + c + d) / 4).astype(np.float32)


def _layout(seen: Tensor) -> dict[str, float]:
    grey = seen.mean(0)[None, None].float()
    parts = torch.flatten(F.adaptive_avg_pool2d(grey, 3) if grey.ndim == 4 else F.adaptive_avg_pool3d(grey, 3))
    return {f"part_{number}": float(value) for number, value in enumerate(parts)}
