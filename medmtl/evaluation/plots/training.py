"""How a training went: curves over epochs, and the angles between the tasks' gradients."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medmtl.evaluation.plots.canvas import CELLS_WITH_TEXT, PALETTE, panel_grid, placeholder, single_panel


def loss_curves(history: pd.DataFrame | Iterable[Mapping[str, Any]], *, title: str = "Learning curves") -> Figure:
    """Curves over epochs from records with ``epoch, name, value``.

    A name ``train/loss`` is the line ``train`` in the panel ``loss``, beside ``val/loss``; a name without ``/`` is a
    line of its own panel.
    """
    records = history if isinstance(history, pd.DataFrame) else pd.DataFrame(list(history))
    if records.empty or not {"epoch", "name", "value"} <= set(records.columns):
        return placeholder(title, "no epoch has been recorded")
    records = records[np.isfinite(records["value"].astype(float))]
    if records.empty:
        return placeholder(title, "every recorded value is undefined")
    split = records["name"].astype(str).str.partition("/")
    panel = split[2].where(split[1] == "/", split[0])
    records = records.assign(panel=panel, line=split[0].where(split[1] == "/", "value"))
    panels = list(dict.fromkeys(records["panel"]))
    lines = list(dict.fromkeys(records["line"]))
    figure, grid = panel_grid(title, len(panels), columns=3, width=3.6, height=2.6)
    for axes, name in zip(grid, panels, strict=True):
        for line, curve in records[records["panel"] == name].groupby("line", sort=False):
            curve = curve.sort_values("epoch")
            color = PALETTE[lines.index(str(line)) % len(PALETTE)]
            axes.plot(curve["epoch"], curve["value"], marker="o", markersize=2.5, lw=1.6, color=color, label=str(line))
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if len(lines) > 1:
        grid[0].legend(frameon=False, fontsize=8)
    return figure


def gradient_cosine(
    matrix: npt.NDArray[np.float64], names: Sequence[str], *, title: str = "Cosine of the tasks' gradients"
) -> Figure:
    """Which tasks pull the shared parameters apart: cosines [T, T] in [-1, 1]; NaN where a gradient was zero."""
    cosine = np.asarray(matrix, dtype=float)
    if not np.isfinite(cosine).any():
        return placeholder(title, "no gradient has been recorded")
    side = float(np.clip(2.4 + 0.7 * len(names), 4.0, 10))
    figure, axes = single_panel(title, width=side + 0.9, height=side)
    axes.grid(visible=False)
    axes.set_facecolor("#e5e7eb")
    figure.colorbar(
        axes.imshow(cosine, cmap="PuOr", vmin=-1, vmax=1),
        ax=axes,
        fraction=0.046,
        label="conflict  ←  cosine  →  agreement",
    )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    if len(names) <= CELLS_WITH_TEXT:
        for (i, j), value in np.ndenumerate(cosine):
            text, dark = ("-", False) if np.isnan(value) else (f"{value:.2f}", abs(value) > 0.65)
            axes.text(j, i, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "black")
    return figure
