"""batch -> the scalar to backpropagate: losses, balance, one backward. DistributedDataParallel wraps this."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from medmtl import distributed as dist
from medmtl.balance import Balancer
from medmtl.balance.gramian import jacobian
from medmtl.data.batch import Batch
from medmtl.losses import masked_mean, mass
from medmtl.models.multitask import MultiTaskModel
from medmtl.tasks.base import Task


class Losses(NamedTuple):
    """What a step yields. ``losses`` and ``present`` follow the order of the tasks."""

    scalar: Tensor  # []
    losses: Tensor  # [T], detached; unweighted; the mean over ranks is the global masked mean
    present: Tensor  # bool [T], whether any rank has a label
    gramian: Tensor | None  # [T, T] of all tasks' gradients on the shared parameters, when asked for


class Objective(nn.Module):
    """The multi-task loss of a batch with partial labels.

    A task's loss is the mean over every labelled sample on every rank, weighted where the task weighs its cases. Tasks
    marked ``auxiliary`` keep their fixed weight outside the balancer: an adversary conflicts by design and a
    conflict-removing balancer would disarm it.
    """

    weights: Tensor

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: Mapping[str, Task],
        balancer: Balancer,
        scope: Literal["all", "last"] = "all",
    ) -> None:
        super().__init__()
        self.model, self.balancer, self.tasks, self.scope = model, balancer, dict(tasks), scope
        self.register_buffer("weights", torch.tensor([task.weight for task in tasks.values()]), persistent=False)
        self._main = [i for i, task in enumerate(tasks.values()) if not task.auxiliary]
        self._auxiliary = [i for i, task in enumerate(tasks.values()) if task.auxiliary]

    def forward(self, batch: Batch, observe: bool = False) -> Losses:
        """``observe`` also computes the Gramian of all tasks, at the price of one backward pass each."""
        outputs = self.model(batch.image)
        labelled = [batch.labelled[task.target or name] for name, task in self.tasks.items()]
        weights = [None if task.weigh is None else batch.weights[task.weigh] for task in self.tasks.values()]
        totals = dist.total(torch.stack([mass(*pair) for pair in zip(labelled, weights, strict=True)]))
        each = [
            task.loss(outputs[name].float(), batch.targets[task.target or name]) for name, task in self.tasks.items()
        ]
        losses = torch.stack(
            [
                masked_mean(per_sample, mask, total, dist.world(), weight)
                for per_sample, mask, total, weight in zip(each, labelled, totals, weights, strict=True)
            ]
        )
        present = totals > 0
        weighted = losses * self.weights
        shared = self.model.shared(self.scope)
        gramian = None
        if observe:
            J_TP = jacobian(losses, shared)
            gramian = (J_TP @ J_TP.T).detach()
        scalar = weighted[self._auxiliary].sum()
        if self._main:
            scalar = scalar + self.balancer(weighted[self._main], shared, present[self._main])
        return Losses(scalar, losses.detach(), present, gramian)

    def forget_absent(self, present: Tensor) -> None:
        """Drop the (zero) gradients of heads without a label anywhere, so that weight decay does not shrink them.

        The balancer does the same with what it learns for such a task.
        """
        self.balancer.forget_absent(present[self._main])
        for name, is_present in zip(self.tasks, present.tolist(), strict=True):
            if not is_present:
                for parameter in self.model.heads[name].parameters():
                    parameter.grad = None
