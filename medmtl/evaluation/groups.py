"""Every metric for each value of a column of meta data, such as a diagnosis: as complete as the table by domain."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from medmtl.errors import UserError
from medmtl.evaluation.strata import stratify
from medmtl.evaluation.summary import cells_of, usable_rows
from medmtl.tasks.base import Task

GUARD = 5  # cases, and groups, that share a value; rarer ones could name a patient and are pooled


def metrics_by(
    table: pd.DataFrame, tasks: Mapping[str, Task], columns: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Task -> column -> stratum -> cells as of :func:`medmtl.evaluation.summary.evaluate_table`.

    Strata are those of the analysis of failures (numbers in bins, rare values pooled, missing ones named), the same for
    every task. ``settings`` are the ``bootstrap`` of that result. A column without strata has none.
    """
    known = [column.removeprefix("meta.") for column in table.columns if column.startswith("meta.")]
    for column in columns:
        if column not in known:
            raise UserError(
                "E-EVAL-BY",
                f"the case table has no column meta.{column}",
                f"write some of {', '.join(known) or '(no meta column)'}",
                where="evaluation.by",
            )
    strata = {column: stratify(table, f"meta.{column}", minimum=GUARD, groups=GUARD, named=True).of_case
              for column in columns}  # fmt: skip
    return {
        name: {
            column: _of_column(usable_rows(table[table["task"] == name]), task, of_case, settings)
            for column, of_case in strata.items()
        }
        for name, task in tasks.items()
    }


def _of_column(
    rows: pd.DataFrame, task: Task, of_case: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    label = rows["case_id"].map(of_case)
    return {str(value): cells_of(part.reset_index(drop=True), task, settings) for value, part in rows.groupby(label)}
