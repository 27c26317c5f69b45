"""The worst cases of an evaluation as the model that answered them saw them: image, masks, saliency."""

from collections.abc import Iterable, Mapping

import pandas as pd

from medmtl.data.loader import CaseDataset
from medmtl.evaluation import plots
from medmtl.evaluation.failures import FailureConfig
from medmtl.evaluation.figures import worst_cases
from medmtl.evaluation.plots import Figure
from medmtl.inference.evidence import Seen, evidence
from medmtl.predictor import Predictor
from medmtl.tasks import AnyTask

Worst = dict[str, list[tuple[str, str]]]  # task -> (case id, caption), the largest error first
Views = dict[tuple[str, str], Seen]  # (task, case id) -> what there is to see


def to_show(table: pd.DataFrame, tasks: Mapping[str, AnyTask], config: FailureConfig | None) -> Worst:
    """The cases that the galleries show: of every task that is not auxiliary, as many as the settings ask for."""
    if config is None or not config.gallery or table.empty:
        return {}
    return {
        name: worst_cases(table[table["task"] == name], task, config.gallery)
        for name, task in tasks.items()
        if not task.auxiliary
    }


def looked_at(predictor: Predictor, dataset: CaseDataset, worst: Worst, cases: Iterable[str]) -> Views:
    """What a model saw of those of ``cases`` that are to be shown."""
    known, index = set(cases), {case.case_id: i for i, case in enumerate(dataset.cases)}
    return {
        (name, case): evidence(predictor, dataset, index[case], name)
        for name, found in worst.items()
        for case, _ in found
        if case in known
    }


def failure_galleries(worst: Worst, seen: Views) -> dict[str, Figure]:
    """``<task>/failures``: a row for each case."""
    return {
        f"{name}/failures": plots.failure_gallery(
            [plots.Evidence(caption, *seen[name, case]) for case, caption in found],
            title="Largest errors: masks and saliency",
        )
        for name, found in worst.items()
    }
