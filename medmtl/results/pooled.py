"""Pooled evaluations as folders: what each fold's model is, and two of them against each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmtl.bundle import ModelSpec
from medmtl.config import Config, load
from medmtl.errors import UserError
from medmtl.evaluation.cases import read_cases
from medmtl.evaluation.compare import Side
from medmtl.evaluation.folds import folded
from medmtl.results.comparison import compare_places
from medmtl.results.folder import CASES

FOLDS = "folds.yaml"


class FoldSpecs(Config):
    """``folds.yaml`` of a pooled evaluation: what each fold's model is, with the thresholds that it froze."""

    folds: dict[int, ModelSpec]


def pooled_tasks(specs: Mapping[int, ModelSpec]) -> dict[str, Any]:
    """The tasks of the whole table, from those of each fold."""
    names = next(iter(specs.values())).tasks
    return {name: folded({fold: spec.tasks[name] for fold, spec in specs.items()}) for name in names}


def is_pooled(place: Path) -> bool:
    """Whether a folder, its ``evaluation``, or where a case table lies, is a pooled evaluation."""
    return (_folder(place) / FOLDS).is_file()


def _folder(place: Path) -> Path:
    if place.is_file():
        return place.parent
    return place if (place / FOLDS).is_file() else place / "evaluation"


def read_pooled(place: Path) -> Side:
    """Case table and tasks of a pooled evaluation."""
    if not is_pooled(place):
        raise UserError(
            "E-CMP-FOLDS",
            "one side is folds that were pooled, this is not",
            "compare pooled evaluations with each other (`medmtl pool`)",
            where=str(place),
        )
    folder = _folder(place)
    return read_cases(place if place.is_file() else folder / CASES), pooled_tasks(load(FoldSpecs, folder / FOLDS).folds)


def compare_pooled(
    a: Sequence[Path],
    b: Sequence[Path],
    out: Path | None,
    *,
    resamples: int = 1000,
    where: Mapping[str, str] | None = None,
    tasks: Sequence[str] | None = None,
) -> tuple[Mapping[str, Any], str]:
    """As :func:`medmtl.results.compare_runs`, of pooled evaluations: each side's cases decided by their own folds."""
    return compare_places(read_pooled, a, b, out, resamples=resamples, where=where, tasks=tasks)
