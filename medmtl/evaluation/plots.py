"""The case table as figures. Pure functions to :class:`matplotlib.figure.Figure`; no display, no global state.

``rows`` are the rows of one task; those without label or prediction are left out. Where there is nothing to draw (no
case, no positive, only NaN) the figure says why. Colours are those of Okabe & Ito, which colour-blind readers tell
apart.
"""

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from medmtl.evaluation.compare import BETTER, WORSE
from medmtl.evaluation.summary import usable_rows
from medmtl.files import write_atomic
from medmtl.metrics import ECE_BINS, binary, describe, is_better

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#6b7280",
)
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY, "#111827")
DPI = 120
_CURVES = len(PALETTE)  # more curves in one plot cannot be told apart
_BARS = 40  # more bars do not fit on a page
_CELLS_WITH_TEXT, _NAMED_CLASSES = 12, 40
_LIMITS = 1.96  # standard deviations around the bias: Bland & Altman, Lancet 1986


def placeholder(title: str, reason: str) -> Figure:
    """A figure that says why there is nothing to see."""
    figure, axes = _figure(title)
    axes.set_axis_off()
    axes.text(0.5, 0.5, f"Nothing to draw:\n{reason}", ha="center", va="center", color=GREY, fontsize=11, wrap=True)
    return figure


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
    figure, grid = _grid(title, len(panels), columns=3, width=3.6, height=2.6)
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


def roc(rows: pd.DataFrame, *, classes: Sequence[str], title: str = "ROC") -> Figure:
    """One-vs-rest ROC curves of ``classes`` (of a two-class task: of the positive one) with their areas."""
    rows = usable_rows(rows)
    curves = _curves(rows, classes)
    if not curves:
        return placeholder(title, _no_curve(rows))
    figure, axes = _figure(f"{title} (n = {len(rows)})", width=5.2, height=4.8)
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
    figure, axes = _figure(f"{title} (n = {len(rows)})", width=5.2, height=4.8)
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
    figure = _canvas(f"{title}: ECE {ece:.3f} (n = {len(rows)})", width=5.2, height=5.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _style(upper)
    _style(lower)
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
    figure, axes = _figure(f"{title} (n = {len(rows)})", width=side + 0.9, height=side)
    axes.grid(visible=False)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= _NAMED_CLASSES:
        axes.set_xticks(indices, classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(indices, classes)
    if len(classes) <= _CELLS_WITH_TEXT:
        for (i, j), count in np.ndenumerate(counts):
            text = f"{count}\n{share[i, j]:.0%}" if counts[i].sum() else f"{count}"
            axes.text(
                j, i, text, ha="center", va="center", fontsize=8, color="white" if share[i, j] > 0.55 else "black"
            )
    return figure


def domain_bars(evaluation: Mapping[str, Any], task: str, metric: str, *, title: str | None = None) -> Figure:
    """One metric for each domain with its interval, worst first, beside all cases and the constant control."""
    entry, label = evaluation["tasks"][task], describe(metric)
    heading = title or f"{task}: {label.label} by domain"
    cells = {name: domain[metric] for name, domain in entry["domains"].items() if _has_value(domain.get(metric))}
    if not cells:
        return placeholder(heading, "no domain has a value")
    names = sorted(cells, key=lambda name: cells[name]["value"], reverse=not label.higher_is_better)
    shown = names[:_BARS]
    if len(shown) < len(names):
        heading += f"\nthe {_BARS} worst of {len(names)} domains"
    figure, axes = _figure(f"{heading} (n = {entry['n']})", width=6.4, height=1.7 + 0.36 * len(shown))
    axes.grid(visible=False, axis="y")
    for position, name in enumerate(shown):
        _interval_bar(axes, position, cells[name])
    overall = entry["overall"].get(metric, {})
    if _has_value(overall):
        axes.axvline(overall["value"], color="#111827", lw=1.4, label=f"all cases {overall['value']:.3f}")
    control = entry["control"]["constant"].get(metric)
    if control is not None:
        axes.axvline(control, color=RED, lw=1.4, ls=":", label=f"constant {control:.3f}")
    axes.set_yticks(range(len(shown)), [f"{name}  (n = {cells[name]['n']})" for name in shown])
    axes.set(xlabel=_axis(label.label, label.unit), ylim=(len(shown) - 0.4, -0.6))
    figure.legend(frameon=False, fontsize=8, ncols=2, loc="outside lower right")
    return figure


def agreement(rows: pd.DataFrame, *, unit: str = "", title: str = "Agreement") -> Figure:
    """Prediction against target, and Bland-Altman: difference over mean, with bias ± 1.96 standard deviations."""
    rows = usable_rows(rows)
    if rows.empty:
        return placeholder(title, "no labelled case")
    target, prediction = rows["target"].to_numpy(float), rows["prediction"].to_numpy(float)
    figure, (left, right) = _grid(f"{title} (n = {len(rows)})", 2, columns=2, width=4.6, height=4.2)
    ends = [min(target.min(), prediction.min()), max(target.max(), prediction.max())]
    left.plot(ends, ends, color=GREY, lw=1, ls="--", label="identity")
    left.scatter(target, prediction, **_dots(len(rows)))
    left.set(xlabel=_axis("target", unit), ylabel=_axis("prediction", unit))
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
    right.set(xlabel=_axis("mean of target and prediction", unit), ylabel=_axis("prediction - target", unit))
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
    figure, axes = _figure(f"{heading} (n = {len(rows)})", width=max(4.2, 1.6 + 1.3 * len(columns)), height=4.2)
    box = axes.boxplot(values, widths=0.5, showfliers=False, patch_artist=True, medianprops={"color": RED, "lw": 2})
    for patch in box["boxes"]:
        patch.set(facecolor=SKY, alpha=0.35, edgecolor=BLUE)
    for position, column in enumerate(values, start=1):
        offsets = (np.arange(len(column)) * 0.6180339887) % 1 - 0.5  # golden ratio: spread evenly without chance
        axes.scatter(position + 0.36 * offsets, column, **_dots(len(column)))
    names = [f"{column.partition('.')[2]}\n(n = {len(value)})" for column, value in zip(columns, values, strict=True)]
    axes.set_xticks(range(1, len(columns) + 1), names)
    axes.set_ylabel(_axis(label.label, label.unit))
    if label.best == 1.0:
        axes.set_ylim(-0.03, 1.03)
    return figure


def worst_errors(items: Sequence[tuple[npt.NDArray[np.uint8], str]], *, title: str = "Largest errors") -> Figure:
    """A gallery of ``(image uint8 [H, W, 3], caption)``; a caption may hold a case id, never a patient's data."""
    if not items:
        return placeholder(title, "no labelled case")
    figure, grid = _grid(title, len(items), columns=5, width=1.9, height=2.3)
    for axes, (image, caption) in zip(grid, items, strict=True):
        axes.imshow(image)
        axes.set_title(caption, fontsize=7.5)
        axes.set_axis_off()
    return figure


def gradient_cosine(
    matrix: npt.NDArray[np.float64], names: Sequence[str], *, title: str = "Cosine of the tasks' gradients"
) -> Figure:
    """Which tasks pull the shared parameters apart: cosines [T, T] in [-1, 1]; NaN where a gradient was zero."""
    cosine = np.asarray(matrix, dtype=float)
    if not np.isfinite(cosine).any():
        return placeholder(title, "no gradient has been recorded")
    side = float(np.clip(2.4 + 0.7 * len(names), 4.0, 10))
    figure, axes = _figure(title, width=side + 0.9, height=side)
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
    if len(names) <= _CELLS_WITH_TEXT:
        for (i, j), value in np.ndenumerate(cosine):
            text, dark = ("-", False) if np.isnan(value) else (f"{value:.2f}", abs(value) > 0.65)
            axes.text(j, i, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "black")
    return figure


def comparison_figure(comparison: Mapping[str, Any], *, labels: tuple[str, str] = ("A", "B")) -> Figure:
    """The paired difference of each task's first headline metric, for all cases and each domain, with its interval."""
    heading = f"{labels[1]} against {labels[0]}"
    tasks = {name: task for name, task in comparison["tasks"].items() if task["headline"] and task["n"]}
    if not tasks:
        return placeholder(heading, "the two tables share no labelled case")
    rows = max(len(task["domains"]) for task in tasks.values()) + 1
    figure, grid = _grid(heading, len(tasks), columns=2, width=5.0, height=1.5 + 0.32 * rows)
    for axes, (name, task) in zip(grid, tasks.items(), strict=True):
        _forest(axes, name, task, labels)
    return figure


def save(figure: Figure, folder: Path, name: str, data: pd.DataFrame | None = None) -> list[Path]:
    """Write ``name.png``, ``name.svg`` and, where given, the plotted ``data`` as ``name.csv``; each whole or absent."""
    paths = [write_atomic(folder / f"{name}.{kind}", render(figure, kind, salt=name)) for kind in ("png", "svg")]
    if data is not None:
        paths.append(write_atomic(folder / f"{name}.csv", data.to_csv(index=False, lineterminator="\n")))
    return paths


def render(figure: Figure, kind: Literal["png", "svg"], *, salt: str = "medmtl") -> bytes:
    """The figure as a file's bytes. Equal figures give equal bytes: no date, and SVG identifiers come from ``salt``.

    A name may hold dollar signs: text is taken as it is, not as mathematics.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": salt}):
        figure.savefig(stream, format=kind, dpi=DPI, metadata={"Software": None} if kind == "png" else {"Date": None})
    return stream.getvalue()


def _canvas(title: str, *, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11.5, fontweight="bold")
    return figure


def _figure(title: str, *, width: float = 6.0, height: float = 4.0) -> tuple[Figure, Axes]:
    figure = _canvas(title, width=width, height=height)
    axes = figure.subplots()
    _style(axes)
    return figure, axes


def _grid(title: str, count: int, *, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """``count`` panels of the given size in rows of ``columns``."""
    across = min(columns, count)
    down = math.ceil(count / across)
    figure = _canvas(title, width=max(width * across, 4.0), height=height * down + 0.4)
    grid: list[Axes] = list(figure.subplots(down, across, squeeze=False).ravel())
    for axes in grid[count:]:
        axes.remove()
    for axes in grid[:count]:
        _style(axes)
    return figure, grid[:count]


def _style(axes: Axes) -> None:
    axes.grid(visible=True, color="#e5e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9ca3af")
    axes.tick_params(labelsize=8.5, color="#9ca3af")


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


def _dots(count: int) -> dict[str, Any]:
    """Dots that stay visible when there are few and do not merge when there are many."""
    return {
        "s": 20 if count < 300 else 9,
        "color": BLUE,
        "alpha": 0.65 if count < 300 else 0.4,
        "linewidths": 0,
        "zorder": 3,
    }


def _axis(label: str, unit: str) -> str:
    return f"{label} ({unit})" if unit else label


def _has_value(cell: Mapping[str, Any] | None) -> bool:
    return bool(cell) and cell is not None and cell["value"] is not None


def _interval_bar(axes: Axes, position: int, cell: Mapping[str, Any]) -> None:
    axes.barh(position, cell["value"], height=0.62, color=SKY, alpha=0.55)
    if cell["low"] is not None:
        axes.plot([cell["low"], cell["high"]], [position, position], color=BLUE, lw=2, solid_capstyle="butt")
    axes.plot(cell["value"], position, "o", color=BLUE, markersize=5)


def _forest(axes: Axes, name: str, task: Mapping[str, Any], labels: tuple[str, str]) -> None:
    """Points and intervals of the difference, one row for all cases and one for each domain."""
    metric = task["headline"][0]
    cells = {"all": task["overall"], **task["domains"]}
    shown = [
        (domain, cell[metric]) for domain, cell in cells.items() if cell.get(metric, {}).get("difference") is not None
    ]
    colors = {BETTER: BLUE, WORSE: RED}
    axes.axvline(0, color="#111827", lw=1)
    for position, (_, cell) in enumerate(shown):
        color = colors.get(cell["verdict"], GREY)
        if cell["low"] is not None:
            axes.plot([cell["low"], cell["high"]], [position, position], color=color, lw=2)
        axes.plot(cell["difference"], position, "o", color=color, markersize=6)
    axes.set_yticks(range(len(shown)), [f"{domain}  (n = {cell['n']})" for domain, cell in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_title(f"{name}: {describe(metric).label} (n = {task['n']})", fontsize=10)
    better = labels[1] if is_better(metric, 1, 0) else labels[0]
    axes.set_xlabel(f"{labels[1]} - {labels[0]}; right of 0 {better} is better")
