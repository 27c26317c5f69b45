"""Of ordered levels: how far predictions are off at each true level."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medmtl.evaluation.plots.canvas import BLUE, RED, SKY, axis_label, placeholder, single_panel
from medmtl.evaluation.summary import usable_rows


def level_errors(
    rows: pd.DataFrame, *, levels: Sequence[str], lowest: int = 0, unit: str = "", title: str = "Error by level"
) -> Figure:
    """Mean absolute error (bars) and mean signed error (dots) of the predicted level at each true level."""
    rows = usable_rows(rows)
    if rows.empty:
        return placeholder(title, "no labelled case")
    target = rows["target"].to_numpy(float).astype(int) - lowest
    difference = rows["prediction"].to_numpy(float) - rows["target"].to_numpy(float)
    found = [k for k in range(len(levels)) if (target == k).any()]
    mean = [float(np.abs(difference[target == k]).mean()) for k in found]
    bias = [float(difference[target == k].mean()) for k in found]
    heading = f"{title}: MAE {np.abs(difference).mean():.2f} (n = {len(rows)})"
    figure, axes = single_panel(heading, width=max(5.0, 1.5 + 0.5 * len(levels)), height=4.0)
    axes.bar(found, mean, color=SKY, alpha=0.6, width=0.7, label="mean absolute error")
    axes.plot(found, bias, "o", color=RED, markersize=5, label="bias: above 0 is overrated")
    axes.axhline(0, color="#111827", lw=1)
    axes.axhline(float(np.abs(difference).mean()), color=BLUE, lw=1, ls="--", label="all levels")
    names = [f"{name}\n{int((target == k).sum())}" for k, name in enumerate(levels)]
    axes.set_xticks(range(len(levels)), names)
    axes.set(xlabel=axis_label("true level, and its cases", unit), ylabel="levels off")
    axes.margins(y=0.2)
    axes.legend(frameon=False, fontsize=8)
    return figure
