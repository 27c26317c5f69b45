"""The masks that several annotators drew on one image, checked at the border: size, values, who drew them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medmtl.errors import UserError

Pixels = npt.NDArray[np.bool_]
_FULL = (1, 255, 65535)  # what "foreground" is called in files


@dataclass(frozen=True)
class Mask:
    """One annotator's mask of an image; ``traits`` say how it was made (``tool``, ``skill``)."""

    annotator: str
    pixels: Pixels  # bool [*S]
    traits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Annotated:
    """An image with one or more annotators' masks on its grid; any annotator may be missing on any image.

    ``group`` (patient) is what intervals are clustered by, the image itself where it is empty. ``spacing_mm`` is mm per
    pixel along each axis; without it distances are in pixels. Raises ``E-AGR-TWICE`` for one annotator with two masks,
    ``E-AGR-SIZE`` for masks of several sizes or of another size than ``size``, ``E-AGR-NONE`` without a mask.
    """

    image: str
    masks: tuple[Mask, ...]
    group: str = ""
    spacing_mm: tuple[float, ...] | None = None
    size: tuple[int, ...] | None = None  # of the image, where it is known

    def __post_init__(self) -> None:
        where = f"image {self.image}"
        if not self.masks:
            raise UserError("E-AGR-NONE", "no mask", "leave the image out, or add a mask", where=where)
        names = [mask.annotator for mask in self.masks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(
                "E-AGR-TWICE",
                f"annotator {twice!r} has {names.count(twice)} masks",
                "keep one, or name a second pass as an annotator of its own (for intra-rater agreement)",
                where=where,
            )
        size = self.size or self.masks[0].pixels.shape
        for mask in self.masks:
            assert mask.pixels.dtype == np.bool_, f"{where}: pixels are {mask.pixels.dtype}; use masks.foreground"
            if mask.pixels.shape != size:
                raise UserError(
                    "E-AGR-SIZE",
                    f"the mask of {mask.annotator!r} is {_px(mask.pixels.shape)}, expected {_px(size)}",
                    "export every mask on the image's own grid",
                    where=where,
                )

    @property
    def annotators(self) -> tuple[str, ...]:
        return tuple(mask.annotator for mask in self.masks)

    @property
    def stack(self) -> Pixels:
        """bool [R, *S] in the order of ``annotators``."""
        return np.stack([mask.pixels for mask in self.masks])


def foreground(pixels: npt.NDArray[np.integer[Any]], *, where: str, edge_px: int = 2) -> Pixels:
    """A grey mask [*S] as bool: its values are 0 and one full value (1, 255 or 65535).

    Values in between are taken for anti-aliasing, and cut at half, where all of them lie within ``edge_px`` pixels of
    the edge that results; ``edge_px`` 0 allows none. Any other value is an error (``E-AGR-VALUES``): a label map, a
    probability or a lossy file is not a mask, and a threshold would hide that.
    """
    values = np.unique(pixels)
    full = _full(values)
    if full is None:
        raise _unexpected(values, "a mask holds 0 and one of 1, 255 or 65535", where)
    mask = np.asarray(pixels > full / 2)
    between = (pixels > 0) & (pixels < full)
    if between.any():
        edge = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask, border_value=1)
        near = ndimage.binary_dilation(edge, iterations=edge_px) if edge_px else np.zeros_like(edge)
        stray = int((between & ~near).sum())
        if stray:
            raise _unexpected(values, f"{stray} pixels between 0 and {full} lie more than {edge_px} px from an edge",
                              where)  # fmt: skip
    return mask


def _full(values: npt.NDArray[np.integer[Any]]) -> int | None:
    """The value that means foreground; None where the largest value is none of the known ones."""
    high, low = int(values[-1]), int(values[0])
    return None if low < 0 else next((full for full in _FULL if high in (0, full)), None)


def _unexpected(values: Iterable[Any], why: str, where: str) -> UserError:
    shown = [int(value) for value in values]
    listed = ", ".join(map(str, shown[:6])) + (f", ... ({len(shown)} values)" if len(shown) > 6 else "")
    return UserError(
        "E-AGR-VALUES",
        f"the mask holds {listed}: {why}",
        "export it again as a plain two-valued PNG, or threshold it where you know what the values mean",
        where=where,
    )


def _px(size: Iterable[int]) -> str:
    return " x ".join(str(n) for n in size) + " px"
