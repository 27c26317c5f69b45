"""Colour-coded overlays of a colposcopist's curves as one mask per feature, and closed curves as filled regions.

AnnoCerv's overlays are transparent PNGs on which features are *outlined* in fixed colours. Drawing programs blend a
stroke's edge with transparency and with other strokes: such pixels have colours that the code does not know. They take
the feature of the nearest pure pixel; what is of no known colour over more than an edge is refused, not guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from medmtl.errors import UserError
from medmtl.io.raster import MAX_PIXELS

# AnnoCerv's README gives names, its notebook the exact blue and purple; the others are how drawing programs call them.
COLOURS: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "junction": ((0, 0, 255),),  # squamo-columnar junction
    "acetowhite": ((255, 0, 255), (128, 0, 128)),
    "vessels": ((255, 0, 0),),  # atypical vessels and punctation
    "mosaic": ((165, 42, 42), (139, 69, 19), (128, 64, 0)),
    "cysts": ((255, 255, 0),),  # Naboth cysts
    "gland_openings": ((0, 0, 0),),  # cuffed
}
_PURE = 60  # distance in RGB up to which a colour is one of the code's
_EDGE_PX = 3  # how far a blended pixel may lie from a pure one
_UNKNOWN = 0.02  # share of drawn pixels that may be of no known colour
_FULL_GAP_PX = 4  # widest gap in a curve that is closed


@dataclass(frozen=True)
class Region:
    """What a curve encloses: bool [H, W], or None where it cannot be said, and how it was found."""

    mask: np.ndarray | None
    status: str  # empty, closed, closed+border, gap<=Npx, gap<=Npx+border, unreliable


def read_overlay(path: Path) -> dict[str, np.ndarray]:
    """The curves of each feature, bool [H, W], from a transparent PNG; a feature that is not drawn is all False.

    Pixels with alpha below one half are background. Raises UserError for a file without transparency (its background
    would be black, the code of gland openings), and where over 2 % of the drawn pixels have no known colour.
    """
    pixels = _rgba(path)
    drawn = pixels[..., 3] >= 128
    anchors = [(index, colour) for index, colours in enumerate(COLOURS.values()) for colour in colours]
    colours = pixels[drawn][:, :3].astype(np.int32)
    distance = np.stack([np.sqrt(((colours - np.array(colour)) ** 2).sum(1)) for _, colour in anchors], axis=1)
    nearest = distance.argmin(1) if len(colours) else np.zeros(0, int)
    owner = np.array([index for index, _ in anchors])[nearest]
    pure = np.zeros(drawn.shape, bool)
    pure[drawn] = distance.min(1) <= _PURE if len(colours) else False
    feature = np.full(drawn.shape, -1)
    feature[drawn] = owner
    away, (rows, columns) = ndimage.distance_transform_edt(~pure, return_indices=True)
    blended = drawn & ~pure & (away <= _EDGE_PX)
    feature[blended] = feature[rows[blended], columns[blended]]
    unknown = drawn & ~pure & ~blended if pure.any() else drawn
    if unknown.sum() > _UNKNOWN * max(1, drawn.sum()):
        shown = np.unique(pixels[unknown][:, :3], axis=0)[:3]
        raise UserError(
            "E-PREP-COLOUR",
            f"{unknown.sum() / drawn.sum():.0%} of the drawn pixels have none of the code's colours, for example "
            + ", ".join(str(tuple(int(value) for value in colour)) for colour in shown),
            f"redraw them; the code knows {', '.join(f'{name} {given[0]}' for name, given in COLOURS.items())}",
            where=path.name,
        )
    feature[unknown] = -1
    return {name: feature == index for index, name in enumerate(COLOURS)}


def _rgba(path: Path) -> np.ndarray:
    """Pixels uint8 [H, W, 4] of a PNG that has an alpha channel or a transparent palette colour."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"more than {MAX_PIXELS:,} pixels")
            if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
                raise UserError(
                    "E-PREP-OVERLAY",
                    f"an overlay of mode {image.mode}, without transparency",
                    "export the annotation layer alone, on a transparent background",
                    where=path.name,
                )
            return np.asarray(image.convert("RGBA"))
    except UserError:
        raise
    except Exception as error:  # a damaged PNG can raise anything inside the decoder
        raise UserError(
            "E-PREP-OVERLAY",
            f"the overlay cannot be read ({type(error).__name__})",
            "copy the file again from its source",
            where=path.name,
        ) from error


def fill(curve: np.ndarray) -> Region:
    """The region that every curve of ``curve`` (bool [H, W]) encloses, itself included.

    A curve that runs into the border of the image is closed along it; gaps up to 4 px are closed. Where any curve
    encloses less than its own area of pixels (an open line, perhaps with a small loop), the region is unknown: a
    lesion that the junction or the canal closes instead was drawn that way on purpose.
    """
    if not curve.any():
        return Region(np.zeros(curve.shape, bool), "empty")
    for gap in range(0, _FULL_GAP_PX + 1, 2):
        disc = _disc(gap // 2)  # a curve that much thicker on both sides of a gap meets itself
        for border in (False, True):
            inside = _enclosed(_dilated(curve, disc), border=border)
            if inside is not None:
                status = f"gap<={gap}px" if gap else "closed"
                return Region(_dilated(inside, disc) | curve, f"{status}+border" if border else status)
    return Region(None, "unreliable")


def _disc(radius: int) -> np.ndarray:
    reach = np.arange(-radius, radius + 1)
    return np.hypot(reach[:, None], reach) <= radius + 0.5


def _dilated(pixels: np.ndarray, disc: np.ndarray) -> np.ndarray:
    return pixels if disc.size == 1 else ndimage.binary_dilation(pixels, disc)


def _enclosed(curve: np.ndarray, *, border: bool) -> np.ndarray | None:
    """The inside of every connected curve, or None where one of them has none.

    Without ``border`` the outside is whatever touches the image's border. With it, the outside is what holds a corner:
    a lesion is cut by one side of the image, the background runs round it. A part with one corner, where the rest of
    the border has the other three, is a lesion in that corner.
    """
    parts, count = ndimage.label(~curve)
    on_rim = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    outside = on_rim[on_rim > 0]
    if border:
        corners = np.bincount([int(parts[row, column]) for row in (0, -1) for column in (0, -1)], minlength=count + 1)
        least = 2 if len(outside) == 2 and corners[outside].max() == 3 else 1
        outside = outside[corners[outside] >= least]
    inside = (parts > 0) & ~np.isin(parts, outside)
    curves, number = ndimage.label(curve, np.ones((3, 3)))
    length = np.bincount(curves.ravel(), minlength=number + 1)[1:]
    near = ndimage.grey_dilation(curves, size=(3, 3))  # which curve a part of the background leans on
    size = np.bincount(parts.ravel(), minlength=count + 1)
    touching = inside & (near > 0)
    area = np.zeros(number + 1)
    for part, owner in np.unique(np.stack([parts[touching], near[touching]]), axis=1).T:
        area[owner] += size[part]
    return inside if number and (area[1:] >= length).all() else None
