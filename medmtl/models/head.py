"""Feature pyramid -> one task's output: a pooled head, ordered thresholds, the gradient reversal of an adversary."""

from collections.abc import Sequence
from math import exp
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from medmtl.config import Config, Single


class PoolConfig(Config):
    """The deepest map pooled over its positions, optionally one hidden layer, dropout, an affine map.

    ``over: attention`` weighs what it pools (:class:`Attention`): the slices of a volume, the positions of an image.
    """

    over: Literal["mean", "attention"] = "mean"
    hidden: NonNegativeInt = 0
    dropout: float = Field(0.0, ge=0, lt=1)

    def build(self, channels: int, out: int, *, bias: bool = True) -> "PooledHead":
        pool = Attention(channels) if self.over == "attention" else None
        return PooledHead(channels, out, self.hidden, self.dropout, bias=bias, pool=pool)


class PooledHead(nn.Module):
    """[B, C, *S] (any number of spatial dimensions) -> [B, out].

    Covariates are fused late: they stand beside the pooled features in front of the affine map (:meth:`fuse`).
    """

    def __init__(
        self,
        channels: int,
        out: int,
        hidden: int,
        dropout: float,
        *,
        bias: bool = True,
        pool: "Attention | None" = None,
    ) -> None:
        super().__init__()
        self.pool = pool
        layers: list[nn.Module] = []
        if hidden:
            layers += [nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.SiLU()]
        self.before = nn.Sequential(*layers, nn.Dropout(dropout))
        self.affine = nn.Linear(hidden or channels, out, bias=bias)
        self.fused, self.shares = 0, (1.0, 1.0)  # covariates behind the features; whether each of the two is seen

    def fuse(self, columns: int, *, image: bool = True, covariates: bool = True) -> None:
        """Let the affine map see ``columns`` covariates behind the features, with weights that start at zero.

        A part that is False is multiplied by zero, so that the graph stays whole and every parameter keeps a gradient.
        """
        assert not self.fused, "covariates are fused once"
        self.fused, self.shares = columns, (float(image), float(covariates))
        self.affine.weight = nn.Parameter(F.pad(self.affine.weight.detach(), (0, columns)))
        self.affine.in_features += columns

    def forward(self, pyramid: Sequence[Tensor], covariates: Tensor | None = None) -> Tensor:
        """``covariates`` [B, P], after :meth:`fuse`."""
        deepest = pyramid[-1]
        features = self.before(deepest.flatten(2).mean(-1) if self.pool is None else self.pool(deepest))
        if self.fused:
            assert covariates is not None, "the model fills in what a case without covariates has"
            seen, known = self.shares
            features = torch.cat([seen * features, known * covariates.to(features)], 1)
        return self.affine(features)


class Attention(nn.Module):
    """[B, C, *S] -> [B, C]: a mean weighted by gated attention (Ilse, Tomczak & Welling 2018, eq. 9).

    Of a volume, the slices (first axis) are weighed, each being the mean of its positions; of an image, the positions.
    ``a_k = softmax_k(w . (tanh(V h_k) * sigmoid(U h_k)))``; uniform at the start, where w is zero.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(channels, width), nn.Linear(channels, width)
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def elements(self, features: Tensor) -> Tensor:
        """What is weighed, [B, K, C]."""
        return (features.flatten(3).mean(3) if features.ndim == 5 else features.flatten(2)).transpose(1, 2)

    def weights(self, features: Tensor) -> Tensor:
        """[B, K], of sum 1: how much each slice (or position) counts."""
        h = self.elements(features)
        return torch.softmax(self.score(torch.tanh(self.value(h)) * torch.sigmoid(self.gate(h))).squeeze(-1), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        return (self.weights(features).unsqueeze(1) @ self.elements(features)).squeeze(1)


class CumulativeHead(nn.Module):
    """[B, C, *S] -> the log-odds of ``level > k``, [B, K-1]: one score, shifted by thresholds that never cross.

    ``threshold_k = threshold_0 - sum_{j <= k} softplus(gap_j)``, so the order holds for any parameters. ``start`` [K-1]
    are the thresholds at the beginning, descending.
    """

    def __init__(self, score: PooledHead, start: Tensor) -> None:
        super().__init__()
        self.score = score  # without bias: the first threshold is one
        self.first = nn.Parameter(start[:1].clone())
        self.gaps = nn.Parameter(torch.expm1((start[:-1] - start[1:]).clamp(min=1e-3)).log())  # softplus's inverse

    def forward(self, pyramid: Sequence[Tensor], covariates: Tensor | None = None) -> Tensor:
        steps = torch.cat([self.first, -F.softplus(self.gaps)])
        return self.score(pyramid, covariates) + steps.cumsum(0)


def pooled_head(head: nn.Module) -> PooledHead | None:
    """The pooled head that a task's output is an affine map of; None of a dense head or an adversary."""
    inner = head.score if isinstance(head, CumulativeHead) else head
    return inner if isinstance(inner, PooledHead) else None


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

    value: Annotated[Single, Field(ge=0)] = 0.1
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
