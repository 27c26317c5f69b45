"""One task's section of a report: all cases, controls, domains and other groups, plots, largest errors."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from medmtl.evaluation.html import (
    anchor,
    html_table,
    metric_meaning,
    metric_name,
    plots_html,
    short_number,
    value_cell,
)
from medmtl.evaluation.overview import constant_of
from medmtl.evaluation.plots import Figure
from medmtl.evaluation.report_overview import SHADE, difference_cell
from medmtl.evaluation.skill import control_label, verdict_words
from medmtl.evaluation.summary import usable_rows
from medmtl.metrics import describe

GALLERY = "worst_errors"  # a figure of this name is a task's error gallery
_WORST = 10  # cases listed as the largest errors of a task


def task_section(
    name: str, entry: Mapping[str, Any], table: pd.DataFrame, figures: Mapping[str, Figure], *, is_open: bool
) -> str:
    """HTML that folds; closed, its line says the first headline."""
    gallery = {key: figure for key, figure in figures.items() if key == GALLERY}
    plots = {key: figure for key, figure in figures.items() if key != GALLERY}
    groups = "".join(
        f"<h3>By {escape(column)}</h3>{_groups(column, cells, list(entry['overall']))}"
        for column, cells in entry.get("by", {}).items()
    )
    return (
        f"<details{' open' if is_open else ''}><summary><h2>{escape(name)} <small>{escape(entry['kind'])}</small></h2>"
        f'<span class=soft>{_first(entry)}</span></summary><section id="{anchor(name)}">'
        f"<p>{_counts(entry)}</p><h3>All cases</h3>{_overall(entry)}{_skill(entry)}"
        f"<h3>By domain</h3>{_groups('domain', entry['domains'], list(entry['overall']))}{groups}"
        f"{f'<h3>Plots</h3>{plots_html(plots)}' if plots else ''}"
        f"<h3>Largest errors</h3>{_worst(table[table['task'] == name])}{plots_html(gallery)}</section></details>"
    )


def _first(entry: Mapping[str, Any]) -> str:
    metric = next(iter(entry["headline"]), None)
    return "" if metric is None else f"{metric_name(metric)} {value_cell(entry['overall'][metric])}"


def _counts(entry: Mapping[str, Any]) -> str:
    parts = [f"{entry['n']} cases of {entry['groups']} groups", f"{entry['n_missing']} without label"]
    if entry["n_unpredicted"]:
        parts.append(f"{entry['n_unpredicted']} labelled but without prediction, left out")
    if "n_empty_target" in entry:
        parts.append(f"{entry['n_empty_target']} empty targets, {entry['n_empty_prediction']} empty predictions")
    if entry["auxiliary"]:
        parts.append("auxiliary task")
    return "; ".join([*parts, *_frozen(entry)]) + "."


def _frozen(entry: Mapping[str, Any]) -> list[str]:
    """From which probability on a case is called positive; nothing of a task without such a threshold."""
    if "threshold" not in entry:
        return []
    threshold, called = entry["threshold"], f"called {escape(entry['positive'])} from a probability of"
    if isinstance(threshold, Mapping):
        values = ", ".join(short_number(0.5 if one is None else one) for one in threshold.values())
        return [f"{called} {values} on, each fold's own, chosen on its validation cases"]
    if threshold is None:
        return [f"{called} 0.5 on (none was chosen)"]
    return [f"{called} {short_number(threshold)} on, chosen on validation"]


def _overall(entry: Mapping[str, Any]) -> str:
    """Every metric beside the same metric of every control."""
    controls = list(entry.get("controls", {}))
    constant = "constant" in constant_of(entry, "")
    rows = []
    for metric, cell in entry["overall"].items():
        known = [short_number(entry["control"]["constant"].get(metric))] if constant else []
        known += [short_number(entry["controls"][name]["metrics"].get(metric, {}).get("control")) for name in controls]
        meaning = f"<span class=soft>{escape(metric_meaning(metric))}</span>"
        rows.append([metric_name(metric), value_cell(cell), *known, str(cell["n"]), meaning])
    names = (*(["constant"] if constant else []), *(escape(control_label(name)) for name in controls))
    return html_table(("metric", "value [interval]", *names, "cases", "meaning"), rows, text=(len(names) + 3,))


def _skill(entry: Mapping[str, Any]) -> str:
    """Each control against the model, by the headline metrics and every error."""
    rows: list[list[str | tuple[str, str]]] = []
    for name, control in entry.get("controls", {}).items():
        for metric, cell in control["metrics"].items():
            if metric not in (*entry["headline"], "mae", "rmse") or cell["control"] is None:
                continue
            rows.append([
                escape(control_label(name)), metric_name(metric), short_number(cell["control"]),
                short_number(cell["model"]), difference_cell(cell), str(cell["n"]),
                (escape(verdict_words(cell, name)), SHADE.get(cell["verdict"], "")),
            ])  # fmt: skip
    if not rows:
        return ""
    heads = ("control", "metric", "control", "model", "model - control", "cases", "the model is")
    return f"<h3>Against controls</h3>{html_table(heads, rows, text=(1, 6))}"


def _groups(column: str, groups: Mapping[str, Mapping[str, Any]], metrics: list[str]) -> str:
    """A row per group; the shade of a cell runs from the worst (orange) to the best (blue) group of its column."""
    shades = {metric: _shades(metric, groups) for metric in metrics}
    rows: list[list[str | tuple[str, str]]] = []
    for group, cells in groups.items():
        count = max((cell["n"] for cell in cells.values()), default=0)
        values = [(value_cell(cells[metric], narrow=True), shades[metric].get(group, "")) for metric in metrics]
        rows.append([escape(group), str(count), *values])
    return html_table((escape(column), "cases", *(metric_name(metric) for metric in metrics)), rows)


def _shades(metric: str, domains: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A background for each domain that has a value; none where all are equal."""
    values = {name: cells[metric]["value"] for name, cells in domains.items() if metric in cells}
    signed = describe(metric).signed
    values = {name: abs(value) if signed else value for name, value in values.items() if value is not None}
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
