"""How far numbers lie from those of other images, in units of how far images of the same kind go.

The distance of an image is that to the nearest of the training images, over p numbers in Mahalanobis's metric,
``d = min_i sqrt((x - x_i)^T S^-1 (x - x_i) / p)``: S is the numbers' covariance, its correlations shrunk after Ledoit &
Wolf (2004), so that numbers that are each ordinary but do not occur together are far off. The nearest image instead of
the mean, since a study is several clouds (scanners, sites), and what lies between them is none of its images.

Its unit is the ``1 - LEVEL`` quantile of the distances of images that a gauge was *not* fitted on (cross-conformal,
Vovk 2015: in turn each tenth of the groups, judged by the others). Images of a patient are alike, so patients (groups)
are what is counted: each of K groups weighs 1 / (K + 1), shared by its images, and 1 / (K + 1) lies beyond all of them
(Lee, Barber & Willett 2023, hierarchical conformal prediction). An image of a new group of the same kind then exceeds
the unit with a probability of about LEVEL, whatever the distribution, if ``K >= 1 / LEVEL - 1 = 99``. Of fewer groups
the unit is the largest distance there was, and that probability about 1 / (K + 1).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

LEVEL = 0.01  # of images of the same kind that are warned about
GROUPS = 20  # fewer would be wrong about 1 image in 20: no gauge
SURE = 99  # groups that LEVEL takes
_FOLDS = 10

Table = npt.NDArray[np.float64]
Row = tuple[float, ...]


@dataclass(frozen=True)
class Gauge:
    """Numbers of images of a kind. Without ``precision`` they count as independent."""

    names: tuple[str, ...]
    scale: Row  # of each number
    reference: tuple[Row, ...]  # of each image
    unit: float
    precision: tuple[Row, ...] | None = None  # the inverse of the correlations
    refuse: float | None = None  # times the unit from which on an image is refused; None: never

    def ratio(self, values: Sequence[float]) -> float:
        """The distance in units; above 1 it is unusual. NaN of what is not finite."""
        return float(self._squares(values).min() ** 0.5) / max(self.unit, 1e-12)

    def culprit(self, values: Sequence[float]) -> tuple[str, float, float]:
        """The number that adds most to the distance, its value, and that of the nearest image."""
        nearest = np.asarray(self.reference[int(self._squares(values).argmin())])
        offset = (np.asarray(values, dtype=np.float64) - nearest) / np.asarray(self.scale)
        at = int(np.argmax(offset * (offset if self.precision is None else np.asarray(self.precision) @ offset)))
        return self.names[at], float(values[at]), float(nearest[at])

    @cached_property
    def _known(self) -> "tuple[Table, Table | None]":
        """The images in the space that distances are taken in, and what brings an image there."""
        known = np.asarray(self.reference) / np.asarray(self.scale)
        if self.precision is None:
            return known, None
        root = np.linalg.cholesky(np.asarray(self.precision))
        return known @ root, root

    def _squares(self, values: Sequence[float]) -> Table:
        assert len(values) == len(self.scale), (len(values), len(self.scale))
        return _squares(np.asarray([values], dtype=np.float64), self)[0]


def _squares(table: Table, gauge: Gauge) -> Table:
    """Squared distances [N, images of the gauge]."""
    z, (known, root) = table / np.asarray(gauge.scale), gauge._known
    z = z if root is None else z @ root
    return np.asarray(((z[:, None] - known[None]) ** 2).mean(2))


def _fit(names: Sequence[str], table: Table, narrowest: float) -> Gauge:
    from sklearn.covariance import ledoit_wolf  # takes a second: for those who fit, not for those who compare

    mean = table.mean(0)
    scale = np.maximum(table.std(0, ddof=1), narrowest * np.maximum(1, np.abs(mean)))
    precision = np.linalg.inv(ledoit_wolf((table - mean) / scale, assume_centered=True)[0])
    precision = (precision + precision.T) / 2
    return Gauge(tuple(names), _row(scale), tuple(map(_row, table)), 1.0, tuple(map(_row, precision)))


def _row(values: Table) -> Row:
    return tuple(float(f"{value:.7g}") for value in values)


def calibrated(
    kinds: Mapping[str, tuple[Sequence[str], Table]], groups: Sequence[str], *, narrowest: float, refuse: float
) -> dict[str, Gauge]:
    """A gauge for each kind of numbers [images, P], which together warn about LEVEL of the images of new groups.

    The units are such that the *largest* ratio of an image is calibrated. {} where there are fewer than GROUPS groups.
    """
    count = len(set(groups))
    if count < GROUPS:
        return {}
    folds, ratios, fitted = _folds(groups), [], {}
    for kind, (names, table) in kinds.items():
        apart = np.empty(len(table))
        for fold in range(_FOLDS):
            out = folds == fold
            apart[out] = _squares(table[out], _fit(names, table[~out], narrowest)).min(1) ** 0.5
        common = max(float(np.quantile(apart, 1 - LEVEL)), 1e-12)  # makes kinds comparable, nothing else
        fitted[kind] = replace(_fit(names, table, narrowest), unit=common)
        ratios.append(apart / common)
    most = conformal_quantile(np.max(ratios, axis=0), groups, level=level_of(count))
    sure = refuse if count >= SURE else None
    return {kind: replace(gauge, unit=gauge.unit * most, refuse=sure) for kind, gauge in fitted.items()}


def level_of(groups: int) -> float:
    """The share of images of new groups that so many groups can be calibrated to: LEVEL, or as near as it gets."""
    return max(LEVEL, 1 / (groups + 1))


def conformal_quantile(scores: Table, groups: Sequence[str], *, level: float) -> float:
    """The smallest score that the images of a new group exceed with a probability of at most ``level``.

    Lee, Barber & Willett (2023): the ``1 - level`` quantile of ``sum_k sum_i delta(s_ki) / (n_k (K + 1))`` with a mass
    of ``1 / (K + 1)`` at infinity; infinite if ``level < 1 / (K + 1)``.
    """
    sizes = Counter(groups)
    weights = np.asarray([1 / (sizes[group] * (len(sizes) + 1)) for group in groups])
    order = np.argsort(scores)
    at = int(np.searchsorted(np.cumsum(weights[order]), 1 - level - 1e-9))
    return float(scores[order[at]]) if at < len(order) else float("inf")


def _folds(groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """A fold for each image, the same for those of a group; the same every time."""
    names = sorted(set(groups))
    drawn = np.random.default_rng(0).permutation(len(names)) % _FOLDS
    place = dict(zip(names, drawn, strict=True))
    return np.asarray([place[group] for group in groups])
