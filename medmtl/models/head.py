"""Feature pyramid -> one task's output: a pooled vector head, and the gradient reversal before an adversary."""

from collections.abc import Sequence
from math import exp
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medmtl.config import Config


class PoolConfig(Config):
    """Global average of the deepest map, optionally one hidden layer, dropout, an affine map."""

    hidden: int = 0
    dropout: float = 0.0

    def build(self, channels: int, out: int) -> "PooledHead":
        return PooledHead(channels, out, self.hidden, self.dropout)


class PooledHead(nn.Module):
    """[B, C, *S] (any number of spatial dimensions) -> [B, out]."""

    def __init__(self, channels: int, out: int, hidden: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden:
            layers += [nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.SiLU()]
        self.before = nn.Sequential(*layers, nn.Dropout(dropout))
        self.affine = nn.Linear(hidden or channels, out)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        return self.affine(self.before(pyramid[-1].flatten(2).mean(-1)))


class _Reverse(torch.autograd.Function):
    """Identity forward, -scale backward (Ganin et al. 2016, eq. 8)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return -scale * gradients[0], None


class Strength(Config):
    """Strength of an adversary over training progress p in [0, 1].

    ``constant``: ``value``. ``ramp``: value * (2 / (1 + exp(-10 p)) - 1), Ganin et al. 2016, section 5.2.2, so that the
    encoder first learns its task. ``linear``: value * p.
    """

    value: float = 0.1
    schedule: Literal["constant", "ramp", "linear"] = "ramp"

    def at(self, progress: float) -> float:
        """The strength at ``progress``."""
        match self.schedule:
            case "constant":
                return self.value
            case "linear":
                return self.value * progress
            case "ramp":
                return self.value * (2 / (1 + exp(-10 * progress)) - 1)


class AdversaryHead(nn.Module):
    """A head that learns to recognise the domain while the encoder learns to hide it."""

    scale: Tensor

    def __init__(self, inner: nn.Module, strength: Strength) -> None:
        super().__init__()
        self.inner, self.strength = inner, strength
        self.register_buffer("scale", torch.tensor(strength.at(0.0)), persistent=False)

    def advance(self, progress: float) -> None:
        """Set the strength for training progress in [0, 1]; it is derived from the step, so it is in no checkpoint."""
        self.scale.fill_(self.strength.at(progress))

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        return self.inner([_Reverse.apply(level, self.scale) for level in pyramid[-1:]])
