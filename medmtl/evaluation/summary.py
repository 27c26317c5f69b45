"""The case table as numbers: every metric with an interval, for all cases, for each domain, and against a constant.

The case table is long, one row per case x task: ``case_id, group, domain, split, task, target, prediction`` and columns
of single tasks (``p.<class>``, ``dice.<class>``, ...). A row without ``target`` is a missing label.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from medmtl.errors import UserError
from medmtl.metrics import is_better
from medmtl.stats import bootstrap, percentile_interval
from medmtl.tasks.base import Task

UNKNOWN = "unknown"  # how an empty domain is shown
COLUMNS = ("case_id", "group", "domain", "task", "target", "prediction")

Cell = dict[str, Any]  # {"value", "low", "high", "n", "reason"?}


def evaluate_table(
    table: pd.DataFrame,
    tasks: Mapping[str, Task],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    minimum: int = 5,
) -> dict[str, Any]:
    """Metrics of every task as JSON-able data; an undefined number is None and has a ``reason``.

    Rows without a label or without a prediction are left out and counted (``n_missing``, ``n_unpredicted``). Intervals
    resample groups (:mod:`medmtl.stats`) within the cases concerned, and are omitted below ``minimum`` groups, where a
    bootstrap has too few different resamples to mean anything. Equal input gives equal output, whatever the row order.
    """
    check_table(table)
    settings = {"resamples": resamples, "seed": seed, "level": level, "clusters": "group", "minimum": minimum}
    return {
        "tasks": {name: _task(table[table["task"] == name], task, settings) for name, task in tasks.items()},
        "bootstrap": settings,
    }


def check_table(table: pd.DataFrame) -> None:
    """Refuse a table that lacks a column or holds a case twice for one task: either would bias every number."""
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise UserError("E-EVAL-COLUMN", f"the case table has no column {', '.join(missing)}", "evaluate the run again")
    twice = table[table.duplicated(["case_id", "task"])]
    if len(twice):
        raise UserError("E-EVAL-TWICE", f"case {twice.iloc[0]['case_id']!r} occurs twice", "keep one row per case",
                        where=f"task {twice.iloc[0]['task']}")  # fmt: skip


def usable_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with label and prediction in the order of their ids, an empty domain named, so that sums do not depend
    on the order of the file."""
    rows = rows[rows["target"].notna() & rows["prediction"].notna()]
    domain = rows["domain"].fillna("").astype(str)
    return rows.assign(domain=domain.where(domain != "", UNKNOWN)).sort_values("case_id", ignore_index=True)


def undefined_reason(rows: pd.DataFrame) -> str:
    """Why a metric of these labelled rows has no value."""
    if rows.empty:
        return "no labelled case"
    if rows["target"].nunique() == 1:
        labelled = "target_label" in rows.columns and rows["target_label"].notna().any()
        return "one class" if labelled else "constant target"
    return "undefined for these cases"


def interval_reason(rows: pd.DataFrame, minimum: int) -> str | None:
    """Why an interval over these rows is not even tried; None where it is."""
    groups = rows["group"].astype(str).nunique()
    if len(rows) < minimum:
        return f"n < {minimum}: interval omitted"
    return f"fewer than {minimum} groups: interval omitted" if groups < minimum else None


def number(value: float) -> float | None:
    """A float that JSON has: None for what is not finite."""
    return float(value) if np.isfinite(value) else None


def by_domain(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each domain, domains in the order of their names."""
    return {
        str(domain): part.reset_index(drop=True) for domain, part in rows.groupby("domain", sort=True, observed=True)
    }


def _task(rows: pd.DataFrame, task: Task, settings: Mapping[str, Any]) -> dict[str, Any]:
    used = usable_rows(rows)
    domains = {domain: cells_of(part, task, settings) for domain, part in by_domain(used).items()}
    overall = cells_of(used, task, settings)
    return {
        "kind": str(getattr(task, "kind", type(task).__name__.lower())),
        "headline": [name for name in task.headline if name in overall],
        "auxiliary": task.auxiliary,
        **task.frozen,
        "n": len(used),
        "n_missing": int(rows["target"].isna().sum()),
        "n_unpredicted": int((rows["target"].notna() & rows["prediction"].isna()).sum()),
        "groups": int(used["group"].astype(str).nunique()),
        **_empty_masks(used),
        "overall": overall,
        "domains": domains,
        "worst_domain": {name: worst for name in overall if (worst := _worst(name, domains)) is not None},
        "control": {"constant": _constant(used, task)},
    }


def cells_of(rows: pd.DataFrame, task: Task, settings: Mapping[str, Any]) -> dict[str, Cell]:
    """Each metric's value and interval over the :func:`usable_rows` of one task."""
    if rows.empty:
        empty = {"value": None, "low": None, "high": None, "n": 0, "reason": undefined_reason(rows)}
        return {name: dict(empty) for name in task.headline}
    values = task.metrics(rows, np.ones((1, len(rows))))
    omitted = interval_reason(rows, settings["minimum"])
    draws = (
        bootstrap(
            lambda weights: task.metrics(rows, weights),
            rows["group"].to_numpy(),
            resamples=settings["resamples"],
            seed=settings["seed"],
        )
        if omitted is None
        else {}
    )
    return {
        name: _cell(rows, name, float(value[0]), draws.get(name), omitted, settings["level"])
        for name, value in values.items()
    }


def _cell(
    rows: pd.DataFrame, name: str, value: float, draws: np.ndarray | None, omitted: str | None, level: float
) -> Cell:
    cell: Cell = {"value": number(value), "low": None, "high": None, "n": defined_count(rows, name)}
    if cell["value"] is None:
        return {**cell, "reason": undefined_reason(rows)}
    if draws is None:
        return {**cell, "reason": omitted}
    low, high = percentile_interval(draws, level)
    if np.isnan(low):
        return {**cell, "reason": "undefined in more than half of the resamples: interval omitted"}
    return {**cell, "low": low, "high": high}


def defined_count(rows: pd.DataFrame, name: str) -> int:
    """How many cases a metric rests on: those with a value, if it is the mean of a column (``hd95.lesion``)."""
    return int(rows[name].notna().sum()) if name in rows.columns else len(rows)


def _worst(name: str, domains: Mapping[str, Mapping[str, Cell]]) -> dict[str, Any] | None:
    """The domain with the worst value of a metric, with its interval, the first by name on ties; None without values.

    Of domains too small for an interval (two cases of a scanner) the value is mostly chance: one of them is the
    worst only where no domain has an interval.
    """
    known = {domain: cells[name] for domain, cells in domains.items() if name in cells}
    known = {domain: cell for domain, cell in known.items() if cell["value"] is not None}
    sure = {domain: cell for domain, cell in known.items() if cell["low"] is not None}
    worst: dict[str, Any] | None = None
    for domain, cell in (sure or known).items():
        if worst is None or is_better(name, worst["value"], cell["value"]):
            worst = {"domain": domain, **cell}
    return worst


def _constant(rows: pd.DataFrame, task: Task) -> dict[str, float | None]:
    """The metrics of the constant predictor on the same rows; empty where the task has none.

    None where the constant leaves fewer cases defined than the task does: an empty mask has HD95 only where the target
    is empty as well, and its mean of 0 mm would look perfect.
    """
    if rows.empty or type(task).constant is Task.constant:
        return {}
    constant = task.constant(rows)
    values = task.metrics(constant, np.ones((1, len(rows))))
    return {
        name: number(float(value[0])) if defined_count(constant, name) >= defined_count(rows, name) else None
        for name, value in values.items()
    }


def _empty_masks(rows: pd.DataFrame) -> dict[str, int]:
    """How many masks have no foreground: Dice and HD95 follow a convention there, so a reader must know."""
    if not any(column.startswith("dice.") and rows[column].notna().any() for column in rows.columns):
        return {}
    return {
        "n_empty_target": int((rows["target"] == 0).sum()),
        "n_empty_prediction": int((rows["prediction"] == 0).sum()),
    }
