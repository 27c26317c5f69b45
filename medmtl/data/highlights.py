"""Specular highlights: small white spots where a wet surface mirrors the lamp, found and filled from around them.

They carry no tissue, are the brightest thing in the image, and lie elsewhere in the next one. Large white regions are
left alone: acetowhite epithelium and a speculum are no highlights.
"""

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat
from scipy import ndimage
from torch import Tensor

from medmtl.config import Config

_LEAST = 1e-3  # weight below which a neighbourhood holds too little to fill from


class SuppressHighlights(Config):
    """A pixel is one where every channel reaches ``level`` and the channels differ by at most ``chroma``.

    Connected pixels that cover more than ``largest`` of the image stay. What is found is widened by ``dilate_px``, for
    its soft rim, and filled with the mean of the rest under a Gaussian of ``sigma_px`` (normalised convolution:
    Knutsson and Westin, CVPR 1993), twice as wide where that reaches nothing. No other pixel changes, and none moves.
    """

    level: float = Field(0.85, gt=0, le=1)
    chroma: float = Field(0.2, ge=0, le=1)
    largest: float = Field(0.005, gt=0, le=1)
    dilate_px: NonNegativeInt = 2
    sigma_px: PositiveFloat = 4.0

    def mask(self, image: Tensor) -> np.ndarray:
        """bool [*S], where an image [C, *S] in [0, 1] is taken for a highlight, rim included."""
        pixels = image.numpy()
        bright = (pixels.min(0) >= self.level) & (np.ptp(pixels, axis=0) <= self.chroma)
        neighbours = np.ones((3,) * bright.ndim, dtype=bool)
        parts, count = ndimage.label(bright, neighbours)
        small = np.bincount(parts.ravel(), minlength=count + 1) <= self.largest * bright.size
        small[0] = False
        found: np.ndarray = small[parts]
        return ndimage.binary_dilation(found, neighbours, iterations=self.dilate_px) if self.dilate_px else found

    def apply(self, image: Tensor) -> Tensor:
        """The image [C, *S] with its highlights filled; the very same one where there is none."""
        found = self.mask(image)
        if not found.any() or found.all():
            return image
        pixels = image.numpy().copy()
        empty, sigma = found.copy(), self.sigma_px
        while empty.any():
            weight = ndimage.gaussian_filter((~found).astype(np.float64), sigma)
            filled = empty & (weight > _LEAST)
            for channel, source in zip(pixels, image.numpy(), strict=True):
                mean = ndimage.gaussian_filter(np.where(found, 0.0, source.astype(np.float64)), sigma)
                # in steps of 1 / 255, so that an 8-bit image stays one and is cached as such
                channel[filled] = np.round(mean[filled] / weight[filled] * 255).astype(np.float32) / np.float32(255)
            empty &= ~filled
            sigma *= 2
        return torch.from_numpy(pixels)
