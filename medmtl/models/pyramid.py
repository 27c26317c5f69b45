"""Several strides out of one: the simple feature pyramid of plain backbones (Li et al. 2022, ViTDet, section 3)."""

from math import log2

from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)
_LAYERS = {2: (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d), 3: (nn.Conv3d, nn.ConvTranspose3d, nn.MaxPool3d)}


class FeaturePyramid(nn.Module):
    """One map [B, C, *S/s] -> maps at strides 4, 8, 16 and 32, all with C channels; S has two or three axes.

    Finer levels come from transposed convolutions of stride 2, coarser ones from max pooling, each followed by a
    normalised 1x1 convolution. A map at stride s needs s to be a power of two.
    """

    def __init__(self, channels: int, stride: int, dimensions: int = 2) -> None:
        super().__init__()
        self.channels = (channels,) * len(STRIDES)
        self.strides = tuple((s,) * dimensions for s in STRIDES)
        self.levels = nn.ModuleList(_resample(channels, round(log2(s / stride)), dimensions) for s in STRIDES)

    def forward(self, features: Tensor) -> list[Tensor]:
        return [level(features) for level in self.levels]


def _resample(channels: int, octaves: int, dimensions: int) -> nn.Sequential:
    """Down (positive) or up (negative) by powers of two, then project."""
    conv, transposed, pool = _LAYERS[dimensions]
    layers: list[nn.Module] = []
    for _ in range(-octaves):
        layers += [transposed(channels, channels, 2, stride=2), nn.GroupNorm(1, channels), nn.GELU()]
    if octaves > 0:
        layers.append(pool(2**octaves, ceil_mode=True))
    return nn.Sequential(*layers, conv(channels, channels, 1), nn.GroupNorm(1, channels))
