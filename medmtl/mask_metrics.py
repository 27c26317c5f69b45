"""Overlap and surface distance of label masks, by MONAI (which takes seconds to import: only when it is asked)."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medmtl.errors import UserError

_PERCENTILE = 95.0


def mask_scores(
    prediction: npt.NDArray[np.integer[Any]],
    target: npt.NDArray[np.integer[Any]],
    *,
    classes: Sequence[str],
    spacing: Sequence[float] | None,
) -> dict[str, float]:
    """``dice.<class>``, ``iou.<class>`` and ``hd95.<class>`` of one case for every foreground class.

    Masks are ``[*S]`` with the values 0 .. K-1 that index ``classes``; class 0 is background and not scored. Distances
    are in mm where ``spacing`` (mm per pixel along each axis, anisotropic if need be) is known, else in pixels. HD95
    is the larger of the two directed 95th percentiles.

    Edge: target and prediction both empty: Dice 1, IoU 1, HD95 0. One of them empty: Dice 0, IoU 0, HD95 NaN (there is
    no surface to measure to; MONAI alone would say infinite or NaN).
    """
    if prediction.shape != target.shape:
        raise UserError("E-EVAL-SHAPE", f"prediction {prediction.shape} and target {target.shape} differ in shape",
                        "compare them on the same grid")  # fmt: skip
    if spacing is not None and (len(spacing) != target.ndim or not all(np.isfinite(s) and s > 0 for s in spacing)):
        raise UserError("E-EVAL-SPACING", f"spacing {tuple(spacing)} for {target.ndim} axes",
                        "give one positive number of mm for each axis, or None where it is unknown")  # fmt: skip
    scores: dict[str, float] = {}
    for index, name in enumerate(classes[1:], start=1):
        dice, iou, hd95 = _class_scores(prediction == index, target == index, spacing)
        scores |= {f"dice.{name}": dice, f"iou.{name}": iou, f"hd95.{name}": hd95}
    return scores


def _class_scores(
    prediction: npt.NDArray[np.bool_], target: npt.NDArray[np.bool_], spacing: Sequence[float] | None
) -> tuple[float, float, float]:
    if not prediction.any() or not target.any():
        return (1.0, 1.0, 0.0) if prediction.any() == target.any() else (0.0, 0.0, float("nan"))
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

    y_pred, y = (torch.from_numpy(mask[None, None]).float() for mask in (prediction, target))
    size = None if spacing is None else list(spacing)
    with warnings.catch_warnings():  # MONAI warns of its own call to a function that it has deprecated
        warnings.filterwarnings("ignore", message=".*get_mask_edges", category=FutureWarning)
        distance = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=_PERCENTILE, spacing=size)
    return float(compute_dice(y_pred, y)), float(compute_iou(y_pred, y)), float(distance)
