"""Two case tables of the same cases against each other: paired differences with group-clustered intervals."""

from collections.abc import Mapping, Sequence
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
from medmtl.evaluation.trivial import ERRORS, paired, trivial_errors
from medmtl.metrics import METRICS, describe
from medmtl.stats import Array, bootstrap, paired_interval
from medmtl.tasks.base import Task

BETTER, WORSE, UNDECIDED = "better", "worse", "no difference shown"
DIFFERENT = "different"  # of a signed metric, whose difference has no better side
_TOLERANCE = 1e-6  # targets that went through text or float32 differ by less


Side = tuple[pd.DataFrame, Mapping[str, Task]]  # a run's case table, and its tasks with their own thresholds
Rows = tuple[pd.DataFrame, Task]  # the rows of one task
Controls = Mapping[str, pd.DataFrame]  # of a run: name -> case table


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
    domains: bool = True,
) -> dict[str, Any]:
    """Every metric of ``b`` less that of ``a`` over the cases that both have, overall and by domain, as JSON-able data.

    Both sides get the same resampled groups, so that what they share cancels. The verdict is about ``b``: ``better`` or
    ``worse`` where the interval of the difference leaves out 0, in the metric's own direction, else ``no difference
    shown``, which is not evidence that there is none. Intervals are not corrected for the number of metrics looked at.
    ``tasks_b`` are the settings of ``b`` where they differ from ``tasks`` (a binary threshold chosen on validation
    data). Group and domain are those of ``a``. A score that one side lacks for a case (HD95 of an empty prediction) is
    left out on both, and ``n`` says how many remain. Without ``domains``, only all cases together are compared.
    """
    sides: tuple[list[Side], list[Side]] = ([(a, tasks)], [(b, tasks_b or tasks)])
    return compare_repeats(*sides, resamples=resamples, seed=seed, level=level, minimum=minimum, domains=domains)


def compare_repeats(
    a: Sequence[Side],
    b: Sequence[Side],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    minimum: int = 5,
    domains: bool = True,
    controls: tuple[Sequence[Controls], Sequence[Controls]] | None = None,
) -> dict[str, Any]:
    """As :func:`compare_tables`, each side being several runs (seeds) of one thing: the mean of their metrics.

    Every run gets the same resampled groups, so the interval is about the cases; how much the runs of a side differ
    among themselves is in ``a_runs`` and ``b_runs``, one value per run. With the ``controls`` of every run, each task
    has ``trivial``: what the training mean and median come to on these cases, overall and by domain.
    """
    for table, _ in (*a, *b):
        check_table(table)
    settings = {"resamples": resamples, "seed": seed, "level": level, "clusters": "group", "minimum": minimum}
    names = [name for name in a[0][1] if all(name in tasks for _, tasks in (*a, *b))]
    return {
        "tasks": {
            name: _task(name, _of_task(name, a), _of_task(name, b), settings, domains, controls) for name in names
        },
        "bootstrap": settings,
        "runs": {"a": len(a), "b": len(b)},
    }


def _of_task(name: str, side: Sequence[Side]) -> list[Rows]:
    return [(usable_rows(table[table["task"] == name]), tasks[name]) for table, tasks in side]


def _task(
    name: str,
    a: list[Rows],
    b: list[Rows],
    settings: Mapping[str, Any],
    each_domain: bool,
    controls: tuple[Sequence[Controls], Sequence[Controls]] | None,
) -> dict[str, Any]:
    shared = sorted(set.intersection(*(set(rows["case_id"]) for rows, _ in (*a, *b))))
    only_a, only_b = (max(len(rows) for rows, _ in side) - len(shared) for side in (a, b))
    first = a[0][0][a[0][0]["case_id"].isin(shared)].reset_index(drop=True)
    aligned = [_aligned(name, rows, first) for rows, _ in (*a, *b)]
    aligned = _common_scores(aligned)
    tasks = [task for _, task in (*a, *b)]
    overall = _differences(aligned, tasks, len(a), settings)
    domains = [by_domain(rows) if each_domain else {} for rows in aligned]
    parts = {domain: [of[domain] for of in domains] for domain in domains[0]}
    trivial = {}
    if controls is not None:
        known = [*controls[0], *controls[1]]
        trivial = {"trivial": {
            "overall": _trivial(aligned, tasks, known, len(a)),
            "domains": {domain: _trivial(tables, tasks, known, len(a)) for domain, tables in parts.items()},
        }}  # fmt: skip
    return {
        "headline": [metric for metric in tasks[0].headline if metric in overall],
        "n": len(shared),
        "only_a": only_a,
        "only_b": only_b,
        "groups": int(first["group"].astype(str).nunique()),
        "overall": overall,
        "domains": {domain: _differences(tables, tasks, len(a), settings) for domain, tables in parts.items()},
        **trivial,
    }


def _trivial(
    tables: Sequence[pd.DataFrame], tasks: Sequence[Task], controls: Sequence[Controls], count_a: int
) -> dict[str, Any]:
    errors = [trivial_errors(*run) for run in zip(tables, tasks, controls, strict=True)]
    return paired((errors[:count_a], errors[count_a:]))


def _aligned(name: str, rows: pd.DataFrame, first: pd.DataFrame) -> pd.DataFrame:
    """The rows of the cases of ``first``, in that order, in its groups and domains, with the same labels."""
    kept = rows[rows["case_id"].isin(first["case_id"])].reset_index(drop=True)
    _check_targets(name, first, kept)
    return kept.assign(group=first["group"], domain=first["domain"])


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
        "evaluate both runs on the same manifest, or compare other tasks only (`--task`)",
        where=f"task {name}",
    )


def _common_scores(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The tables with each per-case score (``hd95.lesion``) only where all have it."""
    columns = set.intersection(*(set(table.columns) for table in tables))
    scores = sorted(name for name in columns if name.partition(".")[0] in METRICS)
    everywhere = np.logical_and.reduce([table[scores].notna().to_numpy() for table in tables])
    return [table.assign(**table[scores].where(everywhere)) for table in tables]


def _differences(
    tables: Sequence[pd.DataFrame], tasks: Sequence[Task], count_a: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Cells of every metric; the first ``count_a`` tables are side a."""
    rows = tables[0]
    if rows.empty:
        return {}

    def all_runs(weights: Array) -> dict[str, Array]:
        runs = [task.metrics(table, weights) for table, task in zip(tables, tasks, strict=True)]
        sides = (("a ", runs[:count_a]), ("b ", runs[count_a:]))
        means = {f"{side}{name}": np.mean([run[name] for run in of], axis=0) for side, of in sides for name in runs[0]}
        return {**means, **{f"{i} {name}": run[name] for i, run in enumerate(runs) for name in run}}

    values = all_runs(np.ones((1, len(rows))))
    omitted = interval_reason(rows, settings["minimum"])
    draws = (
        bootstrap(all_runs, rows["group"].to_numpy(), resamples=settings["resamples"], seed=settings["seed"])
        if omitted is None
        else {}
    )
    cells = {}
    for name in (key[2:] for key in values if key.startswith("a ")):
        each = [number(float(values[f"{i} {name}"][0])) for i in range(len(tables))]
        cell = _cell(rows, name, values, draws, omitted, settings["level"])
        cells[name] = {**cell, "a_runs": each[:count_a], "b_runs": each[count_a:]} if len(tables) > 2 else cell
    return cells


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
    """``better``, ``worse`` or ``no difference shown`` for an interval of ``b - a`` of a metric.

    A signed one (a bias) is ``different``: whether a shift is for the better depends on where it starts.
    """
    if low <= 0 <= high:
        return UNDECIDED
    if describe(metric).signed:
        return DIFFERENT
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
    shown, trivial = {"all": task["overall"], **task["domains"]}, task.get("trivial", {"overall": {}, "domains": {}})
    beside = {"all": trivial["overall"], **trivial["domains"]}
    rows: list[tuple[str, ...]] = []
    for domain, cells in shown.items():
        for metric, cell in cells.items():
            if metric in task["headline"] or not headline_only:
                head = (name, domain, str(cell["n"]), describe(metric).label)
                rows.append((*head, _text(cell["a"]), _text(cell["b"]), _text(cell["difference"], sign=True),
                             _interval(cell), _verdict_text(cell)))  # fmt: skip
                rows += _trivial_rows(head, beside.get(domain, {}), metric)
    return rows


def _trivial_rows(head: tuple[str, ...], beside: Mapping[str, Any], metric: str) -> list[tuple[str, ...]]:
    """Below an error, those of the training mean and median of each side on the same cases."""
    if metric not in ERRORS:
        return []
    return [
        (*head[:3], f"{head[3]} of the {control.replace('_', ' ')}", _text(values[metric]["a"]),
         _text(values[metric]["b"]), "", "", "")
        for control, values in beside.items()
        if metric in values
    ]  # fmt: skip


def _text(value: float | None, *, sign: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if sign else ''}.3f}"


def _interval(cell: Mapping[str, Any]) -> str:
    return "-" if cell["low"] is None else f"[{cell['low']:+.3f}, {cell['high']:+.3f}]"


def _verdict_text(cell: Mapping[str, Any]) -> str:
    return f"{cell['verdict']} ({cell['reason']})" if "reason" in cell else str(cell["verdict"])
