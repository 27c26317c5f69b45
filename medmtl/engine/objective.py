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


class Losses(NamedTuple):
    """What a step yields. ``losses`` and ``present`` follow the order of the tasks, ``penalties`` that of theirs."""

    scalar: Tensor  # []
    losses: Tensor  # [T], detached; unweighted; the mean over ranks is the global masked mean
    present: Tensor  # bool [T], whether any rank has a label
    gramian: Tensor | None  # [T, T] of all tasks' gradients on the shared parameters, when asked for
    penalties: Tensor | None = None  # [Q], detached; unweighted; the mean over ranks is the global value


class Objective(nn.Module):
    """The multi-task loss of a batch with partial labels.

    A task's loss is the mean over every labelled sample on every rank, weighted where the task weighs its cases. Tasks
    marked ``auxiliary`` keep their fixed weight outside the balancer: an adversary conflicts by design and a
    conflict-removing balancer would disarm it. So do ``penalties``, which need no label.

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

    def forward(self, batch: Batch, observe: bool = False) -> Losses:
        """``observe`` also computes the Gramian of all tasks, at the price of one backward pass each."""
        outputs, deepest = self._run(batch)
        labelled = [batch.labelled[task.target or name] for name, task in self.tasks.items()]
        weights = [None if task.weigh is None else batch.weights[task.weigh] for task in self.tasks.values()]
        totals = dist.total(torch.stack([mass(*pair) for pair in zip(labelled, weights, strict=True)]))
        each = [
            task.loss(outputs[name].float(), batch.targets[task.target or name]) for name, task in self.tasks.items()
        ]
        masks = list(zip(labelled, totals, weights, strict=True))

        def means(per_sample: list[Tensor]) -> Tensor:
            return torch.stack(
                [
                    masked_mean(loss, mask, total, dist.world(), weight)
                    for loss, (mask, total, weight) in zip(per_sample, masks, strict=True)
                ]
            )

        losses = means(each)
        present = totals > 0
        weighted = (means(self._emphasised(each, batch)) if self._by_group else losses) * self.weights
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
        with torch.autocast(deepest.device.type, enabled=False):
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


def _full(tensor: Tensor) -> Tensor:
    """At least single precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
