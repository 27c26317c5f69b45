"""What an error has to be below: those of the training mean and the training median on the very same cases.

Their predictions are the controls of these names, case tables with ``val`` and ``test`` rows. An error of a number does
not say by itself whether anything was learned: 3 levels off is good, or worse than a constant.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medmtl.evaluation.folds import FOLD
from medmtl.evaluation.summary import number, usable_rows
from medmtl.tasks.base import Task

TRIVIAL = ("training_mean", "training_median")  # names of controls
ERRORS = ("mae", "rmse")  # metrics that mean nothing alone

Errors = dict[str, dict[str, float | None]]  # control -> metric -> value


def trivial_errors(rows: pd.DataFrame, task: Task, controls: Mapping[str, pd.DataFrame]) -> Errors:
    """Both predictors' errors on the cases of ``rows`` (of one task) that are labelled and predicted.

    ``controls`` by name, of any tasks and cases. A control that lacks one of the cases is left out, and so is a task
    that none of them predicts (classes, masks).
    """
    cases = usable_rows(rows)["case_id"]
    found: Errors = {}
    for name in TRIVIAL:
        table = controls.get(name)
        said = None if table is None else _on(table, rows, cases)
        if said is not None:
            values = task.metrics(said, np.ones((1, len(said))))
            found[name] = {metric: number(float(values[metric][0])) for metric in ERRORS if metric in values}
    return found


def _on(control: pd.DataFrame, rows: pd.DataFrame, cases: pd.Series) -> pd.DataFrame | None:
    """The control's rows of these cases, each with the label that ``rows`` has; None where it lacks one, or all."""
    mine = control[control["task"].isin(set(rows["task"])) & control["prediction"].notna()]
    mine = mine[mine["case_id"].isin(cases)]
    if mine.empty or len(mine) != len(cases):
        return None
    truth = rows.drop_duplicates("case_id").set_index("case_id")["target"]
    return mine.assign(target=mine["case_id"].map(truth)).sort_values("case_id", ignore_index=True)


def per_unit(units: pd.DataFrame, controls: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The same two predictors of patients: one prediction for every image is that of the patient, however combined.

    ``units`` is a table of :func:`medmtl.evaluation.aggregate.aggregate_table`, of one fold or of several by ``fold``.
    """
    return {name: _constant(units, controls[name]) for name in TRIVIAL if name in controls}


def _constant(units: pd.DataFrame, control: pd.DataFrame) -> pd.DataFrame:
    keys = ["task", *([FOLD] if FOLD in units and FOLD in control else [])]
    said = [column for column in control if column in ("prediction", "expected") or str(column).startswith("p.")]
    constants = control.drop_duplicates(keys)[[*keys, *said]]
    kept = units.drop(columns=[column for column in units if column in said or column == "predicted_label"])
    return kept.merge(constants, on=keys, how="inner")


def beside(errors: Mapping[str, Mapping[str, float | None]], metric: str) -> dict[str, float | None]:
    """Control -> value of one metric; empty where it is no error, or no control predicts the task."""
    return {name: values[metric] for name, values in errors.items() if metric in values}


def paired(sides: Sequence[Sequence[Errors]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Control -> metric -> ``{"a", "b"}``: of each of two sides the mean of its runs, whose training parts may differ;
    None where a run has none. A control that no run has is left out."""
    names = [name for name in TRIVIAL if any(name in errors for side in sides for errors in side)]
    metrics = [metric for metric in ERRORS if any(metric in of for side in sides for e in side for of in e.values())]
    return {
        name: {
            metric: {key: _mean([errors.get(name, {}).get(metric) for errors in side])
                     for key, side in zip("ab", sides, strict=True)}
            for metric in metrics
        }
        for name in names
    }  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def of_controls(entry: Mapping[str, Any]) -> Errors:
    """The same of a task's entry in ``evaluation.json``, whose ``controls`` were compared on the same cases."""
    return {
        name: {metric: cells[metric]["control"] for metric in ERRORS if metric in cells}
        for name in TRIVIAL
        if (cells := entry.get("controls", {}).get(name, {}).get("metrics", {}))
    }
