"""3-D encoders: EfficientNet with three-dimensional convolutions, and a ViT over cubes, both of MONAI's parts."""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from medmtl.config import Config
from medmtl.models.encoder import batch_to_group_norm
from medmtl.models.pyramid import FeaturePyramid


class EfficientNet3dConfig(Config):
    """EfficientNet-B0 to B7 in three dimensions (Tan & Le 2019), from scratch: channels and strides of the 2-D ones."""

    kind: Literal["efficientnet_3d"] = "efficientnet_3d"
    name: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"] = "b0"
    drop_path: float = Field(0.2, ge=0, lt=1)
    norm: Literal["batch", "group"] = "group"  # batches of volumes are small

    def build(self, channels: int, *, load_weights: bool = True) -> "EfficientNet3d":
        """The encoder for volumes of ``channels`` channels; there are no weights to load."""
        return EfficientNet3d(self, channels)


class EfficientNet3d(nn.Module):
    """[B, C, D, H, W] -> maps at strides 2, 4, 8, 16 and 32 of any size.

    MONAI pads for one image size; here the padding follows the image, as TensorFlow's "same", so that a map of an axis
    of n voxels has ceil(n / stride) elements.
    """

    def __init__(self, config: EfficientNet3dConfig, channels: int) -> None:
        super().__init__()
        from monai.networks.nets import EfficientNetBNFeatures  # MONAI takes seconds to import: for those who use it

        self.net = EfficientNetBNFeatures(
            f"efficientnet-{config.name}", pretrained=False, spatial_dims=3, in_channels=channels
        )
        for unused in ("_conv_head", "_conv_head_padding", "_bn1", "_fc", "_dropout"):  # of the classifier
            delattr(self.net, unused)
        blocks = [block for stack in self.net._blocks.children() for block in stack.children()]
        for i, block in enumerate(blocks):
            block.drop_connect_rate = config.drop_path * i / len(blocks)  # type: ignore[assignment]
        for module in list(self.net.modules()):
            for name, conv in list(module.named_children()):
                if isinstance(conv, nn.Conv3d) and hasattr(module, f"{name}_padding"):
                    setattr(module, f"{name}_padding", _SamePadding(conv))
        if config.norm == "group":
            batch_to_group_norm(self.net)
        with torch.no_grad():
            maps = self.net.eval()(torch.zeros(1, channels, 32, 32, 32))
        self.net.train()
        self.channels: tuple[int, ...] = tuple(m.shape[1] for m in maps)
        self.strides: tuple[tuple[int, ...], ...] = tuple((32 // m.shape[-1],) * 3 for m in maps)

    def forward(self, image: Tensor) -> list[Tensor]:
        return list(self.net(image))


class _SamePadding(nn.Module):
    """Zeros around an image so that a convolution of stride s turns n elements into ceil(n / s)."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.kernel, self.stride = conv.kernel_size, conv.stride

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for n, k, s in zip(x.shape[2:], self.kernel, self.stride, strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pads = [total // 2, total - total // 2, *pads]
        return F.pad(x, pads)


class Vit3dConfig(Config):
    """A plain vision transformer over cubes of ``patch`` voxels (Dosovitskiy et al. 2021), from scratch."""

    kind: Literal["vit_3d"] = "vit_3d"
    size: tuple[PositiveInt, PositiveInt, PositiveInt] = (96, 96, 96)  # voxels the position embedding is made for
    patch: Literal[4, 8, 16, 32] = 16
    width: PositiveInt = 384
    depth: PositiveInt = 8
    heads: PositiveInt = 6
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; change one of them")
        if any(n % self.patch for n in self.size):
            raise ValueError(f"size {self.size} is not a multiple of patch {self.patch}; change one of them")
        return self

    def build(self, channels: int, *, load_weights: bool = True) -> "Vit3d":
        """The encoder for volumes of ``channels`` channels; there are no weights to load."""
        return Vit3d(self, channels)

    @property
    def name(self) -> str:
        """What a model card calls it."""
        return f"ViT, {self.depth} layers of {self.width}, cubes of {self.patch}"


class Vit3d(nn.Module):
    """[B, C, D, H, W] of any size -> maps at strides 4, 8, 16 and 32 (ViTDet's simple pyramid in three dimensions).

    Sizes that ``patch`` does not divide are padded with zeros at the end; the position embedding is resampled to the
    image at hand (trilinear).
    """

    def __init__(self, config: Vit3dConfig, channels: int) -> None:
        super().__init__()
        self.patch, self.grid = config.patch, tuple(n // config.patch for n in config.size)
        from monai.networks.nets import ViT

        self.net = ViT(
            in_channels=channels, img_size=config.size, patch_size=config.patch, hidden_size=config.width,
            mlp_dim=4 * config.width, num_layers=config.depth, num_heads=config.heads, dropout_rate=config.dropout,
            spatial_dims=3, qkv_bias=True,
        )  # fmt: skip
        for block in self.net.blocks:  # for cross-attention, which is not used: parameters without a gradient
            block.norm_cross_attn, block.cross_attn = nn.Identity(), nn.Identity()
        self.pyramid = FeaturePyramid(config.width, config.patch, dimensions=3)
        self.channels: tuple[int, ...] = self.pyramid.channels
        self.strides: tuple[tuple[int, ...], ...] = self.pyramid.strides

    def forward(self, image: Tensor) -> list[Tensor]:
        missing = [-n % self.patch for n in image.shape[2:]]
        embedding = self.net.patch_embedding
        cubes = embedding.patch_embeddings(F.pad(image, (0, missing[2], 0, missing[1], 0, missing[0])))
        x = embedding.dropout(cubes.flatten(2).transpose(1, 2) + self._positions(tuple(cubes.shape[2:])))
        for block in self.net.blocks:
            x = block(x)
        return self.pyramid(self.net.norm(x).transpose(1, 2).unflatten(2, cubes.shape[2:]))

    def _positions(self, grid: tuple[int, ...]) -> Tensor:
        """The position embedding [1, N, width] on another grid than it was made for."""
        positions = self.net.patch_embedding.position_embeddings
        if grid == self.grid:
            return positions
        cube = positions.transpose(1, 2).unflatten(2, self.grid)
        return F.interpolate(cube, grid, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)
