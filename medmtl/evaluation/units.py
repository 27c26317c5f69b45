"""An evaluation per patient (or visit) beside the one per image: thresholds from validation, metrics, report."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from medmtl.evaluation.aggregate import AggregateConfig, aggregate_table, aggregated_tasks, fitted_attention
from medmtl.evaluation.html import html_table, metric_name, short_number, value_cell
from medmtl.evaluation.skill import control_label
from medmtl.evaluation.summary import evaluate_table
from medmtl.evaluation.trivial import TRIVIAL, beside, of_controls, per_unit, trivial_errors
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import Classification


@dataclass(frozen=True)
class Units:
    """``result`` as of :func:`evaluate_table`, with the rule and the thresholds; ``table`` has a row per patient."""

    result: dict[str, Any]
    table: pd.DataFrame


def evaluate_units(
    tables: Mapping[str, pd.DataFrame],
    tasks: Mapping[str, AnyTask],
    config: AggregateConfig,
    *,
    resamples: int,
    level: float,
    controls: Mapping[str, pd.DataFrame] | None = None,
) -> Units:
    """The test table per patient. Binary thresholds are chosen anew on the *aggregated* validation table.

    ``tables``: ``val`` and ``test``, for ``attention`` also ``train``, on which its weights are learned. A threshold
    that validation cannot give (one class) is 0.5, and ``thresholds`` says None. Of ``controls`` (of images), training
    mean and median stand in each task's ``trivial`` with their errors on the same patients.
    """
    known = aggregated_tasks(tasks)
    attention = fitted_attention(tables["train"], tasks, config) if config.how == "attention" else None
    val = aggregate_table(tables["val"], known, config, attention)
    frozen = {
        name: task.freeze(val[val["task"] == name]) if isinstance(task, Classification) else task
        for name, task in known.items()
    }
    test = aggregate_table(tables["test"], frozen, config, attention)
    evaluated, constants = (
        evaluate_table(test, frozen, resamples=resamples, level=level),
        per_unit(test, controls or {}),
    )
    for name, entry in evaluated["tasks"].items():
        entry["trivial"] = trivial_errors(test[test["task"] == name], frozen[name], constants)
    images = test.groupby("case_id")["images"].max() if len(test) else pd.Series([0])
    result: dict[str, Any] = {
        "by": config.by,
        "how": config.how,
        "images": {"least": int(images.min()), "median": float(images.median()), "most": int(images.max())},
        "thresholds": {name: task.threshold for name, task in frozen.items() if isinstance(task, Classification)},
        **({} if attention is None else {"attention": {name: learned.plain() for name, learned in attention.items()}}),
        **evaluated,
    }
    return Units(result, pd.concat([val, test], ignore_index=True))


def units_section(units: Mapping[str, Any], images: Mapping[str, Any]) -> str:
    """HTML: the headline metrics per patient beside those per image of the same evaluation."""
    rows = []
    for name, task in units["tasks"].items():
        for metric in task["headline"]:
            cell, single = task["overall"][metric], images["tasks"][name]["overall"].get(metric)
            known = beside(task.get("trivial") or of_controls(task), metric)
            rows.append([
                escape(name), metric_name(metric), value_cell(cell),
                short_number(task["control"]["constant"].get(metric)),
                *(short_number(known.get(control)) for control in TRIVIAL), str(cell["n"]),
                "-" if single is None else value_cell(single),
            ])  # fmt: skip
    noun = escape(units["by"].removeprefix("meta."))
    count, chosen = units["images"], {k: v for k, v in units["thresholds"].items() if v is not None}
    thresholds = "; ".join(f"{escape(name)} from {value:.3f}" for name, value in chosen.items())
    trivial = (control_label(control) for control in TRIVIAL)
    heads = ("task", "metric", f"per {noun}", "constant", *trivial, f"{noun}s", "per image")
    return (
        f"<section id=units><h2>Per {noun}</h2><p class=soft>{count['least']} to {count['most']} images each (median "
        f"{count['median']:g}), combined by {escape(units['how'])}."
        f"{f' Thresholds, chosen on validation for the combined probability: {thresholds}.' if chosen else ''}</p>"
        f"{html_table(heads, rows, text=(1,))}</section>"
    )


def units_metrics(units: Mapping[str, Any]) -> dict[str, float]:
    """``test.<task>.<metric>.per_<group>`` with its interval, for tracking."""
    suffix = f"per_{units['by'].removeprefix('meta.')}"
    return {
        f"test.{name}.{metric}.{suffix}{end}": cell[key]
        for name, task in units["tasks"].items()
        for metric, cell in task["overall"].items()
        for key, end in (("value", ""), ("low", ".low"), ("high", ".high"))
        if cell[key] is not None
    }
