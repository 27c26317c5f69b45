"""A volume on the grid that a network sees, and back: axes turned, voxels of one size, intensities in [0, 1].

Tensor axes are (D, H, W); which way they run in the patient is said by three letters, ``SAR`` by default: slices from
the feet to the head, rows from the back to the front, columns from left to right. Turning is exact; resampling is
linear (after smoothing where voxels grow), along one axis after the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
import torch
from pydantic import Field, PositiveFloat, field_validator, model_validator
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from medmtl.config import Config, Single
from medmtl.data.background import above_background
from medmtl.errors import UserError
from medmtl.io.affine import spacing_mm
from medmtl.io.orient import Turn, is_axes, turn_to
from medmtl.io.volume import Floats, Volume

_SAMPLE = 2_000_000  # voxels that a percentile looks at, evenly spread
_SIZES_MM = (0.01, 100.0)  # of a voxel of a patient; beyond, a unit was taken for another
_VOXELS = 2**30  # that a grid may have: 4 GiB of them


C = TypeVar("C", bound=Config)


def _checked_order(config: C, low: float, high: float) -> C:
    if not low < high:
        raise ValueError(f"low {low} is not below high {high}; write the smaller first")
    return config


class RangeIntensity(Config):
    """[``low``, ``high``] in the image's units becomes [0, 1], what lies beyond is cut: a CT's window in HU."""

    kind: Literal["range"] = "range"
    low: Single
    high: Single

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _checked_order(self, self.low, self.high)

    def levelled(self, image: Tensor) -> Tensor:
        return image

    def limits(self, image: Tensor) -> tuple[float, float]:
        return self.low, self.high


class PercentileIntensity(Config):
    """The image's own percentiles become 0 and 1: for MR, whose units mean nothing from one scanner to the next.

    With ``foreground`` they are those of the voxels above the background (:mod:`.background`), so that the share of air
    does not matter. ``low`` None is the background itself: dim tissue then stays apart from air, which becomes 0, and
    whatever lies below it too.
    """

    kind: Literal["percentile"] = "percentile"
    low: Annotated[float, Field(ge=0, lt=100)] | None = None
    high: Annotated[float, Field(gt=0, le=100)] = 99.5
    foreground: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _checked_order(self, self.low or 0.0, self.high)

    def levelled(self, image: Tensor) -> Tensor:
        """The image with its background at 0 and nothing below, where the limits depend on it.

        It is subtracted before voxels are resampled: a mean of equal numbers is exactly that number for 0 alone, and
        what is 1e-8 above the background would be foreground.
        """
        return above_background(image) if self.foreground or self.low is None else image

    def limits(self, image: Tensor) -> tuple[float, float]:
        """What becomes 0 and 1 of a levelled image."""
        values = image[image > image.min()] if self.foreground else image.flatten()
        if not values.numel():
            raise UserError("E-IMG-CONSTANT", "every voxel has the same value", "check the image, or drop the case")
        some = values[:: max(1, len(values) // _SAMPLE)]
        low, high = np.percentile(some.numpy(), (self.low or 0.0, self.high))
        return float(image.min() if self.low is None else low), float(high)


Intensity = Annotated[RangeIntensity | PercentileIntensity, Field(discriminator="kind")]


@dataclass(frozen=True)
class Grid:
    """Where the tensor of a volume lies in it: what leads back."""

    native: tuple[int, int, int]
    turn: Turn
    ratios: tuple[float, float, float]  # new voxel size by old one, along D, H, W
    shape: tuple[int, int, int]  # of the tensor
    affine: Floats  # tensor indices (d, h, w, 1) -> mm, RAS+

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The size of the tensor's voxels along D, H and W."""
        return spacing_mm(self.affine)

    def to_native(self, maps: Tensor) -> Tensor:
        """Maps [K, D, H, W] on the volume's own voxels, [K, I, J, K]; linear, the outermost value beyond the ends."""
        turned = [self.native[axis] for axis in self.turn.source]
        for axis, (ratio, n) in enumerate(zip(self.ratios, turned, strict=True), start=1):
            if ratio != 1.0:
                places = (torch.arange(n, dtype=torch.float64) + 0.5) / ratio - 0.5
                maps = _linear_at(maps, axis, places)
        array = maps.movedim(0, -1).numpy()
        return torch.from_numpy(np.ascontiguousarray(self.turn.undo(array))).movedim(-1, 0)


class VolumeGrid(Config):
    """How a volume becomes a tensor. ``spacing_mm``: the voxels' size along (D, H, W); None keeps the volume's own."""

    axes: str = "SAR"
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    intensity: Intensity = PercentileIntensity()

    @field_validator("axes")
    @classmethod
    def _anatomical(cls, axes: str) -> str:
        if not is_axes(axes):
            raise ValueError(f"axes {axes!r} are not three of R/L, A/P and S/I; write for example SAR")
        return axes

    def place(self, volume: Volume) -> Grid:
        """The grid of a volume.

        Refused without a place (``E-VOL-PLACE``), with another number of dimensions (``E-VOL-DIMENSIONS``), with voxels
        that no scanner makes (``E-VOL-SPACING``), and where ``spacing_mm`` would make too many (``E-VOL-SIZE``).
        """
        if volume.colour or volume.array.ndim != 3:
            what = "colour" if volume.colour else f"{volume.array.ndim} dimensions"
            raise UserError(
                "E-VOL-DIMENSIONS",
                f"a grey volume of 3 dimensions was expected, the image has {what}",
                "give each grey volume or time point as a file of its own; for a study, ingest these again",
            )
        if volume.affine is None:
            raise UserError(
                "E-VOL-PLACE",
                "nothing says where the voxels lie in the patient",
                "restore sform or qform, or ingest the DICOM files again",
            )
        shape = (volume.array.shape[0], volume.array.shape[1], volume.array.shape[2])
        turn, affine = turn_to(volume.affine, shape, self.axes)
        turned = [shape[axis] for axis in turn.source]
        old = _plausible(spacing_mm(affine))
        ratios = tuple(new / float(size) for new, size in zip(self.spacing_mm or old, old, strict=True))
        ratios = tuple(1.0 if abs(ratio - 1) < 1e-4 else ratio for ratio in ratios)
        size = tuple(max(1, math.floor(n / ratio + 1e-6)) for n, ratio in zip(turned, ratios, strict=True))
        if math.prod(size) > _VOXELS:
            new = _times(self.spacing_mm or old)
            raise UserError(
                "E-VOL-SIZE",
                f"{_times(turned)} voxels of {_times(old)} mm become {_times(size)} of {new} mm",
                "choose larger preprocess.volume.spacing_mm",
            )
        moved = affine.copy()
        moved[:3, :3] = affine[:3, :3] * np.array(ratios)
        moved[:3, 3] = affine[:3, :3] @ ((np.array(ratios) - 1) / 2) + affine[:3, 3]
        assert len(size) == len(ratios) == 3
        return Grid(shape, turn, (ratios[0], ratios[1], ratios[2]), (size[0], size[1], size[2]), moved)

    def image(self, volume: Volume) -> tuple[Tensor, Grid]:
        """The image as float32 [1, D, H, W] in [0, 1], and its grid."""
        grid = self.place(volume)
        tensor = torch.from_numpy(np.ascontiguousarray(grid.turn.apply(volume.array), dtype=np.float32))[None]
        tensor = self.intensity.levelled(tensor)
        low, high = self.intensity.limits(tensor)
        for axis, (ratio, n) in enumerate(zip(grid.ratios, grid.shape, strict=True), start=1):
            if ratio != 1.0:
                tensor = _resample(tensor, axis, ratio, n)
        return ((tensor - low) / max(high - low, 1e-12)).clamp(0, 1), grid

    def labels(self, mask: Volume, image: Volume) -> Tensor:
        """A mask on its image's grid (checked by :func:`medmtl.io.masks.check_mask`) as int64 [D, H, W]."""
        grid = self.place(image)
        tensor = torch.from_numpy(np.ascontiguousarray(grid.turn.apply(mask.array)).astype(np.int64))
        for axis, (ratio, n) in enumerate(zip(grid.ratios, grid.shape, strict=True)):
            if ratio != 1.0:
                places = ((torch.arange(n, dtype=torch.float64) + 0.5) * ratio - 0.5).round().long()
                tensor = tensor.index_select(axis, places.clamp(0, tensor.shape[axis] - 1))
        return tensor


def _plausible(sizes: tuple[float, float, float]) -> tuple[float, float, float]:
    low, high = _SIZES_MM
    if not low <= min(sizes) <= max(sizes) <= high:
        raise UserError(
            "E-VOL-SPACING",
            f"voxels of {_times(sizes)} mm, expected {low:g} to {high:g} mm an axis",
            "metres or microns were taken for millimetres: correct xyzt_units and the affine, and ingest again",
        )
    return sizes


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def _resample(tensor: Tensor, axis: int, ratio: float, size: int) -> Tensor:
    """``size`` values ``ratio`` old voxels apart, the first one's outer border on the old one's.

    Where voxels grow, a Gaussian first makes the old ones as wide as the new ones: sigma^2 = (ratio^2 - 1) / (8 ln 2)
    old voxels squared (Cardoso et al. 2015, matching of point spread functions). Being symmetric it moves nothing,
    which torch's antialiased interpolation does, by up to 0.1 voxels.
    """
    if ratio > 1:
        sigma = math.sqrt((ratio**2 - 1) / (8 * math.log(2)))
        tensor = torch.from_numpy(gaussian_filter1d(tensor.numpy(), sigma, axis=axis, mode="nearest"))
    return _linear_at(tensor, axis, (torch.arange(size, dtype=torch.float64) + 0.5) * ratio - 0.5)


def _linear_at(tensor: Tensor, axis: int, places: Tensor) -> Tensor:
    """Values of ``tensor`` at fractional ``places`` along ``axis``; beyond its ends, the last one."""
    inside = places.clamp(0, tensor.shape[axis] - 1)
    below = inside.floor().long().clamp(max=max(tensor.shape[axis] - 2, 0))
    weight = (inside - below).to(tensor.dtype).reshape([-1 if i == axis else 1 for i in range(tensor.ndim)])
    above = (below + 1).clamp(max=tensor.shape[axis] - 1)
    return tensor.index_select(axis, below) * (1 - weight) + tensor.index_select(axis, above) * weight
