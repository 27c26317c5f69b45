"""Agreement of a predicted number with the true one: scatter, and Bland-Altman, domains told apart by colour."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmtl.evaluation.plots.canvas import BLUE, GREY, PALETTE, RED, axis_label, dots, panel_grid, placeholder
from medmtl.evaluation.summary import usable_rows
from medmtl.metrics.numbers import agreement as limits

OTHERS = "other domains"
Floats = npt.NDArray[np.float64]


def agreement(rows: pd.DataFrame, *, unit: str = "", title: str = "Agreement", step: float = 0.0) -> Figure:
    """Prediction against target, and Bland-Altman: difference over mean, with bias and 95 % limits of agreement.

    Levels (``step`` apart) lie on each other: their dots are spread by up to 0.3 steps, the lines are those of the
    levels themselves.
    """
    rows = usable_rows(rows)
    if rows.empty:
        return placeholder(title, "no labelled case")
    target, prediction = rows["target"].to_numpy(float), rows["prediction"].to_numpy(float)
    found = {name: float(value[0]) for name, value in limits(target, prediction, np.ones((1, len(rows)))).items()}
    icc = "" if np.isnan(found["icc_agreement"]) else f", ICC(2,1) {found['icc_agreement']:.2f}"
    figure, (left, right) = panel_grid(f"{title} (n = {len(rows)}{icc})", 2, columns=2, width=4.8, height=4.2)
    x, y = target + _spread(len(rows), step, 0.6180339887), prediction + _spread(len(rows), step, 0.7548776662)
    ends = [min(target.min(), prediction.min()), max(target.max(), prediction.max())]
    left.plot(ends, ends, color=GREY, lw=1, ls="--", label="identity")
    _coloured(left, rows, x, y, named=True)
    left.set(xlabel=axis_label("target", unit), ylabel=axis_label("prediction", unit))
    _coloured(right, rows, (x + y) / 2, y - x, named=False)
    _limits(right, found)
    right.set(xlabel=axis_label("mean of target and prediction", unit), ylabel=axis_label("prediction - target", unit))
    right.margins(y=0.18)
    for axes in (left, right):
        axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=8, loc="upper left")
    return figure


def _limits(axes: Axes, found: dict[str, float]) -> None:
    axes.axhline(0, color=GREY, lw=1, ls="--")
    axes.axhline(found["bias"], color=RED, lw=1.6, label=f"bias {found['bias']:+.2f}")
    if np.isfinite(found["loa_low"]):
        axes.axhline(found["loa_low"], color=RED, lw=1, ls=":",
                     label=f"95 % limits {found['loa_low']:+.2f} to {found['loa_high']:+.2f}")  # fmt: skip
        axes.axhline(found["loa_high"], color=RED, lw=1, ls=":")


def _coloured(axes: Axes, rows: pd.DataFrame, x: Floats, y: Floats, *, named: bool) -> None:
    """The dots of each domain in its colour, the same in both panels; ``named`` where there are several."""
    parts = list(_domains(rows))
    for color, (name, inside) in zip(PALETTE, parts, strict=False):
        label = f"{name} ({int(inside.sum())})" if len(parts) > 1 and named else None
        axes.scatter(x[inside], y[inside], color=color if len(parts) > 1 else BLUE, label=label, **dots(len(rows)))


def _domains(rows: pd.DataFrame) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """(domain, its rows), the most frequent first; of more than there are colours, the rest together."""
    domain = rows["domain"].astype(str)
    names = list(domain.value_counts().sort_index().sort_values(ascending=False, kind="stable").index)
    kept = names if len(names) <= len(PALETTE) else names[: len(PALETTE) - 1]
    for name in kept:
        yield name, (domain == name).to_numpy()
    if len(kept) < len(names):
        yield OTHERS, (~domain.isin(kept)).to_numpy()


def _spread(count: int, step: float, ratio: float) -> Floats:
    """Evenly spread without chance (multiples of an irrational ``ratio``), within 0.3 steps."""
    return np.asarray(0.6 * step * ((np.arange(count) * ratio) % 1 - 0.5), dtype=np.float64)
