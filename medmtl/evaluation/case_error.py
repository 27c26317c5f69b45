"""How wrong each case is, as one number: what galleries and the failure analysis rank by."""

import numpy as np
import pandas as pd

from medmtl.tasks import AnyTask
from medmtl.tasks.base import Task
from medmtl.tasks.classification import ClassificationBase
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.segmentation import Segmentation


def error_size(rows: pd.DataFrame, task: AnyTask | Task) -> np.ndarray:
    """How wrong each labelled row is: 1 - p(true class), |error| (of an expected level), or 1 - mean Dice."""
    if isinstance(task, ClassificationBase):
        p = task.probabilities(rows)
        return 1 - p[np.arange(len(rows)), rows["target"].to_numpy(int)]
    if isinstance(task, Segmentation):
        return 1 - rows[[f"dice.{name}" for name in task.classes[1:]]].mean(axis=1).to_numpy(float)
    said = rows["expected" if isinstance(task, Ordinal) else "prediction"]
    return np.abs(said - rows["target"]).to_numpy(float)


def excess_error(rows: pd.DataFrame, task: AnyTask | Task) -> np.ndarray:
    """The error of each row; of a class, less the mean error of that class.

    A model of a rare class is more often wrong where the class is, so a stratum with more positives would look like a
    failure of its own.
    """
    error = error_size(rows, task)
    if not isinstance(task, ClassificationBase):
        return error
    return error - pd.Series(error).groupby(rows["target"].to_numpy()).transform("mean").to_numpy()
