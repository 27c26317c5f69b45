"""A study trained on every fold, each case answered by the model that never saw it; and each task alone beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmtl.config import digest, plain
from medmtl.errors import UserError
from medmtl.evaluation.compare import compare_repeats
from medmtl.evaluation.trivial import ERRORS
from medmtl.files import write_atomic
from medmtl.nested import Family, Say, family
from medmtl.pooling import evaluated, fold_of, pool_runs
from medmtl.results import Evaluation, aligned, evaluate_run, trivial_controls
from medmtl.runs import RunFolder
from medmtl.study import Study

ALL, FACTS = "all tasks", "crossval.json"
_HEADER = ("task", "metric", "n", ALL, "alone", "difference", "interval", f"{ALL} is")


@dataclass
class CrossValidation:
    """What came of it: runs and, where every fold was trained, the pooled evaluation of each variant."""

    folder: Path
    runs: dict[str, list[RunFolder]] = field(default_factory=dict)  # variant -> one run per fold
    pooled: dict[str, Evaluation] = field(default_factory=dict)
    comparison: dict[str, Any] = field(default_factory=dict)  # task -> metric -> cell of all tasks against it alone


def crossval(
    study: Study,
    *,
    runs: Path = Path("runs"),
    folds: Sequence[int] | None = None,
    single_task: str | None = None,
    single_tasks: bool = False,
    say: Say = print,
) -> CrossValidation:
    """Train every fold, evaluate it on its test part, and pool the folds; what is finished is not done again.

    ``folds``: only these; nothing is pooled before all are there. ``single_task``: that task alone. ``single_tasks``:
    each task that is not auxiliary alone as well, and one table of what training them together changes.
    """
    count = fold_of(study).folds
    chosen = tuple(range(count)) if folds is None else tuple(dict.fromkeys(folds))
    bad = [fold for fold in chosen if not 0 <= fold < count]
    if bad or not chosen:
        raise UserError(
            "E-SPLIT-FOLD", f"fold {bad[0] if bad else 'none'} of {count}", "folds count from 0", where="--folds"
        )
    variants = _variants(study, single_task, single_tasks)
    whole = _fold(study, 0).tree()
    whole["data"]["split"].pop("fold")
    name = f"crossval-{study.name}-{digest(whole)[:8]}"
    params = {**plain(study), "folds": count, "variants": list(variants)}
    with family(study, runs, name, count=len(variants) * len(chosen), params=params) as parent:
        found = CrossValidation(parent.folder.path)
        for variant, other in variants.items():
            found.runs[variant] = [_one(parent, _fold(other, fold), fold, count, variant, say) for fold in chosen]
        if len(chosen) < count:
            say(f"folds {', '.join(map(str, chosen))} are done; nothing is pooled before all {count} are")
        else:
            _pool(found, say)
            _finish(parent, found, study, say)
    return found


def _variants(study: Study, single_task: str | None, single_tasks: bool) -> dict[str, Study]:
    """Variant -> study: all tasks together, or tasks alone."""
    if single_task is not None:
        if single_tasks:
            raise UserError("E-XVAL-TASKS", "one task, or each?", "give one of the two", where="--single-task")
        return {single_task: study.alone(single_task)}
    main = [name for name, task in study.tasks.items() if not task.auxiliary]
    return {ALL: study, **({name: study.alone(name) for name in main} if single_tasks and len(study.tasks) > 1 else {})}


def _fold(study: Study, fold: int) -> Study:
    split = fold_of(study).model_copy(update={"fold": fold})
    return study.model_copy(update={"data": study.data.model_copy(update={"split": split})})


def _one(parent: Family, study: Study, fold: int, count: int, variant: str, say: Say) -> RunFolder:
    label = variant if variant == ALL else f"{variant} alone"
    run = parent.train(study, f"fold {fold} of 0 to {count - 1}, {label}", say)
    if not evaluated(run):  # a test part is read once
        evaluate_run(run, say=say)
    return run


def place(folder: Path, variant: str) -> Path:
    """The pooled evaluation of a variant."""
    return folder / ("evaluation" if variant == ALL else f"evaluation-only-{variant}")


def _pool(found: CrossValidation, say: Say) -> None:
    for variant, runs in found.runs.items():
        say(f"all folds, {variant if variant == ALL else f'{variant} alone'}:")
        found.pooled[variant] = pool_runs(runs, place(found.folder, variant), say=say)
    together = found.pooled.get(ALL)
    for name, alone in found.pooled.items():
        if together is not None and name != ALL:
            sides = [[(one.table, {name: one.tasks[name]})] for one in (alone, together)]
            settings = together.result["bootstrap"]
            controls = [trivial_controls(alone.folder)], [trivial_controls(together.folder)]
            difference = compare_repeats(
                *sides, resamples=settings["resamples"], level=settings["level"], controls=controls
            )
            found.comparison[name] = difference["tasks"][name]


def _finish(parent: Family, found: CrossValidation, study: Study, say: Say) -> None:
    """``crossval.json``, the table, and both in MLflow."""
    text, path = format_table(found.comparison), found.folder / FACTS
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}  # of other variants, an earlier time
    new: dict[str, dict[str, Any]] = {
        "runs": {variant: [run.path.name for run in runs] for variant, runs in found.runs.items()},
        "pooled": {variant: place(found.folder, variant).name for variant in found.pooled},
        "comparison": found.comparison,
    }
    parent.write(FACTS, {"study": study.name, **{key: {**known.get(key, {}), **new[key]} for key in new}})
    if found.comparison:
        write_atomic(found.folder / "crossval.txt", text + "\n")
        say(f"{ALL} together against each alone, over all folds:\n{text}")
    if parent.tracker is not None:
        parent.tracker.log_metrics(dict(_metrics(found)))
    say("\n".join(f"report: {pooled.report}" for pooled in found.pooled.values()))


def format_table(comparison: Mapping[str, Any]) -> str:
    """Every task's headline: all tasks together, the task alone, their paired difference with its interval."""
    lines: list[tuple[str, ...]] = [_HEADER]
    for name, task in comparison.items():
        for metric in task["headline"]:
            cell = task["overall"][metric]
            interval = "-" if cell["low"] is None else f"[{cell['low']:+.3f}, {cell['high']:+.3f}]"
            values = [_number(cell[side]) for side in ("b", "a")]
            difference = "-" if cell["difference"] is None else f"{cell['difference']:+.3f}"
            lines.append((name, metric, str(cell["n"]), *values, difference, interval, str(cell["verdict"])))
            beside = task.get("trivial", {}).get("overall", {}) if metric in ERRORS else {}
            for control, errors in beside.items():
                both = (_number(errors[metric][side]) for side in ("b", "a"))
                lines.append((name, f"{metric} of the {control.replace('_', ' ')}", str(cell["n"]), *both, "", "", ""))
    return aligned(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _metrics(found: CrossValidation) -> list[tuple[str, float]]:
    """``pooled.<task>.<metric>`` with its interval; of a task alone ``pooled.only.<task>.<metric>``."""
    rows = []
    for variant, pooled in found.pooled.items():
        for name, task in pooled.result["tasks"].items():
            for metric, cell in task["overall"].items():
                prefix = "pooled" if variant == ALL else "pooled.only"
                ends = (("value", ""), ("low", ".low"), ("high", ".high"))
                rows += [(f"{prefix}.{name}.{metric}{end}", cell[key]) for key, end in ends if cell[key] is not None]
    for name, task in found.comparison.items():
        rows += [
            (f"together_less_alone.{name}.{metric}", task["overall"][metric]["difference"])
            for metric in task["headline"]
            if task["overall"][metric]["difference"] is not None
        ]
    return rows
