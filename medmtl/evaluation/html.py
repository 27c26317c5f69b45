"""Pieces of a report: tables and numbers as HTML, escaped."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from medmtl.evaluation.plots import Figure, render
from medmtl.metrics import describe


def html_table(
    heads: Iterable[str], rows: Sequence[Sequence[str | tuple[str, str]]], *, text: Sequence[int] = ()
) -> str:
    """An HTML table; a cell is HTML, or (HTML, style). Columns in ``text`` are set flush left."""
    if not rows:
        return "<p class=soft>Nothing to show.</p>"
    head = "".join(f"<th{_flush(column, text)}>{title}</th>" for column, title in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(_cell(cell, _flush(column, text)) for column, cell in enumerate(row)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(cell: str | tuple[str, str], attribute: str) -> str:
    content, style = (cell, "") if isinstance(cell, str) else cell
    return f"<td{attribute}{f' style={chr(34)}{style}{chr(34)}' if style else ''}>{content}</td>"


def _flush(column: int, text: Sequence[int]) -> str:
    return ' class="text"' if column in text else ""


def value_cell(cell: Mapping[str, Any], *, narrow: bool = False) -> str:
    """``0.912 [0.880, 0.941]``, ``narrow`` in two lines; where something is undefined, why."""
    aside = (
        escape(cell["reason"])
        if cell["low"] is None
        else f"[{short_number(cell['low'])}, {short_number(cell['high'])}]"
    )
    return f"{short_number(cell['value'])}{'<br>' if narrow else ' '}<small>{aside}</small>"


def short_number(value: float | None) -> str:
    """Three decimals below 10, one from 100: as many as an interval of a study of this size supports."""
    if value is None or not np.isfinite(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 100 else f"{value:.1f}"


def metric_name(metric: str) -> str:
    entry = describe(metric)
    return f"{escape(entry.label)}&nbsp;{entry.arrow}"


def metric_meaning(metric: str) -> str:
    entry = describe(metric)
    return f"{entry.description} ({entry.unit})" if entry.unit else entry.description


def anchor(name: str) -> str:
    """The identifier of a task's section."""
    return escape("task-" + "".join(letter if letter.isalnum() else "-" for letter in name))


def plots_html(figures: Mapping[str, Figure]) -> str:
    """Figures side by side, their pixels in the page."""
    return (
        f"<div class=plots>{''.join(_plot(name, figure) for name, figure in figures.items())}</div>" if figures else ""
    )


def _plot(name: str, figure: Figure) -> str:
    wide = ' class="wide"' if figure.get_figwidth() > 1.4 * figure.get_figheight() and figure.get_figwidth() > 7 else ""
    data = base64.b64encode(render(figure, "png")).decode()
    title = figure.get_suptitle() or name
    return f'<figure{wide}><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'
