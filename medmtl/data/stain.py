"""Colour spaces: the stains of an H&E slide, the grey axis, and hue. Images are RGB, [3, *S] in [0, 1].

Beer and Lambert: what a stain lets through falls exponentially with its amount, so *optical density* is linear in the
amounts,

    OD_c = -ln(I_c) = sum_s a_s M_sc        a: amounts of haematoxylin, eosin, residual (DAB); M [3, 3]: below

M is that of Ruifrok and Johnston, Quantification of histochemical staining by color deconvolution, Anal Quant Cytol
Histol 23:291-299, 2001. Unlike in scikit-image's ``rgb2hed``, negative amounts are kept, so that the way there and back
is exact; the unit is the natural logarithm (an amount of 1 lets 37 % through); and black counts as half a grey level of
255 rather than 1e-6, whose optical density of 14 would colour a dark pixel's other channels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))  # rows: stains, columns: R, G, B
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
DARKEST = 0.5 / 255


def stain_amounts(image: Tensor) -> Tensor:
    """Amounts of haematoxylin, eosin and residual, [3, *S]."""
    return _mix(torch.linalg.inv(torch.tensor(HED)).T, -image.clamp_min(DARKEST).log())


def from_stain_amounts(amounts: Tensor) -> Tensor:
    """The image that these amounts of stain let through: the inverse of :func:`stain_amounts`."""
    return _mix(torch.tensor(HED).T, amounts).neg().exp()


def restain(image: Tensor, factor: Sequence[float], bias: Sequence[float]) -> Tensor:
    """The image with each stain's amount a_s replaced by ``factor_s a_s + bias_s``, clamped to [0, 1].

    ``OD' = M^T (diag(factor) a + bias)`` is one affine map of the optical density, so the amounts are never stored.
    """
    M = torch.tensor(HED, dtype=torch.float64)
    matrix = M.T @ torch.diag(torch.tensor(factor, dtype=torch.float64)) @ torch.linalg.inv(M.T)
    shift = M.T @ torch.tensor(bias, dtype=torch.float64)
    density = _mix(-matrix.float(), image.clamp_min(DARKEST).log(), shift.float())
    return density.neg_().exp_().clamp_(0, 1)


def saturation_matrix(factor: float) -> Tensor:
    """[3, 3]: colours moved away from their grey (factor > 1) or towards it (< 1; 0 leaves grey); luma is kept."""
    return factor * torch.eye(3) + (1 - factor) * torch.tensor(LUMA).expand(3, 3)


def hue_matrix(degrees: float) -> Tensor:
    """[3, 3]: colours turned about the grey axis in YIQ; grey and luma are kept.

    Linear, unlike the hue of HSV that torchvision turns: it composes with the other colour changes into one matrix.
    """
    yiq = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turn = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float64)
    return (torch.linalg.inv(yiq) @ turn @ yiq).float()


def recolour(image: Tensor, matrix: Tensor, offset: Tensor, *, contrast: float = 1.0, gamma: float = 1.0) -> Tensor:
    """``clamp(f (y - m) + m)^gamma`` with ``y = matrix x + offset``, f the contrast, m the mean grey of y.

    Everything but gamma is one affine map of the C channels, so nothing is clamped in between.
    """
    grey = torch.tensor(LUMA) if len(image) == 3 else torch.full((len(image),), 1 / len(image))
    if contrast != 1:
        pivot = grey @ (matrix @ channel_means(image) + offset)
        matrix, offset = contrast * matrix, contrast * offset + (1 - contrast) * pivot
    result = _mix(matrix, image, offset).clamp_(0, 1)
    # torch's pow differs in the last bit where threads split the pixels; log and exp do not (0 becomes -inf becomes 0).
    return result if gamma == 1 else result.log_().mul_(gamma).exp_()


def channel_means(image: Tensor) -> Tensor:
    """[C]; summed by numpy, whose result does not depend on the number of threads."""
    return torch.from_numpy(image.flatten(1).numpy().mean(1))


def _mix(matrix: Tensor, image: Tensor, offset: Tensor | None = None) -> Tensor:
    """``matrix @ image + offset`` over the channel axis."""
    flat = image.reshape(len(image), -1)
    mixed = matrix @ flat if offset is None else torch.addmm(offset[:, None], matrix, flat)
    return mixed.reshape(image.shape)
