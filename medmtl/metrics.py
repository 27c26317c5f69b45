"""Metrics as functions of sample weights ``[R, N]``, vectorised over R; NaN where a metric is undefined.

A row of ones gives scikit-learn's value; a row of multiplicities gives its value on samples repeated that often, which
is how :mod:`medmtl.stats` gets intervals. N samples, K classes, R weightings, G groups of equal score.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medmtl.errors import UserError
from medmtl.stats import cluster_weights

Array = npt.NDArray[np.float64]

ECE_BINS = 15  # equal-width bins, as in Guo et al., On calibration of modern neural networks, ICML 2017


def binary(
    target: npt.ArrayLike, probability: npt.ArrayLike, threshold: float, weights: npt.ArrayLike
) -> dict[str, Array]:
    """Metrics of a two-class task; ``target`` is 0 or 1, a sample is called positive if ``probability >= threshold``.

    ``auprc`` is average precision (no interpolation). ``ece`` is ``sum_b |sum_{i in b} w_i (p_i - y_i)| / sum_i w_i``
    over 15 equal-width bins ``[b/15, (b+1)/15)`` of the *positive* probability, the last one closed. Without positives
    ``sensitivity``, ``auroc``, ``auprc`` and ``balanced_accuracy`` are NaN, without negatives ``specificity``,
    ``auroc`` and ``balanced_accuracy`` (scikit-learn's balanced accuracy would then be the other class's recall alone,
    and its average precision 0).
    """
    y, p, w = _checked(target, probability, weights)
    called = (p >= threshold).astype(np.float64)
    parts = np.stack([y * called, y, (1 - y) * (1 - called), 1 - y, called, (p - y) ** 2, np.ones_like(y)], axis=1)
    true_positive, positive, true_negative, negative, predicted, squared, total = (w @ parts).T
    sensitivity, specificity = _ratio(true_positive, positive), _ratio(true_negative, negative)
    positive_RG, negative_RG = _by_score(y, p, w)
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "auroc": _auroc(positive_RG, negative_RG),
        "auprc": _average_precision(positive_RG, negative_RG),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "f1": _ratio(2 * true_positive, positive + predicted),
        "accuracy": _ratio(true_positive + true_negative, total),
        "brier": _ratio(squared, total),
        "ece": _calibration_error(y, p, w),
    }


def multiclass(target: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike) -> dict[str, Array]:
    """Metrics of a task with K classes from ``probabilities [N, K]``; the largest is the prediction (first on ties).

    As in scikit-learn, ``balanced_accuracy`` is the mean recall of the classes that occur and ``macro_f1`` the mean
    over those that occur or are predicted. ``auroc`` is the mean one-vs-rest AUROC of the classes that have both
    positives and negatives. ``brier`` is ``mean_i sum_k (p_ik - y_ik)^2``, in [0, 2]. ``ece`` compares top-label
    confidence with accuracy. ``cohen_kappa`` is NaN where chance agreement is 1.
    """
    y, p, w = _checked(target, probabilities, weights)
    truth, chosen = np.eye(p.shape[1])[y.astype(np.int64)], p.argmax(axis=1)
    called, top = np.eye(p.shape[1])[chosen], p.max(axis=1, initial=0)
    right = (chosen == y).astype(np.float64)
    total, hits = w.sum(axis=1), w @ (truth * called)
    truth_RK, called_RK = w @ truth, w @ called
    agreement, chance = _ratio(hits.sum(axis=1), total), _ratio((truth_RK * called_RK).sum(axis=1), total**2)
    present = np.flatnonzero(truth.any(axis=0))
    curves = [_auroc(*_by_score(truth[:, k], p[:, k], w)) for k in present]
    return {
        "balanced_accuracy": _defined_mean(_ratio(hits, truth_RK)),
        "auroc": _defined_mean(np.stack(curves, axis=1)) if curves else np.full(len(w), np.nan),
        "macro_f1": _defined_mean(_ratio(2 * hits, truth_RK + called_RK)),
        "accuracy": agreement,
        "cohen_kappa": _ratio(agreement - chance, np.where(np.isclose(chance, 1), 0, 1 - chance)),
        "brier": _ratio(w @ ((p - truth) ** 2).sum(axis=1), total),
        "ece": _calibration_error(right, top, w),
    }


def regression(target: npt.ArrayLike, prediction: npt.ArrayLike, weights: npt.ArrayLike) -> dict[str, Array]:
    """Errors and association of a number with its prediction.

    ``r2 = 1 - sum w (y - p)^2 / sum w (y - mean y)^2``, NaN for a constant target (scikit-learn: 0 or 1). ``pearson``
    and ``spearman`` (mid-ranks on ties) are NaN where either side is constant.
    """
    y, p, w = _checked(target, prediction, weights)
    total = w.sum(axis=1)
    flat_target, flat_prediction = _constant(y, w), _constant(p, w)
    flat = flat_target | flat_prediction
    squared = _ratio(w @ (p - y) ** 2, total)
    centred = y - (y.mean() if len(y) else 0.0)
    variance = _ratio(w @ centred**2, total) - _ratio(w @ centred, total) ** 2
    return {
        "mae": _ratio(w @ np.abs(p - y), total),
        "rmse": np.sqrt(squared),
        "r2": 1 - _ratio(squared, np.where(flat_target, 0, variance)),
        "pearson": np.where(flat, np.nan, _correlation(y[None], p[None], w)),
        "spearman": np.where(flat, np.nan, _correlation(_midranks(y, w), _midranks(p, w), w)),
    }


def ordinal(
    target: npt.ArrayLike, level: npt.ArrayLike, expected: npt.ArrayLike, weights: npt.ArrayLike
) -> dict[str, Array]:
    """Errors and agreement of a predicted ``level``; ``spearman`` is of the ``expected`` level, which has fewer ties.

    ``quadratic_kappa = 1 - E[(y - p)^2] / E[(y - p')^2]``, p' being a prediction drawn independently of y; the
    denominator is ``var y + var p + (mean y - mean p)^2``. NaN where both sides are the same constant.
    ``balanced_accuracy`` is the mean recall of the levels that occur.
    """
    y, p, w = _checked(target, level, weights)
    total = w.sum(axis=1)
    near = np.abs(p - y)
    centred, called = (values - (y.mean() if len(y) else 0.0) for values in (y, p))
    mean_y, mean_p = _ratio(w @ centred, total), _ratio(w @ called, total)
    apart = _ratio(w @ centred**2, total) + _ratio(w @ called**2, total) - 2 * mean_y * mean_p
    alike = _constant(y, w) & _constant(p, w) & (w @ near == 0)
    truth = (y[:, None] == np.unique(y)).astype(np.float64)
    return {
        "quadratic_kappa": 1 - _ratio(_ratio(w @ near**2, total), np.where(alike, 0, apart)),
        "mae": _ratio(w @ near, total),
        "accuracy_within_1": _ratio(w @ (near <= 1).astype(np.float64), total),
        "accuracy": _ratio(w @ (near == 0).astype(np.float64), total),
        "balanced_accuracy": _defined_mean(_ratio(w @ (truth * (near == 0)[:, None]), w @ truth)),
        "spearman": regression(y, expected, w)["spearman"],
    }


def weighted_nanmean(values: npt.ArrayLike, weights: npt.ArrayLike) -> Array:
    """The weighted mean ``[R]`` of the values ``[N]`` that are not NaN; NaN where they carry no weight."""
    value, w = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    defined = ~np.isnan(value)
    return _ratio(w @ np.where(defined, value, 0.0), w @ defined.astype(np.float64))


def best_threshold(target: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """The threshold that maximises balanced accuracy when ``probability >= threshold`` is called positive.

    Candidates are the midpoints between neighbours of the distinct scores together with 0 and 1; among equally good
    ones the closest to 0.5 wins, then the lower. With one class only, balanced accuracy is undefined and 0.5 is
    returned.
    """
    y, p, _ = _checked(target, probability, np.ones((1, np.size(target))))
    if len(np.unique(y)) < 2:
        return 0.5
    scores = np.unique(np.concatenate([[0.0, 1.0], p]))
    middle = (scores[:-1] + scores[1:]) / 2
    middle = np.where(middle > scores[:-1], middle, scores[1:])  # neighbouring floats have no midpoint
    positive, negative = np.sort(p[y == 1]), np.sort(p[y == 0])
    sensitivity = 1 - np.searchsorted(positive, middle) / len(positive)
    specificity = np.searchsorted(negative, middle) / len(negative)
    quality = np.round(sensitivity + specificity, 12)
    best = middle[quality == quality.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def bagged_threshold(
    target: npt.ArrayLike, probability: npt.ArrayLike, groups: npt.ArrayLike, *, resamples: int = 200, seed: int = 0
) -> float:
    """The mean of :func:`best_threshold` over bootstrap resamples of groups: a choice that few patients cannot sway.

    The best threshold of one validation set is that of its noise as well. Chosen on one half of AMi-Br's validation
    slides and applied to the other (120 halves of four models), the mean gave 0.010 more balanced accuracy (0.808
    against 0.798). Resamples with one class are left out; NaN if there is no other.
    """
    y, p = np.asarray(target), np.asarray(probability)
    counts = cluster_weights(np.asarray(groups), resamples=resamples, seed=seed).astype(int)
    repeats = [(np.repeat(y, count), np.repeat(p, count)) for count in counts]
    chosen = [best_threshold(*repeat) for repeat in repeats if len(np.unique(repeat[0])) == 2]
    return float(np.mean(chosen)) if chosen else float("nan")


def _checked(target: npt.ArrayLike, prediction: npt.ArrayLike, weights: npt.ArrayLike) -> tuple[Array, Array, Array]:
    """The three as float arrays of matching length. NaN is our own mistake here: missing rows are left out before."""
    y, p, w = (np.asarray(values, dtype=np.float64) for values in (target, prediction, weights))
    assert len(y) == len(p) == w.shape[1], (y.shape, p.shape, w.shape)
    assert np.isfinite(y).all(), "a metric was given a missing target"
    assert np.isfinite(p).all(), "a metric was given a missing prediction"
    return y, p, w


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Their quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator != 0)


def _defined_mean(values: Array) -> Array:
    """The mean over the last axis of what is not NaN, NaN where nothing is."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


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
    return _ratio(np.einsum("rg,rg->r", positive_RG, below), pairs)


def _average_precision(positive_RG: Array, negative_RG: Array) -> Array:
    """``sum_t (recall_t - recall_{t-1}) precision_t`` over the thresholds t at the distinct scores, highest first."""
    hits = np.cumsum(positive_RG[:, ::-1], axis=1)
    called = hits + np.cumsum(negative_RG[:, ::-1], axis=1)
    precision = np.nan_to_num(_ratio(hits, called))  # nothing called: no recall is gained there either
    return _ratio(np.einsum("rg,rg->r", positive_RG[:, ::-1], precision), hits[:, -1])


def _calibration_error(outcome: Array, confidence: Array, w: Array) -> Array:
    """``sum_b |sum_{i in b} w_i (confidence_i - outcome_i)| / sum_i w_i``: the weighted mean gap of 15 bins."""
    bins = np.clip((confidence * ECE_BINS).astype(np.int64), 0, ECE_BINS - 1)
    gaps = np.eye(ECE_BINS)[bins] * (confidence - outcome)[:, None]
    return _ratio(np.abs(w @ gaps).sum(axis=1), w.sum(axis=1))


def _constant(values: Array, w: Array) -> npt.NDArray[np.bool_]:
    """Whether the values that carry weight are all the same (exactly: a variance would be 1e-17 instead of 0)."""
    high = np.where(w > 0, values, -np.inf).max(axis=1, initial=-np.inf)
    low = np.where(w > 0, values, np.inf).min(axis=1, initial=np.inf)
    return ~(high > low)


def _midranks(values: Array, w: Array) -> Array:
    """Weighted mid-ranks ``[R, N]``, less 1/2: the weight below a value plus half the weight at it."""
    distinct, member = np.unique(values, return_inverse=True)
    if not len(distinct):
        return np.zeros_like(w)
    order = np.argsort(member, kind="stable")
    at = np.add.reduceat(w[:, order], np.searchsorted(member[order], np.arange(len(distinct))), axis=1)
    return (np.cumsum(at, axis=1) - at / 2)[:, member]


def _correlation(a: Array, b: Array, w: Array) -> Array:
    """Pearson's correlation under each weighting, of values ``[1, N]`` or ``[R, N]``; 0/0 is NaN."""
    total = w.sum(axis=1, keepdims=True)
    a = a - _ratio((w * a).sum(axis=1, keepdims=True), total)
    b = b - _ratio((w * b).sum(axis=1, keepdims=True), total)
    weighted = w * a
    scale = np.einsum("rn,rn->r", weighted, a) * np.einsum("rn,rn->r", w * b, b)
    return np.clip(_ratio(np.einsum("rn,rn->r", weighted, b), np.sqrt(scale)), -1, 1)


@dataclass(frozen=True)
class Metric:
    """What a reader must know of a metric: its name in a table, which way is better, the perfect value, the unit."""

    label: str
    higher_is_better: bool
    best: float | None
    unit: str
    description: str


METRICS: dict[str, Metric] = {
    "balanced_accuracy": Metric("Balanced accuracy", True, 1.0, "", "mean recall of the classes; two: 0.5 is chance"),
    "auroc": Metric("AUROC", True, 1.0, "", "probability that a positive scores above a negative; macro one-vs-rest"),
    "auprc": Metric("AUPRC", True, 1.0, "", "average precision; chance is the share of positives"),
    "sensitivity": Metric("Sensitivity", True, 1.0, "", "share of the positives that are called positive"),
    "specificity": Metric("Specificity", True, 1.0, "", "share of the negatives that are called negative"),
    "f1": Metric("F1", True, 1.0, "", "harmonic mean of precision and sensitivity"),
    "macro_f1": Metric("Macro F1", True, 1.0, "", "mean F1 of the classes that occur or are predicted"),
    "accuracy": Metric("Accuracy", True, 1.0, "", "share of the cases that are right"),
    "cohen_kappa": Metric("Cohen's kappa", True, 1.0, "", "agreement beyond chance"),
    "quadratic_kappa": Metric("Quadratic kappa", True, 1.0, "", "agreement beyond chance, by squared distance"),
    "accuracy_within_1": Metric("Accuracy ± 1", True, 1.0, "", "share of the cases at most one level off"),
    "brier": Metric("Brier score", False, 0.0, "", "mean squared error of the probabilities, summed if K > 2"),
    "ece": Metric("ECE", False, 0.0, "", f"expected calibration error, {ECE_BINS} equal-width bins"),
    "mae": Metric("MAE", False, 0.0, "target's unit", "mean absolute error"),
    "rmse": Metric("RMSE", False, 0.0, "target's unit", "root of the mean squared error"),
    "r2": Metric("R²", True, 1.0, "", "share of the target's variance explained; 0 predicts its mean"),
    "pearson": Metric("Pearson r", True, 1.0, "", "linear correlation"),
    "spearman": Metric("Spearman ρ", True, 1.0, "", "rank correlation"),
    "dice": Metric("Dice", True, 1.0, "", "overlap 2|A∩B|/(|A|+|B|), mean over cases; both empty 1, one empty 0"),
    "iou": Metric("IoU", True, 1.0, "", "overlap |A∩B|/|A∪B|, mean over cases; both empty 1, one empty 0"),
    "hd95": Metric("HD95", False, 0.0, "mm, or px without spacing",
                   "95th percentile of surface distances, mean over cases; both empty 0, one empty left out"),
    "ged": Metric("GED²", False, 0.0, "", "generalised energy distance of the predicted set of masks to the drawn"),
    "agreement": Metric("Agreement", True, 1.0, "", "Dice of the prediction with the annotators, mean over them"),
    "agreement_iou": Metric("IoU with", True, 1.0, "", "IoU of the prediction with one annotator's masks"),
    "agreement_hd95": Metric("HD95 to", False, 0.0, "mm, or px without spacing",
                             "HD95 of the prediction to one annotator's masks; one empty left out"),
    "human_agreement": Metric("Human agreement", True, 1.0, "", "Dice of the annotators with each other"),
}  # fmt: skip


def describe(name: str) -> Metric:
    """The entry of ``name`` in ``METRICS``; ``dice.nucleus`` is the entry of ``dice`` for the class ``nucleus``."""
    family, _, part = name.partition(".")
    if family not in METRICS:
        raise UserError("E-EVAL-METRIC", f"no metric is called {name!r}", f"use one of {', '.join(METRICS)}")
    metric = METRICS[family]
    return replace(metric, label=f"{metric.label} {part}") if part else metric


def is_better(name: str, a: Any, b: Any) -> Any:
    """Whether value ``a`` of the metric ``name`` is strictly better than ``b`` (numbers or arrays)."""
    return a > b if describe(name).higher_is_better else a < b
