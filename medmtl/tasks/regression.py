"""A number in physical or clinical units."""

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import model_validator
from torch import Tensor, nn

from medmtl import losses, metrics
from medmtl.data.target import NumberTarget
from medmtl.models.head import PoolConfig
from medmtl.tasks.base import EncoderShape, Task


class Regression(Task):
    """A value within [low, high]. The head predicts it standardised by the training labels; decoding clamps it."""

    kind: Literal["regression"] = "regression"
    low: float
    high: float
    unit: str = ""
    pool: PoolConfig = PoolConfig()
    criterion: Literal["mse", "l1", "huber"] = "mse"
    centre: float | None = None  # mean (mse) or median (l1, huber) of the training labels, resolved by fit
    scale: float | None = None  # standard deviation (mse) or mean absolute deviation from ``centre``, resolved by fit

    @property
    def headline(self) -> tuple[str, ...]:
        return ("mae", "pearson", "r2")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    def reader(self) -> NumberTarget:
        return NumberTarget(self.low, self.high)

    def fit(self, labels: Sequence[Any]) -> Self:
        """Resolve ``centre`` and ``scale``, so that predicting the centre costs 1 on average."""
        values = np.asarray(labels, dtype=float)
        if len(values) == 0:
            return self.model_copy(update={"centre": (self.low + self.high) / 2, "scale": (self.high - self.low) / 4})
        centre = float(values.mean() if self.criterion == "mse" else np.median(values))
        deviation = float(values.std() if self.criterion == "mse" else np.abs(values - centre).mean())
        return self.model_copy(update={"centre": centre, "scale": deviation or (self.high - self.low) / 4})

    def head(self, encoder: EncoderShape) -> nn.Module:
        """Standardised value [B, 1]; the bias starts at zero, the constant predictor."""
        module = self.pool.build(encoder.channels[-1], 1)
        nn.init.zeros_(module.affine.bias)
        return module

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        centre, scale = self._standard()
        return losses.regression(output[:, 0], (target - centre) / scale, kind=self.criterion)

    def decode(self, output: Tensor) -> Tensor:
        centre, scale = self._standard()
        value = centre + scale * output[:, 0]  # a diverged model must not pass for an extreme value
        return torch.where(value.isfinite(), value.clamp(self.low, self.high), torch.nan)

    def row(self, decoded: Tensor, target: Tensor | None) -> dict[str, float | str]:
        known = {} if target is None else {"target": float(target)}
        return {**known, "prediction": float(decoded)}

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        return metrics.regression(table["target"].to_numpy(float), table["prediction"].to_numpy(float), weights)

    def constant(self, table: pd.DataFrame) -> pd.DataFrame:
        """Every case gets the training mean (``mse``) or median (``l1``, ``huber``)."""
        return table.assign(**self.row(torch.tensor(self._standard()[0]), None))

    def _standard(self) -> tuple[float, float]:
        if self.centre is None or self.scale is None:
            return (self.low + self.high) / 2, (self.high - self.low) / 4
        return self.centre, self.scale
