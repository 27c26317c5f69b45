"""Metrics of classes and their probabilities."""

import numpy as np
import numpy.typing as npt

from medmtl.metrics.weighted import Array, checked, defined_mean, ratio

ECE_BINS = 15  # equal-width bins, as in Guo et al., On calibration of modern neural networks, ICML 2017


def binary(
    target: npt.ArrayLike, probability: npt.ArrayLike, threshold: float | Array, weights: npt.ArrayLike
) -> dict[str, Array]:
    """Metrics of a two-class task; ``target`` is 0 or 1, a sample is called positive if ``probability >= threshold``.

    ``threshold`` may be each sample's own, [N].

    ``auprc`` is average precision (no interpolation). ``ece`` is ``sum_b |sum_{i in b} w_i (p_i - y_i)| / sum_i w_i``
    over 15 equal-width bins ``[b/15, (b+1)/15)`` of the *positive* probability, the last one closed. Without positives
    ``sensitivity``, ``auroc``, ``auprc`` and ``balanced_accuracy`` are NaN, without negatives ``specificity``,
    ``auroc`` and ``balanced_accuracy`` (scikit-learn's balanced accuracy would then be the other class's recall alone,
    and its average precision 0).
    """
    y, p, w = checked(target, probability, weights)
    called = (p >= threshold).astype(np.float64)
    parts = np.stack([y * called, y, (1 - y) * (1 - called), 1 - y, called, (p - y) ** 2, np.ones_like(y)], axis=1)
    true_positive, positive, true_negative, negative, predicted, squared, total = (w @ parts).T
    sensitivity, specificity = ratio(true_positive, positive), ratio(true_negative, negative)
    positive_RG, negative_RG = _by_score(y, p, w)
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "auroc": _auroc(positive_RG, negative_RG),
        "auprc": _average_precision(positive_RG, negative_RG),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "f1": ratio(2 * true_positive, positive + predicted),
        "accuracy": ratio(true_positive + true_negative, total),
        "brier": ratio(squared, total),
        "ece": _calibration_error(y, p, w),
    }


def multiclass(target: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike) -> dict[str, Array]:
    """Metrics of a task with K classes from ``probabilities [N, K]``; the largest is the prediction (first on ties).

    As in scikit-learn, ``balanced_accuracy`` is the mean recall of the classes that occur and ``macro_f1`` the mean
    over those that occur or are predicted. ``auroc`` is the mean one-vs-rest AUROC of the classes that have both
    positives and negatives. ``brier`` is ``mean_i sum_k (p_ik - y_ik)^2``, in [0, 2]. ``ece`` compares top-label
    confidence with accuracy. ``cohen_kappa`` is NaN where chance agreement is 1.
    """
    y, p, w = checked(target, probabilities, weights)
    truth, chosen = np.eye(p.shape[1])[y.astype(np.int64)], p.argmax(axis=1)
    called, top = np.eye(p.shape[1])[chosen], p.max(axis=1, initial=0)
    right = (chosen == y).astype(np.float64)
    total, hits = w.sum(axis=1), w @ (truth * called)
    truth_RK, called_RK = w @ truth, w @ called
    agreement, chance = ratio(hits.sum(axis=1), total), ratio((truth_RK * called_RK).sum(axis=1), total**2)
    present = np.flatnonzero(truth.any(axis=0))
    curves = [_auroc(*_by_score(truth[:, k], p[:, k], w)) for k in present]
    return {
        "balanced_accuracy": defined_mean(ratio(hits, truth_RK)),
        "auroc": defined_mean(np.stack(curves, axis=1)) if curves else np.full(len(w), np.nan),
        "macro_f1": defined_mean(ratio(2 * hits, truth_RK + called_RK)),
        "accuracy": agreement,
        "cohen_kappa": ratio(agreement - chance, np.where(np.isclose(chance, 1), 0, 1 - chance)),
        "brier": ratio(w @ ((p - truth) ** 2).sum(axis=1), total),
        "ece": _calibration_error(right, top, w),
    }


def _by_score(y: Array, score: Array, w: Array) -> tuple[Array, Array]:
    """The weight of positives and of negatives ``[R, G]`` at each distinct score, ascending."""
    if not len(y):
        return np.zeros((len(w), 1)), np.zeros((len(w), 1))
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    ordered = w[:, order]
    positive = np.add.reduceat(ordered * y[order], starts, axis=1)
    return positive, np.add.reduceat(ordered, starts, axis=1) - positive


def _auroc(positive_RG: Array, negative_RG: Array) -> Array:
    """The probability that a positive scores above a negative, a tie counting half: Mann-Whitney's U / (P N)."""
    below = np.cumsum(negative_RG, axis=1) - negative_RG / 2
    pairs = positive_RG.sum(axis=1) * negative_RG.sum(axis=1)
    return ratio(np.einsum("rg,rg->r", positive_RG, below), pairs)


def _average_precision(positive_RG: Array, negative_RG: Array) -> Array:
    """``sum_t (recall_t - recall_{t-1}) precision_t`` over the thresholds t at the distinct scores, highest first."""
    hits = np.cumsum(positive_RG[:, ::-1], axis=1)
    called = hits + np.cumsum(negative_RG[:, ::-1], axis=1)
    precision = np.nan_to_num(ratio(hits, called))  # nothing called: no recall is gained there either
    return ratio(np.einsum("rg,rg->r", positive_RG[:, ::-1], precision), hits[:, -1])


def _calibration_error(outcome: Array, confidence: Array, w: Array) -> Array:
    """``sum_b |sum_{i in b} w_i (confidence_i - outcome_i)| / sum_i w_i``: the weighted mean gap of 15 bins."""
    bins = np.clip((confidence * ECE_BINS).astype(np.int64), 0, ECE_BINS - 1)
    gaps = np.eye(ECE_BINS)[bins] * (confidence - outcome)[:, None]
    return ratio(np.abs(w @ gaps).sum(axis=1), w.sum(axis=1))
