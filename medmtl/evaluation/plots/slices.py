"""How much each slice of a volume counts for one answer."""

import pandas as pd
from matplotlib.figure import Figure

from medmtl.evaluation.plots.canvas import BLUE, GREY, placeholder, single_panel


def slice_weights(rows: pd.DataFrame, *, title: str) -> Figure:
    """Bars of ``weight`` (sum 1) at ``position_mm``, with the weight that all slices would have if they were alike."""
    if rows.empty:
        return placeholder(title, "no slice")
    figure, axes = single_panel(title, width=6.4, height=3.2)
    positions = rows["position_mm"].to_numpy(float)
    apart = abs(positions[1] - positions[0]) if len(positions) > 1 else 1.0
    axes.bar(positions, rows["weight"].to_numpy(float), width=0.9 * apart, color=BLUE)
    axes.axhline(1 / len(rows), color=GREY, lw=1, ls="--", label="all alike")
    axes.set(xlabel="position of the slice (mm)", ylabel="weight")
    axes.legend(frameon=False, fontsize=8)
    return figure
