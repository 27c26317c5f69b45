"""A number in physical or clinical units."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from medmtl import losses, metrics
from medmtl.config import Single
from medmtl.data.target import NumberTarget
from medmtl.models.head import PoolConfig
from medmtl.tasks.base import EncoderShape, Task


class Regression(Task):
    """A value within [low, high]. The head predicts it standardised; decoding clamps it.

    ``standardise: labels`` has the training labels' centre cost 1 on average. ``range``: the middle would, if labels
    were spread evenly over [low, high]. Then tasks are scaled by their ranges, as if divided by their maxima, and one
    factor for all (12 with ``mse``, 4 with ``l1``): an error of a tenth of the range costs the same in every task, and
    a task whose labels hardly vary costs little.

    ``sum_of`` names the tasks whose values add up to this one: the case table then has their predictions' sum, beside
    the total's own, as ``items_sum`` (an ordinal item counts with its mean level), and metrics ``<metric>.items_sum``.
    """

    kind: Literal["regression"] = "regression"
    low: Single
    high: Single
    unit: str = ""
    pool: PoolConfig = PoolConfig()
    criterion: Literal["mse", "l1", "huber"] = "mse"
    centre: Single | None = None  # mean (mse) or median (l1, huber) of the training labels, resolved by fit
    scale: PositiveFloat | None = None  # standard (mse) or mean absolute deviation from ``centre``, resolved by fit
    standardise: Literal["labels", "range"] = "labels"
    sum_of: tuple[str, ...] = ()  # tasks

    @property
    def headline(self) -> tuple[str, ...]:
        return ("mae", "pearson", "r2")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if len(set(self.sum_of)) != len(self.sum_of):
            raise ValueError(f"sum_of names a task twice: {list(self.sum_of)}")
        return self

    def idle(self) -> Mapping[str, str]:
        why = "fit takes it from the training labels, or as `standardise` says"
        return {"centre": why, "scale": why}

    def reader(self) -> NumberTarget:
        return NumberTarget(self.low, self.high)

    def fit(self, labels: Sequence[Any]) -> Self:
        """Resolve ``centre`` and ``scale``, so that predicting the centre costs 1 on average (``labels``)."""
        values = np.asarray(labels, dtype=float)
        if len(values) == 0:
            return self.model_copy(update={"centre": (self.low + self.high) / 2, "scale": (self.high - self.low) / 4})
        centre = float(values.mean() if self.criterion == "mse" else np.median(values))
        deviation = float(values.std() if self.criterion == "mse" else np.abs(values - centre).mean())
        if self.standardise == "range":  # the deviation of an even spread, from its middle
            deviation = (self.high - self.low) / (12**0.5 if self.criterion == "mse" else 4)
        return self.model_copy(update={"centre": centre, "scale": deviation or (self.high - self.low) / 4})

    def head(self, encoder: EncoderShape) -> nn.Module:
        """Standardised value [B, 1]; the bias starts at zero, the constant predictor."""
        module = self.pool.build(encoder.channels[-1], 1)
        nn.init.zeros_(module.affine.bias)
        return module

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        centre, scale = self._standard()
        return losses.regression(output[:, 0], (target - centre) / scale, kind=self.criterion)

    def number(self, output: Tensor) -> Tensor:
        centre, scale = self._standard()
        return centre + scale * output[:, 0]

    def quantity(self, decoded: Tensor) -> Tensor:
        return decoded

    def decode(self, output: Tensor) -> Tensor:
        value = self.number(output)  # a diverged model must not pass for an extreme value
        return torch.where(value.isfinite(), value.clamp(self.low, self.high), torch.nan)

    def row(self, decoded: Tensor, target: Tensor | None) -> dict[str, float | str]:
        known = {} if target is None else {"target": float(target)}
        return {**known, "prediction": float(decoded)}

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        found = metrics.regression(table["target"].to_numpy(float), table["prediction"].to_numpy(float), weights)
        return found | self._of_items(table, weights) if self.sum_of else found

    def _of_items(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of the items' sum, over the rows that have it (those of patients with several images do not)."""
        rows = table.reindex(columns=["target", "items_sum"]).to_numpy(float)
        known = ~np.isnan(rows[:, 1])
        found = metrics.regression(rows[known, 0], rows[known, 1], weights[:, known])
        return {f"{name}.items_sum": value for name, value in found.items()}

    def constant(self, table: pd.DataFrame) -> pd.DataFrame:
        """Every case gets the training mean (``mse``) or median (``l1``, ``huber``)."""
        row = self.row(torch.tensor(self._standard()[0]), None)
        return table.assign(**row, **({"items_sum": row["prediction"]} if self.sum_of else {}))

    def _standard(self) -> tuple[float, float]:
        if self.centre is None or self.scale is None:
            return (self.low + self.high) / 2, (self.high - self.low) / 4
        return self.centre, self.scale
