"""How much each slice of a volume (or place of an image) counts for a head that pools by attention."""

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medmtl.models.head import Attention
from medmtl.models.multitask import MultiTaskModel
from medmtl.models.sliding import slide
from medmtl.predictor import Predictor
from medmtl.tasks.base import EncoderShape


@torch.inference_mode()
def attention(
    predictor: Predictor, image: Tensor, task: str, *, covariates: Tensor | None = None
) -> npt.NDArray[np.float64] | None:
    """Weights of sum 1 of the slices [D] of a preprocessed volume [C, D, H, W], or of the places [H, W] of an image.

    None where the task's head has no attention. What the encoder sees as one slab shares its weight evenly. Where the
    model sees patches, the windows' weights are blended and the sum made 1 again. The first view alone is looked at.
    """
    model, patches = predictor.model, predictor.spec.preprocess.patches
    assert isinstance(model, MultiTaskModel), type(model)
    pool = next((m for m in model.heads[task].modules() if isinstance(m, Attention)), None)
    if pool is None:
        return None
    strides = cast(EncoderShape, model.encoder).strides[-1]
    seen: list[Tensor] = []
    hook = pool.register_forward_hook(lambda module, inputs, output: seen.append(_shares(pool, inputs[0])))
    was_training = model.training
    model.eval()
    known = None if covariates is None else covariates[None].to(predictor.device)

    def weights(windows: Tensor, row: int) -> dict[str, Tensor]:
        seen.clear()
        model(windows.to(predictor.device), None if known is None else known.expand(len(windows), -1))
        return {task: _enlarged(seen[0], strides, windows)}

    try:
        if patches is None:
            found = weights(image[None], 0)[task]
        else:
            found = slide(image[None], weights, size=patches.size, overlap=patches.overlap, together=patches.windows)[
                task
            ]
    finally:
        hook.remove()
        model.train(was_training)
    places = found[0, 0].double()
    places = places.sum((1, 2)) if places.ndim == 3 else places
    return (places / places.sum()).numpy()


def _shares(pool: nn.Module, features: Tensor) -> Tensor:
    """The weights [B, K] as a map over the positions of ``features`` [B, C, *s], of sum 1: [B, 1, *s]."""
    assert isinstance(pool, Attention)
    weights, size = pool.weights(features), features.shape[2:]
    if len(size) == 3:
        return (weights[:, :, None, None] / (size[1] * size[2])).expand(-1, *size)[:, None]
    return weights.view(len(weights), 1, *size)


def _enlarged(shares: Tensor, strides: tuple[int, ...], windows: Tensor) -> Tensor:
    """[B, 1, *s] on the voxels of ``windows`` [B, C, *S]: a position's weight evenly on those that it stands for."""
    for axis, (stride, size) in enumerate(zip(strides, windows.shape[2:], strict=True), start=2):
        count = torch.full((shares.shape[axis],), stride)
        count[-1] = size - stride * (shares.shape[axis] - 1)  # the last one may stick out
        even = shares / count.clamp(min=1).view([-1 if i == axis else 1 for i in range(shares.ndim)]).to(shares)
        shares = even.repeat_interleave(stride, axis).narrow(axis, 0, size)
    return shares.float().cpu()
