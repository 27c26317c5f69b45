"""What a model adds to controls: paired differences with group-clustered intervals, and what they say in words.

A control is a case table of its own (:mod:`medmtl.controls`), so its metrics come from the model's own code.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from medmtl.evaluation.compare import BETTER, WORSE, Side, compare_tables
from medmtl.metrics import is_better
from medmtl.tasks.base import Task
from medmtl.tasks.classification import Classification


def control_sides(tables: Mapping[str, pd.DataFrame], tasks: Mapping[str, Task]) -> dict[str, Side]:
    """Each control's test rows with its own tasks: binary thresholds are chosen on its ``val`` rows, as the model's
    are on the model's."""
    return {
        control: (
            table[table["split"] == "test"].reset_index(drop=True),
            {name: _frozen(task, table[table["task"] == name]) for name, task in tasks.items()},
        )
        for control, table in tables.items()
    }


def _frozen(task: Task, rows: pd.DataFrame) -> Task:
    if not isinstance(task, Classification) or rows.empty:
        return task
    return task.model_copy(update={"threshold": None}).freeze(rows[rows["split"] == "val"])


def skill(
    table: pd.DataFrame,
    tasks: Mapping[str, Task],
    controls: Mapping[str, Side],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    minimum: int = 5,
) -> dict[str, dict[str, Any]]:
    """Task -> control -> ``{"n", "metrics": {metric: cell}}``; a cell has ``control``, ``model`` and ``difference``.

    The difference is model - control, over the cases that both predicted, with the interval and the verdict of
    :mod:`medmtl.evaluation.compare`.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in tasks}
    for control, (rows, of_control) in controls.items():
        known = {name: of_control[name] for name in tasks if name in of_control and (rows["task"] == name).any()}
        comparison = compare_tables(
            rows, table, known, tasks_b=tasks, resamples=resamples, seed=seed, level=level, minimum=minimum,
            domains=False,
        )  # fmt: skip
        for name, entry in comparison["tasks"].items():
            if entry["n"]:
                cells = {metric: _cell(cell) for metric, cell in entry["overall"].items()}
                found[name][control] = {"n": entry["n"], "metrics": cells}
    return found


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {{"a": "control", "b": "model"}.get(key, key): value for key, value in cell.items()}


def strongest(controls: Mapping[str, Any], metric: str) -> str | None:
    """The control with the best value of a metric, the first on ties; None where none has one."""
    best: tuple[str, float] | None = None
    for name, entry in controls.items():
        value = entry["metrics"].get(metric, {}).get("control")
        if value is not None and (best is None or is_better(metric, value, best[1])):
            best = name, value
    return best[0] if best else None


def control_label(name: str) -> str:
    """A control's name in words."""
    return name.replace("_", " ")


def verdict_words(cell: Mapping[str, Any], control: str) -> str:
    """``better than ridge``, ``worse than ridge`` or ``not shown to be better than ridge``."""
    said = {BETTER: "better than", WORSE: "worse than"}.get(cell["verdict"], "not shown to be better than")
    return f"{said} {control_label(control)}"
