"""The first table of a report: one row per task, and of few tasks one per headline metric."""

from collections.abc import Mapping
from html import escape
from typing import Any

from medmtl.evaluation.compare import BETTER, WORSE
from medmtl.evaluation.html import anchor, html_table, metric_name, short_number, value_cell
from medmtl.evaluation.overview import FEW, Line, control_columns, overview
from medmtl.evaluation.skill import control_label

SHADE = {BETTER: "background: rgba(0,114,178,0.15)", WORSE: "background: rgba(230,159,0,0.3)"}


def overview_section(evaluation: Mapping[str, Any]) -> str:
    """HTML: what each task comes to, and whether that is more than its strongest control."""
    lines = overview(evaluation)
    controls = control_columns(lines)
    skilled = any(line.difference is not None for line in lines)
    level = f"{evaluation['bootstrap']['level']:.0%}"
    heads = ("task", "cases", "metric", f"value [{level} interval]", "ICC(2,1)",
             *(("the model is", "difference to it") if skilled else ()),
             *(escape(control_label(control)) for control in controls), "worst domain")  # fmt: skip
    rows = [_row(line, controls, skilled) for line in lines]
    text = (2, *((5,) if skilled else ()), len(heads) - 1)
    table = html_table(heads, rows, text=text)
    return f"<section id=overview><h2>Overview</h2>{table}{_headlines(evaluation)}</section>"


def _row(line: Line, controls: list[str], skilled: bool) -> list[str | tuple[str, str]]:
    """The verdict is about the strongest control, so it stands before them all."""
    gained = line.difference
    skill: list[str | tuple[str, str]] = ["-", "-"]
    if gained is not None:
        words = f"<div class=words>{escape(line.words)}</div>"
        skill = [(words, SHADE.get(gained["verdict"], "")), difference_cell(gained, narrow=True)]
    worst = "-" if line.worst is None else f"{escape(line.worst['domain'])}: {short_number(line.worst['value'])}"
    return [
        f'<a href="#{anchor(line.task)}">{escape(line.task)}</a>', str(line.n), metric_name(line.metric),
        value_cell(line.cell, narrow=True), short_number(line.icc), *(skill if skilled else []),
        *(short_number(line.controls.get(name)) for name in controls), worst,
    ]  # fmt: skip


def difference_cell(cell: Mapping[str, Any], *, narrow: bool = False) -> str:
    """``-0.512 [-0.801, -0.214]``; without interval, why."""
    if cell["difference"] is None:
        return f"- <small>{escape(cell.get('reason', ''))}</small>"
    sign = "+" if cell["difference"] > 0 else ""
    aside = (
        escape(cell["reason"])
        if cell["low"] is None
        else f"[{short_number(cell['low'])}, {short_number(cell['high'])}]"
    )
    return f"{sign}{short_number(cell['difference'])}{'<br>' if narrow else ' '}<small>{aside}</small>"


def _headlines(evaluation: Mapping[str, Any]) -> str:
    """The headline metrics that the overview lacks; of many tasks they are in the sections alone."""
    shown = {(line.task, line.metric) for line in overview(evaluation)}
    rows = [
        [escape(name), metric_name(metric), value_cell(task["overall"][metric]), _worst(task, metric)]
        for name, task in evaluation["tasks"].items()
        for metric in task["headline"]
        if (name, metric) not in shown
    ]
    if not rows or len(evaluation["tasks"]) > FEW:
        return ""
    level = f"{evaluation['bootstrap']['level']:.0%}"
    heads = ("task", "metric", f"value [{level} interval]", "worst domain")
    return f"<h3>Other headline metrics</h3>{html_table(heads, rows, text=(1, 3))}"


def _worst(task: Mapping[str, Any], metric: str) -> str:
    worst = task["worst_domain"].get(metric)
    return "-" if worst is None else f"{escape(worst['domain'])}: {value_cell(worst)}"
