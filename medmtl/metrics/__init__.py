"""Metrics as functions of sample weights ``[R, N]``, vectorised over R; NaN where a metric is undefined.

A row of ones gives scikit-learn's value; a row of multiplicities gives its value on samples repeated that often, which
is how :mod:`medmtl.stats` gets intervals. N samples, K classes, R weightings, G groups of equal score.
"""

from medmtl.metrics.classes import ECE_BINS, binary, multiclass
from medmtl.metrics.describe import METRICS, Metric, describe, is_better
from medmtl.metrics.numbers import intraclass, ordinal, regression
from medmtl.metrics.thresholds import bagged_threshold, best_threshold
from medmtl.metrics.weighted import Array, weighted_nanmean

__all__ = [
    "ECE_BINS",
    "METRICS",
    "Array",
    "Metric",
    "bagged_threshold",
    "best_threshold",
    "binary",
    "describe",
    "intraclass",
    "is_better",
    "multiclass",
    "ordinal",
    "regression",
    "weighted_nanmean",
]
