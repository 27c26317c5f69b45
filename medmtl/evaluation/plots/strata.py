"""Where a model fails: effects of strata with their intervals, and the worst cases with what the model saw."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmtl.evaluation.plots.canvas import BLUE, GREEN, GREY, RED, image_grid, placeholder, single_panel

_ROWS = 30  # strata that fit on a page
_PANELS = 3
_WITH_VERDICT = {"worse": RED, "better": BLUE}


@dataclass(frozen=True)
class Evidence:
    """One case as the network saw it. Masks are label images [H, W] or None; ``saliency`` is [H, W] in [0, 1]."""

    caption: str
    image: npt.NDArray[np.uint8]  # [H, W, 3]
    target: npt.NDArray[np.int64] | None
    prediction: npt.NDArray[np.int64] | None
    saliency: npt.NDArray[np.float64]


def strata_forest(rows: pd.DataFrame, *, title: str) -> Figure:
    """The standardised effect of each stratum of one task with its interval, in the order of ``rows``."""
    tested = rows[rows["effect"].notna()]
    if tested.empty:
        return placeholder(title, "no stratum has enough cases")
    shown = tested.head(_ROWS)
    heading = title if len(shown) == len(tested) else f"{title}\nthe first {_ROWS} of {len(tested)} effects"
    figure, axes = single_panel(heading, width=7.6, height=1.6 + 0.3 * len(shown))
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color="#111827", lw=1)
    for position, row in enumerate(shown.to_dict("records")):
        color = _WITH_VERDICT.get(row["verdict"], GREY)
        if np.isfinite(row["effect_low"]):
            axes.plot([row["effect_low"], row["effect_high"]], [position, position], color=color, lw=2)
        axes.plot(row["effect"], position, "o", color=color, markersize=6)
    names = [
        f"{row['column'].removeprefix('meta.')}: {row['stratum']}  (n = {row['n']}, {row['groups']} groups)"
        for row in shown.to_dict("records")
    ]
    axes.set_yticks(range(len(shown)), names)
    axes.set_xlabel("standardised difference of the error; right of 0 is worse than the rest")
    axes.set_ylim(len(shown) - 0.4, -0.6)
    return figure


def failure_gallery(items: Sequence[Evidence], *, title: str) -> Figure:
    """A row of panels per case: image, outlines (green: annotated, orange: predicted), saliency."""
    if not items:
        return placeholder(title, "no labelled case")
    figure, grid = image_grid(title, _PANELS * len(items), columns=_PANELS, width=2.6, height=2.75)
    for k, item in enumerate(items):
        plain, outlined, salient = grid[_PANELS * k : _PANELS * (k + 1)]
        for axes in (plain, outlined, salient):
            axes.imshow(item.image)
        plain.set_title(item.caption, fontsize=7.5)
        outlined.set_title(_outlines(outlined, item), fontsize=7.5)
        salient.imshow(item.saliency, cmap="inferno", alpha=0.55, vmin=0, vmax=1)
        salient.set_title("saliency", fontsize=7.5)
    return figure


def _outlines(axes: Axes, item: Evidence) -> str:
    """Draw the outlines of both masks; returns what is there."""
    found = []
    for mask, color, name in ((item.target, GREEN, "annotated"), (item.prediction, RED, "predicted")):
        if mask is None:
            continue
        found.append(name if (mask > 0).any() else f"{name}: empty")
        if (mask > 0).any() and not (mask > 0).all():
            axes.contour(mask > 0, levels=[0.5], colors=[color], linewidths=1.2)
    return "green annotated, orange predicted" if found == ["annotated", "predicted"] else ", ".join(found) or "no mask"
