"""Per-sample losses, [B], scaled so that a constant, uninformed prediction costs about 1."""

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits_BK: Tensor, target_B: Tensor, *, class_weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """w_y * CE(softmax(logits), smoothed y) / log K; 1 for equal logits when the weights average 1 over the prior."""
    K = logits_BK.shape[1]
    # torch's weight= would weigh each smoothed term by that term's class; here a sample's weight is its own class's.
    loss = F.cross_entropy(logits_BK, target_B, reduction="none", label_smoothing=smoothing) / log(K)
    return loss if class_weights is None else class_weights.to(loss)[target_B] * loss


def focal(logits_BK: Tensor, target_B: Tensor, *, gamma: float, class_weights: Tensor | None = None) -> Tensor:
    """w_y (1 - p_y)^gamma * CE (Lin et al. 2017, eq. 5), divided by its value at equal logits.

    p_y is the unweighted probability: implementations that exponentiate a class-weighted log-probability do not compute
    the paper's loss.
    """
    K = logits_BK.shape[1]
    log_p = F.log_softmax(logits_BK, 1).gather(1, target_B[:, None])[:, 0]
    missed = (-torch.expm1(log_p)).clamp(min=1e-12)  # 1 - p; at 0 a power below 1 has no finite slope
    loss = -(missed**gamma) * log_p / ((1 - 1 / K) ** gamma * log(K))
    return loss if class_weights is None else class_weights.to(loss)[target_B] * loss


def dice_cross_entropy(logits: Tensor, target: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """Half soft Dice over the foreground classes, half cross-entropy / log K; [B, K, *S] and [B, *S] -> [B].

    Dice is smoothed by 1 (MONAI's ``smooth_nr`` and ``smooth_dr``), so an image without foreground has a finite
    gradient that lowers false positives.
    """
    K = logits.shape[1]
    ce = F.cross_entropy(
        logits, target, weight=None if class_weights is None else class_weights.to(logits), reduction="none"
    )
    from monai.losses import DiceLoss  # MONAI takes seconds to import, which no prediction needs

    soft = DiceLoss(
        softmax=True, to_onehot_y=True, include_background=False, reduction="none", smooth_nr=1.0, smooth_dr=1.0
    )
    dice = soft(logits, target[:, None])
    return 0.5 * ce.flatten(1).mean(1) / log(K) + 0.5 * dice.flatten(1).mean(1)


def regression(output_B: Tensor, standard_B: Tensor, *, kind: str) -> Tensor:
    """Loss of a standardised prediction: ``mse`` (of z-scores), ``l1`` or ``huber`` (of target / mean deviation)."""
    match kind:
        case "mse":
            return F.mse_loss(output_B, standard_B, reduction="none")
        case "l1":
            return F.l1_loss(output_B, standard_B, reduction="none")
        case "huber":  # 0.5 at |z| = 1; doubled, so that the scale of the target costs 1
            return 2 * F.huber_loss(output_B, standard_B, reduction="none")
    raise ValueError(f"unknown regression loss {kind!r}")


def cumulative(logits_BT: Tensor, level_B: Tensor, *, importance: Tensor) -> Tensor:
    """``mean_k lambda_k BCE(level > k)`` over the T = K - 1 thresholds of K levels (Cao et al. 2020, eq. 4)."""
    above = (level_B[:, None] > torch.arange(logits_BT.shape[1], device=logits_BT.device)).to(logits_BT)
    return (importance * F.binary_cross_entropy_with_logits(logits_BT, above, reduction="none")).mean(1)


def soft_dice_cross_entropy(logits: Tensor, share: Tensor, *, class_weights: Tensor | None = None) -> Tensor:
    """:func:`dice_cross_entropy` towards shares of annotators instead of labels; [B, K, *S] twice -> [B]."""
    weight = None if class_weights is None else class_weights.to(logits)
    ce = F.cross_entropy(logits, share, weight=weight, reduction="none")
    from monai.losses import DiceLoss

    soft = DiceLoss(softmax=True, include_background=False, reduction="none", smooth_nr=1.0, smooth_dr=1.0)
    return 0.5 * ce.flatten(1).mean(1) / log(logits.shape[1]) + 0.5 * soft(logits, share).flatten(1).mean(1)


def confused_cross_entropy(logits: Tensor, log_confusion_MKK: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of masks under a prediction as their annotators would see it (Tanno et al., CVPR 2019), [M].

    ``- log sum_j p_j A[j, y] / log K``, mean over the pixels, with p = softmax(``logits`` [M, K, *S]), the labels y in
    ``target`` [M, *S] and A[j, k] the probability that the annotator says k where the truth is j. 1 at uniform p for
    an A whose columns add up to 1.
    """
    K = logits.shape[1]
    log_p = F.log_softmax(logits, 1).flatten(2)
    said = target.flatten(1)[:, None].expand(-1, K, -1)
    return -torch.logsumexp(log_p + log_confusion_MKK.gather(2, said), 1).mean(1) / log(K)


def mass(labelled_B: Tensor, weights_B: Tensor | None = None) -> Tensor:
    """What the labelled samples weigh together, []: their number, or the sum of their positive weights."""
    return labelled_B.sum() if weights_B is None else torch.where(labelled_B, weights_B, 0.0).sum()


def masked_mean(
    per_sample_B: Tensor, labelled_B: Tensor, total: Tensor, parts: int, weights_B: Tensor | None = None
) -> Tensor:
    """``sum_i w_i l_i / sum_i w_i`` over the labelled samples of a whole step, given their all-reduced :func:`mass`.

    Without weights it is their mean. A step has ``parts``, ranks times batches, over which gradients are averaged (by
    DDP, and by the training loop): hence the factor, so that the mean over the parts is that of the step. Unlabelled
    samples contribute an exact zero, so a placeholder cannot change loss or gradient by a bit.
    """
    weighted = per_sample_B if weights_B is None else per_sample_B * weights_B
    divisor = total.where(total > 0, 1).to(weighted.dtype)  # no clamp at 1: weights may add up to less
    return (torch.where(labelled_B, weighted, 0.0).sum() * parts / divisor).to(per_sample_B.dtype)
