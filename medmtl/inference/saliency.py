"""Which pixels an answer depends on: the gradient of a task's output, averaged over noisy copies of the image.

SmoothGrad (Smilkov et al., arXiv 1706.03825, 2017): ``mean_n |d s(x + noise_n) / d x|``, the noise a fixed share of the
image's range and counted, so that the map depends on model and image alone. It says where the answer is sensitive, not
why, and is no evidence that the model is right.
"""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medmtl.predictor import Predictor
from medmtl.seeds import generator
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import ClassificationBase
from medmtl.tasks.segmentation import Segmentation

_NOISE = 0.1  # standard deviation, in the image's range
_SMOOTH = 1 / 64  # of the image's shorter side: a single pixel's gradient is mostly noise
_TOP = 0.995  # the quantile that is shown as 1


def saliency(predictor: Predictor, image: Tensor, task: str, *, copies: int = 8) -> np.ndarray:
    """The map [*S] in [0, 1] of one preprocessed image [C, *S]; all 0 where the output depends on no pixel.

    Of a class: the log-odds of the most probable one. Of a level or a number: its score. Of a mask: the summed
    probability of the foreground.
    """
    model, settings = predictor.model, predictor.spec.tasks[task]
    was_training = model.training
    model.eval()
    image = image.to(predictor.device)
    spread = _NOISE * (image.max() - image.min())
    source = generator("saliency", copies)
    total = torch.zeros(image.shape[1:], device=image.device)
    chosen: int | None = None
    for _ in range(copies):
        noise = torch.randn(image.shape, generator=source).to(image.device)
        x = (image + spread * noise)[None].requires_grad_()
        output = model(x)[task].float()
        if chosen is None and isinstance(settings, ClassificationBase):
            with torch.no_grad():
                chosen = int(model(image[None])[task].argmax())
        (gradient,) = torch.autograd.grad(_score(settings, output, chosen), x)
        total += gradient[0].abs().amax(0)
    model.train(was_training)
    smooth = gaussian_filter(total.cpu().numpy().astype(np.float64), _SMOOTH * min(total.shape))
    top = np.quantile(smooth, _TOP)
    return np.clip(smooth / top, 0, 1) if top > 0 else np.zeros(total.shape)


def _score(task: AnyTask, output: Tensor, chosen: int | None) -> Tensor:
    """The number whose gradient is taken; output [1, ...]."""
    if chosen is not None:
        others = torch.cat([output[:, :chosen], output[:, chosen + 1 :]], 1)
        return (output[:, chosen] - others.logsumexp(1)).sum()
    if isinstance(task, Segmentation):
        return task.decode(output)[:, 1:].sum()
    return output.sum()
