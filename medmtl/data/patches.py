"""A part of an image that is too large for the network: which one a visit in training sees."""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt
from torch import Tensor

from medmtl.config import Config

_MARKS = 4096  # voxels of a class that a patch may be centred on, evenly spread over all of them

Places = npt.NDArray[np.int64]  # flat indices into a mask


class Patches(Config):
    """Images of any size, seen ``size`` (px) at a time; a smaller one is padded with 0 to it, as by ``window``.

    Training: every visit of a case sees one patch, drawn from (seed, epoch, position): anywhere, or with probability
    ``foreground`` about a voxel of a class other than the first, each class that a mask of the case holds being as
    likely. Normalisation is that of the whole image.

    Inference: windows ``overlap`` of their size apart, ``windows`` of them through the network together. Dense outputs
    are blended; a class or a number is the windows' mean (:func:`medmtl.models.sliding.slide`). In training such a
    label is asked of every patch, also of one that does not show what it is about: right for what is everywhere (a
    scanner, the age of a brain), wrong for one small lesion, where ``window`` or a coarser ``spacing_mm`` must show the
    network the whole image.
    """

    size: tuple[PositiveInt, ...]
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    windows: PositiveInt = 4
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.0

    def draw(self, rng: np.random.Generator, spatial: Sequence[int], marks: Sequence[Places]) -> tuple[int, ...]:
        """Where the patch begins, wholly inside ``spatial``; always the same number of draws."""
        u, v = rng.random(3), rng.random(len(self.size))
        room = [n - size for n, size in zip(spatial, self.size, strict=True)]
        assert min(room) >= 0, (spatial, self.size)
        if marks and u[0] < self.foreground:
            places = marks[int(u[1] * len(marks))]
            voxel = np.unravel_index(places[int(u[2] * len(places))], tuple(spatial))
            begin = (int(i) - size // 2 for i, size in zip(voxel, self.size, strict=True))
            return tuple(min(max(first, 0), last) for first, last in zip(begin, room, strict=True))
        return tuple(int(draw * (last + 1)) for draw, last in zip(v, room, strict=True))

    def around(self, tensor: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
        """``size`` voxels [..., *size] about the patch that begins at ``start``, 0 beyond the image; a copy."""
        wide = [(n - patch) // 2 for n, patch in zip(size, self.size, strict=True)]
        return _cut(tensor, [first - margin for first, margin in zip(start, wide, strict=True)], size)


def marks(masks: Iterable[Tensor]) -> list[Places]:
    """For each class but the first of each mask [*S], where it is; evenly thinned to at most 4096 voxels."""
    found = []
    for mask in masks:
        flat = mask.numpy().ravel()
        inside = np.flatnonzero(flat > 0)
        classes = flat[inside]
        for number in np.unique(classes):
            places = inside[classes == number]
            found.append(places[:: math.ceil(len(places) / _MARKS)])
    return found


def _cut(tensor: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """``size`` elements of the last axes from ``start`` on, which may lie outside: 0 there."""
    lead = tensor.ndim - len(size)
    result = tensor.new_zeros((*tensor.shape[:lead], *size))
    source, target = [slice(None)] * lead, [slice(None)] * lead
    for first, wanted, length in zip(start, size, tensor.shape[lead:], strict=True):
        low, high = max(first, 0), min(first + wanted, length)
        source.append(slice(low, max(high, low)))
        target.append(slice(low - first, max(high, low) - first))
    result[tuple(target)] = tensor[tuple(source)]
    return result
