"""One mask out of several: majority, STAPLE, the share of votes; and where the annotators disagree.

Labels are integers [R, *S], R annotators, classes 0 .. K-1 with 0 the background.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK

from medmtl.errors import UserError

Labels = npt.NDArray[Any]
Array = npt.NDArray[np.float64]
_TIE = 1e-9  # ITK's one half may be 0.5000000000000001
MAX_ITERATIONS = 100  # of STAPLE's expectation maximisation; ten are usual, pure noise may never settle


@dataclass(frozen=True)
class Staple:
    """What STAPLE says of one image with two classes."""

    probability: Array  # [*S], that the hidden truth is foreground
    sensitivity: Array  # [R]; NaN where ``how`` is not "em"
    specificity: Array  # [R]; NaN where ``how`` is not "em"
    how: Literal["em", "unanimous", "single"]

    @property
    def mask(self) -> npt.NDArray[np.int64]:
        """Foreground where it is more probable than not; a tie is background, as in a majority."""
        return (self.probability > 0.5 + _TIE).astype(np.int64)


def votes(labels: Labels, *, classes: int = 2) -> Array:
    """The soft consensus: share of annotators for each class, [K, *S]."""
    _checked(labels, classes)
    return np.stack([(labels == k).mean(axis=0) for k in range(classes)])


def majority(labels: Labels, *, classes: int = 2) -> npt.NDArray[np.int64]:
    """The class with most votes, [*S]. **A tie goes to the lowest class**: to the background where that is among them.

    So two annotators' majority is where both agree on the foreground: it takes more than half of them.
    """
    return votes(labels, classes=classes).argmax(axis=0).astype(np.int64)


def staple(labels: Labels) -> Staple:
    """Simultaneous truth and performance level estimation (Warfield et al., IEEE TMI 2004) by SimpleITK, two classes.

    Where ITK would answer NaN (everything or nothing marked) or there is nothing to estimate, the answer is defined:
    one annotator: that mask (``single``); equal masks: that mask (``unanimous``). Otherwise ``em``.

    STAPLE's prior is the marked share of the *whole* image, so that more background around the same masks changes the
    result; and one annotator of two who mark different things may be believed alone. Look at ``sensitivity``.
    """
    _checked(labels, 2)
    unknown = np.full(len(labels), np.nan)
    if len(labels) == 1 or (labels == labels[:1]).all():
        how: Literal["single", "unanimous"] = "single" if len(labels) == 1 else "unanimous"
        return Staple(labels[0].astype(np.float64), unknown, unknown, how)
    estimator = SimpleITK.STAPLEImageFilter()
    estimator.SetForegroundValue(1)
    estimator.SetMaximumIterations(MAX_ITERATIONS)
    estimate = estimator.Execute([SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in labels])
    probability = np.asarray(SimpleITK.GetArrayFromImage(estimate), dtype=np.float64)
    assert np.isfinite(probability).all(), "STAPLE is undefined for equal masks only"
    return Staple(
        probability.clip(0, 1), np.array(estimator.GetSensitivity()), np.array(estimator.GetSpecificity()), "em"
    )


def staple_labels(labels: Labels, *, classes: int = 2) -> npt.NDArray[np.int64]:
    """STAPLE as labels [*S]: :func:`staple`'s mask for two classes, ITK's multi-label STAPLE for more.

    A pixel that the latter leaves undecided gets the majority's class.
    """
    _checked(labels, classes)
    if classes == 2:
        return staple(labels).mask
    if len(labels) == 1 or (labels == labels[:1]).all():
        return labels[0].astype(np.int64)
    estimator = SimpleITK.MultiLabelSTAPLEImageFilter()
    estimator.SetLabelForUndecidedPixels(classes)
    estimator.SetMaximumNumberOfIterations(MAX_ITERATIONS)
    estimate = estimator.Execute([SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in labels])
    found = SimpleITK.GetArrayFromImage(estimate).astype(np.int64)
    return np.where(found < classes, found, majority(labels, classes=classes))


def entropy_map(labels: Labels, *, classes: int = 2) -> Array:
    """Entropy of the votes at each pixel divided by log K, [*S] in [0, 1]; 0 where all agree."""
    share = votes(labels, classes=classes)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(np.maximum(-(share * logs).sum(axis=0) / np.log(classes), 0.0))


def disagreement_map(labels: Labels, *, classes: int = 2) -> Array:
    """The share of annotator *pairs* that disagree at each pixel, [*S]: ``R / (R - 1) (1 - sum_k share_k^2)``.

    For two classes it is twice the unbiased variance of the votes. Needs two annotators (``E-AGR-ONE``).
    """
    share = votes(labels, classes=classes)
    if len(labels) < 2:
        raise UserError("E-AGR-ONE", "one annotator has no pair", "give two masks or more")
    return np.asarray(len(labels) / (len(labels) - 1) * (1 - (share**2).sum(axis=0)).clip(min=0))


def _checked(labels: Labels, classes: int) -> None:
    if len(labels) == 0:
        raise UserError("E-AGR-NONE", "no mask", "give one mask or more")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError("E-AGR-VALUES", f"labels run from {low} to {high}, expected 0 to {classes - 1}",
                        "rewrite the masks with class indices")  # fmt: skip
