"""Where a window lies and how it is turned and bent: drawn once per sample, for the image and its dense targets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor

from medmtl.config import Config
from medmtl.data.preprocess import centre
from medmtl.errors import UserError


class Affine(Config):
    """An affine map about the window's centre, sampled linearly from the context (labels: nearest).

    Angles, zoom and shear are uniform in ±``rotate_deg`` (3-D: about each axis), ``scale`` (above 1 magnifies) and
    ±``shear``. ``padding`` is what lies beyond the context, should the window reach there: :meth:`Augment.reach`.
    """

    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    shear: Annotated[float, Field(ge=0, lt=1)] = 0.0
    padding: Literal["reflection", "border", "zeros"] = "reflection"

    @model_validator(mode="after")
    def _ordered(self) -> "Affine":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {self.scale} runs downwards; write the smaller factor first")
        return self

    def idle(self) -> Mapping[str, str]:
        return {} if self.on else {"padding": "no rotation, scale or shear looks beyond the image"}

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
    """Where and how the window lies. ``flip``: each axis with probability 1/2; ``last``: the last one alone (left and
    right of an axial slice). ``rotate90``: quarter turns in the last
    two axes (half turns where these differ in length). ``jitter_px``: the centre moves by up to that many pixels along
    each axis, uniformly, but never so far that the window leaves the context.
    """

    flip: bool | Literal["last"] = False
    rotate90: bool = False
    jitter_px: NonNegativeInt = 0
    affine: Affine = Affine()


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
    turned = range(axes - 1, axes) if config.flip == "last" else range(axes if config.flip else 0)
    flips = tuple(axis + 1 for axis in turned if u[axes + axis] < 0.5)
    turns = int(4 * u[-1]) if size[-1] == size[-2] else 2 * int(2 * u[-1])
    return Placement(
        tuple(start), size, config.affine.matrix(v, axes), config.affine.padding, flips, turns if config.rotate90 else 0
    )


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
