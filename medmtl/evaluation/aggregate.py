"""Several images of one patient (or visit) as one case: their predictions combined, their labels too.

The result is a case table again, so every metric, interval and comparison applies. Binary classes and ordered levels
are combined through ``P(level > k)`` of the images i, of which a binary class has one and K levels have K - 1:

    mean        mean_i P_i          every image says something about the patient
    max         max_i P_i           the most suspicious image speaks for the patient
    noisy_or    1 - prod_i (1 - P_i)   one image suffices, and images err independently (they hardly do)
    attention   sum_i a_i P_i       weights learned on the training part (:mod:`medmtl.evaluation.attention`)

Numbers follow ``max`` where it is asked for, else the mean; three or more unordered classes are always averaged. Masks
and auxiliary tasks stay per image. The label of a patient is the highest label of the images that have one (binary,
ordinal), or the mean (numbers; ``max``: the largest); unordered classes must agree, otherwise the label is missing.
A label 'negative' of one image says little about a patient whose other images have none: label patients alike.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import field_validator

from medmtl.config import Config
from medmtl.errors import UserError
from medmtl.evaluation.attention import Attention, fit_attention
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import Classification, ClassificationBase
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression

SEVERAL = "several"  # the domain of a patient whose images are of more than one
How = Literal["mean", "max", "noisy_or", "attention"]


class AggregateConfig(Config):
    """Which images belong together, and how their predictions become one."""

    by: str = "group"  # group, or meta.<column>: the images of one group that share its value
    how: How = "mean"

    @field_validator("by")
    @classmethod
    def _known(cls, by: str) -> str:
        if by != "group" and not by.removeprefix("meta."):
            raise ValueError("write group, or meta.<column>")
        if by != "group" and not by.startswith("meta."):
            raise ValueError(f"{by!r} is neither group nor a meta column; write group, or meta.{by}")
        return by

    @property
    def noun(self) -> str:
        """What a row of the aggregated table is: ``group``, or the column's name."""
        return self.by.removeprefix("meta.")


def aggregated_tasks(tasks: Mapping[str, AnyTask]) -> dict[str, AnyTask]:
    """The tasks that a patient has an answer to, binary thresholds forgotten: they were chosen for images."""
    return {
        name: task.model_copy(update={"threshold": None}) if isinstance(task, Classification) else task
        for name, task in tasks.items()
        if isinstance(task, Classification | Ordinal | Regression) and not task.auxiliary
    }


def fitted_attention(
    table: pd.DataFrame, tasks: Mapping[str, AnyTask], config: AggregateConfig
) -> dict[str, Attention]:
    """The learned weights of every binary and ordinal task, from the case table of the *training* part.

    They look at the answers of :func:`aggregated_tasks`, as :func:`aggregate_table` does when it applies them.
    """
    learned, known = {}, aggregated_tasks(tasks)
    for name, task in known.items():
        if not _ordered(task):
            continue
        rows = _of_task(table, name)
        units = _units(rows, config.by)
        names, members = np.unique(units.to_numpy(str), return_inverse=True)
        labels = np.array([_label(rows[units == unit], task, "max")["target"] for unit in names], dtype=float)
        if isinstance(task, Classification):
            levels = np.where(np.isnan(labels), np.nan, labels == task.positive_index)
        else:
            assert isinstance(task, Ordinal)
            levels = labels - task.lowest
        learned[name] = fit_attention(_features(table, rows, known), _exceedance(rows, task), members, levels)
    return learned


def aggregate_table(
    table: pd.DataFrame,
    tasks: Mapping[str, AnyTask],
    config: AggregateConfig,
    attention: Mapping[str, Attention] | None = None,
) -> pd.DataFrame:
    """One row per patient and task: ``case_id`` names the patient, ``images`` counts its images.

    ``tasks`` are those of :func:`aggregated_tasks`, with the thresholds that decide; ``attention`` that of
    :func:`fitted_attention`.
    """
    if config.by not in table.columns:
        known = ", ".join(["group", *(column for column in table.columns if column.startswith("meta."))])
        raise UserError(
            "E-AGG-COLUMN",
            f"the case table has no column {config.by}",
            f"write one of {known}",
            where="evaluation.aggregate.by",
        )
    parts = []
    for name, task in tasks.items():
        rows = _of_task(table, name)
        if rows.empty:
            continue
        weights = None
        if attention is not None and name in attention:
            weights = attention[name].scores(_features(table, rows, tasks))
        parts.append(_aggregated(rows, name, task, config, weights))
    columns = ["case_id", "group", "domain", "split", "task", "target", "prediction"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _of_task(table: pd.DataFrame, name: str) -> pd.DataFrame:
    rows = table[(table["task"] == name) & table["prediction"].notna()]
    return rows.sort_values("case_id", ignore_index=True)


def _units(rows: pd.DataFrame, by: str) -> pd.Series:
    """Whom each row belongs to. A visit's number is one of its group; images without one are a unit of their own."""
    group = rows["group"].astype(str)
    if by == "group":
        return group
    value = rows[by].map(lambda cell: "unknown" if pd.isna(cell) or str(cell).strip() == "" else str(cell).strip())
    return group + "|" + value


def _aggregated(
    rows: pd.DataFrame, name: str, task: AnyTask, config: AggregateConfig, attention: np.ndarray | None
) -> pd.DataFrame:
    units = _units(rows, config.by)
    found = []
    for unit, index in rows.groupby(units, sort=True).indices.items():
        part = rows.iloc[index]
        domains = set(part["domain"].fillna("").astype(str))
        share = None if attention is None else _softmax(attention[index])
        columns = decided(task, _combined(part, task, config.how, share))
        found.append({
            "case_id": str(unit), "group": part["group"].iloc[0],
            "domain": domains.pop() if len(domains) == 1 else SEVERAL,
            "split": part["split"].iloc[0] if "split" in part else "", "task": name, "images": len(part), **columns,
            **_label(part, task, config.how),
        })  # fmt: skip
    return pd.DataFrame(found)


def _softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max())
    return shifted / shifted.sum()


def _ordered(task: AnyTask) -> bool:
    return isinstance(task, Ordinal) or (isinstance(task, Classification) and task.binary)


def _exceedance(rows: pd.DataFrame, task: AnyTask) -> np.ndarray:
    """P(level > k) of each image, [N, K-1]; of a binary class, the probability of ``positive`` [N, 1]."""
    assert isinstance(task, Ordinal | Classification)
    p = task.probabilities(rows)
    if isinstance(task, Classification):
        return p[:, [task.positive_index]]
    return np.clip(1 - p.cumsum(axis=1)[:, :-1], 0, 1)


def _combined(rows: pd.DataFrame, task: AnyTask, how: How, attention: np.ndarray | None) -> np.ndarray:
    """The probabilities [K], or the number [], of one patient."""
    if isinstance(task, Regression):
        values = rows["prediction"].to_numpy(float)
        return np.asarray(values.max() if how == "max" else values.mean())
    if not _ordered(task):
        assert isinstance(task, ClassificationBase)
        return task.probabilities(rows).mean(axis=0)
    above = _exceedance(rows, task)
    match how:
        case "mean":
            above = above.mean(axis=0)
        case "max":
            above = above.max(axis=0)
        case "noisy_or":
            above = 1 - (1 - above).prod(axis=0)
        case "attention":
            above = above.mean(axis=0) if attention is None else attention @ above
    if isinstance(task, Classification):
        p = float(above[0])
        return np.array([p, 1 - p] if task.positive_index == 0 else [1 - p, p])
    return -np.diff(np.concatenate([[1.0], above, [0.0]]))


def _label(rows: pd.DataFrame, task: AnyTask, how: How) -> dict[str, Any]:
    """The patient's ``target`` (and its name) from the images that have one; NaN without, or where classes disagree."""
    labels = rows["target"].dropna().to_numpy(float)
    if not len(labels):
        return {"target": np.nan}
    if isinstance(task, Regression):
        return {"target": labels.max() if how == "max" else labels.mean()}
    if isinstance(task, Ordinal):
        level = labels.max()
        return {"target": level, **({"target_label": task.classes[int(level)]} if task.classes else {})}
    assert isinstance(task, Classification)
    if task.binary:
        index = task.positive_index if (labels == task.positive_index).any() else 1 - task.positive_index
    elif len(set(labels)) == 1:
        index = int(labels[0])
    else:
        return {"target": np.nan}
    return {"target": float(index), "target_label": task.classes[index]}


def decided(task: AnyTask, decoded: np.ndarray) -> dict[str, Any]:
    """The columns of a case whose decoded output was computed from others."""
    return task.row(torch.tensor(decoded), None)


def _features(table: pd.DataFrame, rows: pd.DataFrame, tasks: Mapping[str, AnyTask]) -> np.ndarray:
    """What attention looks at [N, F]: of each image, the answers to these tasks, one number each, on a common scale."""
    columns = []
    for name, task in tasks.items():
        mine = table[table["task"] == name].set_index("case_id").reindex(rows["case_id"])
        if _ordered(task):
            p = _exceedance(mine.reset_index(), task).mean(axis=1)
            columns.append(np.log(np.clip(p, 1e-4, 1 - 1e-4) / np.clip(1 - p, 1e-4, 1 - 1e-4)))
        elif isinstance(task, Regression):
            columns.append((mine["prediction"].to_numpy(float) - task.low) / (task.high - task.low))
    return np.nan_to_num(np.stack(columns, axis=1)) if columns else np.zeros((len(rows), 0))
