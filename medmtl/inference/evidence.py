"""A case as the network saw it: the pixels in its window, the masks there, and where the answer is sensitive."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medmtl.data.loader import CaseDataset
from medmtl.inference.saliency import saliency
from medmtl.predictor import Predictor
from medmtl.tasks.segmentation import Segmentation


class Seen(NamedTuple):
    """Arrays of one size [H, W]; a mask is None where there is no label, or no task with masks."""

    image: npt.NDArray[np.uint8]  # [H, W, 3]
    target: npt.NDArray[np.int64] | None
    prediction: npt.NDArray[np.int64] | None
    saliency: npt.NDArray[np.float64]


def evidence(predictor: Predictor, dataset: CaseDataset, index: int, task: str) -> Seen:
    """What there is to see of case ``index`` for a task; masks are its own, else those of the first task with masks.

    Two dimensions only.
    """
    spec, sample = predictor.spec, dataset[index]
    window = spec.preprocess.to_window(dataset.read(index)[0])["image"].numpy()
    assert window.ndim == 3, window.shape
    colour = np.moveaxis(np.repeat(window[:1], 3, 0) if len(window) != 3 else window, 0, -1)
    dense = [name for name, other in spec.tasks.items() if isinstance(other, Segmentation)]
    shown = task if task in dense else dense[0] if dense else None
    target = prediction = None
    if shown is not None:
        column = spec.tasks[shown].target or shown
        target = _one_mask(sample.targets[column].numpy()) if sample.labelled[column] else None
        prediction = predictor.decode(sample.image[None])[shown][0].argmax(0).numpy()
    return Seen(np.round(colour * 255).astype(np.uint8), target, prediction, saliency(predictor, sample.image, task))


def _one_mask(target: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The mask [H, W]; of several annotators [P, H, W], absent ones negative, where more than half see something."""
    if target.ndim == 2:
        return target
    present = target[(target >= 0).all(axis=(1, 2))]
    return (2 * (present > 0).sum(axis=0) > len(present)).astype(np.int64)
