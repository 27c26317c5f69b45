"""Pairwise agreement: a typed table with one row per image and pair of annotators, and its mean per image.

The graph of who annotated what may have any gaps: a pair exists where both masks exist.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from monai.metrics.utils import get_edge_surface_distance

from medmtl.agreement.masks import Annotated, Pixels
from medmtl.errors import UserError

OVERLAP, DISTANCE = ("dice", "jaccard", "nsd"), ("hd95", "assd")
MEASURES = (*OVERLAP, *DISTANCE)
PAIR_COLUMNS = ("image", "group", "a", "b", *MEASURES, "empty", "unit")
_PERCENTILE = 95.0


@dataclass(frozen=True)
class PairScores:
    """Agreement of two masks; None where there is no surface to measure to. ``empty`` counts the masks without
    foreground (0, 1 or 2): both empty is full agreement by definition, so a reader must know how many rest on it.
    """

    dice: float
    jaccard: float
    nsd: float
    hd95: float | None
    assd: float | None
    empty: int


def pair_scores(a: Pixels, b: Pixels, *, spacing: Sequence[float] | None = None, tolerance: float = 2.0) -> PairScores:
    """All measures of two bool masks [*S]; distances and ``tolerance`` are in mm with ``spacing``, else in pixels.

    Surfaces are the foreground pixels with a background 4-neighbour (6 in 3-D), or at the image's border; distances are
    between pixel centres (MONAI). With D the distances from each surface to the other:
    ``hd95`` is the larger of the two directed 95th percentiles (linear), ``assd`` the mean of all D, and
    ``nsd = |{d in D: d <= tolerance}| / |D|`` (Nikolov et al. 2021, with pixels for surface elements).

    Edge: both empty: overlaps 1, distances 0. One empty: overlaps 0, distances None.
    """
    if a.shape != b.shape:
        raise UserError("E-AGR-SIZE", f"masks of {a.shape} and {b.shape}", "compare masks on one grid")
    if spacing is not None and (len(spacing) != a.ndim or not all(math.isfinite(s) and s > 0 for s in spacing)):
        raise UserError("E-AGR-SPACING", f"spacing {tuple(spacing)} for {a.ndim} axes",
                        "give one positive number of mm for each axis, or None where it is unknown")  # fmt: skip
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError("E-AGR-TOLERANCE", f"tolerance {tolerance}", "give a distance of 0 or more")
    empty = int(not a.any()) + int(not b.any())
    if empty:
        same, distance = (1.0, 0.0) if empty == 2 else (0.0, None)
        return PairScores(same, same, same, distance, distance, empty)
    both, either = int((a & b).sum()), int((a | b).sum())
    there, back = _surface_distances(a, b, spacing)
    together = np.concatenate([there, back])
    return PairScores(
        dice=2 * both / (both + either),
        jaccard=both / either,
        nsd=float((together <= tolerance * (1 + 1e-6)).mean()),  # distances are single precision
        hd95=float(max(np.percentile(there, _PERCENTILE), np.percentile(back, _PERCENTILE))),
        assd=float(together.mean()),
        empty=0,
    )


def _surface_distances(a: Pixels, b: Pixels, spacing: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Distances of each surface pixel of a to the surface of b, and back."""
    with warnings.catch_warnings():  # MONAI warns of its own call to a function that it has deprecated
        warnings.filterwarnings("ignore", message=".*get_mask_edges", category=FutureWarning)
        _, distances, _ = get_edge_surface_distance(
            torch.from_numpy(a),
            torch.from_numpy(b),
            spacing=None if spacing is None else list(spacing),
            symmetric=True,
        )
    there, back = (np.asarray(d, dtype=np.float64) for d in distances)
    return there, back


def pair_table(images: Iterable[Annotated], *, tolerance: float = 2.0) -> pd.DataFrame:
    """``PAIR_COLUMNS`` and ``<trait>.a``, ``<trait>.b``: one row per image and pair, names sorted within the pair.

    ``unit`` is that of the distances, mm or px; None becomes NaN. An image with one mask gives no row (see
    :func:`problems`). Raises ``E-AGR-IMAGE`` for an image that comes twice.
    """
    rows: list[dict[str, object]] = []
    seen: set[str] = set()
    for item in images:
        if item.image in seen:
            raise UserError("E-AGR-IMAGE", "the image comes twice", "join its masks", where=f"image {item.image}")
        seen.add(item.image)
        for first, second in combinations(sorted(item.masks, key=lambda mask: mask.annotator), 2):
            scores = pair_scores(first.pixels, second.pixels, spacing=item.spacing_mm, tolerance=tolerance)
            traits = {
                f"{name}.{side}": mask.traits.get(name, "")
                for name in sorted({*first.traits, *second.traits})
                for side, mask in (("a", first), ("b", second))
            }
            rows.append(
                {
                    "image": item.image,
                    "group": item.group or item.image,
                    "a": first.annotator,
                    "b": second.annotator,
                    **asdict(scores),
                    "unit": "px" if item.spacing_mm is None else "mm",
                    **traits,
                }
            )
    table = pd.DataFrame(rows, columns=None if rows else PAIR_COLUMNS)
    extra = [column for column in table.columns if column not in PAIR_COLUMNS]
    table = table[[*PAIR_COLUMNS, *extra]].astype(dict.fromkeys(MEASURES, float) | {"empty": int})
    return table.sort_values(["image", "a", "b"], ignore_index=True)


def problems(images: Iterable[Annotated]) -> pd.DataFrame:
    """What a reader of an agreement must know: ``image, code, what, remedy``, one row each.

    ``W-AGR-ONE``: one annotator, so there is no pair. ``W-AGR-EMPTY``: nobody marked anything, so every pair there is
    agrees by definition. ``W-AGR-MAJORITY``: there are marks, but none that more than half of the annotators share, so
    the majority is empty.
    """
    rows = []
    for item in images:
        votes = item.stack.sum(axis=0)
        count = len(item.masks)
        if count == 1:
            rows.append((item.image, "W-AGR-ONE", f"only {item.annotators[0]!r} annotated it",
                         "it counts for no agreement; get a second mask, or use it for training alone"))  # fmt: skip
        if not votes.any():
            what = "its mask is empty" if count == 1 else "every mask is empty: agreement 1 by definition"
            rows.append((item.image, "W-AGR-EMPTY", what,
                         "check that there is nothing to mark, or leave the image out"))  # fmt: skip
        elif 2 * votes.max() <= count:
            rows.append((item.image, "W-AGR-MAJORITY", "no pixel is marked by more than half of the annotators",
                         "look at the masks: do they mark the same thing? the majority is empty"))  # fmt: skip
    return pd.DataFrame(rows, columns=["image", "code", "what", "remedy"])


def image_agreement(pairs: pd.DataFrame, *, measure: str = "dice") -> pd.DataFrame:
    """``image, group, agreement, pairs, annotators, undefined``: the mean of a measure over each image's pairs.

    ``agreement`` of an overlap lies in [0, 1]: the target of a regression whose weight is ``pairs``, the number of
    pairs behind it. ``undefined`` pairs (a distance to an empty mask) are left out of the mean and counted.
    """
    known_measure(measure)
    pairs = pairs.astype({measure: float})
    groups = pairs.groupby("image", sort=True)
    table = groups.agg(
        group=("group", "first"),
        agreement=(measure, "mean"),
        pairs=(measure, "count"),
        undefined=(measure, lambda values: int(values.isna().sum())),
    )
    people = {str(image): len({*part["a"], *part["b"]}) for image, part in groups}
    table.insert(3, "annotators", [people[str(image)] for image in table.index])
    return table.reset_index()


def known_measure(measure: str) -> None:
    """Refuse a name that is none of ``MEASURES``."""
    if measure not in MEASURES:
        raise UserError("E-AGR-MEASURE", f"no measure {measure!r}", f"use one of {', '.join(MEASURES)}")
