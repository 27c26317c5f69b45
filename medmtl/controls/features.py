"""What a linear control sees of a case: the preprocessed image on a coarse grid, and encoded columns."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from medmtl.controls.config import Linear
from medmtl.data.case import Case
from medmtl.data.covariates import Covariates
from medmtl.data.loader import CaseDataset
from medmtl.data.preprocess import Preprocess

Array = npt.NDArray[np.float64]
Tick = Callable[[int], None]


def coarse_images(
    cases: Sequence[Case], root: Path, preprocess: Preprocess, grid: int, tick: Tick = lambda done: None
) -> Array:
    """The mean of each of ``grid`` cells along each axis of each channel, [N, C * grid^S], of images as the network
    sees them without augmentation."""
    dataset = CaseDataset(cases, root, {}, (), preprocess, cache="none")
    rows = []
    for index in range(len(dataset)):
        image = dataset[index].image
        pool = F.adaptive_avg_pool3d if image.ndim == 4 else F.adaptive_avg_pool2d
        rows.append(pool(image[None].double(), grid).flatten())
        tick(1)
    return torch.stack(rows).numpy()


def covariates(control: Linear, train: Sequence[Case], cases: Sequence[Case]) -> Array:
    """The control's columns of ``cases``, [N, P], encoded as fitted on the training cases."""
    if not control.columns:
        return np.zeros((len(cases), 0))
    encoder = Covariates(numeric=control.numeric, categorical=control.categorical).fit(train)
    return torch.stack([encoder.of(case) for case in cases]).numpy().astype(np.float64)
