"""Evaluated runs against each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medmtl.bundle import ModelSpec
from medmtl.config import load
from medmtl.errors import UserError
from medmtl.evaluation import plots
from medmtl.evaluation.cases import read_cases
from medmtl.evaluation.compare import compare_repeats, format_comparison
from medmtl.files import write_atomic
from medmtl.results.folder import CASES, SPEC, to_json
from medmtl.tasks import AnyTask


def compare_runs(
    a: Sequence[Path], b: Sequence[Path], out: Path | None, *, resamples: int = 1000
) -> tuple[Mapping[str, Any], str]:
    """The paired difference b - a, with intervals, on the test cases that evaluated runs or folders share.

    Several runs on a side (seeds) count as the mean of their metrics.
    """
    sides = [[_evaluated(place) for place in places] for places in (a, b)]
    shared = [name for name in sides[0][0][1] if all(name in tasks for side in sides for _, tasks in side)]
    if not shared:
        raise UserError("E-CMP-TASKS", "the runs share no task", "compare runs of one study", where="compare")
    left, right = (
        [(table[table["split"] == "test"], {name: tasks[name] for name in shared}) for table, tasks in side]
        for side in sides
    )
    comparison = compare_repeats(left, right, resamples=resamples)
    labels = (a[0].name, b[0].name) if len(a) == len(b) == 1 and a[0].name != b[0].name else ("A", "B")
    text = format_comparison(comparison, labels=labels)
    if out is not None:
        names = {"a": [place.name for place in a], "b": [place.name for place in b]}
        write_atomic(out / "comparison.json", to_json({**names, **comparison}))
        write_atomic(out / "comparison.txt", text)
        plots.save(plots.comparison_figure(comparison, labels=labels), out, "comparison")
    return comparison, text


def _evaluated(place: Path) -> tuple[pd.DataFrame, Mapping[str, AnyTask]]:
    """Case table and tasks of a run folder or an evaluation folder."""
    folder = place if (place / CASES).is_file() else place / "evaluation"
    if not (folder / CASES).is_file() or not (folder / SPEC).is_file():
        raise UserError("E-CMP-CASES", f"no {CASES}", "run `medmtl evaluate` on it first", where=str(place))
    return read_cases(folder / CASES), load(ModelSpec, folder / SPEC).tasks
