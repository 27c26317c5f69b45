"""Whether a mask belongs to its image: same grid, same place, whole numbers, known labels."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medmtl.io.affine import corner_distance_mm, spacing_mm
from medmtl.io.reasons import refusal
from medmtl.io.volume import Note, Volume

ROUNDED = 1e-3  # a label may be off a whole number by this much
APART_MM = 0.01  # a corner may be off by this much, but never by more than a tenth of a voxel
APART_RELATIVE = 1e-3  # of a voxel's edge, along each axis
_LISTED = 10


def check_mask(mask: Volume, image: Volume, *, values: Collection[int] | None = None, name: str = "") -> Volume:
    """The mask with integer labels in the place of its image, or why it is none. ``name`` appears in errors.

    ``values`` are the labels that may occur, background included (None: any). An empty mask is allowed and noted. Where
    one of the two has no place (or only a voxel size), an equal grid is taken as the same one, with a note.

    Raises UserError: ``E-MASK-SHAPE``, ``E-MASK-PLACE``, ``E-MASK-VALUES`` (not whole), ``E-MASK-LABELS`` (unknown).
    """
    if mask.colour or mask.array.shape != image.array.shape[: 3 if image.colour else mask.array.ndim]:
        kind = " in colour" if mask.colour else ""
        found = f"the mask is {list(mask.array.shape)}{kind}, the image {list(image.array.shape)}"
        raise refusal("E-MASK-SHAPE", found, where=name)
    notes = [*mask.notes, *_check_place(mask, image, name)]
    labels = _whole(mask.array, notes, name)
    notes += check_labels(labels, values, name=name)
    return replace(mask, array=labels, affine=image.affine, spacing=image.spacing, notes=tuple(notes))


def _check_place(mask: Volume, image: Volume, name: str) -> list[Note]:
    if mask.affine is None or image.affine is None:
        known = mask.spacing is not None and image.spacing is not None
        n = min(len(mask.spacing or ()), len(image.spacing or ()))
        if known and not np.allclose((mask.spacing or ())[:n], (image.spacing or ())[:n], rtol=APART_RELATIVE, atol=0):
            found = f"voxels of {mask.spacing} mm in the mask, {image.spacing} mm in the image"
            raise refusal("E-MASK-PLACE", found, where=name)
        if mask.affine is None and image.affine is None:
            return []
        which = "mask" if mask.affine is None else "image"
        return [Note("W-MASK-NO-PLACE", f"the {which} does not say where it lies; its grid counts as the other's")]
    edges = np.array(spacing_mm(image.affine))
    apart = corner_distance_mm(mask.affine, image.affine, image.array.shape)
    relative = float(np.max(np.linalg.norm(mask.affine[:3, :3] - image.affine[:3, :3], axis=0) / edges))
    if apart > min(APART_MM, 0.1 * edges.min()) or relative > APART_RELATIVE:
        found = (
            f"a corner of the mask lies {apart:.4g} mm from the image's; the axes differ by {relative:.3g} of a voxel"
        )
        raise refusal("E-MASK-PLACE", found, where=name)
    return []


def _whole(array: npt.NDArray[np.generic], notes: list[Note], name: str) -> npt.NDArray[np.generic]:
    """The labels as integers; floating values are rounded where they are nearly whole."""
    if array.dtype.kind in "biu":
        return array.astype(np.uint8) if array.dtype.kind == "b" else array
    values = np.asarray(array, np.float64)
    whole = np.rint(values)
    with np.errstate(invalid="ignore"):
        off = np.abs(values - whole)
    if not np.isfinite(values).all() or off.max() > ROUNDED or np.abs(whole).max() >= 2**31:
        bad = ~(off <= ROUNDED) | (np.abs(whole) >= 2**31)
        found = f"{np.count_nonzero(bad):,} of {bad.size:,} voxels hold no label, the first is {values[bad][0]:g}"
        raise refusal("E-MASK-VALUES", found, where=name)
    if off.max() > 0:
        notes.append(Note("R-MASK-ROUNDED", f"{np.count_nonzero(off):,} voxels, off by {off.max():.2g} at most"))
    kinds = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.int32))
    ends = whole.min(), whole.max()
    return whole.astype(next(kind for kind in kinds if np.iinfo(kind).min <= ends[0] and ends[1] <= np.iinfo(kind).max))


def check_labels(labels: npt.NDArray[np.generic], values: Collection[int] | None, *, name: str = "") -> list[Note]:
    """Refuse labels that are not among ``values`` (``E-MASK-LABELS``; None: any); a note where all is background."""
    found = {int(label): int(count) for label, count in zip(*np.unique(labels, return_counts=True), strict=True)}
    unknown = sorted(set(found) - set(values)) if values is not None else []
    if unknown:
        listed = ", ".join(f"{label} ({found[label]:,} voxels)" for label in unknown[:_LISTED])
        more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
        raise refusal("E-MASK-LABELS", f"labels that nobody declared: {listed}{more}", where=name)
    return [Note("W-MASK-EMPTY", f"all {labels.size:,} voxels are background")] if set(found) == {0} else []
