"""Two case tables of the same cases against each other: paired differences with group-clustered intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from medmtl.errors import UserError
from medmtl.evaluation.summary import (
    by_domain,
    check_table,
    defined_count,
    interval_reason,
    number,
    undefined_reason,
    usable_rows,
)
from medmtl.metrics import METRICS, describe
from medmtl.stats import Array, bootstrap, paired_interval
from medmtl.tasks.base import Task

BETTER, WORSE, UNDECIDED = "better", "worse", "no difference shown"
_TOLERANCE = 1e-6  # targets that went through text or float32 differ by less


def compare_tables(
    a: pd.DataFrame,
    b: pd.DataFrame,
    tasks: Mapping[str, Task],
    *,
    tasks_b: Mapping[str, Task] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    minimum: int = 5,
) -> dict[str, Any]:
    """Every metric of ``b`` less that of ``a`` over the cases that both have, overall and by domain, as JSON-able data.

    Both sides get the same resampled groups, so that what they share cancels. The verdict is about ``b``: ``better`` or
    ``worse`` where the interval of the difference leaves out 0, in the metric's own direction, else ``no difference
    shown``, which is not evidence that there is none. Intervals are not corrected for the number of metrics looked at.
    ``tasks_b`` are the settings of ``b`` where they differ from ``tasks`` (a binary threshold chosen on validation
    data). Group and domain are those of ``a``. A score that one side lacks for a case (HD95 of an empty prediction) is
    left out on both, and ``n`` says how many remain.
    """
    check_table(a)
    check_table(b)
    settings = {"resamples": resamples, "seed": seed, "level": level, "clusters": "group", "minimum": minimum}
    return {
        "tasks": {
            name: _task(name, a[a["task"] == name], b[b["task"] == name], (task, (tasks_b or tasks)[name]), settings)
            for name, task in tasks.items()
        },
        "bootstrap": settings,
    }


def _task(
    name: str, a: pd.DataFrame, b: pd.DataFrame, pair: tuple[Task, Task], settings: Mapping[str, Any]
) -> dict[str, Any]:
    rows_a, rows_b = usable_rows(a), usable_rows(b)
    shared = sorted(set(rows_a["case_id"]) & set(rows_b["case_id"]))
    only_a, only_b = len(rows_a) - len(shared), len(rows_b) - len(shared)
    rows_a = rows_a[rows_a["case_id"].isin(shared)].reset_index(drop=True)
    rows_b = rows_b[rows_b["case_id"].isin(shared)].reset_index(drop=True)
    _check_targets(name, rows_a, rows_b)
    rows_b = rows_b.assign(group=rows_a["group"], domain=rows_a["domain"])
    rows_a, rows_b = _common_scores(rows_a, rows_b)
    parts_b = by_domain(rows_b)
    overall = _differences(rows_a, rows_b, pair, settings)
    return {
        "headline": [metric for metric in pair[0].headline if metric in overall],
        "n": len(shared),
        "only_a": only_a,
        "only_b": only_b,
        "groups": int(rows_a["group"].astype(str).nunique()),
        "overall": overall,
        "domains": {
            domain: _differences(part, parts_b[domain], pair, settings) for domain, part in by_domain(rows_a).items()
        },
    }


def _check_targets(name: str, a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Refuse two tables whose labels disagree: their metrics would not be about the same thing."""
    differ = ~np.isclose(a["target"].to_numpy(float), b["target"].to_numpy(float), rtol=_TOLERANCE, atol=_TOLERANCE)
    if not differ.any():
        return
    first = int(np.flatnonzero(differ)[0])
    raise UserError(
        "E-EVAL-TARGET",
        f"{int(differ.sum())} of {len(a)} cases are labelled differently in the two tables, first "
        f"{a['case_id'][first]!r}: {a['target'][first]} and {b['target'][first]}",
        "evaluate both runs on the same manifest",
        where=f"task {name}",
    )


def _common_scores(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with each per-case score (``hd95.lesion``) only where both have it."""
    scores = [name for name in a.columns.intersection(b.columns) if name.partition(".")[0] in METRICS]
    both = a[scores].notna() & b[scores].notna()
    return a.assign(**a[scores].where(both)), b.assign(**b[scores].where(both))


def _differences(
    a: pd.DataFrame, b: pd.DataFrame, pair: tuple[Task, Task], settings: Mapping[str, Any]
) -> dict[str, Any]:
    if a.empty:
        return {}

    def both(weights: Array) -> dict[str, Array]:
        first, second = pair[0].metrics(a, weights), pair[1].metrics(b, weights)
        return {f"{side}{name}": side_of[name] for side, side_of in (("a ", first), ("b ", second)) for name in first}

    values = both(np.ones((1, len(a))))
    omitted = interval_reason(a, settings["minimum"])
    draws = (
        bootstrap(both, a["group"].to_numpy(), resamples=settings["resamples"], seed=settings["seed"])
        if omitted is None
        else {}
    )
    names = [key[2:] for key in values if key.startswith("a ")]
    return {name: _cell(a, name, values, draws, omitted, settings["level"]) for name in names}


def _cell(
    rows: pd.DataFrame,
    name: str,
    values: Mapping[str, Array],
    draws: Mapping[str, Array],
    omitted: str | None,
    level: float,
) -> dict[str, Any]:
    value_a, value_b = float(values[f"a {name}"][0]), float(values[f"b {name}"][0])
    cell: dict[str, Any] = {
        "a": number(value_a), "b": number(value_b), "difference": number(value_b - value_a), "low": None, "high": None,
        "n": defined_count(rows, name), "verdict": UNDECIDED,
    }  # fmt: skip
    if cell["difference"] is None:
        return {**cell, "reason": undefined_reason(rows)}
    if not draws:
        return {**cell, "reason": omitted}
    low, high = paired_interval(draws[f"a {name}"], draws[f"b {name}"], level)
    if np.isnan(low):
        return {**cell, "reason": "undefined in more than half of the resamples: interval omitted"}
    return {**cell, "low": low, "high": high, "verdict": verdict(name, low, high)}


def verdict(metric: str, low: float, high: float) -> str:
    """``better``, ``worse`` or ``no difference shown`` for an interval of ``b - a`` of a metric."""
    if low <= 0 <= high:
        return UNDECIDED
    return BETTER if (low > 0) == describe(metric).higher_is_better else WORSE


def format_comparison(
    comparison: Mapping[str, Any], *, labels: tuple[str, str] = ("A", "B"), headline_only: bool = True
) -> str:
    """The comparison as a plain text table; ``headline_only`` keeps each task's headline metrics."""
    header = ("task", "domain", "n", "metric", labels[0], labels[1], "difference", "interval", f"{labels[1]} is")
    lines = [header, *(row for name, task in comparison["tasks"].items() for row in _rows(name, task, headline_only))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    left_out = [
        f"{name}: {task['only_a']} cases only in {labels[0]}, {task['only_b']} only in {labels[1]}; left out."
        for name, task in comparison["tasks"].items()
        if task["only_a"] or task["only_b"]
    ]
    setting = comparison["bootstrap"]
    note = (
        f"{setting['level']:.0%} intervals of {labels[1]} - {labels[0]}, {setting['resamples']} paired resamples of "
        f"groups, seed {setting['seed']}; not corrected for the number of comparisons."
    )
    return "\n".join([*text, "", *left_out, note]) + "\n"


def _rows(name: str, task: Mapping[str, Any], headline_only: bool) -> list[tuple[str, ...]]:
    shown = {"all": task["overall"], **task["domains"]}
    return [
        (name, domain, str(cell["n"]), describe(metric).label, _text(cell["a"]), _text(cell["b"]),
         _text(cell["difference"], sign=True), _interval(cell), _verdict_text(cell))
        for domain, cells in shown.items()
        for metric, cell in cells.items()
        if metric in task["headline"] or not headline_only
    ]  # fmt: skip


def _text(value: float | None, *, sign: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if sign else ''}.3f}"


def _interval(cell: Mapping[str, Any]) -> str:
    return "-" if cell["low"] is None else f"[{cell['low']:+.3f}, {cell['high']:+.3f}]"


def _verdict_text(cell: Mapping[str, Any]) -> str:
    return f"{cell['verdict']} ({cell['reason']})" if "reason" in cell else str(cell["verdict"])
