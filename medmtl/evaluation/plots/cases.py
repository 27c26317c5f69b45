"""Every case as a dot or a picture: distribution of mask scores, largest errors."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from medmtl.evaluation.plots.canvas import (
    BLUE,
    RED,
    SKY,
    axis_label,
    dots,
    image_grid,
    placeholder,
    single_panel,
)
from medmtl.evaluation.summary import usable_rows
from medmtl.metrics import describe


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
        axes.scatter(position + 0.36 * offsets, column, color=BLUE, **dots(len(column)))
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
