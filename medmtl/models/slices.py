"""A 2-D network over the slices of a volume: a 3-D encoder whose depth stride is 1."""

from typing import Literal

from torch import Tensor, nn

from medmtl.models.encoder import TimmConfig, TimmEncoder


class SlicesConfig(TimmConfig):
    """Any network of ``timm``, applied to every slice [H, W] of a volume [D, H, W]; weights as there."""

    kind: Literal["slices"] = "slices"  # type: ignore[assignment]

    def build(self, channels: int, *, load_weights: bool = True) -> "SliceEncoder":  # type: ignore[override]
        return SliceEncoder(TimmEncoder(self, channels, load_weights=load_weights))


class SliceEncoder(nn.Module):
    """[B, C, D, H, W] -> maps [B, C_l, D, H/s, W/s]: the slices never mix here, only in the heads.

    Equal to the 2-D encoder slice by slice (in training, batch statistics run over all slices of the batch).
    """

    def __init__(self, planar: TimmEncoder) -> None:
        super().__init__()
        self.planar = planar
        self.channels = planar.channels
        self.strides = tuple((1, *stride) for stride in planar.strides)

    def forward(self, image: Tensor) -> list[Tensor]:
        depth = image.shape[2]
        slices = image.transpose(1, 2).flatten(0, 1)
        return [m.unflatten(0, (-1, depth)).transpose(1, 2) for m in self.planar(slices)]
