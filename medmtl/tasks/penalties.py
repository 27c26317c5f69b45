"""What is asked of the heads beside fitting labels: a total that is the sum of its items, time points that are alike.

A penalty needs no label: it is a function of the outputs for every image and of the heads' last weights. It stands
outside the balancer, as auxiliary tasks do. W [T, C] are the rows of the heads' affine maps that act on the C pooled
features, in the heads' standardised units: ``standardise: range`` gives time points of one score one unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medmtl import distributed as dist
from medmtl.config import Config
from medmtl.models.head import PooledHead, pooled_head
from medmtl.tasks.base import Task
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression


@dataclass(frozen=True)
class State:
    """What a penalty may look at, on this rank."""

    tasks: Mapping[str, Task]
    heads: Mapping[str, nn.Module]
    outputs: Mapping[str, Tensor]  # of every image of the batch, labelled or not
    features: Tensor  # the deepest map, mean over its positions, [B, C]


class Penalty(Config):
    """Settings shared by all penalties. A weight of 0 measures and teaches nothing."""

    weight: float = Field(0.0, ge=0)

    @property
    def label(self) -> str:
        """Its name in logs."""
        raise TypeError(f"{type(self).__name__} has no label")

    def check(self, tasks: Mapping[str, Task]) -> None:
        """ValueError where these tasks do not fit."""
        raise TypeError(f"{type(self).__name__} checks nothing")

    def reaches(self, tasks: Mapping[str, Task]) -> frozenset[str]:
        """The tasks whose heads it teaches, also on a step where they have no label."""
        raise TypeError(f"{type(self).__name__} reaches no task")

    def value(self, state: State) -> Tensor:
        """The penalty, []; the mean over ranks is that of the whole batch."""
        raise TypeError(f"{type(self).__name__} has no value")


class Consistency(Penalty):
    """``mean_i |total_i - sum_j item_ij| / (high - low)`` of the total, in the units of the score, over all images.

    The items are the total's ``sum_of``. Predictions are not clamped here, so that a gradient reaches every head.
    """

    kind: Literal["consistency"] = "consistency"
    total: str

    @property
    def label(self) -> str:
        return f"consistency.{self.total}"

    def check(self, tasks: Mapping[str, Task]) -> None:
        task = tasks.get(self.total)
        if not isinstance(task, Regression) or not task.sum_of:
            raise ValueError(f"consistency: {self.total!r} is no regression with sum_of, the tasks that add up to it")

    def reaches(self, tasks: Mapping[str, Task]) -> frozenset[str]:
        total = tasks[self.total]
        assert isinstance(total, Regression)
        return frozenset((self.total, *total.sum_of))

    def value(self, state: State) -> Tensor:
        total = state.tasks[self.total]
        assert isinstance(total, Regression)
        items = torch.stack([state.tasks[name].number(state.outputs[name]) for name in total.sum_of])
        apart = total.number(state.outputs[self.total]) - items.sum(0)
        return apart.abs().mean() / (total.high - total.low)


class OverTime(Penalty):
    """What the penalties on the weights of consecutive time points have in common."""

    tasks: tuple[str, ...] = Field(min_length=2)  # time points of one score, in order

    def check(self, tasks: Mapping[str, Task]) -> None:
        named = f"{self.label}: "
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"{named}a task is named twice: {list(self.tasks)}")
        for name in self.tasks:
            task = tasks.get(name)
            if not isinstance(task, Regression | Ordinal):
                raise ValueError(f"{named}{name!r} is no regression or ordinal task of this study")
            if task.pool.hidden:
                raise ValueError(f"{named}tasks.{name}.pool.hidden gives the head features of its own; set it to 0")

    def reaches(self, tasks: Mapping[str, Task]) -> frozenset[str]:
        return frozenset(self.tasks)

    def affine(self, state: State) -> Tensor:
        """The heads' weights, covariates' included, [T, C + P]."""
        return torch.cat([_pooled(state.heads[name]).affine.weight for name in self.tasks])


class TemporalSmoothness(OverTime):
    """``sum_t ||w_{t+1} - w_t||^2`` over consecutive time points: ||W H||_F^2 of the temporal group lasso (Zhou, Yuan,
    Liu and Ye, KDD 2011), without its other terms: AdamW's decay is the ridge. Biases are free: scores worsen.
    """

    kind: Literal["temporal_smoothness"] = "temporal_smoothness"

    @property
    def label(self) -> str:
        return f"temporal_smoothness.{self.tasks[0]}"

    def value(self, state: State) -> Tensor:
        return self.affine(state).diff(dim=0).square().sum()


class FeatureLaplacian(OverTime):
    """``sum_t w_t^T L w_t / C``: features that go together are weighted alike, at every time point.

    After the Feature-Similarity Laplacian penalty ``sum_t tr(w_t^T L_t w_t)`` of MTL-FSL (Xu et al., arXiv 2510.10433),
    L = D - S, whose exact similarity is not public. Here S is the correlation r_jk of the pooled features over the
    batch of all ranks where ``|r_jk| >= above`` (of few images, small ones are noise), D_jj = sum_k |S_jk|, the signed
    Laplacian: ``w^T L w = 1/2 sum_jk |S_jk| (w_j - sign(S_jk) w_k)^2 >= 0``. It departs from the paper in that one
    graph serves all time points, which are predicted from one image; features change as the encoder learns, and so does
    L; no gradient flows into S.
    """

    kind: Literal["feature_laplacian"] = "feature_laplacian"
    above: float = Field(0.5, ge=0, lt=1)

    @property
    def label(self) -> str:
        return f"feature_laplacian.{self.tasks[0]}"

    def check(self, tasks: Mapping[str, Task]) -> None:
        super().check(tasks)
        for name in self.tasks:
            task = tasks[name]
            assert isinstance(task, Regression | Ordinal)
            if task.pool.over != "mean":
                raise ValueError(f"{self.label}: tasks.{name}.pool.over must be mean, whose features are compared")

    def value(self, state: State) -> Tensor:
        features = state.features.shape[1]
        W_TC = self.affine(state)[:, :features]
        return (W_TC * (W_TC @ laplacian(correlation(state.features), self.above))).sum() / features


@torch.no_grad()
def correlation(features_BC: Tensor) -> Tensor:
    """Pearson's r of the features over the samples of all ranks, [C, C]; 0 for a feature that does not vary."""
    x = features_BC.double()
    B = dist.total(torch.tensor(float(len(x)), dtype=x.dtype, device=x.device))
    mean = dist.total(x.sum(0)) / B
    deviation = (dist.total((x - mean).square().sum(0)) / B).sqrt()
    z = torch.where(deviation > 1e-9 * (1 + mean.abs()), (x - mean) / deviation, 0.0).to(features_BC)
    return (dist.total(z.T @ z) / B.to(z)).clamp(-1, 1)


def laplacian(r_CC: Tensor, above: float) -> Tensor:
    """The signed graph Laplacian D - S of the similarities |r| >= ``above`` between different features, [C, C]."""
    S = torch.where(r_CC.abs() >= above, r_CC, 0.0)
    S = S - torch.diag(S.diagonal())
    return torch.diag(S.abs().sum(1)) - S


def _pooled(head: nn.Module) -> PooledHead:
    found = pooled_head(head)
    assert found is not None, "check() lets pooled heads pass alone"
    return found


AnyPenalty = Annotated[Consistency | TemporalSmoothness | FeatureLaplacian, Field(discriminator="kind")]


def check_penalties(penalties: Sequence[AnyPenalty], tasks: Mapping[str, Task], fused: Sequence[str] | None) -> None:
    """ValueError where a penalty does not fit the tasks, or two have one name.

    ``fused`` are the tasks that see covariates; None: all that can, or none.
    """
    for penalty in penalties:
        penalty.check(tasks)
        if (
            isinstance(penalty, OverTime)
            and fused is not None
            and 0 < len({*penalty.tasks} & {*fused}) < len(penalty.tasks)
        ):
            raise ValueError(f"{penalty.label}: covariates.tasks names some of {list(penalty.tasks)}; name all or none")
    labels = [penalty.label for penalty in penalties]
    if len(set(labels)) != len(labels):
        raise ValueError(f"penalties: two of one kind begin with the same task: {labels}")
