"""Task losses -> one scalar, from the losses alone: fixed weights, learned uncertainties, dynamic weight average."""

import torch
from torch import Tensor, nn

from medmtl import distributed as dist


class Balancer(nn.Module):
    """``forward(losses [T], shared parameters, present bool [T]) -> scalar``. That is the whole protocol.

    ``losses`` are already multiplied by the tasks' own weights; ``present`` is False for a task without a label in the
    whole step, on any rank: its loss is an exact zero and must not enter normalisations or learned terms.
    """

    def forward(self, losses: Tensor, shared: list[nn.Parameter], present: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not combine losses")

    def forget_absent(self, present: Tensor) -> None:
        """Drop the (zero) gradients of what belongs to absent tasks alone, so that momentum does not move it."""

    def end_epoch(self) -> None:
        """Called once after every epoch, on every rank."""


class Fixed(Balancer):
    """The sum of the weighted losses."""

    def forward(self, losses: Tensor, shared: list[nn.Parameter], present: Tensor) -> Tensor:
        return losses.sum()


class Uncertainty(Balancer):
    """sum_t exp(-s_t) L_t / 2 + s_t / 2 over the present tasks, s_t = log variance (Kendall et al. 2018, eq. 7).

    TorchJD's UW has no notion of an absent task: there s_t would fall on every step without labels.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.log_variance = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(tasks))

    def forward(self, losses: Tensor, shared: list[nn.Parameter], present: Tensor) -> Tensor:
        log_variance = torch.stack(list(self.log_variance))
        terms = 0.5 * (torch.exp(-log_variance) * losses + log_variance)
        return torch.where(present, terms, 0.0).sum()

    def forget_absent(self, present: Tensor) -> None:
        for parameter, is_present in zip(self.log_variance, present.tolist(), strict=True):
            if not is_present:
                parameter.grad = None


class DynamicWeightAverage(Balancer):
    """sum_t w_t L_t, w = T softmax(r / temperature), r_t = L_t(epoch - 1) / L_t(epoch - 2) (Liu et al. 2019, eq. 7-8).

    Epoch means run over the steps where the task had labels, on all ranks (TorchJD's DWA counts absent tasks as zero
    loss and keeps its history outside the state dict). Uniform during the first two epochs.
    """

    sums: Tensor
    counts: Tensor
    history: Tensor

    def __init__(self, tasks: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("sums", torch.zeros(tasks, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(tasks, dtype=torch.float64))
        self.register_buffer("history", torch.full((2, tasks), float("nan"), dtype=torch.float64))

    def weights(self) -> Tensor:
        """The current weights [T], summing to T; a task without history has rate 1."""
        rate = torch.nan_to_num(self.history[1] / self.history[0], nan=1.0, posinf=1.0)
        return len(rate) * torch.softmax(rate / self.temperature, 0)

    def forward(self, losses: Tensor, shared: list[nn.Parameter], present: Tensor) -> Tensor:
        if self.training:
            self.sums += dist.mean(losses.detach().clone())  # alike on all ranks, so a checkpoint of one is that of all
            self.counts += present
        return (self.weights().to(losses) * losses).sum()

    def end_epoch(self) -> None:
        mean = torch.where(self.counts > 0, self.sums / self.counts.clamp(min=1), self.history[1])
        self.history.copy_(torch.stack([self.history[1], mean]))
        self.sums.zero_()
        self.counts.zero_()
