"""Random changes of a training sample, counted and not stateful: the same seed gives the same bits in any process.

Nothing is on by default. Per sample: geometry first, on an image with some surroundings (the *context*), from which
flips, jitter and the affine map take a window, so that no border shows; then appearance, on the window in [0, 1]. Dense
targets get the same geometry with the nearest label, and no change of appearance.

Every ingredient is drawn from its own stream, so switching one on leaves the others' draws as they were: two runs that
differ in one ingredient are a paired comparison. Drawing (``draw``) is apart from applying, which is pure.

Plain torch and numpy on plain tensors, not MONAI's ``Rand...d``: on a 64 px patch those cost 5 to 28 times as much
(flips, quarter turns, jitter, gain and offset together 2.4 ms per sample against 0.09, ``benchmarks/augment_cost.py``),
mostly for the MetaTensor's history, which only a switch that is global to the process turns off, and for new random
states, whose seed is folded to 32 bits. (``RandCoarseDropout`` also writes into the tensor it is given once that switch
is off, that is, into a cache.) The tests compare matrices, sampling, blur and gamma with MONAI.

Bits do not depend on the number of threads either, which differs between a loader's workers and its main process: sums
are numpy's and Fourier transforms scipy's, because torch's depend on how threads split the work.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator
from scipy.fft import fftfreq, irfftn, rfftfreq, rfftn
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medmtl.config import Config
from medmtl.data.preprocess import IMAGE, SampleDict, centre
from medmtl.data.stain import channel_means, hue_matrix, recolour, restain, saturation_matrix
from medmtl.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]
Change = Callable[[Tensor], Tensor]


class Affine(Config):
    """An affine map about the window's centre, sampled linearly from the context (labels: nearest).

    Angles, zoom and shear are uniform in ±``rotate_deg`` (3-D: about each axis), ``scale`` (above 1 magnifies) and
    ±``shear``. ``padding`` is what lies beyond the context, should the window reach there: :meth:`Augment.reach`.
    """

    probability: Fraction = 1.0
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    shear: Annotated[float, Field(ge=0, lt=1)] = 0.0
    padding: Literal["reflection", "border", "zeros"] = "reflection"

    @model_validator(mode="after")
    def _ordered(self) -> "Affine":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {self.scale} runs downwards; write the smaller factor first")
        return self

    @property
    def on(self) -> bool:
        return bool(self.rotate_deg or self.shear or self.scale != (1.0, 1.0))

    def matrix(self, u: np.ndarray, axes: int) -> np.ndarray | None:
        """[d, d]: from a position in the window to one in the context, both about the centre; u uniform in [0, 1)."""
        if not self.on or u[0] >= self.probability:
            return None
        angles = math.radians(self.rotate_deg) * (2 * u[1:4] - 1)
        zoom = self.scale[0] + (self.scale[1] - self.scale[0]) * u[4]
        return rotation(axes, angles) @ shearing(axes, self.shear * (2 * u[5:11] - 1)) / zoom


class Geometry(Config):
    """Where and how the window lies. ``flip``: each axis with probability 1/2. ``rotate90``: quarter turns in the last
    two axes (half turns where these differ in length). ``jitter_px``: the centre moves by up to that many pixels along
    each axis, uniformly, but never so far that the window leaves the context.
    """

    flip: bool = False
    rotate90: bool = False
    jitter_px: NonNegativeInt = 0
    affine: Affine = Affine()


class Ingredient(Config, ABC):
    """A change of appearance that happens with ``probability``, provided that one of its strengths is not 0."""

    strengths: ClassVar[tuple[str, ...]]
    probability: Fraction = 1.0

    @property
    def on(self) -> bool:
        return any(getattr(self, name) for name in self.strengths)

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
    sigma: NonNegativeFloat = 0.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int], reference: Tensor | None) -> Change:
        return partial(blur, sigma=self.sigma * rng.random())


class Noise(Ingredient):
    """Independent Gaussian noise, its standard deviation uniform in [0, ``std``]."""

    strengths: ClassVar[tuple[str, ...]] = ("std",)
    std: NonNegativeFloat = 0.0

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


class Augment(Config):
    """All augmentation of a training run; an empty configuration changes nothing. Appearance acts in this order."""

    geometry: Geometry = Geometry()
    fourier: Fourier = Fourier()
    stain: Stain = Stain()
    colour: Colour = Colour()
    blur: Blur = Blur()
    noise: Noise = Noise()
    erase: Erase = Erase()

    def build(self, window: Sequence[int] | None, dense_keys: Sequence[str] = ()) -> "AugmentPipeline":
        """The pipeline for a network input of that size; without a window the image keeps its own."""
        if window is None and self.geometry.jitter_px:
            raise UserError(
                "E-AUG-WINDOW",
                "jitter needs a window that is smaller than the image",
                "set preprocess.window, or augment.geometry.jitter_px to 0",
                where="augment.geometry.jitter_px",
            )
        return AugmentPipeline(self, None if window is None else tuple(window), tuple(dense_keys))

    def reach(self, window: Sequence[int]) -> tuple[int, ...]:
        """Context size, per axis, that no draw looks beyond: enough to cache, and what an image should have.

        ``2 ceil(max_i |u_i|) + 2 jitter`` for the corners' positions u, bounded over all angles and shears.
        """
        affine, half, axes = self.geometry.affine, np.array(window) / 2, len(window)
        box = half
        if affine.on:
            sin = math.sin(math.radians(min(affine.rotate_deg, 90)))
            box = shearing(axes, [affine.shear] * 6) @ half
            turned = box.copy()
            for i, j in combinations(range(axes), 2):  # |cos| <= 1, |sin| <= sin
                turned[[i, j]] += sin * turned[[j, i]]
            box = np.minimum(turned, np.linalg.norm(box)) / affine.scale[0]
        margin = np.maximum(np.ceil(box - half - 1e-9), 0).astype(int) + self.geometry.jitter_px
        return tuple(int(n + 2 * m) for n, m in zip(window, margin, strict=True))


@dataclass(frozen=True)
class AugmentPipeline:
    """``pipeline(sample, seed)``; or, to normalise or crop in between, the two halves with one generator::

    rng = counted_generator(seed, epoch, index)
    sample = pipeline.intensity(pipeline.geometry(sample, rng), rng, reference)
    """

    config: Augment
    window: tuple[int, ...] | None
    dense_keys: tuple[str, ...]

    def __call__(self, sample: SampleDict, seed: int, reference: Tensor | None = None) -> SampleDict:
        """The sample, augmented by draws from ``seed`` (any natural number) alone."""
        rng = np.random.Generator(np.random.PCG64(seed))
        return self.intensity(self.geometry(sample, rng), rng, reference)

    def geometry(self, sample: SampleDict, rng: np.random.Generator) -> SampleDict:
        """Image and dense targets at the size of the window. Input tensors are not written to; the result may share
        their memory where nothing is drawn.
        """
        spatial = tuple(sample[IMAGE].shape[1:])
        place = draw_placement(self.config.geometry, rng, spatial, self.window or spatial)
        dense = {name: place(sample[name][None], labels=True)[0] for name in self.dense_keys}
        return {**sample, IMAGE: place(sample[IMAGE]), **dense}

    def intensity(self, sample: SampleDict, rng: np.random.Generator, reference: Tensor | None = None) -> SampleDict:
        """The image with another appearance, within [0, 1]. ``reference``: another training image for ``fourier``."""
        image, config = sample[IMAGE], self.config
        ingredients = (config.fourier, config.stain, config.colour, config.blur, config.noise, config.erase)
        seeds = rng.integers(2**63, size=len(ingredients))
        for ingredient, seed in zip(ingredients, seeds, strict=True):
            if ingredient.on:
                own = np.random.Generator(np.random.PCG64(int(seed)))
                if own.random() < ingredient.probability:
                    image = ingredient.draw(own, image.shape, reference)(image)
        return {**sample, IMAGE: image}


def counted_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample in one epoch. No two triples (each below 2^64) share a key."""
    return np.random.Generator(np.random.PCG64((seed << 128) | (epoch << 64) | index))


def rotation(axes: int, angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """[d, d]: turns by an angle (rad) in the planes of axes 01, 02, 12, in this order; in 2-D the first one alone."""
    R = np.eye(axes)
    for (i, j), angle in zip(combinations(range(axes), 2), angles, strict=False):
        sin, cos = math.sin(angle), math.cos(angle)
        R[[i, j]] = cos * R[i] - sin * R[j], sin * R[i] + cos * R[j]
    return R


def shearing(axes: int, coefficients: Sequence[float] | np.ndarray) -> np.ndarray:
    """[d, d], of determinant 1: axis i moved by a coefficient times axis j, for ij = 01, 02, 10, 12, 20, 21 in turn."""
    S = np.eye(axes)
    for (i, j), coefficient in zip(permutations(range(axes), 2), coefficients, strict=False):
        S[i] += coefficient * S[j]
    return S


@dataclass(frozen=True)
class Placement:
    """A window in a context, then flips, then quarter turns in the last two axes. Called on tensors [C, *S]."""

    start: tuple[int, ...]
    size: tuple[int, ...]
    matrix: np.ndarray | None  # [d, d] about the window's centre; None: the window itself
    padding: str
    flips: tuple[int, ...]  # of the tensor's axes, the channels being 0
    quarter_turns: int

    def __call__(self, tensor: Tensor, *, labels: bool = False) -> Tensor:
        if self.matrix is not None:
            tensor = self._sample(tensor, "nearest" if labels else "bilinear")
        else:
            for axis, (start, length) in enumerate(zip(self.start, self.size, strict=True), start=1):
                tensor = tensor.narrow(axis, start, length)
        if self.flips:
            tensor = tensor.flip(self.flips)
        if self.quarter_turns:
            tensor = tensor.rot90(self.quarter_turns, (-2, -1))
        return tensor.contiguous()

    def _sample(self, tensor: Tensor, mode: str) -> Tensor:
        """``y[u] = x[c + M u]`` for positions u about the window's centre and c the latter's place in the context.

        In ``grid_sample``'s coordinates (-1 and 1 are the outer borders, the last axis comes first) this is
        ``θ_ij = M_ij w_j / S_i``, ``θ_i,d = (2 c_i + 1) / S_i - 1``. float32 holds every label below 2^24.
        """
        spatial, size = np.array(tensor.shape[1:]), np.array(self.size)
        middle = np.array(self.start) + (size - 1) / 2
        shift = (2 * middle + 1) / spatial - 1
        theta = np.concatenate([self.matrix * size / spatial[:, None], shift[:, None]], axis=1)
        axes = len(size)
        theta = theta[::-1, [*range(axes - 1, -1, -1), axes]].astype(np.float32)
        grid = F.affine_grid(torch.from_numpy(theta)[None], [1, 1, *self.size], align_corners=False)
        sampled = F.grid_sample(tensor.float()[None], grid, mode, self.padding, align_corners=False)[0]
        return sampled.to(tensor.dtype) if mode == "nearest" else sampled.clamp_(0, 1)


def draw_placement(
    config: Geometry, rng: np.random.Generator, spatial: Sequence[int], size: tuple[int, ...]
) -> Placement:
    """One placement; always the same number of draws, whatever is switched on."""
    if len(spatial) != len(size) or any(n < w for n, w in zip(spatial, size, strict=True)):
        raise UserError(
            "E-IMG-SMALL",
            f"a window of {list(size)} px does not fit into the image of {list(spatial)} px",
            "choose a smaller preprocess.window, or preprocess.resize, or set preprocess.pad",
        )
    axes = len(size)
    u, v = rng.random(2 * axes + 1), rng.random(11)
    start = []
    for n, w, draw in zip(spatial, size, u, strict=False):
        first = centre(n, w)
        low, high = max(first - config.jitter_px, 0), min(first + config.jitter_px, n - w)
        start.append(low + int(draw * (high - low + 1)))
    flips = tuple(axis + 1 for axis in range(axes) if config.flip and u[axes + axis] < 0.5)
    turns = int(4 * u[-1]) if size[-1] == size[-2] else 2 * int(2 * u[-1])
    return Placement(
        tuple(start), size, config.affine.matrix(v, axes), config.affine.padding, flips, turns if config.rotate90 else 0
    )


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
