"""What every figure shares: colours, panels, a placeholder where there is nothing to draw, and files."""

import io
import math
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.text import Text

from medmtl.files import write_atomic

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
CELLS_WITH_TEXT = 12  # a larger matrix is drawn without numbers


class Drawing(Figure):
    """A figure that is finished when it is first rendered: file, report and MLflow share one PNG and one layout."""

    png: bytes | None = None
    pixels: bool = False  # a gallery of photographs: an SVG would hold the same pixels, at three times the size


def placeholder(title: str, reason: str) -> Figure:
    """A figure that says why there is nothing to see."""
    figure, axes = single_panel(title)
    axes.set_axis_off()
    axes.text(0.5, 0.5, f"Nothing to draw:\n{reason}", ha="center", va="center", color=GREY, fontsize=11, wrap=True)
    return figure


def save(figure: Figure, folder: Path, name: str, data: pd.DataFrame | None = None) -> list[Path]:
    """Write ``name.png``, ``name.svg`` and, where given, the plotted ``data`` as ``name.csv``; each whole or absent.

    A gallery is a PNG alone.
    """
    kinds: tuple[Literal["png", "svg"], ...] = ("png",) if getattr(figure, "pixels", False) else ("png", "svg")
    paths = [write_atomic(folder / f"{name}.{kind}", render(figure, kind, salt=name)) for kind in kinds]
    if data is not None:
        paths.append(write_atomic(folder / f"{name}.csv", data.to_csv(index=False, lineterminator="\n")))
    return paths


def render(figure: Figure, kind: Literal["png", "svg"], *, salt: str = "medmtl") -> bytes:
    """The figure as a file's bytes. Equal figures give equal bytes: no date, and SVG identifiers come from ``salt``.

    A name may hold dollar signs: text is taken as it is, not as mathematics.
    """
    if kind == "png" and isinstance(figure, Drawing) and figure.png is not None:
        return figure.png
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    _settle(figure)
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": salt}):  # not by savefig, which draws everything twice
        if kind == "png":
            canvas.print_png(stream, metadata={"Software": None})
        else:
            FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    content = stream.getvalue()
    if kind == "png" and isinstance(figure, Drawing):
        figure.png = content
    return content


def _settle(figure: Figure) -> None:
    """Take text as it is and lay the figure out; once, for a layout costs as much as a drawing."""
    layout = figure.get_layout_engine()
    if not isinstance(layout, PlaceHolderLayoutEngine):
        for text in figure.findobj(Text):
            text.set_parse_math(False)  # type: ignore[attr-defined]
        if layout is not None:
            layout.execute(figure)
            figure.set_layout_engine("none")


def titled_figure(title: str, *, width: float, height: float) -> Drawing:
    """A figure of that size in inches under a title, without axes."""
    figure = Drawing(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11.5, fontweight="bold")
    return figure


def single_panel(title: str, *, width: float = 6.0, height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure with one panel."""
    figure = titled_figure(title, width=width, height=height)
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def panel_grid(title: str, count: int, *, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """``count`` panels of the given size in rows of ``columns``."""
    figure, grid = _panels(title, count, columns=columns, width=width, height=height)
    for axes in grid:
        style_axes(axes)
    return figure, grid


def image_grid(title: str, count: int, *, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """``count`` panels for photographs, without axes."""
    figure, grid = _panels(title, count, columns=columns, width=width, height=height)
    figure.pixels = True
    for axes in grid:
        axes.set(xticks=[], yticks=[])  # ticks that nobody sees are slower to lay out than the photograph
        axes.set_axis_off()
    return figure, grid


def _panels(title: str, count: int, *, columns: int, width: float, height: float) -> tuple[Drawing, list[Axes]]:
    across = min(columns, count)
    down = math.ceil(count / across)
    figure = titled_figure(title, width=max(width * across, 4.0), height=height * down + 0.4)
    grid: list[Axes] = list(figure.subplots(down, across, squeeze=False).ravel())
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def style_axes(axes: Axes) -> None:
    """Pale grid behind the data, no frame at the top and right."""
    axes.grid(visible=True, color="#e5e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9ca3af")
    axes.tick_params(labelsize=8.5, color="#9ca3af")


def axis_label(label: str, unit: str) -> str:
    """``label (unit)``, or the label alone where there is no unit."""
    return f"{label} ({unit})" if unit else label


def dots(count: int) -> dict[str, Any]:
    """How a scatter's dots stay visible when there are few and do not merge when there are many."""
    return {"s": 20 if count < 300 else 9, "alpha": 0.65 if count < 300 else 0.4, "linewidths": 0, "zorder": 3}
