"""AdamW groups, the learning rate as a function of progress, and the moving average of the weights."""

from math import cos, pi
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medmtl.config import Config

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Config):
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up and cosine decay, gradient clipping and averaging."""

    learning_rate: float = Field(1e-3, gt=0)
    head_multiplier: float = Field(1.0, gt=0)  # learning rate of heads and balancer relative to the encoder's
    weight_decay: float = Field(0.02, ge=0)  # not on biases, norms and the balancer
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    warmup: float = Field(0.1, ge=0, lt=1)  # share of all steps with a rising rate
    final: float = Field(1e-3, ge=0, le=1)  # last learning rate relative to the highest
    clip_norm: float | None = Field(1.0, gt=0)  # None: no clipping
    accumulate: int = Field(1, ge=1)  # batches per step
    ema: float | None = Field(None, gt=0, lt=1)  # decay per step; None: no averaging
    epochs: int = Field(20, ge=1)
    freeze: tuple[str, ...] = ()  # parts that stay as they are: encoder, heads.<task>, or a module inside one

    def rate(self, progress: float) -> float:
        """Learning rate relative to ``learning_rate`` at ``progress`` in [0, 1] of all steps."""
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)
        decay = (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + cos(pi * min(decay, 1.0)))

    def build(self, encoder: nn.Module, others: list[nn.Module], balancer: nn.Module) -> torch.optim.AdamW:
        """AdamW over encoder, heads and balancer; ``initial_lr`` of each group is its highest rate."""
        groups = [
            *self._groups(encoder, 1.0),
            *(g for module in others for g in self._groups(module, self.head_multiplier)),
            {
                "params": list(balancer.parameters()),
                "weight_decay": 0.0,
                "initial_lr": self.learning_rate * self.head_multiplier,
            },
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=True)

    def _groups(self, module: nn.Module, multiplier: float) -> list[dict]:
        trainable = [p for p in module.parameters() if p.requires_grad]
        rate = self.learning_rate * multiplier
        return [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": self.weight_decay, "initial_lr": rate},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0, "initial_lr": rate},
        ]


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to ``factor`` times its highest; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """The exponential moving average of weights and buffers, or None."""
    return None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
