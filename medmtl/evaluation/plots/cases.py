"""Every case as a dot or a picture: agreement of numbers, distribution of mask scores, largest errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from medmtl.evaluation.plots.canvas import (
    BLUE,
    GREY,
    RED,
    SKY,
    axis_label,
    image_grid,
    panel_grid,
    placeholder,
    single_panel,
)
from medmtl.evaluation.summary import usable_rows
from medmtl.metrics import describe

_LIMITS = 1.96  # standard deviations around the bias: Bland & Altman, Lancet 1986


def agreement(rows: pd.DataFrame, *, unit: str = "", title: str = "Agreement") -> Figure:
    """Prediction against target, and Bland-Altman: difference over mean, with bias ± 1.96 standard deviations."""
    rows = usable_rows(rows)
    if rows.empty:
        return placeholder(title, "no labelled case")
    target, prediction = rows["target"].to_numpy(float), rows["prediction"].to_numpy(float)
    figure, (left, right) = panel_grid(f"{title} (n = {len(rows)})", 2, columns=2, width=4.6, height=4.2)
    ends = [min(target.min(), prediction.min()), max(target.max(), prediction.max())]
    left.plot(ends, ends, color=GREY, lw=1, ls="--", label="identity")
    left.scatter(target, prediction, **_dots(len(rows)))
    left.set(xlabel=axis_label("target", unit), ylabel=axis_label("prediction", unit))
    left.legend(frameon=False, fontsize=8, loc="upper left")
    difference, mean = prediction - target, (prediction + target) / 2
    right.scatter(mean, difference, **_dots(len(rows)))
    bias = float(difference.mean())
    right.axhline(0, color=GREY, lw=1, ls="--")
    right.axhline(bias, color=RED, lw=1.6, label=f"bias {bias:+.2f}")
    if len(rows) > 1:
        spread = _LIMITS * float(difference.std(ddof=1))
        right.axhline(bias - spread, color=RED, lw=1, ls=":", label=f"±1.96 SD: {spread:.2f}")
        right.axhline(bias + spread, color=RED, lw=1, ls=":")
    right.set(xlabel=axis_label("mean of target and prediction", unit), ylabel=axis_label("prediction - target", unit))
    right.margins(y=0.18)
    right.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def mask_distribution(rows: pd.DataFrame, *, metric: str = "dice", title: str | None = None) -> Figure:
    """The distribution of a mask score over cases, for each class: box (median, quartiles) and every case as a dot."""
    rows, label = usable_rows(rows), describe(metric)
    heading = title or f"{label.label} per case"
    columns = [column for column in rows.columns if column.startswith(f"{metric}.") and rows[column].notna().any()]
    if not columns:
        return placeholder(heading, f"no case has a {label.label}")
    values = [rows[column].dropna().to_numpy(float) for column in columns]
    figure, axes = single_panel(f"{heading} (n = {len(rows)})", width=max(4.2, 1.6 + 1.3 * len(columns)), height=4.2)
    box = axes.boxplot(values, widths=0.5, showfliers=False, patch_artist=True, medianprops={"color": RED, "lw": 2})
    for patch in box["boxes"]:
        patch.set(facecolor=SKY, alpha=0.35, edgecolor=BLUE)
    for position, column in enumerate(values, start=1):
        offsets = (np.arange(len(column)) * 0.6180339887) % 1 - 0.5  # golden ratio: spread evenly without chance
        axes.scatter(position + 0.36 * offsets, column, **_dots(len(column)))
    names = [f"{column.partition('.')[2]}\n(n = {len(value)})" for column, value in zip(columns, values, strict=True)]
    axes.set_xticks(range(1, len(columns) + 1), names)
    axes.set_ylabel(axis_label(label.label, label.unit))
    if label.best == 1.0:
        axes.set_ylim(-0.03, 1.03)
    return figure


def worst_errors(items: Sequence[tuple[npt.NDArray[np.uint8], str]], *, title: str = "Largest errors") -> Figure:
    """A gallery of ``(image uint8 [H, W, 3], caption)``; a caption may hold a case id, never a patient's data."""
    if not items:
        return placeholder(title, "no labelled case")
    figure, grid = image_grid(title, len(items), columns=5, width=1.9, height=2.3)
    for axes, (image, caption) in zip(grid, items, strict=True):
        axes.imshow(image)
        axes.set_title(caption, fontsize=7.5)
    return figure


def _dots(count: int) -> dict[str, Any]:
    """Dots that stay visible when there are few and do not merge when there are many."""
    return {
        "s": 20 if count < 300 else 9,
        "color": BLUE,
        "alpha": 0.65 if count < 300 else 0.4,
        "linewidths": 0,
        "zorder": 3,
    }
