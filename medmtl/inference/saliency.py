"""Which pixels an answer depends on: the gradient of a task's output, averaged over noisy copies of the image.

SmoothGrad (Smilkov et al., arXiv 1706.03825, 2017): ``mean_n |d s(x + noise_n) / d x|``, the noise a fixed share of the
image's range and counted, so that the map depends on model and image alone. It says where the answer is sensitive, not
why, and is no evidence that the model is right.
"""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medmtl.models.sliding import slide
from medmtl.predictor import Predictor
from medmtl.seeds import generator
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import ClassificationBase
from medmtl.tasks.segmentation import Segmentation

_NOISE = 0.1  # standard deviation, in the image's range
_SMOOTH = 1 / 64  # of the image's shorter side: a single pixel's gradient is mostly noise
_TOP = 0.995  # the quantile that is shown as 1


def saliency(
    predictor: Predictor, image: Tensor, task: str, *, copies: int = 8, covariates: Tensor | None = None
) -> np.ndarray:
    """The map [*S] in [0, 1] of one preprocessed image [C, *S]; all 0 where the output depends on no pixel.

    Of a class: the log-odds of the most probable one. Of a level or a number: its score. Of a mask: the summed
    probability of the foreground. Where the model sees patches, the windows' maps are blended as their answers are.
    ``covariates`` [P] are those of the case.
    """
    model, settings, patches = predictor.model, predictor.spec.tasks[task], predictor.spec.preprocess.patches
    known = None if covariates is None else covariates[None].to(predictor.device)
    spread = float(_NOISE * (image.max() - image.min()))
    chosen: int | None = None
    if isinstance(settings, ClassificationBase):
        chosen = int(predictor.decode(image[None], known)[task].argmax())
    was_training = model.training
    model.eval()

    def gradients(windows: Tensor, row: int) -> dict[str, Tensor]:
        source, windows = generator("saliency", copies), windows.to(predictor.device)
        rows = None if known is None else known.expand(len(windows), -1)
        total = torch.zeros_like(windows[:, :1])
        for _ in range(copies):
            noise = torch.randn(windows.shape[1:], generator=source).to(predictor.device)
            x = (windows + spread * noise).requires_grad_()
            score = _score(settings, model(x, rows)[task].float(), chosen)
            (gradient,) = torch.autograd.grad(score, x)
            total += gradient.abs().amax(1, keepdim=True)
        return {task: total.cpu()}

    if patches is None:
        found = gradients(image[None], 0)
    else:
        found = slide(image[None], gradients, size=patches.size, overlap=patches.overlap, together=patches.windows)
    model.train(was_training)
    total = found[task][0, 0].numpy().astype(np.float64)
    smooth = gaussian_filter(total, _SMOOTH * min(total.shape))
    top = np.quantile(smooth, _TOP)
    return np.clip(smooth / top, 0, 1) if top > 0 else np.zeros(total.shape)


def _score(task: AnyTask, output: Tensor, chosen: int | None) -> Tensor:
    """The number whose gradient is taken, summed over the images of ``output`` [B, ...], which do not mix."""
    if chosen is not None:
        others = torch.cat([output[:, :chosen], output[:, chosen + 1 :]], 1)
        return (output[:, chosen] - others.logsumexp(1)).sum()
    if isinstance(task, Segmentation):
        return task.decode(output)[:, 1:].sum()
    return output.sum()
