"""A task that several models of one study answered, each on cases of its own: the test folds of a cross-validation.

A row says by ``fold`` whose it is. Each fold keeps what it learned on its own training and validation cases: the
threshold of a binary task, and what the constant control says.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd
from pydantic import create_model

from medmtl import metrics
from medmtl.tasks import AnyTask
from medmtl.tasks.base import Task
from medmtl.tasks.classification import Classification

FOLD = "fold"  # column of the case table: an int


class _Folded(Task):
    """Beside a kind of task: its settings of each fold, in ``folds``."""

    folds: dict[int, Any]

    def constant(self, table: pd.DataFrame) -> pd.DataFrame:
        """Every case gets what the constant of its own fold says."""
        parts = [self.folds[fold].constant(rows) for fold, rows in _by_fold(table)]
        return pd.concat(parts).loc[table.index] if parts else table


class _FoldedBinary(_Folded):
    """A binary task: each case is called positive by the threshold of its own fold."""

    @property
    def frozen(self) -> Mapping[str, Any]:
        thresholds = {str(fold): task.threshold for fold, task in self.folds.items()}
        alike = len(set(thresholds.values())) == 1
        return {**super().frozen, "threshold": next(iter(thresholds.values())) if alike else thresholds}

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        thresholds = np.zeros(len(table))
        truth, probability = self.positive_truth(table)  # type: ignore[attr-defined]  # Classification's
        for fold, task in self.folds.items():
            thresholds[table[FOLD].to_numpy(int) == fold] = 0.5 if task.threshold is None else task.threshold
        return metrics.binary(truth, probability, thresholds, weights)  # type: ignore[arg-type]  # one per case


def folded(tasks: Mapping[int, Task]) -> AnyTask:
    """One task of the whole table from the same task of each fold: everything but what was learned is alike."""
    first = next(iter(tasks.values()))
    kind = type(first)
    beside = _FoldedBinary if isinstance(first, Classification) and first.binary else _Folded
    made = create_model(f"Folded{kind.__name__}", __base__=(beside, kind))
    settings = {name: getattr(first, name) for name in kind.model_fields}
    return cast(AnyTask, made.model_construct(**settings, folds=dict(tasks)))


def _by_fold(table: pd.DataFrame) -> list[tuple[int, pd.DataFrame]]:
    return [(int(str(fold)), rows) for fold, rows in table.groupby(FOLD)]
