"""The plots of an evaluation, named ``<task>/<plot>``: functions of case table, settings and history."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medmtl.evaluation import plots
from medmtl.evaluation.case_error import error_size
from medmtl.evaluation.plots import Figure
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import ClassificationBase
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

Thumbnail = Callable[[str], npt.NDArray[np.uint8]]  # case id -> image [H, W, 3]


def task_figures(table: pd.DataFrame, tasks: Mapping[str, AnyTask], result: Mapping[str, Any]) -> dict[str, Figure]:
    """The plots of every task that a reader expects, named ``<task>/<plot>``."""
    figures: dict[str, Figure] = {}
    for name, task in tasks.items():
        rows = table[(table["task"] == name) & table["target"].notna()]
        if isinstance(task, ClassificationBase):
            positive = getattr(task, "positive", None) or (task.classes[-1] if len(task.classes) == 2 else None)
            figures |= {
                f"{name}/roc": plots.roc(rows, classes=task.classes),
                f"{name}/precision_recall": plots.precision_recall(rows, classes=task.classes),
                f"{name}/calibration": plots.calibration(rows, positive=positive),
                f"{name}/confusion": plots.confusion(rows, classes=task.classes),
            }
        elif isinstance(task, Ordinal):
            figures |= {
                f"{name}/confusion": plots.confusion(_as_places(rows, task), classes=task.levels),
                f"{name}/level_errors": plots.level_errors(
                    rows, levels=task.levels, lowest=task.lowest, unit=task.unit
                ),
                f"{name}/agreement": plots.agreement(rows, unit=task.unit or "levels", step=1),
            }
        elif isinstance(task, Regression):
            figures[f"{name}/agreement"] = plots.agreement(rows, unit=task.unit)
        elif isinstance(task, Segmentation):
            figures[f"{name}/dice"] = plots.mask_distribution(rows)
        for metric in task.headline[:2]:
            figures[f"{name}/domains_{metric}"] = plots.domain_bars(result, name, metric)
    return figures


def _as_places(rows: pd.DataFrame, task: Ordinal) -> pd.DataFrame:
    """The rows with levels counted from 0."""
    return rows.assign(target=rows["target"] - task.lowest, prediction=rows["prediction"] - task.lowest)


def galleries(table: pd.DataFrame, tasks: Mapping[str, AnyTask], thumbnail: Thumbnail, count: int) -> dict[str, Figure]:
    """The ``count`` worst errors of every task that is not auxiliary, as images."""
    figures = {}
    for name, task in tasks.items():
        worst = worst_cases(table[table["task"] == name], task, count)
        if task.auxiliary or not worst:
            continue
        items = [(thumbnail(case), caption) for case, caption in worst]
        figures[f"{name}/worst_errors"] = plots.worst_errors(items)
    return figures


def worst_cases(rows: pd.DataFrame, task: AnyTask, count: int) -> list[tuple[str, str]]:
    """(case id, caption) of ``count`` of the largest errors among the labelled rows of one task, the largest first.

    One image of each group before a second of any, and of masks no more than half of empty truth while there are
    others: every stray pixel on an empty mask is a Dice of 0, and such cases would be all there is to see.
    """
    rows = rows[rows["target"].notna() & rows["prediction"].notna()]
    if rows.empty:
        return []
    empty = (rows["target"] == 0).to_numpy() if isinstance(task, Segmentation) else np.zeros(len(rows), dtype=bool)
    ranked = rows.assign(error=error_size(rows, task), empty=empty)
    ranked = ranked[ranked["error"].notna()].sort_values(
        ["error", "empty", "case_id"], ascending=[False, True, True], ignore_index=True
    )
    worst = ranked.loc[_shown(ranked, count)].to_dict("records")
    return [(row["case_id"], f"{row['case_id']}\n{_caption(row, task)}") for row in worst]


def _shown(ranked: pd.DataFrame, count: int) -> list[int]:
    """Places of the cases to show, in their order."""
    taken: list[int] = []
    groups, empty = ranked["group"].astype(str).tolist(), ranked["empty"].tolist()
    for new_group, few_empty in ((True, True), (False, True), (False, False)):
        for place in range(len(ranked)):
            if len(taken) == count:
                return sorted(taken)
            known = new_group and groups[place] in {groups[other] for other in taken}
            full = few_empty and empty[place] and sum(empty[other] for other in taken) >= count // 2
            if place not in taken and not known and not full:
                taken.append(place)
    return sorted(taken)


def _caption(row: Mapping[Any, Any], task: AnyTask) -> str:
    if isinstance(task, ClassificationBase):
        return f"{row['target_label']}\nsaid {row['predicted_label']}\nerror {row['error']:.2f}"
    if isinstance(task, Ordinal):
        truth, said = (task.levels[int(row[side]) - task.lowest] for side in ("target", "prediction"))
        return f"{truth}\nsaid {said}\nexpected {row['expected']:.2f}"
    if isinstance(task, Regression):
        return f"{row['target']:.3g}, said {row['prediction']:.3g}"
    nothing = "\nno foreground in the truth" if row["empty"] else ""
    return f"1 - Dice {row['error']:.2f}{nothing}"


def history_figures(history: Iterable[Mapping[str, Any]]) -> dict[str, Figure]:
    """Learning curves, and the mean cosine between the tasks' gradients where it was recorded."""
    rows = pd.DataFrame(list(history), columns=["epoch", "step", "name", "value"])
    if rows.empty:
        return {}
    shown = (
        rows[rows["name"].str.startswith(("train.", "val."))]
        .groupby(["epoch", "name"], sort=False)
        .last()
        .reset_index()
    )
    parts = shown["name"].str.split(".")
    shown = shown[parts.str.len() <= 3 + shown["name"].str.contains("dice|iou|hd95")]
    shown = shown.assign(name=shown["name"].str.replace(".", "/", n=1, regex=False))
    headline = shown[
        shown["name"].str.endswith(("loss", "auroc", "balanced_accuracy", "mae", "pearson", "quadratic_kappa"))
        | shown["name"].str.contains("dice")
    ]
    figures = {"learning_curves": plots.loss_curves(headline)}
    cosines = rows[rows["name"].str.startswith("cosine.")]
    if len(cosines):
        pairs = cosines.groupby("name")["value"].mean()
        names = list(dict.fromkeys(part for name in pairs.index for part in reversed(name.split(".")[1:])))
        matrix = np.eye(len(names))
        for name, value in pairs.items():
            i, j = (names.index(part) for part in str(name).split(".")[1:])
            matrix[i, j] = matrix[j, i] = value
        figures["gradient_cosine"] = plots.gradient_cosine(matrix, names)
    return figures
