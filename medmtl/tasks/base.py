"""What a task is: settings, and functions without state. Whatever is learned lives in its head.

Convention: **the loss is about 1 at chance level**, so that equal weights are a fair default.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, Self

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field, NonNegativeFloat
from torch import Tensor, nn

from medmtl.config import Config
from medmtl.data.target import Target


def _some(weights: tuple[float, ...]) -> tuple[float, ...]:
    """Refuse weights that are all 0: there would be no loss."""
    if not any(weights):
        raise ValueError("one weight or more must be above 0")
    return weights


Weights = Annotated[tuple[NonNegativeFloat, ...], AfterValidator(_some)]  # of classes or thresholds; 0 leaves one out
Shares = tuple[Annotated[float, Field(ge=0, le=1)], ...]  # of classes or levels


class EncoderShape(Protocol):
    """What a head may know of an encoder."""

    channels: tuple[int, ...]  # per level, finest first
    strides: tuple[tuple[int, ...], ...]  # per level, one int per spatial dimension


class Task(Config):
    """Settings shared by all tasks. A task's name is its key in the study's ``tasks`` mapping.

    ``weight`` is the task's among the tasks, ``weigh`` names what a case weighs among the cases: how sure its label is,
    such as the number of annotator pairs that an agreement is the mean of. The loss is then ``sum_i w_i l_i / sum_i
    w_i`` over the labelled cases. Metrics, and whatever is fitted on the training labels, count every case once.
    """

    target: str | None = None  # column target.<this>; None: the task's own name
    weight: float = Field(1.0, ge=0)  # 0: measured, and taught nothing
    auxiliary: bool = False  # True: fixed weight outside the balancer (an adversary conflicts by design)
    weigh: str | None = None  # column meta.<this>: what each case weighs in the loss, 1 where empty; None: all alike

    @property
    def headline(self) -> tuple[str, ...]:
        """The metrics that are shown first and compared between runs."""
        return ()

    @property
    def frozen(self) -> Mapping[str, Any]:
        """What validation chose for this task and the test set only meets, as an evaluation states it."""
        return {}

    def columns(self, name: str) -> tuple[str, ...]:
        """The target columns (without ``target.``) that hold the labels of the task called ``name``."""
        return (self.target or name,)

    def reader(self) -> Target:
        """How a manifest cell becomes a tensor."""
        raise TypeError(f"{type(self).__name__} reads no target")

    def fit(self, labels: Sequence[Any]) -> Self:
        """These settings with everything resolved that depends on the *training* labels (class weights, mean)."""
        return self

    def head(self, encoder: EncoderShape) -> nn.Module:
        """A module ``pyramid [[B, C_l, *S_l]] -> output``."""
        raise TypeError(f"{type(self).__name__} has no head")

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Per-sample loss ``[B]``, about 1 at chance."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def decode(self, output: Tensor) -> Tensor:
        """Probabilities ``[B, K, ...]`` or values in physical units ``[B]``; linear averaging over views is valid."""
        raise TypeError(f"{type(self).__name__} cannot decode")

    def row(self, decoded: Tensor, target: Tensor | None) -> dict[str, float | str]:
        """Columns of the case table for one case; ``target`` is None where the label is missing."""
        raise TypeError(f"{type(self).__name__} has no row")

    def number(self, output: Tensor) -> Tensor:
        """The output as a number in physical units, [B], of which a sum makes sense; differentiable, not clamped."""
        raise TypeError(f"{type(self).__name__} is no number")

    def quantity(self, decoded: Tensor) -> Tensor:
        """The same of what :meth:`decode` gives, [B]."""
        raise TypeError(f"{type(self).__name__} is no number")

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of the labelled rows of one task for every row of ``weights`` [R, N]: ``{metric: [R]}``.

        Ones give the point estimate; multiplicities of a bootstrap give its distribution. NaN where undefined.
        """
        raise TypeError(f"{type(self).__name__} has no metrics")

    def constant(self, table: pd.DataFrame) -> pd.DataFrame:
        """The same table as predicted by a constant fitted on the training labels: the simplest control."""
        raise TypeError(f"{type(self).__name__} has no constant predictor")


def summary(task: Task, table: pd.DataFrame) -> Mapping[str, float]:
    """Point estimates of a task's metrics over its labelled rows."""
    labelled = table[table["target"].notna()]
    return {name: float(value[0]) for name, value in task.metrics(labelled, np.ones((1, len(labelled)))).items()}
