"""What a window looks like: colour, stain, frequencies, blur, noise, an erased box and highlights, in [0, 1].

Bits do not depend on the number of threads, which differs between a loader's workers and its main process: sums are
numpy's and Fourier transforms scipy's, because torch's depend on how threads split the work.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from scipy.fft import fftfreq, irfftn, rfftfreq, rfftn
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medmtl.config import Config, Single
from medmtl.data.preprocess import centre
from medmtl.data.stain import channel_means, hue_matrix, recolour, restain, saturation_matrix
from medmtl.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]
Change = Callable[[Tensor], Tensor]


def off(config: Config, strengths: Sequence[str]) -> dict[str, str]:
    """The keys that are idle (:meth:`Config.idle`) in something whose ``strengths`` are all as good as absent."""
    why = "it changes nothing without a strength of its own"
    return {name: why for name in type(config).model_fields if name not in strengths}


class Ingredient(Config, ABC):
    """A change of appearance that happens with ``probability``, provided that one of its strengths is not 0."""

    strengths: ClassVar[tuple[str, ...]]
    probability: Fraction = 1.0

    @property
    def on(self) -> bool:
        return any(getattr(self, name) for name in self.strengths)

    def idle(self) -> Mapping[str, str]:
        return {} if self.on else off(self, (*self.strengths, "probability"))

    @abstractmethod
    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        """A pure function of an image of ``shape`` [C, *S], every random number in it drawn."""


class Colour(Ingredient):
    """Global changes of colour; all factors uniform.

    ``gain`` multiplies each channel by 1 ± gain, ``offset`` adds ± offset to each, ``brightness`` multiplies all by one
    factor, ``contrast`` stretches about the mean grey, ``saturation`` away from grey, ``hue_deg`` turns about the grey
    axis; they are composed to one matrix and clamped once. Then ``x^γ`` with ln γ uniform in ± ln(1 + gamma).
    """

    strengths: ClassVar[tuple[str, ...]] = (
        "gain",
        "offset",
        "brightness",
        "contrast",
        "saturation",
        "hue_deg",
        "gamma",
    )
    gain: Fraction = 0.0
    offset: Fraction = 0.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    gamma: NonNegativeFloat = 0.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        channels = shape[0]
        common, each = rng.uniform(-1, 1, 5), rng.uniform(-1, 1, (2, channels))
        factors = (1 + self.gain * each[0]) * (1 + self.brightness * common[0])
        matrix = torch.diag(torch.tensor(factors, dtype=torch.float32))
        if self.saturation or self.hue_deg:
            _require_rgb(channels, "colour.saturation and colour.hue_deg")
            matrix = saturation_matrix(1 + self.saturation * common[2]) @ hue_matrix(self.hue_deg * common[3]) @ matrix
        return partial(
            recolour,
            matrix=matrix,
            offset=torch.tensor(self.offset * each[1], dtype=torch.float32),
            contrast=1 + self.contrast * common[1],
            gamma=(1 + self.gamma) ** common[4],
        )


class Stain(Ingredient):
    """Amounts a of haematoxylin, eosin and residual become ``α a + β``, α in 1 ± ``sigma``, β in ± ``bias``.

    Tellez et al., Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train distilled
    stain-invariant convolutional networks, IEEE TMI 37(9), 2018; compared with others in Tellez et al., Quantifying the
    effects of data augmentation and stain color normalization, MedIA 58, 2019. Amounts are natural optical densities
    (:mod:`.stain`); the unit of today's ``skimage.color.rgb2hed`` is ln(10^6) = 13.8 of ours, for biases.
    """

    strengths: ClassVar[tuple[str, ...]] = ("sigma", "bias")
    sigma: Fraction = 0.0
    bias: NonNegativeFloat = 0.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        _require_rgb(shape[0], "stain")
        u = rng.uniform(-1, 1, (2, 3))
        return partial(restain, factor=(1 + self.sigma * u[0]).tolist(), bias=(self.bias * u[1]).tolist())


class Fourier(Ingredient):
    """Low frequencies get another image's amplitude and keep their phase: ``A' = (1 - λ) A + λ A_ref``.

    λ is uniform in [0, ``strength``]; a frequency is low if along every axis it is at most ``band`` times the Nyquist
    frequency (band 1: all). Without a reference image, ``A' = A (1 + λ u)`` with u in ± 1 for each frequency. Xu et
    al., A Fourier-based framework for domain generalization, CVPR 2021 (amplitude mix, of all frequencies); Yang and
    Soatto, FDA: Fourier domain adaptation for semantic segmentation, CVPR 2020 (λ = 1; their β is half our ``band``).
    """

    strengths: ClassVar[tuple[str, ...]] = ("strength",)
    strength: Fraction = 0.0
    band: Annotated[float, Field(gt=0, le=1)] = 0.1

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        low, mix = low_frequencies(shape[1:], self.band), self.strength * rng.random()
        if reference is not None:
            return partial(mix_amplitude, amplitude=_amplitude_of(reference, shape), low=low, mix=mix)
        wave = rng.uniform(-1, 1, (shape[0], int(low.sum()))).astype(np.float32)
        return partial(scale_amplitude, factor=1 + np.float32(mix) * wave, low=low)


class Blur(Ingredient):
    """Gaussian blur, its standard deviation uniform in [0, ``sigma``] px, cut at 3 of them; edges are mirrored."""

    strengths: ClassVar[tuple[str, ...]] = ("sigma",)
    sigma: Annotated[float, Field(ge=0, le=1000)] = 0.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        return partial(blur, sigma=self.sigma * rng.random())


class Noise(Ingredient):
    """Independent Gaussian noise, its standard deviation uniform in [0, ``std``]."""

    strengths: ClassVar[tuple[str, ...]] = ("std",)
    std: Annotated[Single, Field(ge=0)] = 0.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        std = self.std * rng.random()
        return partial(add_noise, noise=torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32)), std=std)


class Erase(Ingredient):
    """A box of that ``fraction`` of the window, of its shape and wholly inside, becomes the image's mean colour.

    DeVries and Taylor, Improved regularization of convolutional neural networks with cutout, arXiv 1708.04552 (there
    the box may stick out).
    """

    strengths: ClassVar[tuple[str, ...]] = ("fraction",)
    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        size = np.array(shape[1:])
        sides = np.maximum(1, np.round(size * self.fraction ** (1 / len(size)))).astype(int)
        starts = (rng.random(len(size)) * (size - sides + 1)).astype(int)
        return partial(erase, box=tuple(slice(int(a), int(a + n)) for a, n in zip(starts, sides, strict=True)))


class Highlights(Ingredient):
    """1 to ``count`` specular highlights: white ellipses with a soft rim, anywhere in the window, of two dimensions.

    The longer half-axis is uniform in [1, ``radius_px``], the shorter 0.3 to 1 of it, the angle any. At a distance r,
    measured in half-axes, the pixel moves towards white by ``exp(-r^4 ln 2)``: nearly all inside, half at r = 1.
    """

    strengths: ClassVar[tuple[str, ...]] = ("count",)
    count: NonNegativeInt = 0
    radius_px: Annotated[float, Field(ge=1)] = 6.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        if len(shape) != 3:
            raise UserError(
                "E-AUG-HIGHLIGHTS",
                f"augment.highlights works on images of two dimensions, the image has {len(shape) - 1}",
                "remove augment.highlights",
            )
        spots = rng.random((int(rng.integers(1, self.count + 1)), 5))
        centres = spots[:, :2] * np.array(shape[1:]) - 0.5
        radii = 1 + spots[:, 2] * (self.radius_px - 1)
        axes = np.stack([radii, radii * (0.3 + 0.7 * spots[:, 3])], axis=1)
        return partial(add_highlights, centres=centres, axes=axes, angles=np.pi * spots[:, 4])


def add_highlights(image: Tensor, *, centres: np.ndarray, axes: np.ndarray, angles: np.ndarray) -> Tensor:
    """White ellipses at ``centres`` [N, 2] with half-axes ``axes`` [N, 2] px turned by ``angles`` [N], in a copy."""
    rows, columns = np.mgrid[: image.shape[1], : image.shape[2]]
    dark = np.ones(image.shape[1:])
    for (row, column), (long, short), angle in zip(centres, axes, angles, strict=True):
        y, x = rows - row, columns - column
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        squared = (along / long) ** 2 + (across / short) ** 2
        dark *= 1 - np.exp2(-(np.minimum(squared, 30) ** 2))
    return (image + (1 - image) * torch.from_numpy((1 - dark).astype(np.float32))).clamp_(0, 1)


def low_frequencies(size: Sequence[int], band: float) -> np.ndarray:
    """bool, of the shape of ``rfftn``'s result over ``size``: at most ``band`` of Nyquist along every axis."""
    low = np.ones((), dtype=bool)
    for axis, n in enumerate(size):
        frequencies = rfftfreq(n) if axis == len(size) - 1 else fftfreq(n)
        low = low[..., None] & (np.abs(frequencies) <= band / 2)
    return low


def mix_amplitude(image: Tensor, *, amplitude: np.ndarray, low: np.ndarray, mix: float) -> Tensor:
    """``A' = A + mix (amplitude - A)`` where ``low``, phase kept, clamped to [0, 1]; ``mix`` 0 is the identity."""
    spectrum = _spectrum(image)
    kept = spectrum[:, low]
    spectrum[:, low] = kept * (1 + mix * (amplitude[:, low] / np.maximum(np.abs(kept), 1e-8) - 1))
    return _image(spectrum, image)


def scale_amplitude(image: Tensor, *, factor: np.ndarray, low: np.ndarray) -> Tensor:
    """The amplitudes where ``low`` times ``factor`` [C, number of low frequencies], clamped to [0, 1]."""
    spectrum = _spectrum(image)
    spectrum[:, low] *= factor
    return _image(spectrum, image)


def _spectrum(image: Tensor) -> np.ndarray:
    return rfftn(image.numpy(), axes=tuple(range(1, image.ndim)))


def _image(spectrum: np.ndarray, like: Tensor) -> Tensor:
    pixels = irfftn(spectrum, s=tuple(like.shape[1:]), axes=tuple(range(1, like.ndim)))
    return torch.from_numpy(pixels.astype(np.float32, copy=False)).clamp_(0, 1)


def blur(image: Tensor, *, sigma: float) -> Tensor:
    """Each channel convolved with a Gaussian."""
    smooth = gaussian_filter(image.numpy(), (0, *([sigma] * (image.ndim - 1))), truncate=3)
    return torch.from_numpy(smooth).clamp_(0, 1)


def add_noise(image: Tensor, *, noise: Tensor, std: float) -> Tensor:
    """``clamp(x + std noise)``."""
    return torch.add(image, noise, alpha=std).clamp_(0, 1)


def erase(image: Tensor, *, box: tuple[slice, ...]) -> Tensor:
    """The box filled with the mean of each channel, in a copy."""
    result = image.clone()
    result[(slice(None), *box)] = channel_means(image).view(-1, *([1] * len(box)))
    return result


def _amplitude_of(reference: Tensor, shape: Sequence[int]) -> np.ndarray:
    """Amplitudes of the reference's centre at the size of the image, so that frequencies mean the same in both."""
    if len(reference) != shape[0] or any(n < w for n, w in zip(reference.shape[1:], shape[1:], strict=True)):
        raise UserError(
            "E-AUG-REFERENCE",
            f"the reference image is {list(reference.shape)}, the image {list(shape)}",
            "give augment.fourier a reference with as many channels that is not smaller than the window",
        )
    for axis, wanted in enumerate(shape[1:], start=1):
        reference = reference.narrow(axis, centre(reference.shape[axis], wanted), wanted)
    return np.abs(_spectrum(reference))


def _require_rgb(channels: int, key: str) -> None:
    if channels != 3:
        raise UserError(
            "E-AUG-RGB", f"augment.{key} works on RGB, the image has {channels} channels", f"remove augment.{key}"
        )
