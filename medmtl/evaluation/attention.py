"""Learned weights of a patient's images: gated attention over what the model says about each of them.

Ilse, Tomczak and Welling, Attention-based deep multiple instance learning, ICML 2018, eq. 9, as a *late* aggregator:

    a_i ~ exp(w^T (tanh(V f_i) * sigmoid(U f_i))),    P(patient) = sum_i a_i P_i

f_i are the model's own answers about image i (all tasks that are not auxiliary), not its features: a few dozen patients
do not determine a thousand weights. It departs from the paper in that the encoder is trained before and for single
images, and in that the answer is a mean of the images' answers, so that it can do no worse than choose among them.
At w = 0, the start and what the penalty pulls towards, it is the mean rule. Learned on the training part, whose answers
are surer than those of new patients; the threshold still comes from validation.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from medmtl.seeds import generator

Array = npt.NDArray[np.float64]
_HIDDEN = 4
_PENALTY = 0.01  # on the squared weights, beside a mean loss per patient
_STEPS = 60  # of L-BFGS
_SMALLEST = 1e-4  # a probability's distance from 0 and 1 in the loss: one sure error must not decide everything


@dataclass(frozen=True)
class Attention:
    """The fitted weights; features are standardised by ``centre`` and ``scale`` [F]."""

    V: Array  # [H, F]
    U: Array  # [H, F]
    w: Array  # [H]
    centre: Array
    scale: Array

    def scores(self, features: Array) -> Array:
        """The logarithm of each image's weight, up to a constant of its patient [N]."""
        f = (features - self.centre) / self.scale
        return (np.tanh(f @ self.V.T) / (1 + np.exp(-f @ self.U.T))) @ self.w

    def plain(self) -> dict[str, list[object]]:
        """JSON-able."""
        return {name: np.asarray(getattr(self, name)).tolist() for name in ("V", "U", "w", "centre", "scale")}


def fit_attention(features: Array, above: Array, members: npt.NDArray[np.intp], levels: Array) -> Attention:
    """Minimise the patients' mean cross-entropy of ``level > k``, plus a penalty; full batches, no randomness left.

    ``features`` [N, F], ``above`` [N, T] the images' P(level > k), ``members`` [N] the patient of each, ``levels``
    [patients], NaN where there is no label. Without labels of two levels, the mean rule is returned.
    """
    centre = features.mean(axis=0) if len(features) else np.zeros(features.shape[1])
    scale = features.std(axis=0) + 1e-6 if len(features) else np.ones(features.shape[1])
    known = ~np.isnan(levels)
    F = features.shape[1]
    source = generator("attention", F)
    V, U = (torch.randn(_HIDDEN, F, generator=source, dtype=torch.float64) / max(F, 1) ** 0.5 for _ in range(2))
    w = torch.zeros(_HIDDEN, dtype=torch.float64)
    if len(np.unique(levels[known])) < 2 or F == 0:
        return Attention(V.numpy(), U.numpy(), w.numpy(), centre, scale)
    f, P = torch.from_numpy((features - centre) / scale), torch.from_numpy(np.asarray(above, dtype=np.float64))
    index, count = torch.from_numpy(np.asarray(members, dtype=np.int64)), len(levels)
    truth = torch.from_numpy((np.nan_to_num(levels)[:, None] > np.arange(P.shape[1])).astype(np.float64))
    mask = torch.from_numpy(known)
    parameters = [tensor.requires_grad_() for tensor in (V, U, w)]

    def loss() -> torch.Tensor:
        score = (torch.tanh(f @ V.T) * torch.sigmoid(f @ U.T)) @ w
        share = _softmax_within(score, index, count)
        p = torch.zeros(count, P.shape[1], dtype=torch.float64).index_add(0, index, share[:, None] * P)
        p = p.clamp(_SMALLEST, 1 - _SMALLEST)
        cost = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean(1)
        start = (V - V0).square().sum() + (U - U0).square().sum()
        return cost[mask].mean() + _PENALTY * (w.square().sum() + start)

    V0, U0 = V.detach().clone(), U.detach().clone()
    optimizer = torch.optim.LBFGS(parameters, max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return Attention(V.detach().numpy(), U.detach().numpy(), w.detach().numpy(), centre, scale)


def _softmax_within(score: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """exp(score) over its sum within each patient, [N]."""
    top = torch.full((count,), -torch.inf, dtype=score.dtype).scatter_reduce(0, index, score.detach(), "amax")
    weight = (score - top[index]).exp()
    return weight / torch.zeros(count, dtype=score.dtype).index_add(0, index, weight)[index]
