"""Of probabilities and classes: curves of each class against the rest, calibration, confusion."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from medmtl.evaluation.plots.canvas import (
    BLUE,
    CELLS_WITH_TEXT,
    GREY,
    PALETTE,
    RED,
    placeholder,
    single_panel,
    style_axes,
    titled_figure,
)
from medmtl.evaluation.summary import usable_rows
from medmtl.metrics import ECE_BINS, binary

_CURVES = len(PALETTE)  # more curves in one plot cannot be told apart
_NAMED_CLASSES = 40


def roc(rows: pd.DataFrame, *, classes: Sequence[str], title: str = "ROC") -> Figure:
    """One-vs-rest ROC curves of ``classes`` (of a two-class task: of the positive one) with their areas."""
    rows = usable_rows(rows)
    curves = _curves(rows, classes)
    if not curves:
        return placeholder(title, _no_curve(rows))
    figure, axes = single_panel(f"{title} (n = {len(rows)})", width=5.2, height=4.8)
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="chance")
    for color, (name, truth, score) in zip(PALETTE, curves, strict=False):
        x, y, _ = roc_curve(truth, score)
        axes.plot(x, y, color=color, lw=2, label=f"{name}: AUROC {_point(truth, score, 'auroc'):.3f} ({_share(truth)})")
    return _unit_square(figure, axes, "1 - specificity", "sensitivity", legend="lower right")


def precision_recall(rows: pd.DataFrame, *, classes: Sequence[str], title: str = "Precision and recall") -> Figure:
    """One-vs-rest precision-recall curves with average precision; dotted lines are the shares of positives (chance)."""
    rows = usable_rows(rows)
    curves = _curves(rows, classes)
    if not curves:
        return placeholder(title, _no_curve(rows))
    figure, axes = single_panel(f"{title} (n = {len(rows)})", width=5.2, height=4.8)
    for color, (name, truth, score) in zip(PALETTE, curves, strict=False):
        precision, recall, _ = precision_recall_curve(truth, score)
        axes.axhline(truth.mean(), color=color, lw=1, ls=":")
        label = f"{name}: AUPRC {_point(truth, score, 'auprc'):.3f} ({_share(truth)})"
        axes.step(recall, precision, where="post", color=color, lw=2, label=label)
    return _unit_square(figure, axes, "recall (sensitivity)", "precision", legend="best")


def calibration(rows: pd.DataFrame, *, positive: str | None, title: str = "Calibration") -> Figure:
    """Reliability diagram over a histogram, in the bins of ``ece``.

    Of the probability of ``positive``, or, where that is None (many classes), of the predicted class being right.
    """
    rows = usable_rows(rows)
    columns = [column for column in rows.columns if column.startswith("p.") and rows[column].notna().any()]
    if rows.empty or not columns:
        return placeholder(title, "no labelled case with probabilities")
    if positive is None:
        confidence, outcome = rows[columns].max(axis=1), rows["target"] == rows["prediction"]
    else:
        confidence, outcome = rows[f"p.{positive}"], rows["target_label"] == positive
    bins = pd.DataFrame({"confidence": confidence.astype(float), "outcome": outcome.astype(float)})
    index = np.clip((bins["confidence"].to_numpy() * ECE_BINS).astype(int), 0, ECE_BINS - 1)
    means, counts = bins.groupby(index).mean(), np.bincount(index, minlength=ECE_BINS)
    ece = float(np.abs((means["confidence"] - means["outcome"]) * counts[means.index]).sum() / len(bins))
    figure = titled_figure(f"{title}: ECE {ece:.3f} (n = {len(rows)})", width=5.2, height=5.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    style_axes(upper)
    style_axes(lower)
    upper.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="perfect")
    upper.plot(means["confidence"], means["outcome"], color=BLUE, lw=1.5, marker="o", markersize=5, label="model")
    upper.vlines(means["confidence"], means["confidence"], means["outcome"], color=RED, lw=1.5, alpha=0.7, label="gap")
    upper.set(ylabel=f"share {'right' if positive is None else positive}", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.bar((np.arange(ECE_BINS) + 0.5) / ECE_BINS, counts, width=0.9 / ECE_BINS, color=BLUE, alpha=0.7)
    lower.set(ylabel="cases", xlabel="confidence" if positive is None else f"predicted probability of {positive}")
    return figure


def confusion(rows: pd.DataFrame, *, classes: Sequence[str], title: str = "Confusion matrix") -> Figure:
    """Counts, coloured by the share of the true class (row). Text in the cells up to 12 classes, names up to 40."""
    rows = usable_rows(rows)
    if rows.empty:
        return placeholder(title, "no labelled case")
    indices = range(len(classes))
    counts = confusion_matrix(rows["target"].astype(int), rows["prediction"].astype(int), labels=list(indices))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.6 + 0.55 * len(classes), 4.2, 10))
    figure, axes = single_panel(f"{title} (n = {len(rows)})", width=side + 0.9, height=side)
    axes.grid(visible=False)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= _NAMED_CLASSES:
        axes.set_xticks(indices, classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(indices, classes)
    if len(classes) <= CELLS_WITH_TEXT:
        for (i, j), count in np.ndenumerate(counts):
            text = f"{count}\n{share[i, j]:.0%}" if counts[i].sum() else f"{count}"
            axes.text(
                j, i, text, ha="center", va="center", fontsize=8, color="white" if share[i, j] > 0.55 else "black"
            )
    return figure


def _unit_square(figure: Figure, axes: Axes, x: str, y: str, *, legend: Literal["best", "lower right"]) -> Figure:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y, aspect="equal")
    axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=8, loc=legend)
    return figure


def _curves(rows: pd.DataFrame, classes: Sequence[str]) -> list[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]]:
    """(class, truth, score) of the classes that have positives and negatives: of many, the most frequent."""
    found = [curve for curve in _one_vs_rest(rows, classes) if 0 < curve[1].sum() < len(curve[1])]
    kept = sorted(found, key=lambda curve: -curve[1].sum())[:_CURVES]
    return sorted(kept, key=lambda curve: list(classes).index(curve[0]))


def _one_vs_rest(
    rows: pd.DataFrame, classes: Sequence[str]
) -> Iterator[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]]:
    for name in classes:
        if {"target_label", f"p.{name}"} <= set(rows.columns):
            truth = (rows["target_label"] == name).to_numpy(int)
            yield name, truth, rows[f"p.{name}"].to_numpy(float)


def _no_curve(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "no labelled case"
    return f"one class only: {rows['target_label'].iloc[0]} (n = {len(rows)})"


def _point(truth: npt.NDArray[Any], score: npt.NDArray[Any], name: str) -> float:
    return float(binary(truth, score, 0.5, np.ones((1, len(truth))))[name][0])


def _share(truth: npt.NDArray[Any]) -> str:
    return f"{int(truth.sum())} of {len(truth)}"
