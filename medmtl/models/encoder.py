"""Image -> feature pyramid. Every encoder yields [B, C_l, *S/stride_l] maps, finest first; nobody asks what it is."""

from collections.abc import Mapping
from math import log2
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn

from medmtl import torchvision_ops
from medmtl.config import Config
from medmtl.errors import UserError
from medmtl.files import sha256
from medmtl.models.norm import group_norm
from medmtl.models.pyramid import FeaturePyramid

torchvision_ops.declare_missing()  # before timm, which imports torchvision
import timm  # noqa: E402


class TimmConfig(Config):
    """Any timm network that has a ``features_only`` form: EfficientNet, EfficientNetV2, ViT, ConvNeXt, ..."""

    kind: Literal["timm"] = "timm"
    name: str = "efficientnet_b0"
    weights: str | None = None  # a local .safetensors or .pth file; "timm" downloads timm's own; None: from scratch
    weights_sha256: str | None = None
    drop_path: float = Field(0.0, ge=0, lt=1)
    norm: Literal["batch", "group"] = "batch"  # group: no batch statistics, for tiny batches and exact DDP

    def idle(self) -> Mapping[str, str]:
        local = self.weights not in (None, "timm")
        return {} if local else {"weights_sha256": "only a local file in `weights` is compared with it"}

    def build(self, channels: int, *, load_weights: bool = True) -> "TimmEncoder":
        """The encoder for images of ``channels`` channels; a bundle passes ``load_weights=False``."""
        return TimmEncoder(self, channels, load_weights=load_weights)


class TimmEncoder(nn.Module):
    """A timm network as a pyramid; where all its maps share one stride (ViT), strides 4, 8, 16, 32 are made of them."""

    def __init__(self, config: TimmConfig, channels: int, *, load_weights: bool) -> None:
        super().__init__()
        self.net = _create(config, channels, load_weights)
        info: Any = self.net.feature_info
        self.channels = tuple(info.channels())
        self.strides: tuple[tuple[int, ...], ...] = tuple((r, r) for r in info.reduction())
        self._channels_last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")
        self.pyramid: FeaturePyramid | None = None
        self._multiple = self.strides[0][0]  # of the image's size
        if len(set(self.strides)) == 1:
            if not log2(self._multiple).is_integer():
                raise UserError(
                    "E-ENC-STRIDE",
                    f"{config.name} has patches of {self._multiple} pixels, strides 4 to 32 need a power of two",
                    "choose a network with patches of 8, 16 or 32 pixels",
                    where="encoder.name",
                )
            self.pyramid = FeaturePyramid(self.channels[-1], self.strides[0][0])
            self.channels, self.strides = self.pyramid.channels, self.pyramid.strides
        if config.norm == "group":
            batch_to_group_norm(self.net)

    def forward(self, image: Tensor) -> list[Tensor]:
        missing = [-n % self._multiple for n in image.shape[2:]]
        if any(missing):  # a ViT would refuse, a ConvNeXt would not see the last rows and columns
            image = F.pad(image, (0, missing[1], 0, missing[0]))
        maps = self.net(image)
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return list(maps) if self.pyramid is None else self.pyramid(maps[-1])


_RESAMPLED = ("vision_transformer", "deit", "eva", "vision_transformer_hybrid")  # timm's modules with dynamic_img_size


def _create(config: TimmConfig, channels: int, load_weights: bool) -> nn.Module:
    if not timm.is_model(config.name):
        close = timm.list_models(f"*{config.name.split('_')[0]}*")[:6]
        raise UserError(
            "E-ENC-NAME",
            f"timm knows no {config.name!r}",
            f"choose for example {', '.join(close) or 'efficientnet_b0'}",
            where="encoder.name",
        )
    options: dict[str, Any] = {"features_only": True, "in_chans": channels, "drop_path_rate": config.drop_path}
    if timm.model_entrypoint(config.name.partition(".")[0]).__module__.rpartition(".")[2] in _RESAMPLED:
        options["dynamic_img_size"] = True  # position embeddings are resampled to the image at hand
    local = _local_weights(config) if config.weights and config.weights != "timm" and load_weights else None
    if config.weights and load_weights:
        options["pretrained"] = True
        if local is not None:
            options["pretrained_cfg_overlay"] = {"file": str(local)}
    try:
        net: nn.Module = timm.create_model(config.name, **options)
        share = 1.0 if local is None else _share_of(net, timm.models.load_state_dict(str(local)))
    except (RuntimeError, TypeError, SafetensorError, UnpicklingError) as error:
        raise UserError(
            "E-ENC-BUILD",
            f"{config.name} cannot be built: {error}",
            "choose another network or weights file",
            where="encoder",
        ) from error
    if share < 0.5:  # timm loads what fits and is silent about the rest
        raise UserError(
            "E-ENC-WEIGHTS",
            f"{share:.0%} of the tensors of {config.name} are in the file",
            "give the weights of this very network",
            where=str(local),
        )
    return net


def _share_of(net: nn.Module, file: Mapping[str, Tensor]) -> float:
    """The share of the network's parameter tensors that are in the file, by content: timm renames some on the way."""
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for tensor in file.values():
        by_shape.setdefault(tuple(tensor.shape), []).append(tensor)
    found = [any(torch.equal(p, t.to(p)) for t in by_shape.get(tuple(p.shape), ())) for p in net.parameters()]
    return sum(found) / len(found)


def _local_weights(config: TimmConfig) -> Path:
    path = Path(config.weights or "")
    if not path.is_file():
        raise UserError(
            "E-ENC-WEIGHTS",
            f"no weights file {path.name}",
            "copy it there, or leave encoder.weights empty to train from scratch",
            where=str(path),
        )
    if config.weights_sha256 and sha256(path) != config.weights_sha256:
        raise UserError(
            "E-ENC-WEIGHTS",
            f"SHA-256 of {path.name} is {sha256(path)}, expected {config.weights_sha256}",
            "copy the file again",
            where=str(path),
        )
    return path


def batch_to_group_norm(module: nn.Module) -> None:
    """Replace every BatchNorm (timm's fused norm + activation too) by GroupNorm with at most 8 groups, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            norm = group_norm(child.num_features, eps=child.eps)
            after = [part for part in (getattr(child, "drop", None), getattr(child, "act", None)) if part is not None]
            setattr(module, name, nn.Sequential(norm, *after))
        else:
            batch_to_group_norm(child)
