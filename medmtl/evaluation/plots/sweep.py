"""A metric against the settings that were tried."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from medmtl.evaluation.plots.canvas import BLUE, ORANGE, axis_label, panel_grid, placeholder
from medmtl.metrics import describe

Cells = Mapping[str, Mapping[str, Any]]  # part (val, test) -> {"value", "low", "high"}


def sweep_figure(title: str, names: Sequence[str], panels: Mapping[tuple[str, str], Sequence[Cells]]) -> Figure:
    """One panel for each (task, metric): a point with its interval for each entry, in the order of ``names``.

    Validation is filled, the test part open and beside it. An entry without a value has no point.
    """
    drawn = {key: entries for key, entries in panels.items() if any(_known(cells) for cells in entries)}
    if not drawn:
        return placeholder(title, "no entry has a value")
    figure, grid = panel_grid(title, len(drawn), columns=2, width=2.2 + 0.6 * len(names), height=3.4)
    for axes, ((task, metric), entries) in zip(grid, drawn.items(), strict=True):
        for part, shift, color, face in (("val", 0.0, BLUE, BLUE), ("test", 0.14, ORANGE, "white")):
            label: str | None = {"val": "validation", "test": "test"}[part]
            for place, cells in enumerate(entries):
                cell = cells.get(part)
                if cell is None or cell["value"] is None:
                    continue
                if cell["low"] is not None:
                    axes.plot([place + shift] * 2, [cell["low"], cell["high"]], color=color, lw=1.6)
                axes.plot(place + shift, cell["value"], "o", color=color, markerfacecolor=face, label=label)
                label = None  # once in the legend
        known = describe(metric)
        axes.set_xticks(range(len(names)), names, rotation=30 if max(map(len, names)) > 6 else 0, ha="right")
        axes.set(title=task, ylabel=axis_label(known.label, known.unit), xlim=(-0.5, len(names) - 0.36))
        axes.legend(frameon=False, fontsize=8)
    return figure


def _known(cells: Cells) -> bool:
    return any(cell["value"] is not None for cell in cells.values())
