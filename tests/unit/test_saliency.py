"""Saliency lies where a model looks, whatever the kind of its answer."""

import numpy as np
import pytest
import torch
from laws import TASKS
from torch import Tensor, nn

from medmtl.bundle import ModelSpec
from medmtl.data.preprocess import Preprocess
from medmtl.inference.saliency import saliency
from medmtl.predictor import Predictor
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

KINDS = ("graded", "score", "mse", "mask")


class Corner(nn.Module):
    """Answers every task from the upper left quarter of the image alone (a mask: from each pixel of it)."""

    def forward(self, image: Tensor, covariates: Tensor | None = None) -> dict[str, Tensor]:
        seen = torch.zeros_like(image[0, 0])
        seen[:16, :16] = 1
        map_BHW = (image * seen).sum(1)
        value = map_BHW.mean((1, 2))[:, None]
        classes = torch.cat([value, -value, 0 * value], 1)
        return {
            "graded": classes,
            "score": value.repeat(1, 4),
            "mse": value,
            "mask": torch.stack([-map_BHW, map_BHW], 1),
        }


def _predictor(model: nn.Module) -> Predictor:
    tasks = {name: TASKS[name] for name in KINDS}
    assert isinstance(tasks["score"], Ordinal) and isinstance(tasks["mse"], Regression)
    assert isinstance(tasks["mask"], Segmentation)
    spec = ModelSpec.model_construct(preprocess=Preprocess(), tasks=tasks, views="identity")
    return Predictor(model, spec)


@pytest.mark.parametrize("task", KINDS)
def test_it_lies_where_the_model_looks_and_is_the_same_again(task: str) -> None:
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    predictor = _predictor(Corner().train())
    found = saliency(predictor, image, task)
    assert found.shape == (32, 32) and found.min() >= 0 and found.max() == pytest.approx(1)
    assert found[:16, :16].sum() > 0.9 * found.sum()
    np.testing.assert_array_equal(found, saliency(predictor, image, task))
    assert predictor.model.training, "the model is left as it was"


def test_a_model_that_looks_nowhere_has_an_empty_map() -> None:
    class Blind(Corner):
        def forward(self, image: Tensor, covariates: Tensor | None = None) -> dict[str, Tensor]:
            return super().forward(0 * image)

    assert not saliency(_predictor(Blind()), torch.rand(3, 32, 32), "graded").any()
