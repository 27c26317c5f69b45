"""What becomes of intensities in [0, 1] before the network: nothing, or a shift and a scale."""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from medmtl.config import Config, Single


class NoNormalise(Config):
    """The image stays in [0, 1]."""

    kind: Literal["none"] = "none"

    def apply(self, image: Tensor, whole: Tensor | None = None) -> Tensor:
        return image


class FixedNormalise(Config):
    """``(x - mean_c) / std_c`` with constants per channel, such as those a pretrained encoder was trained with."""

    kind: Literal["fixed"] = "fixed"
    mean: tuple[Single, ...]
    std: tuple[PositiveFloat, ...]

    def apply(self, image: Tensor, whole: Tensor | None = None) -> Tensor:
        axes = (-1, *([1] * (image.ndim - 1)))
        return (image - torch.tensor(self.mean).view(axes)) / torch.tensor(self.std).view(axes)


class ImageNormalise(Config):
    """``(x - m) / max(s, epsilon)``, m and s being the image's own mean and (population) standard deviation.

    Of a patch, they are those of the ``whole`` image. Taken per channel, or over all channels at once, which keeps the
    ratio of the colours. A constant image becomes 0.
    """

    kind: Literal["image"] = "image"
    per_channel: bool = True
    epsilon: PositiveFloat = 1e-6

    def apply(self, image: Tensor, whole: Tensor | None = None) -> Tensor:
        axes = tuple(range(1 if self.per_channel else 0, image.ndim))
        std, mean = torch.std_mean(image if whole is None else whole, dim=axes, correction=0, keepdim=True)
        return (image - mean) / std.clamp_min(self.epsilon)


class ForegroundNormalise(Config):
    """``(x - m) / max(s, epsilon)`` for every voxel, m and s being mean and deviation of those above 0.

    Of a patch, they are those of the ``whole`` image.

    For skull-stripped brains and other images whose background is 0: air that is cut off or added changes nothing. The
    background itself becomes ``-m / s``, so that order is kept.

    A voxel that holds any tissue at all is above 0, so the foreground has a rim, as wide as what blurred the image. The
    size of the voxels in the *file* blurs: :mod:`.grid` smooths more where they grow more. A brain of OASIS (35,487
    voxels of 4 mm by its volume) has 46,240 voxels above 0 on a grid of 4 mm if its file has 3 mm, 51,799 if it has 2.
    So m and s depend a little on the file's resolution, and a study should have one.
    """

    kind: Literal["foreground"] = "foreground"
    epsilon: PositiveFloat = 1e-6

    def apply(self, image: Tensor, whole: Tensor | None = None) -> Tensor:
        inside = image[image > 0] if whole is None else whole[whole > 0]
        if inside.numel() < 2:
            return torch.zeros_like(image)
        std, mean = torch.std_mean(inside, correction=0)
        return (image - mean) / std.clamp_min(self.epsilon)


Normalise = Annotated[NoNormalise | FixedNormalise | ImageNormalise | ForegroundNormalise, Field(discriminator="kind")]
