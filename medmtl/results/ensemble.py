"""Several evaluated runs of one study as one: the mean of their predictions."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from medmtl.bundle import ModelSpec, load_bundle
from medmtl.config import load
from medmtl.errors import UserError
from medmtl.evaluation.aggregate import decided
from medmtl.evaluation.cases import read_cases
from medmtl.experiment import freeze_thresholds
from medmtl.prepared import prepare
from medmtl.results.folder import CASES, CONTROLS, Evaluation, Material, evaluate_cases
from medmtl.results.run import provenance_of, split_note, thumbnails
from medmtl.runs import RunFolder
from medmtl.study import Study
from medmtl.tasks.classification import ClassificationBase
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.segmentation import Segmentation

Say = Callable[[str], None]


def evaluate_ensemble(runs: Sequence[RunFolder], out: Path, *, say: Say = print) -> Evaluation:
    """Average the predictions of evaluated runs of one study on the test cases they share; thresholds are chosen again.

    Thresholds come from the validation tables: a case is averaged over the runs that validated on it (for folds: the
    one model that did not train on it).
    """
    if len(runs) < 2:
        raise UserError("E-ENS-RUNS", "an ensemble needs two runs or more", "name them", where="ensemble")
    tables = [read_cases(run.evaluation / CASES) for run in runs]
    first = load_bundle(runs[0].bundle)
    study = load(Study, runs[0].study)
    prepared = prepare(study)
    averaged = average_tables(tables, first.spec)
    val, test = (averaged[averaged["split"] == part] for part in ("val", "test"))
    tested = [set(table.loc[table["split"] == "test", "case_id"]) for table in tables]
    if any(cases != tested[0] for cases in tested):
        raise UserError(
            "E-ENS-TEST", "the runs have different test cases", "combine runs of one test set", where="ensemble"
        )
    spec = freeze_thresholds(first.spec, val)
    ids = ", ".join(load_bundle(run.bundle).id for run in runs)
    parts = {"val": decide(val, spec), "test": decide(test, spec)}
    material = Material(
        study.name, parts, spec, study.evaluation,
        {**provenance_of(first, prepared), "bundle": f"mean of {len(runs)}: {ids}"},
        controls=_controls(runs, spec), thumbnail=thumbnails(prepared), notes=[split_note(prepared, test, spec.views)],
    )  # fmt: skip
    return evaluate_cases(out, material, say=say)


def _controls(runs: Sequence[RunFolder], spec: ModelSpec) -> dict[str, pd.DataFrame]:
    """The mean of each control over the runs, which may have trained on different folds; of those that all have."""
    places = [run.evaluation / CONTROLS for run in runs]
    if not all(place.is_file() for place in places):  # evaluated before there were controls
        return {}
    tables = [dict(iter(read_cases(place).groupby("control", sort=False))) for place in places]
    shared = [name for name in tables[0] if all(name in of_run for of_run in tables)]
    return {str(name): average_tables([of_run[name] for of_run in tables], spec) for name in shared}


def average_tables(tables: Sequence[pd.DataFrame], spec: ModelSpec) -> pd.DataFrame:
    """One row per case and task: numbers of the prediction are means over the tables that hold the case in that part.

    Dense tasks are left out: their scores belong to one model's masks and cannot be averaged.
    """
    flat = [name for name, task in spec.tasks.items() if not isinstance(task, Segmentation)]
    together = pd.concat([table[table["task"].isin(flat)] for table in tables], ignore_index=True)
    numbers = [c for c in together.columns if c in ("prediction", "items_sum") or c.startswith("p.")]
    keys = ["task", "split", "case_id"]
    groups = together.groupby(keys, sort=False, dropna=False)
    result = groups.first().drop(columns=numbers).join(groups[numbers].mean()).reset_index()
    if (groups["target"].nunique() > 1).any():
        raise UserError(
            "E-ENS-TARGET", "the runs disagree about a label", "combine runs of one manifest", where="ensemble"
        )
    return decide(result, spec)


def decide(table: pd.DataFrame, spec: ModelSpec) -> pd.DataFrame:
    """The table with each class and level taken from its probabilities and the specification's thresholds."""
    result = table.copy()
    for name, task in spec.tasks.items():
        mine = result["task"] == name
        if isinstance(task, ClassificationBase | Ordinal) and mine.any():
            rows = pd.DataFrame([decided(task, p) for p in task.probabilities(result[mine])], index=result.index[mine])
            said = [column for column in ("prediction", "predicted_label", "expected") if column in rows]
            result.loc[mine, said] = rows[said]
    return result
