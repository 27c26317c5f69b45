"""Several strides out of one: the simple feature pyramid of plain backbones (Li et al. 2022, ViTDet, section 3)."""

from math import log2

from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class FeaturePyramid(nn.Module):
    """One map [B, C, H/s, W/s] -> maps at strides 4, 8, 16 and 32, all with C channels.

    Finer levels come from transposed convolutions of stride 2, coarser ones from max pooling, each followed by a
    normalised 1x1 convolution. A map at stride s needs s to be a power of two.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = (channels,) * len(STRIDES)
        self.strides = tuple((s, s) for s in STRIDES)
        self.levels = nn.ModuleList(_resample(channels, round(log2(s / stride))) for s in STRIDES)

    def forward(self, features: Tensor) -> list[Tensor]:
        return [level(features) for level in self.levels]


def _resample(channels: int, octaves: int) -> nn.Sequential:
    """Down (positive) or up (negative) by powers of two, then project."""
    layers: list[nn.Module] = []
    for _ in range(-octaves):
        layers += [nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.GroupNorm(1, channels), nn.GELU()]
    if octaves > 0:
        layers.append(nn.MaxPool2d(2**octaves, ceil_mode=True))
    return nn.Sequential(*layers, nn.Conv2d(channels, channels, 1), nn.GroupNorm(1, channels))
