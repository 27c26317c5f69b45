"""Weights from the Gramian G = J J^T of the tasks' gradients on the shared parameters (J: [T, P], mean over ranks).

Balancing at the shared *representation* would be blind when tasks label different samples: their gradients then live
on different rows and every cosine is zero. Shared parameters see the conflict.
"""

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor, nn
from torchjd.aggregation import Weighting
from torchjd.linalg import DualConeProjector

from medmtl import distributed as dist
from medmtl.balance.static import Balancer


def jacobian(losses: Tensor, shared: list[nn.Parameter]) -> Tensor:
    """Rows d loss_t / d shared, averaged over ranks: [T, P]. One backward pass per task; the graph is kept."""
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    torch.zeros_like(p).flatten() if g is None else g.flatten()
                    for p, g in zip(shared, gradients, strict=True)
                ]
            ).float()
        )
    return dist.mean(torch.stack(rows))


def cosines(gramian: Tensor) -> Tensor:
    """Cosines between the tasks' gradients [T, T]; 0 where a task has no gradient."""
    norm = gramian.diagonal().clamp(min=0).sqrt()
    return torch.nan_to_num(gramian / torch.outer(norm, norm), nan=0.0, posinf=0.0, neginf=0.0)


class Gramian(Balancer):
    """sum_t w_t(G) L_t with weights from a TorchJD weighting, held constant in the backward pass.

    A weighting that averages (UPGrad, MGDA, CAGrad, Aligned-MTL) is multiplied by the number of tasks it weighs, and
    all by ``gain``, so that without conflict all balancers are on the scale of :class:`~medmtl.balance.static.Fixed`.
    Rank 0's weights count: some weightings are random (PCGrad's order of tasks).

    Where a step accumulates several batches, each is balanced by itself: weights are not linear in the gradients. A
    task without a gradient (no label in this batch, though in another of the step) has no direction to weigh: it is
    left out and keeps the weight 1. MGDA would take it for the shortest vector and stop all others.

    Weights depend on the directions and the relative lengths of the gradients, so G is divided by its mean diagonal:
    CAGrad's solver takes a short gradient for none and would stop all training. Where there is no gradient, or one that
    is not finite (the step will be skipped), the weights are 1.
    """

    def __init__(self, weighting: Weighting, *, averages: bool, gain: float = 1.0) -> None:
        super().__init__()
        self.weighting, self.averages, self.gain = weighting, averages, gain
        self.last: Tensor | None = None  # [T, T], for logging

    def forward(self, losses: Tensor, shared: list[nn.Parameter], present: Tensor) -> Tensor:
        J_TP = jacobian(losses, shared)
        G = J_TP @ J_TP.T
        self.last = G
        index = (present & (G.diagonal() > 0)).nonzero()[:, 0]
        length = G.diagonal()[index].mean()  # NaN without a task to weigh
        if not (torch.isfinite(G).all() and length > 0):
            return losses.sum()
        weights = present.to(losses)  # an absent task has weight 0 but stays in the graph: DDP waits for its head
        scale = self.gain * (len(index) if self.averages else 1)
        weights[index] = self.weighting(G[index][:, index] / length).to(losses) * scale
        return dist.from_rank_0(weights.detach()) @ losses


class NonNegativeProjector(DualConeProjector):
    """Projection onto the dual cone by non-negative least squares (scipy), free of quadprog's GPL.

    min_v v^T G v subject to v >= u. With G = A^T A and v = u + w: min_{w >= 0} |A w + A u|^2. G is divided by its trace
    and regularised by ``epsilon``, as TorchJD's own projector does. A = (L + epsilon)^1/2 V^T of G = V L V^T, with
    eigenvalues that rounding made negative taken for 0: gradients that are nearly parallel, or more tasks than
    parameters, have such, and a Cholesky factor would not exist.
    """

    def __init__(self, epsilon: float = 1e-4) -> None:
        self.epsilon = epsilon

    def __call__(self, U: Tensor, G: Tensor) -> Tensor:
        gramian = G.detach().double().cpu().numpy()
        trace = float(np.trace(gramian))
        normalised = gramian / trace if trace > 0 else np.zeros_like(gramian)
        values, V = scipy.linalg.eigh(normalised)
        A = np.sqrt(values.clip(min=0) + self.epsilon)[:, None] * V.T
        rows = U.detach().double().cpu().numpy().reshape(-1, len(gramian))
        solved = [u + scipy.optimize.nnls(A, -A @ u)[0] for u in rows]
        return torch.as_tensor(np.stack(solved)).reshape(U.shape).to(U)
