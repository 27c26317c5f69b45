"""How near a set of predicted masks comes to the set of the annotators' masks: the generalised energy distance."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from medmtl.errors import UserError

Labels = npt.NDArray[Any]
Array = npt.NDArray[np.float64]


def jaccard_distances(A: Labels, B: Labels, *, classes: int = 2) -> Array:
    """[M, N]: 1 - IoU of every mask of A [M, *S] with every mask of B [N, *S], the mean over the foreground classes.

    A class that is in neither mask has distance 0.
    """
    total = np.zeros((len(A), len(B)))
    for both, sizes in _overlaps(A, B, classes):
        either = sizes - both
        total += 1 - np.divide(both, either, out=np.ones_like(both), where=either > 0)
    return total / (classes - 1)


def dice_overlaps(A: Labels, B: Labels, *, classes: int = 2) -> Array:
    """[M, N]: Dice of every mask of A with every mask of B, the mean over the foreground classes.

    A class that is in neither mask has Dice 1.
    """
    total = np.zeros((len(A), len(B)))
    for both, sizes in _overlaps(A, B, classes):
        total += np.divide(2 * both, sizes, out=np.ones_like(both), where=sizes > 0)
    return total / (classes - 1)


def _overlaps(A: Labels, B: Labels, classes: int) -> Iterator[tuple[Array, Array]]:
    """For each foreground class: |a ∩ b| and |a| + |b| of all pairs, [M, N] each."""
    if A.shape[1:] != B.shape[1:]:
        raise UserError("E-AGR-SIZE", f"masks of {A.shape[1:]} and {B.shape[1:]}", "compare masks on one grid")
    for k in range(1, classes):
        a, b = ((masks == k).reshape(len(masks), -1).astype(np.float64) for masks in (A, B))
        yield a @ b.T, a.sum(1)[:, None] + b.sum(1)


def generalised_energy_distance(
    predicted: Labels, annotated: Labels, *, classes: int = 2, unbiased: bool = False
) -> float:
    """``2 E[d(S, Y)] - E[d(S, S')] - E[d(Y, Y')]``, d = 1 - IoU (Kohl et al., NeurIPS 2018, section 3; the square of
    the distance, as they report it), for masks S [M, *S] and Y [N, *S].

    By default the expectations run over *all* pairs, a mask with itself included (the V-statistic, as in the authors'
    code): 0 for equal sets, never negative (1 - IoU is of negative type), and biased upwards for few masks. With
    ``unbiased`` a mask is not paired with itself (the U-statistic): it needs two masks on each side and may be
    negative.
    """
    if min(len(predicted), len(annotated)) < (2 if unbiased else 1):
        raise UserError(
            "E-AGR-NONE" if min(len(predicted), len(annotated)) == 0 else "E-AGR-ONE",
            f"{len(predicted)} predicted and {len(annotated)} annotated masks",
            "give one of each or more" + (", two for the unbiased estimate" if unbiased else ""),
        )
    across = jaccard_distances(predicted, annotated, classes=classes).mean()
    within = [_mean_within(jaccard_distances(masks, masks, classes=classes), unbiased)
              for masks in (predicted, annotated)]  # fmt: skip
    return float(2 * across - within[0] - within[1])


def _mean_within(distances: Array, unbiased: bool) -> float:
    count = len(distances)
    return float(distances.sum() / (count * (count - 1))) if unbiased else float(distances.mean())
