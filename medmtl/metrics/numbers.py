"""Metrics of numbers and ordered levels: error, association, agreement."""

import numpy as np
import numpy.typing as npt

from medmtl.metrics.weighted import Array, checked, constant, correlation, defined_mean, midranks, ratio

LIMITS = 1.96  # standard deviations on both sides of the bias: Bland and Altman, Lancet 327, 1986


def regression(target: npt.ArrayLike, prediction: npt.ArrayLike, weights: npt.ArrayLike) -> dict[str, Array]:
    """Errors, association and agreement of a number with its prediction.

    ``r2 = 1 - sum w (y - p)^2 / sum w (y - mean y)^2``, NaN for a constant target (scikit-learn: 0 or 1). ``pearson``
    and ``spearman`` (mid-ranks on ties) are NaN where either side is constant. :func:`agreement` gives the others.
    """
    y, p, w = checked(target, prediction, weights)
    total = w.sum(axis=1)
    flat_target = constant(y, w)
    flat = flat_target | constant(p, w)
    squared = ratio(w @ (p - y) ** 2, total)
    centred = y - (y.mean() if len(y) else 0.0)
    variance = ratio(w @ centred**2, total) - ratio(w @ centred, total) ** 2
    return {
        "mae": ratio(w @ np.abs(p - y), total),
        "rmse": np.sqrt(squared),
        "r2": 1 - ratio(squared, np.where(flat_target, 0, variance)),
        "pearson": np.where(flat, np.nan, correlation(y[None], p[None], w)),
        "spearman": _spearman(y, p, w),
        **agreement(y, p, w),
    }


def ordinal(
    target: npt.ArrayLike, level: npt.ArrayLike, expected: npt.ArrayLike, weights: npt.ArrayLike
) -> dict[str, Array]:
    """Errors and agreement of a predicted ``level``; ``spearman`` is of the ``expected`` level, which has fewer ties.

    ``quadratic_kappa = 1 - E[(y - p)^2] / E[(y - p')^2]``, p' being a prediction drawn independently of y; the
    denominator is ``var y + var p + (mean y - mean p)^2``. NaN where both sides are the same constant.
    ``balanced_accuracy`` is the mean recall of the levels that occur.
    """
    y, p, w = checked(target, level, weights)
    total = w.sum(axis=1)
    near = np.abs(p - y)
    centred, called = (values - (y.mean() if len(y) else 0.0) for values in (y, p))
    mean_y, mean_p = ratio(w @ centred, total), ratio(w @ called, total)
    apart = ratio(w @ centred**2, total) + ratio(w @ called**2, total) - 2 * mean_y * mean_p
    alike = constant(y, w) & constant(p, w) & (w @ near == 0)
    truth = (y[:, None] == np.unique(y)).astype(np.float64)
    return {
        "quadratic_kappa": 1 - ratio(ratio(w @ near**2, total), np.where(alike, 0, apart)),
        "mae": ratio(w @ near, total),
        "accuracy_within_1": ratio(w @ (near <= 1).astype(np.float64), total),
        "accuracy": ratio(w @ (near == 0).astype(np.float64), total),
        "balanced_accuracy": defined_mean(ratio(w @ (truth * (near == 0)[:, None]), w @ truth)),
        "spearman": _spearman(*checked(y, expected, w)),
        **agreement(y, p, w),
    }


def agreement(target: npt.ArrayLike, prediction: npt.ArrayLike, weights: npt.ArrayLike) -> dict[str, Array]:
    """Intraclass correlation of target and prediction as two judges, and Bland-Altman's limits of agreement.

    ``icc_agreement`` is ICC(2,1): judges are taken for a sample of those who could rate, and a shift between them
    counts as disagreement, which is what an error in clinical units is. ``icc_consistency`` is ICC(3,1), which forgives
    the shift; of two judges it is ``2 cov(y, p) / (var y + var p)``. Both are NaN for a constant target, as ``r2`` is.
    ``bias`` is the mean of ``p - y``; ``loa_low`` and ``loa_high`` lie 1.96 standard deviations (n - 1) below and
    above, between which 95 % of the differences lie if they are normal; NaN for one case.
    """
    y, p, w = checked(target, prediction, weights)
    flat = constant(y, w)
    icc = intraclass(np.stack([y, p], axis=1), w)
    total, difference = w.sum(axis=1), p - y
    centre = difference.mean() if len(difference) else 0.0
    mean = ratio(w @ (difference - centre), total)
    squares = np.where(constant(difference, w), 0, np.maximum(w @ (difference - centre) ** 2 - total * mean**2, 0))
    half = LIMITS * np.sqrt(ratio(squares, np.maximum(total - 1, 0)))
    bias = mean + centre
    return {
        **{name: np.where(flat, np.nan, value) for name, value in icc.items()},
        "bias": bias,
        "loa_low": bias - half,
        "loa_high": bias + half,
    }


def intraclass(ratings: npt.ArrayLike, weights: npt.ArrayLike) -> dict[str, Array]:
    """ICC(2,1) and ICC(3,1) of ``ratings [N, J]``, N cases each rated by the same J judges, under each weighting [R].

    Shrout and Fleiss, Psychol. Bull. 86, 1979, with the mean squares of the two-way analysis of variance between cases
    (B), judges (J) and of the residual (E), n being the sum of the weights:

        ICC(2,1) = (B - E) / (B + (J - 1) E + J (JMS - E) / n),        ICC(3,1) = (B - E) / (B + (J - 1) E)

    NaN for fewer than two cases, and where nothing varies.
    """
    x, w = np.asarray(ratings, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    assert x.ndim == 2 and x.shape[1] > 1 and len(x) == w.shape[1], (x.shape, w.shape)
    judges, n = x.shape[1], w.sum(axis=1)
    of_case = x.mean(axis=1)
    within = x - of_case[:, None]
    centred = of_case - (of_case.mean() if len(x) else 0.0)
    between = np.where(constant(of_case, w), 0, w @ centred**2 - ratio((w @ centred) ** 2, n))
    shift = ratio(w @ within, n[:, None].repeat(judges, axis=1))
    of_judges = n * (shift**2).sum(axis=1)
    residual = w @ (within**2).sum(axis=1) - of_judges
    residual = np.where(np.stack([constant(column, w) for column in within.T]).all(axis=0), 0, residual)
    free = np.maximum(n - 1, 0)
    B, E = (ratio(np.maximum(square, 0), free) for square in (judges * between, residual / (judges - 1)))
    J = of_judges / (judges - 1)
    return {
        "icc_agreement": ratio(B - E, B + (judges - 1) * E + ratio(judges * (J - E), n)),
        "icc_consistency": ratio(B - E, B + (judges - 1) * E),
    }


def _spearman(y: Array, p: Array, w: Array) -> Array:
    return np.where(constant(y, w) | constant(p, w), np.nan, correlation(midranks(y, w), midranks(p, w), w))
