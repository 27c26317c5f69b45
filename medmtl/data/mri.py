"""What goes wrong in an MR scanner: bias field, motion, ghosts, ringing, spikes, Rician noise, another contrast.

On images in [0, 1] of two or three dimensions; drawn apart from applying, as in :mod:`medmtl.data.appearance`. The bias
field and the cut of k-space are MONAI's. Spikes and power are MONAI's formulas, and everything in k-space runs on
scipy's Fourier transform: the bits of torch's, and of its ``pow``, which MONAI's transforms call, depend on the number
of threads. Rician noise (there drawn and applied in one), ghosting and motion (not there) are written here. k-space is
the discrete Fourier transform, its centre in the middle: frequency k of an axis of N voxels has N / k voxels to a
period.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from scipy.fft import fft, fftn, fftshift, ifft, ifftn, ifftshift
from torch import Tensor

from medmtl.config import Config, Single
from medmtl.data.appearance import Change, Fraction, Ingredient
from medmtl.data.geometry import rotation


class BiasField(Ingredient):
    """The image times ``exp(field)``, the sensitivity of the coils; air stays 0.

    The field is a sum of Legendre polynomials over the image, of up to ``degree``, the coefficients uniform in
    ±``strength`` (Van Leemput et al., IEEE TMI 18(10), 1999; MONAI's ``RandBiasField``).
    """

    strengths: ClassVar[tuple[str, ...]] = ("strength",)
    strength: NonNegativeFloat = 0.0
    degree: Annotated[int, Field(ge=1, le=5)] = 3

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        axes = len(shape) - 1
        coefficients = self.strength * rng.uniform(-1, 1, math.comb(self.degree + axes, axes))
        return partial(bias, coefficients=coefficients.tolist(), degree=self.degree)


class Motion(Ingredient):
    """The head moves ``moves`` times while k-space is filled line by line: blurring and ringing along one axis.

    Each line holds the image as it lay when the line was measured: turned by ±``rotate_deg`` about each axis and
    shifted by ±``translate_px`` along each, linearly interpolated. Lines come in order of frequency, the moves at
    uniform times. The pose at frequency 0 is that of the image, so that masks still fit. Shaw et al., MRI k-space
    motion artefact augmentation, MIDL 2019; as in TorchIO's ``RandomMotion`` (which resamples with other weights).
    """

    strengths: ClassVar[tuple[str, ...]] = ("rotate_deg", "translate_px")
    rotate_deg: Annotated[float, Field(ge=0, le=45)] = 0.0
    translate_px: NonNegativeFloat = 0.0
    moves: PositiveInt = 2

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        axes, times = len(shape) - 1, np.sort(rng.random(self.moves))
        u = rng.uniform(-1, 1, (self.moves + 1, 3 + axes))
        poses = [(rotation(axes, math.radians(self.rotate_deg) * pose[:3]), self.translate_px * pose[3:]) for pose in u]
        return partial(move, axis=int(rng.integers(axes)), times=times.tolist(), poses=poses)


class Ghosting(Ingredient):
    """Every n-th line of k-space along one axis is weaker by a share s: copies of the image, N/n voxels apart.

    n is uniform in ``copies``, s in [0, ``strength``]: ``|x - s/n sum_m x(. - m N/n)|``, m from 0 to n - 1, exactly
    where n divides N. As TorchIO's ``RandomGhosting``, without its untouched centre of k-space.
    """

    strengths: ClassVar[tuple[str, ...]] = ("strength",)
    strength: Fraction = 0.0
    copies: tuple[Annotated[int, Field(ge=2)], Annotated[int, Field(ge=2)]] = (2, 6)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.copies[0] > self.copies[1]:
            raise ValueError(f"copies {self.copies} run downwards; write the smaller number first")
        return self

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        every = int(rng.integers(self.copies[0], self.copies[1] + 1))
        return partial(ghost, axis=int(rng.integers(len(shape) - 1)), every=every, share=self.strength * rng.random())


class Gibbs(Ingredient):
    """Ringing at edges: k-space cut at ``1 - a`` of its half diagonal, a uniform in [0, ``alpha``] (``GibbsNoise``).

    The half diagonal is that of a square of the longest axis; up to a = 0.29 only corners are lost.
    """

    strengths: ClassVar[tuple[str, ...]] = ("alpha",)
    alpha: Fraction = 0.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        return partial(ring, alpha=self.alpha * rng.random())


class Spike(Ingredient):
    """A spark while one point of k-space is measured: a stripe over the whole image (as ``KSpaceSpikeNoise``).

    Its frequency is uniform over k-space without the centre, its amplitude in [0, ``strength``] times the image's mean.
    """

    strengths: ClassVar[tuple[str, ...]] = ("strength",)
    strength: NonNegativeFloat = 0.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        size = tuple(shape[1:])
        place, middle = int(rng.integers(math.prod(size) - 1)), np.ravel_multi_index([n // 2 for n in size], size)
        where = np.unravel_index(place + (place >= middle), size)  # every place but the centre
        return partial(spike, where=tuple(int(i) for i in where), share=self.strength * rng.random())


class Rician(Ingredient):
    """``|x + std (a + i b)|``, a and b normal, the standard deviation uniform in [0, ``std``]: noise of a magnitude.

    Gudbjartsson and Patz, The Rician distribution of noisy MRI data, MRM 34(6), 1995. Air is brighter than 0 then.
    """

    strengths: ClassVar[tuple[str, ...]] = ("std",)
    std: Annotated[Single, Field(ge=0)] = 0.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        std = self.std * rng.random()
        return partial(add_rician, noise=torch.from_numpy(rng.standard_normal((2, *shape), dtype=np.float32)), std=std)


class Contrast(Ingredient):
    """Another contrast of tissue; air stays 0, which ``augment.colour.contrast`` does not keep.

    Tissue (above 0) is stretched by 1 ± ``stretch`` about its mean; then ``x^γ`` over the image's range, ln γ uniform
    in ± ln(1 + gamma) (as MONAI's ``AdjustContrast``).
    """

    strengths: ClassVar[tuple[str, ...]] = ("stretch", "gamma")
    stretch: Fraction = 0.0
    gamma: NonNegativeFloat = 0.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        u = rng.uniform(-1, 1, 2)
        return partial(adjust_contrast, stretch=1 + self.stretch * u[0], gamma=float((1 + self.gamma) ** u[1]))


class Mri(Config):
    """Artefacts of MR in the order in which they arise.

    With ``keep_background``, what was 0 is 0 again after all of them: for skull-stripped brains, whose air was taken
    away after the scanner's artefacts had reached it.
    """

    bias_field: BiasField = BiasField()
    motion: Motion = Motion()
    ghosting: Ghosting = Ghosting()
    gibbs: Gibbs = Gibbs()
    spike: Spike = Spike()
    rician: Rician = Rician()
    contrast: Contrast = Contrast()
    keep_background: bool = False

    def idle(self) -> Mapping[str, str]:
        acting = any(part.on and part.probability for part in self.ingredients)
        return {} if acting else {"keep_background": "no artefact is on"}

    @property
    def ingredients(self) -> tuple[Ingredient, ...]:
        return self.bias_field, self.motion, self.ghosting, self.gibbs, self.spike, self.rician, self.contrast


def bias(image: Tensor, *, coefficients: Sequence[float], degree: int) -> Tensor:
    """The image times ``exp`` of a polynomial, cut at 1."""
    from monai.transforms.intensity.array import RandBiasField  # MONAI takes seconds to import: for those who use it

    field = RandBiasField(degree)._generate_random_field(image.shape[1:], degree, coefficients)
    return (image * torch.from_numpy(np.exp(field).astype(np.float32))).clamp_(0, 1)


def move(image: Tensor, *, axis: int, times: Sequence[float], poses: Sequence[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    """k-space whose lines along ``axis`` were measured in turn, in pose i until the i-th of ``times`` in [0, 1].

    A pose is a turn [d, d] and a shift [d] (voxels); the one at frequency 0 counts as none.
    """
    length = image.shape[axis + 1]
    ends = [*(round(time * length) for time in times), length]
    lines = np.moveaxis(_k_space(image, axis), axis + 1, 0)
    start = 0
    for end, (turn, shift) in zip(ends, poses, strict=True):
        if start < end and not start <= length // 2 < end:
            lines[start:end] = np.moveaxis(_k_space(_posed(image, turn, shift), axis), axis + 1, 0)[start:end]
        start = max(start, end)
    return _magnitude(np.moveaxis(lines, 0, axis + 1), axis)


def ghost(image: Tensor, *, axis: int, every: int, share: float) -> Tensor:
    """Frequencies 0, ±``every``, ±2 ``every``... along ``axis`` times ``1 - share``."""
    spectrum = _k_space(image, axis)
    lines = np.moveaxis(spectrum, axis + 1, 0)
    lines[(len(lines) // 2) % every :: every] *= np.float32(1 - share)
    return _magnitude(spectrum, axis)


def ring(image: Tensor, *, alpha: float) -> Tensor:
    """The image with its high frequencies cut off."""
    axes = tuple(range(1, image.ndim))
    k_space = fftshift(fftn(image.numpy(), axes=axes), axes=axes)
    from monai.transforms.intensity.array import GibbsNoise

    return _real(ifftshift(GibbsNoise(alpha)._apply_mask(k_space), axes=axes))


def spike(image: Tensor, *, where: tuple[int, ...], share: float) -> Tensor:
    """k-space gets at ``where`` the magnitude of ``share`` times its centre, a mean over the channels; phase kept."""
    spectrum = fftn(image.numpy(), axes=tuple(range(1, image.ndim)))
    place = (slice(None), *((i - n // 2) % n for i, n in zip(where, image.shape[1:], strict=True)))
    centre = np.abs(spectrum[(slice(None), *[0] * len(where))]).mean()
    spectrum[place] = share * centre * np.exp(1j * np.angle(spectrum[place]))
    return _real(spectrum)


def add_rician(image: Tensor, *, noise: Tensor, std: float) -> Tensor:
    """``noise`` [2, C, *S], real and imaginary part."""
    return torch.hypot(image + std * noise[0], std * noise[1]).clamp_(0, 1)


def adjust_contrast(image: Tensor, *, stretch: float, gamma: float) -> Tensor:
    """Tissue about its mean, then the power."""
    tissue = image > 0
    if stretch != 1 and tissue.any():
        mean = float(np.mean(image[tissue].numpy(), dtype=np.float64))
        image = torch.where(tissue, mean + stretch * (image - mean), image).clamp_(0, 1)
    if gamma == 1:
        return image
    pixels = image.numpy()
    low, width = pixels.min(), pixels.max() - pixels.min()
    power = np.power((pixels - low) / (width + np.float32(1e-7)), np.float32(gamma)) * width + low
    return torch.from_numpy(power).clamp_(0, 1)


def _real(spectrum: np.ndarray) -> Tensor:
    pixels = ifftn(spectrum, axes=tuple(range(1, spectrum.ndim))).real
    return torch.from_numpy(pixels.astype(np.float32)).clamp_(0, 1)


def _k_space(image: Tensor, axis: int) -> np.ndarray:
    """complex64 [C, *S]: frequencies along one axis, 0 at n // 2; scipy's, whose bits no number of threads changes."""
    return fftshift(fft(image.numpy(), axis=axis + 1), axes=axis + 1)


def _magnitude(spectrum: np.ndarray, axis: int) -> Tensor:
    """What a scanner shows; the shift back is a modulation, which leaves the magnitude alone."""
    pixels = np.abs(ifft(spectrum, axis=axis + 1))
    return torch.from_numpy(pixels.astype(np.float32, copy=False)).clamp_(0, 1)


def _posed(image: Tensor, turn: np.ndarray, shift: np.ndarray) -> Tensor:
    """The image [C, *S] turned about its centre and then shifted, linearly sampled; beyond it, its outermost voxels."""
    size = np.array(image.shape[1:])
    inverse = turn.T  # of a rotation
    theta = np.concatenate(
        [inverse * size / size[:, None], (-(inverse @ shift) * 2 / size)[:, None]], axis=1
    )  # in grid_sample's coordinates, where an axis runs from -1 to 1
    theta = theta[::-1, [*range(len(size) - 1, -1, -1), len(size)]].astype(np.float32)
    grid = F.affine_grid(torch.from_numpy(theta)[None], [1, 1, *size.tolist()], align_corners=False)
    return F.grid_sample(image[None], grid, "bilinear", "border", align_corners=False)[0]
