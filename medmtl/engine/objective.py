"""batch -> the scalar to backpropagate: losses, balance, one backward. DistributedDataParallel wraps this."""

from collections.abc import Mapping, Sequence
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
from medmtl.tasks.emphasis import Emphasis
from medmtl.tasks.penalties import AnyPenalty, State


class Labels(NamedTuple):
    """What the batches of one step hold together, on all ranks."""

    totals: Tensor  # [T], the mass of each task's labels
    batches: int  # on each rank


class Losses(NamedTuple):
    """What a batch yields. ``losses`` and ``present`` follow the order of the tasks, ``penalties`` that of theirs."""

    scalar: Tensor  # []
    losses: Tensor  # [T], detached; unweighted; the mean over ranks and the step's batches is the step's masked mean
    present: Tensor  # bool [T], whether any batch of the step on any rank has a label
    gramian: Tensor | None  # [T, T] of all tasks' gradients on the shared parameters, when asked for
    penalties: Tensor | None = None  # [Q], detached; unweighted; the mean over ranks is the global value


class Objective(nn.Module):
    """The multi-task loss of a batch with partial labels.

    A task's loss is the mean over every labelled sample of a step, on every rank and in every batch that it accumulates
    (a batch without a label of a task is not one whose loss is zero), weighted where the task weighs its cases. Outputs
    may be of half precision, nothing after them is. Tasks marked ``auxiliary`` keep their fixed weight outside the
    balancer: an adversary conflicts by design and a conflict-removing balancer would disarm it. So do ``penalties``,
    which need no label.

    An ``emphasis`` multiplies the tasks' weights, or, where groups of patients have one of their own, each sample's
    loss: its group's weight of the task. The losses that are reported have neither.
    """

    weights: Tensor
    strata: Tensor

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: Mapping[str, Task],
        balancer: Balancer,
        scope: Literal["all", "last"] = "all",
        *,
        emphasis: Emphasis | None = None,
        penalties: Sequence[AnyPenalty] = (),
    ) -> None:
        super().__init__()
        self.model, self.balancer, self.tasks, self.scope = model, balancer, dict(tasks), scope
        self.penalties = tuple(penalties)
        weights = torch.tensor([task.weight for task in tasks.values()])
        self._by_group = emphasis is not None and bool(emphasis.groups)
        if emphasis is not None and not self._by_group:
            weights = weights * emphasis.weights(emphasis.preset, list(tasks))
        strata = emphasis.table(list(tasks)) if emphasis is not None and self._by_group else torch.ones(1, len(tasks))
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("strata", strata, persistent=False)  # [G + 1, T]
        self._taught = frozenset(name for p in self.penalties if p.weight for name in p.reaches(self.tasks))
        self._main = [i for i, task in enumerate(tasks.values()) if not task.auxiliary]
        self._auxiliary = [i for i, task in enumerate(tasks.values()) if task.auxiliary]

    def labels(self, group: Sequence[Batch]) -> Labels:
        """Count the labels of a step's batches, before the first of them is used."""
        return Labels(dist.total(torch.stack([self._masses(batch) for batch in group]).sum(0)), len(group))

    def forward(self, batch: Batch, observe: bool = False, labels: Labels | None = None) -> Losses:
        """``labels`` are those of the whole step, None where it has this batch alone.

        ``observe`` also computes the Gramian of all tasks, at the price of one backward pass each.
        """
        labels = self.labels([batch]) if labels is None else labels
        outputs, deepest = self._run(batch)
        with torch.autocast(batch.image.device.type, enabled=False):  # a Gramian of 8 bits misleads its solvers
            return self._balanced(batch, outputs, deepest, labels, observe)

    def _balanced(
        self, batch: Batch, outputs: Mapping[str, Tensor], deepest: Tensor, labels: Labels, observe: bool
    ) -> Losses:
        each = [
            task.loss(outputs[name].float(), batch.targets[task.target or name]) for name, task in self.tasks.items()
        ]
        losses = self._means(each, batch, labels)
        weighted = self._means(self._emphasised(each, batch), batch, labels) if self._by_group else losses
        weighted = weighted * self.weights
        present = labels.totals > 0
        shared = self.model.shared(self.scope)
        gramian = None
        if observe:
            J_TP = jacobian(losses, shared)
            gramian = (J_TP @ J_TP.T).detach()
        scalar = weighted[self._auxiliary].sum()
        if self._main:
            scalar = scalar + self.balancer(weighted[self._main], shared, present[self._main])
        penalties = self._penalties(outputs, deepest)
        if self._taught:
            weight = [penalty.weight for penalty in self.penalties]
            scalar = scalar + (penalties * penalties.new_tensor(weight)).sum().to(scalar.dtype)
        return Losses(scalar, losses.detach(), present, gramian, penalties.detach())

    def _masks(self, batch: Batch) -> list[tuple[Tensor, Tensor | None]]:
        """Which samples each task has a label of, and their weights where it weighs its cases."""
        return [
            (batch.labelled[task.target or name], None if task.weigh is None else batch.weights[task.weigh])
            for name, task in self.tasks.items()
        ]

    def _masses(self, batch: Batch) -> Tensor:
        """[T], on this rank."""
        return torch.stack([mass(*mask) for mask in self._masks(batch)])

    def _means(self, each: list[Tensor], batch: Batch, labels: Labels) -> Tensor:
        """This batch's share in the step's masked means, [T]."""
        parts = dist.world() * labels.batches
        return torch.stack(
            [
                masked_mean(loss, mask, total, parts, weights)
                for loss, total, (mask, weights) in zip(each, labels.totals, self._masks(batch), strict=True)
            ]
        )

    def _emphasised(self, each: list[Tensor], batch: Batch) -> list[Tensor]:
        """Every sample's loss times what its group makes of the task."""
        assert batch.stratum is not None, "a study with groups has a data set that knows them"
        strata_BT = self.strata[batch.stratum]
        return [loss * strata_BT[:, t] for t, loss in enumerate(each)]

    def _run(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The outputs, and the deepest map where there are penalties to look at it."""
        deepest: list[Tensor] = []
        hook = None
        if self.penalties:  # a hook, so that it is the model that is called, whatever is hooked to it or wraps it
            hook = self.model.encoder.register_forward_hook(lambda module, inputs, maps: deepest.append(maps[-1]))
        try:
            outputs = self.model(batch.image, *(() if batch.covariates is None else (batch.covariates,)))
        finally:
            if hook is not None:
                hook.remove()
        return outputs, deepest[0] if deepest else batch.image.new_zeros(0)

    def _penalties(self, outputs: Mapping[str, Tensor], deepest: Tensor) -> Tensor:
        """[Q], in full precision; one that teaches nothing has no graph."""
        if not self.penalties:
            return deepest.new_zeros(0)
        state = State(
            self.tasks,
            dict(self.model.heads.items()),
            {name: _full(output) for name, output in outputs.items()},
            _full(deepest).flatten(2).mean(-1),
        )
        values = [penalty.value(state) for penalty in self.penalties]
        return torch.stack([v if p.weight else v.detach() for v, p in zip(values, self.penalties, strict=True)])

    def forget_absent(self, present: Tensor) -> None:
        """Drop the (zero) gradients of heads without a label anywhere, so that weight decay does not shrink them.

        The balancer does the same with what it learns for such a task. A head that a penalty teaches keeps its own.
        """
        self.balancer.forget_absent(present[self._main])
        for name, is_present in zip(self.tasks, present.tolist(), strict=True):
            if not is_present and name not in self._taught:
                for parameter in self.model.heads[name].parameters():
                    parameter.grad = None


def step_means(parts: Sequence[Losses]) -> Losses:
    """The losses of a step from those of its batches; the Gramian is that of the last."""
    scalar = torch.stack([part.scalar.detach() for part in parts]).mean()
    mean = torch.stack([part.losses for part in parts]).mean(0)
    known = [part.penalties for part in parts if part.penalties is not None]
    penalties = torch.stack(known).mean(0) if known else None
    return Losses(scalar, mean, parts[-1].present, parts[-1].gramian, penalties)


def _full(tensor: Tensor) -> Tensor:
    """At least single precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
