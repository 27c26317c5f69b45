"""Feature pyramid -> dense map at the finest level's stride, then at the image's resolution."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from medmtl.config import Config
from medmtl.models.norm import group_norm

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
LINEAR = {2: "bilinear", 3: "trilinear"}


class DecoderConfig(Config):
    """Top-down feature pyramid decoder (Lin et al. 2017): ``width`` channels at every level."""

    width: PositiveInt = 48

    def build(self, channels: Sequence[int], strides: Sequence[Sequence[int]], out: int) -> "Decoder":
        return Decoder(channels, strides, out, self.width)


class Decoder(nn.Module):
    """Lateral 1x1 convolutions, added top-down, refined by 3x3 convolutions; ``out`` channels times the finest stride.

    GroupNorm throughout, so that batches of any size and composition behave alike.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Sequence[int]], out: int, width: int) -> None:
        super().__init__()
        self.dimensions = len(strides[0])
        conv = CONV[self.dimensions]
        self.finest = tuple(strides[0])
        self.lateral = nn.ModuleList(conv(c, width, 1) for c in channels)
        self.refine = nn.ModuleList(
            nn.Sequential(conv(width, width, 3, padding=1, bias=False), group_norm(width), nn.SiLU()) for _ in channels
        )
        self.predict = conv(width, out, 1)

    def start_at(self, prior: Sequence[float]) -> None:
        """Set the output's bias to the log of class shares, so that training begins at the constant predictor."""
        bias = self.predict.bias
        assert bias is not None
        with torch.no_grad():
            bias.copy_(torch.tensor(prior).clamp(min=1e-3).log())

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """``pyramid`` finest first -> [B, out, *S]; S is the finest map's size times its stride."""
        mode = LINEAR[self.dimensions]
        x = self.refine[-1](self.lateral[-1](pyramid[-1]))
        for level in range(len(pyramid) - 2, -1, -1):
            up = F.interpolate(x, pyramid[level].shape[2:], mode=mode, align_corners=False)
            x = self.refine[level](self.lateral[level](pyramid[level]) + up)
        size = tuple(n * s for n, s in zip(x.shape[2:], self.finest, strict=True))
        return F.interpolate(self.predict(x), size, mode=mode, align_corners=False)
