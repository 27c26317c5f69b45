"""From case tables to a folder: numbers, figures, and a report. Whose predictions they are is not asked here."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medmtl.bundle import ModelSpec
from medmtl.config import to_yaml
from medmtl.evaluation import plots
from medmtl.evaluation.aggregate import aggregated_tasks
from medmtl.evaluation.compare import Side
from medmtl.evaluation.failure_report import failure_facts, failure_figures, failure_section, write_failures
from medmtl.evaluation.failures import failure_analysis
from medmtl.evaluation.figures import Thumbnail, galleries, task_figures
from medmtl.evaluation.groups import metrics_by
from medmtl.evaluation.overview import REPORT, format_result
from medmtl.evaluation.plots import Figure
from medmtl.evaluation.report import write_report
from medmtl.evaluation.skill import control_sides, skill
from medmtl.evaluation.summary import evaluate_table
from medmtl.evaluation.units import evaluate_units, units_section
from medmtl.files import write_atomic
from medmtl.study import EvaluationConfig
from medmtl.tasks import AnyTask

Say = Callable[[str], None]
CASES, RESULT, FAILURES, CONTROLS = "cases.csv", "evaluation.json", "failures.csv", "controls.csv"
SPEC, UNITS = "tasks.yaml", "aggregated.csv"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation wrote, and its numbers."""

    folder: Path
    result: Mapping[str, Any]
    table: pd.DataFrame
    tasks: Mapping[str, AnyTask]

    @property
    def report(self) -> Path:
        return self.folder / REPORT


@dataclass(frozen=True)
class Material:
    """What is evaluated, and all that is said of it."""

    title: str
    tables: Mapping[str, pd.DataFrame]  # case tables: ``test``, where there are ``val`` and ``train``
    spec: ModelSpec
    config: EvaluationConfig
    provenance: Mapping[str, str]
    tasks: Mapping[str, AnyTask] | None = None  # that judge the tables; None: the specification's
    controls: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # their case tables, ``val`` and ``test`` rows
    sides: Mapping[str, Side] | None = None  # the same with their own tasks; None: thresholds chosen on ``val`` rows
    chosen: Mapping[str, Any] = field(default_factory=dict)  # control -> task -> penalty
    thumbnail: Thumbnail | None = None  # None: no galleries
    figures: Mapping[str, Figure] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def judges(self) -> Mapping[str, AnyTask]:
        return self.spec.tasks if self.tasks is None else self.tasks


def evaluate_cases(folder: Path, material: Material, *, say: Say = print) -> Evaluation:
    """Numbers (``evaluation.json``), figures and ``report.html`` of the test table, beside the tables themselves.

    Where the settings ask for it, ``aggregated.csv`` has a row per patient and ``failures.csv`` one per stratum.
    """
    test, tasks = material.tables["test"], material.judges
    result = _numbers(material)
    sections: list[str] = []
    _units(folder, material, result, sections)
    strata = _failures(folder, material, result, sections)
    both = pd.concat([material.tables[part] for part in ("val", "test") if part in material.tables], ignore_index=True)
    _write_table(folder / CASES, both)
    if material.controls:
        named = [table.assign(control=name) for name, table in material.controls.items()]
        _write_table(folder / CONTROLS, pd.concat(named, ignore_index=True))
    write_atomic(folder / RESULT, to_json(result))
    write_atomic(folder / SPEC, to_yaml(material.spec))
    worst = galleries(test, tasks, material.thumbnail, material.config.gallery) if material.thumbnail else {}
    figures = {**task_figures(test, tasks, result), **worst, **strata, **material.figures}
    for name, figure in figures.items():
        plots.save(figure, folder / "figures", name.replace("/", "-"))
    write_report(
        folder / REPORT, title=material.title, evaluation=result, table=test, figures=figures,
        provenance=material.provenance, notes=material.notes, sections=sections,
    )  # fmt: skip
    say(format_result(result))
    return Evaluation(folder, result, test, tasks)


def _numbers(material: Material) -> dict[str, Any]:
    """Metrics by domain and by column, and the differences to every control."""
    test, tasks, config = material.tables["test"], material.judges, material.config
    result = evaluate_table(test, tasks, resamples=config.resamples, level=config.level)
    sides = control_sides(material.controls, tasks) if material.sides is None else material.sides
    gained = skill(test, tasks, sides, resamples=config.resamples, level=config.level)
    groups = metrics_by(test, tasks, config.by, result["bootstrap"])
    for name, entry in result["tasks"].items():
        entry["controls"], entry["by"] = gained[name], groups[name]
    return {"provenance": dict(material.provenance), **result, "controls": {"chosen": dict(material.chosen)}}


def _units(folder: Path, material: Material, result: dict[str, Any], sections: list[str]) -> None:
    config = material.config.aggregate
    parts = {"val", "train"} if config is not None and config.how == "attention" else {"val"}
    if config is None or not parts <= set(material.tables):  # an ensemble has no training part
        return
    if not aggregated_tasks(material.judges):  # a mask is an image's, no patient's
        return
    e = material.config
    units = evaluate_units(
        material.tables, material.judges, config, resamples=e.resamples, level=e.level, controls=_tested(material)
    )
    result["units"] = units.result
    sections.append(units_section(units.result, result))
    _write_table(folder / UNITS, units.table)


def _tested(material: Material) -> dict[str, pd.DataFrame]:
    """The test rows of the controls."""
    return {name: table[table["split"] == "test"] for name, table in material.controls.items()}


def _failures(folder: Path, material: Material, result: dict[str, Any], sections: list[str]) -> dict[str, Figure]:
    config, test = material.config.failures, material.tables["test"]
    if config is None or not any(column.startswith("meta.") for column in test):
        return {}
    failures = failure_analysis(test, material.judges, config, level=material.config.level)
    result["failures"] = failure_facts(failures)
    sections.append(failure_section(failures))
    write_failures(folder / FAILURES, failures)
    return failure_figures(failures)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    write_atomic(path, table.to_csv(index=False, lineterminator="\n"))


def to_json(tree: Mapping[str, Any]) -> str:
    """Strict JSON that a person can read."""
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
