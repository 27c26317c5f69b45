"""What metrics under sample weights ``[R, N]`` are made of: ratios, means, ranks and correlation of every weighting."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def checked(target: npt.ArrayLike, prediction: npt.ArrayLike, weights: npt.ArrayLike) -> tuple[Array, Array, Array]:
    """The three as float arrays of matching length. NaN is our own mistake here: missing rows are left out before."""
    y, p, w = (np.asarray(values, dtype=np.float64) for values in (target, prediction, weights))
    assert len(y) == len(p) == w.shape[1], (y.shape, p.shape, w.shape)
    assert np.isfinite(y).all(), "a metric was given a missing target"
    assert np.isfinite(p).all(), "a metric was given a missing prediction"
    return y, p, w


def ratio(numerator: Array, denominator: Array) -> Array:
    """Their quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator != 0)


def defined_mean(values: Array) -> Array:
    """The mean over the last axis of what is not NaN, NaN where nothing is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


def weighted_nanmean(values: npt.ArrayLike, weights: npt.ArrayLike) -> Array:
    """The weighted mean ``[R]`` of the values ``[N]`` that are not NaN; NaN where they carry no weight."""
    value, w = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    defined = ~np.isnan(value)
    return ratio(w @ np.where(defined, value, 0.0), w @ defined.astype(np.float64))


def constant(values: Array, w: Array) -> npt.NDArray[np.bool_]:
    """Whether the values that carry weight are all the same (exactly: a variance would be 1e-17 instead of 0)."""
    high = np.where(w > 0, values, -np.inf).max(axis=1, initial=-np.inf)
    low = np.where(w > 0, values, np.inf).min(axis=1, initial=np.inf)
    return ~(high > low)


def midranks(values: Array, w: Array) -> Array:
    """Weighted mid-ranks ``[R, N]``, less 1/2: the weight below a value plus half the weight at it."""
    distinct, member = np.unique(values, return_inverse=True)
    if not len(distinct):
        return np.zeros_like(w)
    order = np.argsort(member, kind="stable")
    at = np.add.reduceat(w[:, order], np.searchsorted(member[order], np.arange(len(distinct))), axis=1)
    return (np.cumsum(at, axis=1) - at / 2)[:, member]


def correlation(a: Array, b: Array, w: Array) -> Array:
    """Pearson's correlation under each weighting, of values ``[1, N]`` or ``[R, N]``; 0/0 is NaN."""
    total = w.sum(axis=1, keepdims=True)
    a = a - ratio((w * a).sum(axis=1, keepdims=True), total)
    b = b - ratio((w * b).sum(axis=1, keepdims=True), total)
    weighted = w * a
    scale = np.einsum("rn,rn->r", weighted, a) * np.einsum("rn,rn->r", w * b, b)
    return np.clip(ratio(np.einsum("rn,rn->r", weighted, b), np.sqrt(scale)), -1, 1)
