"""An evaluation as one HTML file that opens anywhere: no network, no script, the same bytes for the same input."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medmtl.evaluation.html import html_table, metric_meaning, metric_name, short_number, value_cell
from medmtl.evaluation.plots import Figure, render
from medmtl.evaluation.summary import UNKNOWN, usable_rows
from medmtl.files import write_atomic
from medmtl.metrics import describe

GALLERY = "worst_errors"  # a figure of this name is a task's error gallery
_WORST = 10  # cases listed as the largest errors of a task

_STYLE = """
:root { --ink: #111827; --soft: #6b7280; --line: #e5e7eb; --blue: #0072b2; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  max-width: 1200px; margin: 0 auto; padding: 2rem 1.25rem 4rem; background: #fff; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem;
  border-bottom: 2px solid var(--blue); padding-bottom: .2rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
.banner { background: #fff4e5; border-left: 4px solid #d55e00; padding: .5rem .9rem; margin: .8rem 0; font-weight: 600;
} .soft { color: var(--soft); } a { color: var(--blue); text-decoration: none; } nav a { margin-right: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .8rem 0; font-size: .88rem; }
dt { color: var(--soft); } dd { margin: 0; font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; margin: .3rem 0 .8rem; min-width:
40%; } th, td { padding: .32rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; } th { color: var(--soft); font-weight: 600;
  vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, .text { text-align: left; } small { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 1.2rem;
  align-items: start; } figure { margin: 0; } .wide { grid-column: 1 / -1; }
figure img { max-width: min(100%, 540px); height: auto; } .wide img { max-width: 100%; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } nav { display: none; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } .scroll { overflow: visible; } * { print-color-adjust: exact; } }
"""
# No script, no font, no request: even an image name that holds markup could not fetch anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    path: Path,
    *,
    title: str,
    evaluation: Mapping[str, Any],
    table: pd.DataFrame,
    figures: Mapping[str, Figure],
    provenance: Mapping[str, str],
    notes: Sequence[str] = (),
    sections: Sequence[str] = (),
) -> Path:
    """Write the report of one evaluation to ``path``.

    ``figures`` named ``<task>/<plot>`` stand with their task, ``<task>/worst_errors`` is its gallery, others come last.
    ``provenance`` is shown as it is: bundle, manifest, split and configuration by their hashes. Of ``table`` nothing
    but case ids, labels, predictions and scores is shown; ``meta.*`` columns are not. ``sections`` are HTML that other
    modules made, between the headline and the tasks (of meta columns, values that enough groups share).
    """
    tasks = evaluation["tasks"]
    general = {name: figure for name, figure in figures.items() if name.partition("/")[0] not in tasks}
    sections = [
        _header(title, tasks, provenance, notes),
        _headlines(evaluation),
        *sections,
        _labels(table, tasks),
        *(_task(name, entry, table, _of_task(figures, name)) for name, entry in tasks.items()),
        f"<section><h2>Training, strata and comparison</h2>{_plots(general)}</section>" if general else "",
        _footer(evaluation["bootstrap"]),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )
    return write_atomic(path, page)


def _header(title: str, tasks: Mapping[str, Any], provenance: Mapping[str, str], notes: Sequence[str]) -> str:
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in provenance.items())
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes)
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in tasks)
    return (
        f"<header><h1>{escape(title)}</h1>"
        '<p class="banner">Research use only. Not a medical device; not for diagnosis or treatment.</p>'
        f"<dl>{facts}</dl>{f'<ul>{remarks}</ul>' if remarks else ''}<nav>{links}</nav></header>"
    )


def _headlines(evaluation: Mapping[str, Any]) -> str:
    """One row per task and headline metric: what a reader looks at first."""
    rows = []
    for name, task in evaluation["tasks"].items():
        for metric in task["headline"]:
            worst = task["worst_domain"].get(metric)
            where = "-" if worst is None else f"{escape(worst['domain'])}: {short_number(worst['value'])}"
            rows.append([
                f'<a href="#{_anchor(name)}">{escape(name)}</a>', metric_name(metric),
                value_cell(task["overall"][metric]),
                short_number(task["control"]["constant"].get(metric)), where, str(task["overall"][metric]["n"]),
                str(task["groups"]),
            ])  # fmt: skip
    level = f"{evaluation['bootstrap']['level']:.0%}"
    heads = ("task", "metric", f"value [{level} interval]", "constant", "worst domain", "cases", "groups")
    return f"<section><h2>Headline</h2>{html_table(heads, rows, text=(1, 4))}</section>"


def _labels(table: pd.DataFrame, tasks: Mapping[str, Any]) -> str:
    """Which task has labels where: labelled of all cases, for each domain."""
    rows = table[table["task"].isin(list(tasks))]
    if rows.empty:
        return ""
    domain = rows["domain"].fillna("").astype(str).replace("", UNKNOWN)
    parts = {str(name): part for name, part in rows.groupby(domain, sort=True)}
    body = [
        [escape(name), *(_labelled(part[part["task"] == name]) for part in parts.values()),
         _labelled(rows[rows["task"] == name])]
        for name in tasks
    ]  # fmt: skip
    heads = ("task", *(escape(name) for name in parts), "all")
    return f"<section><h2>Labels</h2><p class=soft>Labelled cases of all cases.</p>{html_table(heads, body)}</section>"


def _labelled(rows: pd.DataFrame) -> str:
    return f"{int(rows['target'].notna().sum())} of {len(rows)}" if len(rows) else "-"


def _task(name: str, entry: Mapping[str, Any], table: pd.DataFrame, figures: Mapping[str, Figure]) -> str:
    rows = table[table["task"] == name]
    gallery = {key: figure for key, figure in figures.items() if key == GALLERY}
    plots = {key: figure for key, figure in figures.items() if key != GALLERY}
    return (
        f'<section id="{_anchor(name)}"><h2>{escape(name)} <small>{escape(entry["kind"])}</small></h2>'
        f"<p>{_counts(entry)}</p><h3>All cases</h3>{_overall(entry)}<h3>By domain</h3>{_domains(entry)}"
        f"{f'<h3>Plots</h3>{_plots(plots)}' if plots else ''}<h3>Largest errors</h3>{_worst(rows)}"
        f"{_plots(gallery)}</section>"
    )


def _counts(entry: Mapping[str, Any]) -> str:
    parts = [f"{entry['n']} cases of {entry['groups']} groups", f"{entry['n_missing']} without label"]
    if entry["n_unpredicted"]:
        parts.append(f"{entry['n_unpredicted']} labelled but without prediction, left out")
    if "n_empty_target" in entry:
        parts.append(f"{entry['n_empty_target']} empty targets, {entry['n_empty_prediction']} empty predictions")
    if entry["auxiliary"]:
        parts.append("auxiliary task")
    return "; ".join(parts) + "."


def _overall(entry: Mapping[str, Any]) -> str:
    control = entry["control"]["constant"]
    rows = [
        [metric_name(metric), value_cell(cell), short_number(control.get(metric)), str(cell["n"]),
         f"<span class=soft>{escape(metric_meaning(metric))}</span>"]
        for metric, cell in entry["overall"].items()
    ]  # fmt: skip
    return html_table(("metric", "value [interval]", "constant", "cases", "meaning"), rows, text=(4,))


def _domains(entry: Mapping[str, Any]) -> str:
    """A row per domain; the shade of a cell runs from the worst (orange) to the best (blue) domain of its column."""
    metrics = list(entry["overall"])
    shades = {metric: _shades(metric, entry["domains"]) for metric in metrics}
    rows: list[list[str | tuple[str, str]]] = []
    for domain, cells in entry["domains"].items():
        count = max((cell["n"] for cell in cells.values()), default=0)
        values = [(value_cell(cells[metric], narrow=True), shades[metric].get(domain, "")) for metric in metrics]
        rows.append([escape(domain), str(count), *values])
    return html_table(("domain", "cases", *(metric_name(metric) for metric in metrics)), rows)


def _shades(metric: str, domains: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A background for each domain that has a value; none where all are equal."""
    values = {name: cells[metric]["value"] for name, cells in domains.items() if metric in cells}
    values = {name: value for name, value in values.items() if value is not None}
    if len(set(values.values())) < 2:
        return {}
    low, high = min(values.values()), max(values.values())
    sign = 1 if describe(metric).higher_is_better else -1
    place = {name: sign * (2 * (value - low) / (high - low) - 1) for name, value in values.items()}  # -1 worst, 1 best
    return {
        name: f"background: rgba({'0,114,178' if at > 0 else '230,159,0'},{0.38 * abs(at):.2f})"
        for name, at in place.items()
    }


def _worst(rows: pd.DataFrame) -> str:
    """The cases with the largest errors: least probability of the truth, largest deviation, or least overlap."""
    used = usable_rows(rows)
    if used.empty:
        return "<p class=soft>No labelled case.</p>"
    error, meaning = _errors(used)
    worst = used.assign(_error=error).sort_values(["_error", "case_id"], ascending=[False, True], kind="stable")
    worst = worst[worst["_error"] > 0].head(_WORST)
    if worst.empty:
        return "<p class=soft>No case has an error.</p>"
    body = [
        [escape(str(row["case_id"])), escape(str(row["domain"])), _side(row, "target"), _side(row, "prediction"),
         short_number(float(row["_error"]))]
        for _, row in worst.iterrows()
    ]  # fmt: skip
    return html_table(("case", "domain", "target", "prediction", meaning), body, text=(1,))


def _errors(rows: pd.DataFrame) -> tuple[np.ndarray, str]:
    """How wrong each case is, and what that number is called."""
    overlap = [column for column in rows.columns if column.startswith("dice.") and rows[column].notna().any()]
    if overlap:
        return 1 - rows[overlap].mean(axis=1).to_numpy(float), "1 - mean Dice"
    if "expected" in rows.columns and rows["expected"].notna().all():
        return (rows["expected"] - rows["target"]).abs().to_numpy(float), "levels between expectation and truth"
    if "target_label" in rows.columns and rows["target_label"].notna().all():
        truth = [float(row.get(f"p.{row['target_label']}", np.nan)) for _, row in rows.iterrows()]
        return 1 - np.asarray(truth), "1 - probability of the truth"
    return (rows["prediction"] - rows["target"]).abs().to_numpy(float), "absolute error"


def _side(row: pd.Series, side: str) -> str:
    """A class by name, a number as it is."""
    label = row.get("target_label" if side == "target" else "predicted_label")
    return escape(label) if isinstance(label, str) else short_number(float(row[side]))


def _plots(figures: Mapping[str, Figure]) -> str:
    return (
        f"<div class=plots>{''.join(_plot(name, figure) for name, figure in figures.items())}</div>" if figures else ""
    )


def _plot(name: str, figure: Figure) -> str:
    wide = ' class="wide"' if figure.get_figwidth() > 1.4 * figure.get_figheight() and figure.get_figwidth() > 7 else ""
    data = base64.b64encode(render(figure, "png")).decode()
    title = figure.get_suptitle() or name
    return f'<figure{wide}><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'


def _of_task(figures: Mapping[str, Figure], task: str) -> dict[str, Figure]:
    return {name.partition("/")[2]: figure for name, figure in figures.items() if name.partition("/")[0] == task}


def _anchor(name: str) -> str:
    return escape("task-" + "".join(letter if letter.isalnum() else "-" for letter in name))


def _footer(bootstrap: Mapping[str, Any]) -> str:
    return (
        f"<footer>Intervals: {bootstrap['level']:.0%} percentile bootstrap, {bootstrap['resamples']} resamples of "
        f"whole groups (column {escape(str(bootstrap['clusters']))}), seed "
        f"{bootstrap['seed']}; omitted below "
        f"{bootstrap['minimum']} groups. ↑ higher is better, ↓ lower is better. Constant: the same metrics for one "
        "prediction fitted on the training labels. Shading compares domains within a column.</footer>"
    )
