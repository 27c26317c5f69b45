"""The mean over classes of a segmentation task: in rows, metrics, the constant predictor and the headline."""

import numpy as np
import pandas as pd
import pytest
import torch

from medmtl.tasks.segmentation import Segmentation

TASK = Segmentation(classes=("outside", "a", "b", "c"))


def _row(predicted: torch.Tensor, target: torch.Tensor) -> dict[str, float | str]:
    one_hot = torch.nn.functional.one_hot(predicted, 4).movedim(-1, 0).float()
    return TASK.row(one_hot, target)


def test_the_mean_is_over_classes_then_over_cases() -> None:
    target = torch.tensor([[1, 1, 2, 0], [1, 1, 2, 0]])
    found = torch.tensor([[1, 0, 2, 0], [1, 0, 2, 0]])  # Dice 2/3, 1, and 1 for the class that is nowhere
    rows = pd.DataFrame([_row(found, target), _row(target, target)])
    assert rows["dice.mean"].tolist() == pytest.approx([(2 / 3 + 1 + 1) / 3, 1.0])
    value = TASK.metrics(rows, np.array([[1.0, 1.0], [2.0, 0.0]]))["dice.mean"]
    assert value.tolist() == pytest.approx([(rows["dice.mean"].sum()) / 2, rows["dice.mean"][0]])
    constant = TASK.constant(rows)
    assert constant["dice.mean"].tolist() == pytest.approx([1 / 3, 1 / 3])  # right where a class is nowhere


def test_two_classes_have_no_mean_and_many_are_told_by_it_first() -> None:
    one = Segmentation(classes=("outside", "a"))
    assert one.headline == ("dice.a", "hd95.a")
    assert "dice.mean" not in one.row(torch.rand(2, 4, 4), torch.zeros(4, 4, dtype=torch.int64))
    assert TASK.headline == ("dice.mean", "dice.a", "dice.b", "dice.c")
    with pytest.raises(ValueError, match="'mean'"):
        Segmentation(classes=("outside", "mean"))
