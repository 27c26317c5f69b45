"""What an answer loses when a part of the image is covered: a box that visits every place, one forward each.

Zeiler and Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 4.2. In the units of the
answer and with a sign, which a gradient lacks; but a covered image is one that no scanner makes.
"""

from itertools import product

import numpy as np
import numpy.typing as npt
from torch import Tensor

from medmtl.predictor import Predictor
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import ClassificationBase
from medmtl.tasks.ordinal import Ordinal


def occlusion(
    predictor: Predictor, image: Tensor, task: str, *, boxes: int = 8, covariates: Tensor | None = None
) -> npt.NDArray[np.float64]:
    """``answer(image) - answer(image with the box covered)`` for each voxel of the box, [*S]; ``boxes`` to an axis.

    A covered box holds the mean of each channel of the preprocessed ``image`` [C, *S]. The answer is the probability
    of the class that is most probable uncovered, the mean level, the number in its unit, or of a mask the number of its
    foreground voxels (the sum of their probabilities).
    """
    settings, spatial = predictor.spec.tasks[task], image.shape[1:]
    known = None if covariates is None else covariates[None]
    uncovered = predictor.decode(image[None], known)[task]
    chosen = int(uncovered[0].argmax()) if isinstance(settings, ClassificationBase) else None
    whole, mean = _answer(settings, uncovered, chosen), image.flatten(1).mean(1)
    edges = [np.linspace(0, n, min(boxes, n) + 1).astype(int) for n in spatial]
    result = np.zeros(spatial)
    for place in product(*(range(len(edge) - 1) for edge in edges)):
        box = tuple(slice(edge[i], edge[i + 1]) for edge, i in zip(edges, place, strict=True))
        covered = image.clone()
        covered[(slice(None), *box)] = mean.view(-1, *[1] * len(box))
        result[box] = whole - _answer(settings, predictor.decode(covered[None], known)[task], chosen)
    return result


def _answer(task: AnyTask, decoded: Tensor, chosen: int | None) -> float:
    """The number that a box changes; decoded [1, ...]."""
    if chosen is not None:
        return float(decoded[0, chosen])
    if isinstance(task, Ordinal):
        return float(task.quantity(decoded)[0])
    return float(decoded[0] if decoded.ndim == 1 else decoded[0, 1:].double().sum())
