"""A case as the network saw it: the pixels in its window, the masks there, and where the answer is sensitive."""

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medmtl.data.loader import CaseDataset
from medmtl.files import inside
from medmtl.inference.montage import focus, montage
from medmtl.inference.saliency import saliency
from medmtl.predictor import Predictor
from medmtl.tasks.segmentation import Segmentation


class Seen(NamedTuple):
    """Arrays of one size [H, W]; a mask is None where there is no label, or no task with masks.

    Of a volume, they are :func:`.montage.montage` of three slices: through the middle of the annotated foreground, or
    else of the predicted one, or else of the volume.
    """

    image: npt.NDArray[np.uint8]  # [H, W, 3]
    target: npt.NDArray[np.int64] | None
    prediction: npt.NDArray[np.int64] | None
    saliency: npt.NDArray[np.float64]


def evidence(predictor: Predictor, dataset: CaseDataset, index: int, task: str) -> Seen:
    """What there is to see of case ``index`` for a task; masks are its own, else those of the first task with masks."""
    spec, sample = predictor.spec, dataset[index]
    window = spec.preprocess.to_window(dataset.read(index)[0])["image"].numpy()
    dense = [name for name, other in spec.tasks.items() if isinstance(other, Segmentation)]
    shown = task if task in dense else dense[0] if dense else None
    target = prediction = None
    if shown is not None:
        column = spec.tasks[shown].target or shown
        target = _one_mask(sample.targets[column].numpy(), window.ndim - 1) if sample.labelled[column] else None
        known = None if sample.covariates is None else sample.covariates[None]
        prediction = predictor.decode(sample.image[None], known)[shown][0].argmax(0).numpy()
    salient = saliency(predictor, sample.image, task, covariates=sample.covariates)
    if spec.preprocess.volume is not None:
        mask = target if target is not None and (target > 0).any() else prediction
        cut = partial(
            montage, at=focus(mask, salient.shape), axes=spec.preprocess.volume.axes,
            spacing=_spacing_mm(dataset, index),
        )  # fmt: skip
        window = cut(window[0])[None]
        target, prediction = (None if mask is None else cut(mask) for mask in (target, prediction))
        salient = cut(salient)
    colour = np.moveaxis(np.repeat(window[:1], 3, 0) if len(window) != 3 else window, 0, -1)
    return Seen(np.round(colour * 255).astype(np.uint8), target, prediction, salient)


def _spacing_mm(dataset: CaseDataset, index: int) -> tuple[float, ...]:
    """The size of the voxels that the network saw; a volume that keeps its own is read again for it."""
    grid = dataset.preprocess.volume
    assert grid is not None, "images in three dimensions are volumes"
    if grid.spacing_mm is not None:
        return grid.spacing_mm
    _, volume = dataset.preprocess.read(inside(dataset.root, dataset.cases[index].image))
    assert volume is not None
    return grid.place(volume).spacing_mm


def _one_mask(target: npt.NDArray[np.int64], axes: int) -> npt.NDArray[np.int64]:
    """The mask [*S]; of several annotators [P, *S], absent ones negative, where more than half see something."""
    if target.ndim == axes:
        return target
    present = target[(target >= 0).all(axis=tuple(range(1, axes + 1)))]
    return (2 * (present > 0).sum(axis=0) > len(present)).astype(np.int64)
