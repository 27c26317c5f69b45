"""A label out of K ordered levels: a score of whole numbers, or grades by name."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import model_validator
from torch import Tensor, nn

from medmtl import losses, metrics
from medmtl.data.target import ClassTarget, LevelTarget
from medmtl.models.head import CumulativeHead, PoolConfig
from medmtl.tasks.base import EncoderShape, Shares, Task, Weights

_LEAST = 1e-3  # a level's share where the training labels have none: its log-odds must be finite


class Ordinal(Task):
    """Rank-consistent regression of a level (CORAL: Cao, Mirjalili and Raschka, Pattern Recognit. Lett. 140, 2020).

    The head gives the log-odds of ``level > k`` for the K - 1 lower levels k: one weight vector, and thresholds that
    are in order by construction (in the paper the training brings them there), so that every output is a distribution.
    Levels are the whole numbers ``low`` to ``high``, or ``classes`` from the lowest to the highest, counted from 0 in
    tables and metrics (CDR: ``classes: ["0", "0.5", "1", "2", "3"]``, cells written exactly so; a level is then a step
    of the scale, not a distance). The prediction is the median level, which has the least expected absolute error;
    ``expected`` is the mean.
    """

    kind: Literal["ordinal"] = "ordinal"
    low: int | None = None
    high: int | None = None
    classes: tuple[str, ...] = ()
    unit: str = ""
    pool: PoolConfig = PoolConfig()
    importance: Literal["none", "counts"] | Weights = "none"  # of each threshold; resolved by fit
    prior: Shares | None = None  # share of each level in training, resolved by fit

    @model_validator(mode="after")
    def _check(self) -> Self:
        numbers = self.low is not None and self.high is not None
        if numbers == bool(self.classes) or (self.low is None) != (self.high is None):
            raise ValueError("give low and high (whole numbers), or classes (names from the lowest to the highest)")
        if self.low is not None and self.high is not None and self.high - self.low < 2:
            raise ValueError(f"{self.low} to {self.high} are fewer than three levels; two are a classification")
        if self.classes and (len(self.classes) < 3 or len(set(self.classes)) != len(self.classes)):
            raise ValueError(f"classes must be three or more different names, found {list(self.classes)}")
        if isinstance(self.importance, tuple) and len(self.importance) != len(self.levels) - 1:
            raise ValueError(f"importance has {len(self.importance)} numbers for {len(self.levels) - 1} thresholds")
        return self

    def idle(self) -> Mapping[str, str]:
        return {"prior": "fit takes the shares of the training labels"}

    @property
    def headline(self) -> tuple[str, ...]:
        return ("quadratic_kappa", "mae", "spearman")

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels' names, lowest first."""
        if self.low is None or self.high is None:
            return self.classes
        return tuple(str(level) for level in range(self.low, self.high + 1))

    @property
    def numbers(self) -> tuple[float, ...] | None:
        """The levels as the numbers that they are or are called by (CDR: 0, 0.5, 1, 2, 3); None where one is a word."""
        try:
            numbers = tuple(float(name) for name in self.levels)
        except ValueError:
            return None
        return numbers if all(map(math.isfinite, numbers)) else None

    @property
    def values(self) -> tuple[float, ...]:
        """What each level counts in a sum of tasks: its number; without numbers, its place."""
        return self.numbers or tuple(float(place) for place in range(len(self.levels)))

    @property
    def lowest(self) -> int:
        """The number of the lowest level in a case table."""
        return self.low or 0

    def reader(self) -> ClassTarget | LevelTarget:
        if self.low is None or self.high is None:
            return ClassTarget(self.classes)
        return LevelTarget(self.low, self.high)

    def fit(self, labels: Sequence[Any]) -> Self:
        """Resolve ``prior``, and ``counts`` to the paper's weights: lambda_k ~ sqrt(max(S_k, N - S_k)), mean 1.

        S_k labels are above level k.
        """
        counts = np.bincount(np.asarray(labels, dtype=int), minlength=len(self.levels))
        prior = tuple(float(p) for p in counts / max(counts.sum(), 1)) if counts.sum() else None
        importance = self.importance
        if importance == "counts":
            above = counts.sum() - np.cumsum(counts)[:-1]
            root = np.sqrt(np.maximum(above, counts.sum() - above))
            importance = tuple(float(w) for w in (root / root.mean() if root.any() else np.ones(len(root))))
        return self.model_copy(update={"prior": prior, "importance": importance})

    def head(self, encoder: EncoderShape) -> nn.Module:
        """Log-odds [B, K-1]; the thresholds start at the training shares, the constant predictor."""
        return CumulativeHead(self.pool.build(encoder.channels[-1], 1, bias=False), torch.logit(self._exceedance()))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropies of ``level > k``, over what the training shares as a constant prediction cost."""
        above = self._exceedance().to(output)
        entropy = -(above * above.log() + (1 - above) * (1 - above).log())
        importance = self._importance(output)
        return losses.cumulative(output, target, importance=importance) / (importance * entropy).mean()

    def decode(self, output: Tensor) -> Tensor:
        """Probabilities of the levels [B, K]."""
        above = torch.sigmoid(output)
        ends = torch.ones_like(above[:, :1])
        at_least = torch.cat([ends, above], 1)
        return (at_least - torch.cat([above, 0 * ends], 1)).clamp(min=0)  # rounding alone could fall below 0

    def number(self, output: Tensor) -> Tensor:
        return self.quantity(self.decode(output))

    def quantity(self, decoded: Tensor) -> Tensor:
        """The mean level, in :attr:`values`."""
        return (decoded * torch.tensor(self.values).to(decoded)).sum(1)

    def row(self, decoded: Tensor, target: Tensor | None) -> dict[str, float | str]:
        median = self.median(decoded)
        row: dict[str, float | str] = {
            "prediction": float("nan") if median is None else float(median + self.lowest),
            "expected": float((decoded * torch.arange(len(self.levels))).sum()) + self.lowest,
            **{f"p.{name}": p for name, p in zip(self.levels, decoded.tolist(), strict=True)},
        }
        if target is not None:
            row["target"] = float(int(target) + self.lowest)
        if self.classes:
            row |= {} if target is None else {"target_label": self.classes[int(target)]}
            row |= {} if median is None else {"predicted_label": self.classes[median]}
        return row

    def median(self, probabilities: Tensor) -> int | None:
        """The lowest level that half of the probability [K] does not exceed; None of a diverged model's NaN."""
        reached = probabilities.cumsum(0) >= 0.5 * probabilities.sum()
        return int(reached.int().argmax()) if bool(reached.any()) else None

    def probabilities(self, table: pd.DataFrame) -> np.ndarray:
        """The table's probability columns, [N, K]."""
        return table[[f"p.{name}" for name in self.levels]].to_numpy(float)

    def indices(self, table: pd.DataFrame, column: str) -> np.ndarray:
        """``target`` or ``prediction`` as places among the levels, [N]."""
        return table[column].to_numpy(float).astype(int) - self.lowest

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        target, level, expected = (table[name].to_numpy(float) for name in ("target", "prediction", "expected"))
        return metrics.ordinal(target, level, expected, weights)

    def constant(self, table: pd.DataFrame) -> pd.DataFrame:
        """Every case gets the training shares, and so their median."""
        prior = self.prior or (1 / len(self.levels),) * len(self.levels)
        return table.assign(**self.row(torch.tensor(prior), None))

    def _exceedance(self) -> Tensor:
        """The training share above each level but the highest, within (0, 1) [K-1]; of equal shares before ``fit``."""
        K = len(self.levels)
        prior = torch.tensor(self.prior or (1 / K,) * K, dtype=torch.float64).clamp(min=_LEAST)
        return (1 - prior.cumsum(0)[:-1] / prior.sum()).float()

    def _importance(self, like: Tensor) -> Tensor:
        K = len(self.levels)
        return torch.tensor(self.importance).to(like) if isinstance(self.importance, tuple) else like.new_ones(K - 1)
