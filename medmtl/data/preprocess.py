"""From a decoded image to what the network sees, and back: resize -> highlights -> window (crop or pad) -> normalise.

Part of the model's specification: the same object serves training, evaluation and inference. Training puts the random
steps of :mod:`medmtl.data.augment` in between::

    training:   context -> augment geometry -> window -> augment intensity -> finish
    inference:  context -> window -> finish

A *sample* maps ``"image"`` to a float32 tensor [C, *S] in [0, 1] and the name of each dense target to a tensor [*S]; a
tensor without axes (a class, a number) passes through. S = (H, W) or (D, H, W).

These are slices, pads and interpolations on plain tensors rather than MONAI's ``CenterSpatialCropd``, ``SpatialPadd``,
``Resized`` and ``NormalizeIntensityd``: on a 64 px image those cost 0.16 to 0.3 ms each against 0.005 ms (the
MetaTensor's bookkeeping), and their inverses need the very tensor that went forward, whereas :meth:`Preprocess.restore`
needs only its native shape. The tests compare with MONAI.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import PositiveInt, model_validator
from torch import Tensor

from medmtl.config import Config
from medmtl.data.grid import VolumeGrid
from medmtl.data.highlights import SuppressHighlights
from medmtl.data.normalise import FixedNormalise, ForegroundNormalise, ImageNormalise, NoNormalise, Normalise
from medmtl.data.patches import Patches
from medmtl.errors import UserError
from medmtl.io.nifti import read_nifti
from medmtl.io.raster import read_image
from medmtl.io.volume import Volume

__all__ = [
    "IMAGE",
    "FixedNormalise",
    "ForegroundNormalise",
    "ImageNormalise",
    "NoNormalise",
    "Preprocess",
    "Restored",
    "SampleDict",
    "centre",
]

IMAGE = "image"
SampleDict = dict[str, Tensor]
_ROUNDING = 1e-5  # how far a decoded image may leave [0, 1]


class Restored(NamedTuple):
    """Maps on the native grid and where they mean something."""

    maps: Tensor  # [K, *native], 0 where the network did not look
    inside: Tensor  # bool [*native], whether the network looked there


class Preprocess(Config):
    """What happens to an image before the network, in pixels of the image as it was decoded.

    ``resize`` brings the whole image to that size, whatever its aspect ratio. ``window`` is the network's input: the
    centre of the (resized) image. An image smaller than the window is an error, unless ``pad`` fills it up with 0 on
    both sides (dense targets with class 0). ``patches`` instead of a window: the network sees parts of that size of an
    image of any size. Without any, images keep their size. ``highlights`` fills the specular highlights of the
    (resized) image; it moves nothing, so :meth:`restore` need not know.

    With ``volume``, images are NIfTI volumes, brought to axes, voxels and intensities of its own before all that.
    """

    channels: PositiveInt = 3
    volume: VolumeGrid | None = None
    resize: tuple[PositiveInt, ...] | None = None
    window: tuple[PositiveInt, ...] | None = None
    patches: Patches | None = None
    pad: bool = False
    highlights: SuppressHighlights | None = None
    normalise: Normalise = NoNormalise()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.normalise, FixedNormalise) and not (
            len(self.normalise.mean) == len(self.normalise.std) == self.channels
        ):
            raise ValueError(
                f"normalise has {len(self.normalise.mean)} mean and {len(self.normalise.std)} std values, "
                f"channels is {self.channels}; give one of each per channel"
            )
        if self.volume is not None and (self.channels != 1 or self.resize or self.highlights):
            raise ValueError("a volume has channels: 1, spacing_mm instead of resize, and no highlights")
        seen, key = (self.window, "window") if self.patches is None else (self.patches.size, "patches.size")
        if self.patches is not None and (self.window or self.pad):
            raise ValueError("patches stand in place of a window, and pad by themselves; remove window and pad")
        if self.volume is not None and seen and len(seen) != 3:
            raise ValueError(f"{key} {seen} has {len(seen)} axes, a volume three: depth, rows, columns")
        if self.resize and self.window:
            if len(self.resize) != len(self.window):
                raise ValueError(f"resize {self.resize} and window {self.window} differ in their number of axes")
            if not self.pad and any(r < w for r, w in zip(self.resize, self.window, strict=True)):
                raise ValueError(f"resize {self.resize} is smaller than window {self.window}; enlarge it or set pad")
        return self

    def idle(self) -> Mapping[str, str]:
        return {} if self.window else {"pad": "there is no `window` to fill up to"}

    def read(self, path: Path) -> "tuple[Tensor, Volume | None]":
        """The image file as float32 [C, *S] in [0, 1], and the volume that it was, which its masks must match."""
        if self.volume is None:
            return torch.as_tensor(read_image(path, channels=self.channels)), None
        volume = read_nifti(path)
        return self.volume.image(volume)[0], volume

    def context(self, sample: SampleDict, *, size: Sequence[int] | None = None) -> SampleDict:
        """The deterministic part before any random step, worth caching: checked, resized, and padded if need be.

        ``size`` keeps only the centre that the augmentation can reach (:meth:`medmtl.data.augment.Augment.reach`), to
        save memory; an axis that is shorter stays as it is.
        """
        image = self._checked(sample)
        spatial, grid = tuple(image.shape[1:]), self.grid(tuple(image.shape[1:]))
        result = {**sample, IMAGE: image}
        for name in _spatial_names(result, spatial):
            tensor = result[name]
            if self.resize and spatial != grid:
                tensor = _resize_image(tensor, grid) if name == IMAGE else _resize_labels(tensor, grid)
            if self.highlights is not None and name == IMAGE:
                tensor = self.highlights.apply(tensor)
            tensor = _fit(tensor, self._padded(grid))
            if size is not None:
                shape = tensor.shape[-len(spatial) :]
                tensor = _fit(tensor, [min(n, m) for n, m in zip(shape, size, strict=True)]).clone()
            result[name] = tensor
        return result

    def to_window(self, sample: SampleDict) -> SampleDict:
        """The centre of the size that the network expects; nothing happens to a sample that has it already.

        With patches the whole image, which windows will slide over, is what the network expects.
        """
        if self.input_size is None:
            return sample
        spatial = tuple(sample[IMAGE].shape[1:])
        self.grid(spatial)
        size = self.window or self._padded(spatial)
        return {**sample, **{name: _fit(sample[name], size) for name in _spatial_names(sample, spatial)}}

    def finish(self, sample: SampleDict, whole: Tensor | None = None) -> SampleDict:
        """The image normalised, a patch as the ``whole`` image [C, *S] that it was cut from; targets are left alone."""
        return {**sample, IMAGE: self.normalise.apply(sample[IMAGE], whole)}

    @property
    def input_size(self) -> tuple[int, ...] | None:
        """What the network sees at a time; None where it sees whole images of their own size."""
        return self.window if self.patches is None else self.patches.size

    def _padded(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The size of an image once it is no smaller than what the network sees."""
        return tuple(max(n, w) for n, w in zip(spatial, self.input_size or spatial, strict=True))

    def apply(self, image: Tensor | np.ndarray) -> Tensor:
        """One image [C, *S] in [0, 1] as the network sees it, without any random step; it shares no memory with it."""
        return self.normalised(self.seen(torch.as_tensor(image)))

    def seen(self, image: Tensor) -> Tensor:
        """One image as the network sees it, but not normalised; it may share memory with ``image``."""
        return self.to_window(self.context({IMAGE: image}))[IMAGE]

    def normalised(self, seen: Tensor) -> Tensor:
        """What :meth:`seen` gave, normalised, with a memory of its own."""
        return self.finish({IMAGE: seen})[IMAGE].clone()

    def restore(self, maps: Tensor, native_shape: Sequence[int]) -> Restored:
        """Maps [K, *window] of the network on the grid of the image it was given, of shape ``native_shape`` [*S].

        Of patches, the maps are those of the whole image. The window is put back (or its padding cut off), 0 elsewhere;
        a resize is undone linearly, as a mean over the part that lies inside, so that probabilities still add up to 1
        there. Where there is no resize it is exact.
        """
        native = tuple(native_shape)
        grid = self.grid(self.resize or native)
        expected = self.window or self._padded(grid)
        assert tuple(maps.shape[1:]) == expected, (maps.shape, expected)
        placed, inside = _fit(maps, grid), _fit(torch.ones(maps.shape[1:]), grid)
        if grid == native:
            return Restored(placed, inside.bool())
        weight = _resize_linear(inside[None], native)
        seen = weight[0] >= 0.5
        return Restored(_resize_linear(placed, native) / weight.clamp_min(0.5) * seen, seen)

    def _checked(self, sample: SampleDict) -> Tensor:
        image = sample[IMAGE]
        if not image.is_floating_point():
            raise UserError(
                "E-IMG-RANGE",
                f"the image holds {image.dtype}, expected numbers in [0, 1]",
                "divide by the largest value the format can hold",
            )
        if image.ndim < 2 or image.shape[0] != self.channels:
            raise UserError(
                "E-IMG-CHANNELS",
                f"expected {self.channels} channels first, found shape {list(image.shape)}",
                "set preprocess.channels to the number of channels of the images, or convert them",
            )
        low, high = (float(value) for value in torch.aminmax(image))
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN fails as well
            raise UserError(
                "E-IMG-RANGE",
                f"intensities run from {low:g} to {high:g}, expected 0 to 1",
                "scale them when they are read",
            )
        return image.float()

    def grid(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """The size after ``resize``, checked against the window."""
        grid = self.resize or spatial
        patch = None if self.patches is None else self.patches.size
        for key, size in (("resize", self.resize), ("window", self.window), ("patches.size", patch)):
            if size and len(size) != len(spatial):
                raise UserError(
                    "E-IMG-AXES",
                    f"the image has {len(spatial)} spatial axes, preprocess.{key} {len(size)}",
                    f"give preprocess.{key} one number per axis",
                )
        if self.window and not self.pad and any(n < w for n, w in zip(grid, self.window, strict=True)):
            raise UserError(
                "E-IMG-SMALL",
                f"the image has {_px(spatial)}, the window needs {_px(self.window)}",
                "give larger images; in a study, a smaller preprocess.window, preprocess.resize or preprocess.pad",
            )
        return grid


def centre(length: int, window: int) -> int:
    """Where the central ``window`` of ``length`` begins (MONAI's ``CenterSpatialCrop``); negative if it is longer.

    Element ``length // 2`` always becomes element ``window // 2``, so that steps compose and invert for odd and even
    sizes.
    """
    return length // 2 - window // 2


def _fit(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """The last ``len(size)`` axes cropped, or padded with 0, around the centre; cropping is a view.

    ``_fit(_fit(x, a), x's size)`` puts every element that was kept back on its place. MONAI's ``SpatialPad`` does not
    (an odd length in an even window lies one element lower there, and cropping again takes another one).
    """
    for axis, wanted in enumerate(size, start=tensor.ndim - len(size)):
        length = tensor.shape[axis]
        if length > wanted:
            tensor = tensor.narrow(axis, centre(length, wanted), wanted)
        elif length < wanted:
            padded = tensor.new_zeros([wanted if i == axis else n for i, n in enumerate(tensor.shape)])
            padded.narrow(axis, centre(wanted, length), length).copy_(tensor)
            tensor = padded
    return tensor


def _resize_linear(maps: Tensor, size: Sequence[int]) -> Tensor:
    """[K, *S] to [K, *size], linear and, where it shrinks, averaging (antialiased); one axis after the other.

    Being separable, this is torch's antialiased bilinear filter, which exists for two axes only, for any number.
    """
    for axis, wanted in enumerate(size, start=1):
        if maps.shape[axis] != wanted:
            lines = maps.movedim(axis, -1)
            flat = lines.reshape(1, 1, -1, lines.shape[-1])
            flat = F.interpolate(flat, size=(flat.shape[2], wanted), mode="bilinear", antialias=True)
            maps = flat.reshape(*lines.shape[:-1], wanted).movedim(-1, axis)
    return maps.contiguous()


def _resize_image(image: Tensor, size: Sequence[int]) -> Tensor:
    return _resize_linear(image, size).clamp(0, 1)


def _resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """The label at the nearest old centre; ``nearest`` without ``exact`` would shift by half a pixel."""
    return F.interpolate(labels[None, None].double(), size=tuple(size), mode="nearest-exact")[0, 0].to(labels.dtype)


def _spatial_names(sample: SampleDict, spatial: tuple[int, ...]) -> list[str]:
    """The image and every dense target, which must have the image's size."""
    for name, tensor in sample.items():
        if name != IMAGE and tensor.ndim and tuple(tensor.shape) != spatial:
            raise UserError(
                "E-IMG-SHAPE",
                f"target {name!r} has {_px(tensor.shape)}, its image {_px(spatial)}",
                "export the mask on the grid of the image",
            )
    return [name for name, tensor in sample.items() if tensor.ndim]


def _px(size: Sequence[int]) -> str:
    return " x ".join(str(n) for n in size) + " px"
