"""Mask scores against closed forms and brute force, with the conventions for empty masks."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist

from medmtl.errors import UserError
from medmtl.mask_metrics import mask_scores

CLASSES = ("background", "nucleus", "lesion")
torch.set_num_threads(1)


def _square(row: int, column: int, size: int = 6, value: int = 1) -> np.ndarray:
    mask = np.zeros((24, 20), dtype=np.int64)
    mask[row : row + size, column : column + size] = value
    return mask


def _hd95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Brute force: every surface pixel to every surface pixel."""
    edges = [np.argwhere(m & ~ndimage.binary_erosion(m)) * np.array(spacing) for m in (a, b)]
    distances = cdist(*edges)
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


def test_overlap_and_distance_of_shifted_squares() -> None:
    prediction, target = _square(4, 4), _square(4, 7)
    scores = mask_scores(prediction, target, classes=CLASSES[:2], spacing=None)
    assert set(scores) == {"dice.nucleus", "iou.nucleus", "hd95.nucleus"}
    assert scores["dice.nucleus"] == pytest.approx(0.5)
    assert scores["iou.nucleus"] == pytest.approx(1 / 3)
    assert scores["hd95.nucleus"] == pytest.approx(3.0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_distance_is_in_mm_along_each_axis(spacing: tuple[float, float]) -> None:
    prediction, target = _square(2, 3, 8), _square(5, 6, 7)
    prediction[15, 2] = 1
    found = mask_scores(prediction, target, classes=CLASSES[:2], spacing=spacing)["hd95.nucleus"]
    assert found == pytest.approx(_hd95(prediction == 1, target == 1, spacing), abs=1e-4)


def test_a_volume_with_anisotropic_voxels() -> None:
    prediction, target = np.zeros((6, 10, 10), np.uint8), np.zeros((6, 10, 10), np.uint8)
    prediction[1:4, 2:6, 2:6] = 1
    target[2:5, 2:6, 2:6] = 1
    scores = mask_scores(prediction, target, classes=CLASSES[:2], spacing=(2.5, 0.7, 0.7))
    assert scores["hd95.nucleus"] == pytest.approx(_hd95(prediction > 0, target > 0, (2.5, 0.7, 0.7)), abs=1e-4)
    assert scores["dice.nucleus"] == pytest.approx(2 / 3)


def test_conventions_for_empty_masks() -> None:
    empty, some = np.zeros((24, 20), np.int64), _square(4, 4)
    both = mask_scores(empty, empty, classes=CLASSES[:2], spacing=None)
    assert both == {"dice.nucleus": 1.0, "iou.nucleus": 1.0, "hd95.nucleus": 0.0}
    for prediction, target in ((empty, some), (some, empty)):
        one = mask_scores(prediction, target, classes=CLASSES[:2], spacing=None)
        assert (one["dice.nucleus"], one["iou.nucleus"]) == (0.0, 0.0)
        assert np.isnan(one["hd95.nucleus"])


def test_classes_are_scored_apart_and_the_background_not_at_all() -> None:
    target = _square(2, 2) + _square(12, 10, value=2)
    prediction = _square(2, 2)
    scores = mask_scores(prediction, target, classes=CLASSES, spacing=None)
    assert scores["dice.nucleus"] == 1.0
    assert scores["dice.lesion"] == 0.0
    assert len(scores) == 6


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 0.0), (1.0, float("nan"))])
def test_impossible_spacing_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="spacing"):
        mask_scores(_square(1, 1), _square(1, 1), classes=CLASSES[:2], spacing=spacing)


def test_masks_on_different_grids_are_refused() -> None:
    with pytest.raises(UserError, match="same grid"):
        mask_scores(_square(1, 1), np.zeros((5, 5), np.int64), classes=CLASSES[:2], spacing=None)
