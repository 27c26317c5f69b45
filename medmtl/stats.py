"""Group-clustered bootstrap. Every metric is a function of sample weights, so resampling is only another weight vector.

``weights`` is ``[R, N]``: a row of ones gives the point estimate; a row of integer multiplicities gives the value of
one bootstrap resample, exactly as if the samples had been repeated. Patients (or slides) are drawn, not images, because
images of one patient are not independent: Field & Welsh, *Bootstrapping clustered data*, JRSS B 69 (2007).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medmtl.errors import UserError

Array = npt.NDArray[np.float64]
Metrics = Callable[[Array], Mapping[str, Array]]  # weights [R, N] -> {metric: [R]}

_CELLS = 2**19  # weights held at once: a few such arrays fit into a processor's cache


def weight_blocks(
    groups: Sequence[Any] | npt.NDArray[Any], *, resamples: int, seed: int, cells: int = _CELLS
) -> Iterator[Array]:
    """The rows of :func:`cluster_weights` in blocks of about ``cells`` numbers; the rows do not depend on ``cells``."""
    if resamples < 1:
        raise UserError("E-EVAL-BOOT", f"resamples = {resamples}", "ask for at least one, 1000 for a report")
    names, member = np.unique(np.asarray([str(group) for group in groups], dtype=str), return_inverse=True)
    generator = np.random.default_rng(seed)
    rows = max(1, cells // max(1, len(member)))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        if len(names) == 0:
            yield np.zeros((size, 0))
            continue
        counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
        yield counts[:, member].astype(np.float64)


def cluster_weights(groups: Sequence[Any] | npt.NDArray[Any], *, resamples: int, seed: int) -> Array:
    """Multiplicities ``[R, N]`` of samples when their G groups are drawn G times with replacement.

    Groups are compared and sorted as text, so a group gets the same draw wherever its rows stand: permuting the rows
    permutes the columns. All samples of a group share one multiplicity; each row holds G drawn groups.
    """
    return np.concatenate(list(weight_blocks(groups, resamples=resamples, seed=seed)))


def bootstrap(
    metrics: Metrics, groups: Sequence[Any] | npt.NDArray[Any], *, resamples: int, seed: int
) -> dict[str, Array]:
    """The bootstrap distribution ``{metric: [R]}`` of ``metrics``, computed block by block to bound memory."""
    blocks = [metrics(weights) for weights in weight_blocks(groups, resamples=resamples, seed=seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def percentile_interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """The central ``level`` of a bootstrap distribution ``[R]`` (Efron's percentile interval, linear quantiles).

    Resamples where the metric is undefined (NaN: one class was drawn) are left out. When *more than half* are NaN, what
    remains describes another population than the sample, and the interval is (NaN, NaN).
    """
    if not 0 < level < 1:
        raise UserError("E-EVAL-LEVEL", f"level = {level}", "give a number between 0 and 1, for example 0.95")
    defined = values[~np.isnan(values)]
    if len(defined) == 0 or 2 * len(defined) < len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_interval(a: Array, b: Array, level: float = 0.95) -> tuple[float, float]:
    """The interval of the difference ``b - a`` of one metric of two models under the *same* weights, row by row.

    Pairing removes the variation that both models share: it is narrower than two separate intervals suggest. A resample
    counts only where the metric is defined for both.
    """
    assert a.shape == b.shape, (a.shape, b.shape)
    return percentile_interval(b - a, level)
