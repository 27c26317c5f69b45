"""Metrics with their intervals, by domain: of one evaluation, and the difference of two."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medmtl.evaluation.compare import BETTER, WORSE
from medmtl.evaluation.plots.canvas import BLUE, GREY, RED, SKY, axis_label, panel_grid, placeholder, single_panel
from medmtl.metrics import describe, is_better

_BARS = 40  # more bars do not fit on a page


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
    figure, axes = single_panel(f"{heading} (n = {entry['n']})", width=6.4, height=1.7 + 0.36 * len(shown))
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
    axes.set(xlabel=axis_label(label.label, label.unit), ylim=(len(shown) - 0.4, -0.6))
    figure.legend(frameon=False, fontsize=8, ncols=2, loc="outside lower right")
    return figure


def comparison_figure(comparison: Mapping[str, Any], *, labels: tuple[str, str] = ("A", "B")) -> Figure:
    """The paired difference of each task's first headline metric, for all cases and each domain, with its interval."""
    heading = f"{labels[1]} against {labels[0]}"
    tasks = {name: task for name, task in comparison["tasks"].items() if task["headline"] and task["n"]}
    if not tasks:
        return placeholder(heading, "the two tables share no labelled case")
    rows = max(len(task["domains"]) for task in tasks.values()) + 1
    figure, grid = panel_grid(heading, len(tasks), columns=2, width=5.0, height=1.5 + 0.32 * rows)
    for axes, (name, task) in zip(grid, tasks.items(), strict=True):
        _forest(axes, name, task, labels)
    return figure


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
