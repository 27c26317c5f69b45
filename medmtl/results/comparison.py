"""Evaluated runs against each other."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medmtl.bundle import ModelSpec
from medmtl.config import load
from medmtl.errors import UserError
from medmtl.evaluation import plots
from medmtl.evaluation.cases import read_cases
from medmtl.evaluation.compare import Side, compare_repeats, format_comparison
from medmtl.evaluation.trivial import TRIVIAL
from medmtl.files import write_atomic
from medmtl.results.folder import CASES, CONTROLS, SPEC, to_json
from medmtl.tasks.base import Task


def compare_runs(
    a: Sequence[Path],
    b: Sequence[Path],
    out: Path | None,
    *,
    resamples: int = 1000,
    where: Mapping[str, str] | None = None,
    tasks: Sequence[str] | None = None,
) -> tuple[Mapping[str, Any], str]:
    """The paired difference b - a, with intervals, on the test cases that evaluated runs or folders share.

    Several runs on a side (seeds) count as the mean of their metrics. ``where``: only the cases with these values of
    ``domain`` or of columns ``meta.<name>``. ``tasks``: only these of the tasks that all share.
    """
    return compare_places(_evaluated, a, b, out, resamples=resamples, where=where, tasks=tasks)


def compare_places(
    read: Callable[[Path], Side],
    a: Sequence[Path],
    b: Sequence[Path],
    out: Path | None,
    *,
    resamples: int,
    where: Mapping[str, str] | None = None,
    tasks: Sequence[str] | None = None,
) -> tuple[Mapping[str, Any], str]:
    """The paired difference of the test cases that ``read`` finds at each place, and what is written of it."""
    wanted = where or {}
    sides = [[_only(read(place), wanted, place) for place in places] for places in (a, b)]
    names = _shared([known for side in sides for _, known in side], tasks)
    left, right = ([(table, {name: known[name] for name in names}) for table, known in side] for side in sides)
    controls = [trivial_controls(place) for place in a], [trivial_controls(place) for place in b]
    comparison = compare_repeats(left, right, resamples=resamples, controls=controls)
    labels = (a[0].name, b[0].name) if len(a) == len(b) == 1 and a[0].name != b[0].name else ("A", "B")
    text = format_comparison(comparison, labels=labels)
    if wanted:
        text = f"cases with {', '.join(f'{name} = {value}' for name, value in wanted.items())}\n{text}"
    if out is not None:
        what = {"a": [place.name for place in a], "b": [place.name for place in b], "where": dict(wanted)}
        write_atomic(out / "comparison.json", to_json({**what, **comparison}))
        write_atomic(out / "comparison.txt", text)
        plots.save(plots.comparison_figure(comparison, labels=labels), out, "comparison")
    return comparison, text


def _shared(sides: Sequence[Mapping[str, Task]], wanted: Sequence[str] | None) -> list[str]:
    """The tasks that all runs have, or those of them that are wanted; in the order of the first run."""
    shared = [name for name in sides[0] if all(name in tasks for tasks in sides)]
    if not shared:
        raise UserError("E-CMP-TASKS", "the runs share no task", "compare runs of one study", where="compare")
    for name in wanted or ():
        if name not in shared:
            message = f"task {name!r} is not in every run"
            raise UserError("E-CMP-TASKS", message, f"choose of {', '.join(shared)}", where="--task")
    return [name for name in shared if wanted is None or name in wanted]


def _only(side: Side, wanted: Mapping[str, str], place: Path) -> Side:
    """The cases with the wanted values; those of a column that is missing, or of a value that none has, are refused."""
    table, tasks = side
    for name, value in wanted.items():
        column = name if name == "domain" else f"meta.{name}"
        if column not in table.columns:
            known = ["domain", *(str(other)[5:] for other in table.columns if str(other).startswith("meta."))]
            raise UserError("E-CMP-WHERE", f"no column {name!r}", f"choose of {', '.join(known)}", where=str(place))
        values = table[column].fillna("").astype(str)
        if not (values == value).any():
            some = ", ".join(sorted(set(values) - {""})[:10])
            raise UserError("E-CMP-WHERE", f"no test case with {name} {value!r}", f"it is {some}", where=str(place))
        table = table[values == value]
    return table, tasks


def _folder(place: Path) -> Path:
    """The evaluation folder that a run's folder has, or that it is, or that a case table lies in."""
    if place.is_file():
        return place.parent
    return place if (place / CASES).is_file() else place / "evaluation"


def trivial_controls(place: Path) -> dict[str, pd.DataFrame]:
    """The training mean and median of an evaluation, as case tables; none of one that had no controls."""
    path = _folder(place) / CONTROLS
    if not path.is_file():
        return {}
    table = read_cases(path)
    return {str(name): rows for name, rows in table[table["split"] == "test"].groupby("control") if name in TRIVIAL}


def _evaluated(place: Path) -> Side:
    """The test cases and tasks of a run folder, an evaluation folder, or a case table beside the file of its tasks."""
    folder = _folder(place)
    cases = place if place.is_file() else folder / CASES
    if not cases.is_file():
        raise UserError("E-CMP-CASES", f"no {CASES}", "run `medmtl evaluate` on it first", where=str(place))
    if not (folder / SPEC).is_file():
        remedy = f"copy {SPEC} of its evaluation beside it: tasks and frozen thresholds are there"
        raise UserError("E-CMP-CASES", f"a case table without {SPEC}", remedy, where=str(folder))
    table = read_cases(cases)
    return table[table["split"] == "test"], load(ModelSpec, folder / SPEC).tasks
