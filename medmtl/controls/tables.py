"""Controls as case tables: the rows of the validation and the test part, one per case and task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medmtl.controls.config import MEAN, MEDIAN, AnyControl, AnyLinear, CarryForward, RidgeControl, control_name
from medmtl.controls.features import Array, Tick, coarse_images, covariates
from medmtl.controls.linear import Training, fit_classes, fit_number
from medmtl.data.case import Case, Manifest
from medmtl.data.preprocess import Preprocess
from medmtl.data.split import Split
from medmtl.errors import UserError
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import Classification
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression

PARTS = ("val", "test")


@dataclass(frozen=True)
class Control:
    """One control: its rows, the penalty chosen for each task, and in words which tasks it says nothing about."""

    table: pd.DataFrame
    chosen: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """All that a control depends on."""

    manifest: Manifest
    split: Split
    preprocess: Preprocess
    tasks: Mapping[str, AnyTask]

    @property
    def controlled(self) -> dict[str, AnyTask]:
        """The tasks that have controls: numbers, levels and classes with a column, unless they are auxiliary."""
        return {
            name: task
            for name, task in self.tasks.items()
            if isinstance(task, Regression | Ordinal | Classification)
            and not task.auxiliary
            and (task.target or name) in self.manifest.targets
        }

    def labelled(self, name: str) -> tuple[list[Case], Array]:
        """The training cases with a label of the task in the order of their ids, and the labels: numbers or places."""
        task = self.tasks[name]
        column = task.target or name
        cases = sorted((case for case in self.split.train if column in case.targets), key=lambda case: case.case_id)
        return cases, np.array([_label(self, task, column, case) for case in cases], dtype=np.float64)

    @property
    def judged(self) -> list[Case]:
        """The validation and test cases."""
        return [case for part in PARTS for case in self.split.parts()[part]]


def constant_controls(setting: Setting) -> dict[str, Control]:
    """The training mean and the training median of every number and level: one prediction for all cases.

    Of levels the mean is the ``expected`` level, and the nearest one the prediction.
    """
    return {name: _constant(setting, of) for name, of in ((MEAN, np.mean), (MEDIAN, np.median))}


def _constant(setting: Setting, of: Callable[[Array], Any]) -> Control:
    rows: list[dict[str, Any]] = []
    for name, task in setting.controlled.items():
        labels = setting.labelled(name)[1] if not isinstance(task, Classification) else np.zeros(0)
        if len(labels):
            rows += _rows(setting, name, setting.judged, np.full(len(setting.judged), float(of(labels))))
    return Control(_table(rows))


def linear_control(setting: Setting, control: AnyLinear, *, tick: Tick = lambda done: None) -> Control:
    """The predictions of a linear model of each task; nothing but the training part is fitted, or chooses a penalty.

    Every labelled case counts once, whatever a task's ``weigh`` says.
    """
    cases = [*setting.split.train, *setting.judged]
    image = np.zeros((len(cases), 0))
    if control.image:
        image = coarse_images(cases, setting.manifest.root, setting.preprocess, control.grid, tick)
    features = np.concatenate([image, covariates(control, setting.split.train, cases)], axis=1)
    place = {case.case_id: i for i, case in enumerate(cases)}
    judged = features[len(setting.split.train) :]
    rows: list[dict[str, Any]] = []
    chosen: dict[str, Mapping[str, float]] = {}
    remarks = []
    for name, task in setting.controlled.items():
        labelled, labels = setting.labelled(name)
        seen = features[np.array([place[case.case_id] for case in labelled], dtype=int)]
        groups = np.array([case.group for case in labelled], dtype=str)
        training = Training(seen, image.shape[1], labels, groups)
        why = training.too_few or _unfit(task, task.target or name, labels, control)
        if why:
            remarks.append(f"{control_name(control)} says nothing about {name}: {why}.")
            continue
        said, chosen[name] = _predicted(task, training, judged, control)
        rows += _rows(setting, name, setting.judged, said)
    return Control(_table(rows), chosen, tuple(remarks))


def carried_control(setting: Setting, control: CarryForward) -> Control:
    """What a column says; cases without a value are left out."""
    unknown = [name for name in control.columns if name not in setting.controlled]
    if unknown:
        raise UserError(
            "E-CTL-TASK",
            f"{unknown[0]!r} is no task with a control, which are {', '.join(setting.controlled) or 'none'}",
            "correct the key of columns",
            where="evaluation.controls carry_forward",
        )
    rows: list[dict[str, Any]] = []
    remarks = []
    for name, column in control.columns.items():
        cases = [case for case in setting.judged if column in case.meta]
        if not cases:
            raise UserError(
                "E-CTL-COLUMN",
                f"no validation or test case has meta.{column}",
                "correct the column's name, or fill it",
                where="evaluation.controls carry_forward",
            )
        missing = len(setting.judged) - len(cases)
        if missing:
            remarks.append(f"{control_name(control)} lacks {missing} cases of {name} without meta.{column}.")
        task = setting.tasks[name]
        values = np.array([_cell(setting, task, case, case.meta[column], f"meta.{column}") for case in cases])
        rows += _rows(setting, name, cases, _sure(task, values))
    return Control(_table(rows), {}, tuple(remarks))


def build_control(setting: Setting, control: AnyControl, *, tick: Tick = lambda done: None) -> Control:
    """Any control of a study's settings."""
    if isinstance(control, CarryForward):
        return carried_control(setting, control)
    return linear_control(setting, control, tick=tick)


def _unfit(task: AnyTask, target: str, labels: Array, control: AnyLinear) -> str:
    if target in control.columns:
        return f"it is given the answer, meta.{target}"
    if not isinstance(task, Classification):
        return ""
    if not isinstance(control, RidgeControl):
        return "an elastic net is of numbers"
    return "one class in training" if len(set(labels)) < 2 else ""


def _predicted(
    task: AnyTask, training: Training, judged: Array, control: AnyLinear
) -> tuple[Array, Mapping[str, float]]:
    """Numbers or places [M], or the probabilities of all classes [M, K]."""
    if isinstance(task, Classification):
        model = fit_classes(training, control.components)
        return model.probabilities(judged, len(task.classes)), model.chosen
    model = fit_number(training, control.kind, control.components)
    return model.numbers(judged), model.chosen


def _label(setting: Setting, task: AnyTask, column: str, case: Case) -> float:
    return _cell(setting, task, case, case.targets[column], f"target.{column}")


def _cell(setting: Setting, task: AnyTask, case: Case, cell: str, column: str) -> float:
    """A cell as the task reads it: a number, or a level's or class's place."""
    reader: Any = task.reader()
    try:
        return float(reader.read(case, cell, setting.manifest.root))
    except UserError as error:
        raise type(error)(error.code, error.what, error.remedy, where=f"{error.where}, {column}") from error


def _sure(task: AnyTask, values: Array) -> Array:
    """Of classes, certainty [M, K]; numbers and places as they are."""
    return np.eye(len(task.classes))[values.astype(int)] if isinstance(task, Classification) else values


def _rows(setting: Setting, name: str, cases: Sequence[Case], said: Array) -> Iterator[dict[str, Any]]:
    """The rows of one task, as a model's would be."""
    task = setting.tasks[name]
    column = task.target or name
    for case, value in zip(cases, said, strict=True):
        known = torch.tensor(_label(setting, task, column, case)) if column in case.targets else None
        row = task.row(_decoded(task, value), known)
        if getattr(task, "sum_of", ()):  # a constant or a linear model of the total stands for the sum of items too
            row["items_sum"] = row["prediction"]
        yield {"case_id": case.case_id, "group": case.group, "domain": case.domain, "split": case.split, "task": name,
               **row}  # fmt: skip


def _decoded(task: AnyTask, value: Any) -> Tensor:
    """As the task's head would decode it: a number within its range; probabilities, of a place shared by its two
    neighbours, so that their mean is the place and the prediction the nearest level."""
    if isinstance(task, Regression):
        return torch.tensor(min(max(float(value), task.low), task.high), dtype=torch.float64)
    if not isinstance(task, Ordinal):
        return torch.tensor(value)
    place = min(max(float(value), 0.0), len(task.levels) - 1.0)
    below = min(int(place), len(task.levels) - 2)
    p = torch.zeros(len(task.levels), dtype=torch.float64)
    p[below], p[below + 1] = 1 - (place - below), place - below
    return p


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    columns = ["case_id", "group", "domain", "split", "task", "target", "prediction"]
    table = pd.DataFrame(rows, columns=None if rows else columns)
    if "target" not in table:
        table["target"] = np.nan
    return table
