"""Where a model fails: every stratum of every column of meta data, and every domain, against the rest.

A stratum's *effect* is the standardised difference of its cases' errors from those of all other cases,

    effect = (mean error inside - mean error outside) / pooled standard deviation,

positive where the model is worse. Its p value is that of a score test with the groups' contributions under random signs
(wild cluster bootstrap: Kline and Santos, J. Econom. Methods 1, 2012), adjusted by Holm (Scand. J. Stat. 6, 1979) over
every stratum of every task, so that the chance that a column without any influence is called one is at most 1 - level.
Strata are looked at one by one: two columns that go together (age and menopause) surface together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from medmtl.config import Config
from medmtl.errors import UserError
from medmtl.evaluation.case_error import excess_error
from medmtl.evaluation.strata import Strata, stratify
from medmtl.evaluation.summary import check_table, undefined_reason, usable_rows
from medmtl.stats import Array, bootstrap, percentile_interval
from medmtl.tasks.base import Task

GROUPS = 5  # a stratum, and the rest, need as many groups for an interval or a test
WORSE, BETTER, UNDECIDED = "worse", "better", "no difference shown"
_SIGNS = 9999  # draws of the score test
COLUMNS = (
    "task", "column", "stratum", "n", "groups", "metric", "value", "low", "high", "rest", "difference",
    "difference_low", "difference_high", "effect", "effect_low", "effect_high", "p", "p_adjusted", "verdict", "reason",
)  # fmt: skip


class FailureConfig(Config):
    """Which strata are looked at, and when they are large enough."""

    columns: tuple[str, ...] | None = None  # meta columns by name; None: all; an empty list: the domain alone
    minimum: int = Field(10, ge=5)  # cases that a stratum, and the rest, must have; values below it are pooled
    resamples: int = Field(500, ge=100)
    gallery: int = Field(4, ge=0)  # worst cases per task that are shown with mask, prediction and saliency


@dataclass(frozen=True)
class Failures:
    """``rows``: one per task and stratum, those that are worse beyond chance first, then by effect, the largest first.

    ``skipped``: columns without strata, and why.
    """

    rows: pd.DataFrame
    skipped: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def flagged(self) -> pd.DataFrame:
        """The strata where the model is worse beyond chance."""
        return self.rows[self.rows["verdict"] == WORSE]


def failure_analysis(
    table: pd.DataFrame,
    tasks: Mapping[str, Task],
    config: FailureConfig | None = None,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Failures:
    """Every task that is not auxiliary in every stratum of ``meta.*`` and ``domain``, whatever the order of rows."""
    config = config or FailureConfig()
    check_table(table)
    named = [column for column in table.columns if column.startswith("meta.")]
    if config.columns is not None:
        absent = [name for name in config.columns if f"meta.{name}" not in named]
        if absent:
            raise UserError(
                "E-FAIL-COLUMN",
                f"the case table has no column meta.{absent[0]}",
                f"write some of {', '.join(name.removeprefix('meta.') for name in named) or '(no meta column)'}",
                where="evaluation.failures.columns",
            )
        named = [f"meta.{name}" for name in config.columns]
    asked = config.columns is not None
    strata = [
        stratify(table, column, minimum=config.minimum, groups=GROUPS, named=asked) for column in ("domain", *named)
    ]
    found = [
        _task(name, usable_rows(table[table["task"] == name]), task, strata, config, seed, level)
        for name, task in tasks.items()
        if not task.auxiliary
    ]
    rows = pd.DataFrame([row for part in found for row in part], columns=[*COLUMNS, "_test"])
    rows["p_adjusted"] = _holm(rows)
    sure = rows["p_adjusted"] < 1 - level
    rows["verdict"] = np.select([sure & (rows["effect"] > 0), sure], [WORSE, BETTER], UNDECIDED)
    ranks = rows.assign(_tested=rows["p"].notna(), _worse=rows["verdict"] == WORSE)
    rows = ranks.sort_values(  # a small stratum with a large effect by chance must not stand above one that is shown
        ["_tested", "_worse", "effect", "task", "column", "stratum"],
        ascending=[False, False, False, True, True, True],
        kind="stable",
    )
    guard = {"minimum": config.minimum, "groups": GROUPS}
    settings = {**guard, "resamples": config.resamples, "seed": seed, "level": level}
    skipped = {part.column: part.skipped for part in strata if part.skipped}
    return Failures(rows[list(COLUMNS)].reset_index(drop=True), skipped, settings)


def _task(
    name: str,
    rows: pd.DataFrame,
    task: Task,
    strata: Sequence[Strata],
    config: FailureConfig,
    seed: int,
    level: float,
) -> list[dict[str, Any]]:
    if rows.empty or not task.headline:
        return []
    metric, error = task.headline[0], excess_error(rows, task)
    rows, error = rows[np.isfinite(error)].reset_index(drop=True), error[np.isfinite(error)]
    cells = [
        (part.column, label, (labels == label).to_numpy())
        for part in strata
        if part.of_case and (labels := rows["case_id"].map(part.of_case)).nunique() > 1
        for label in sorted(set(labels))
    ]
    groups = rows["group"].astype(str).to_numpy()
    reasons = [_too_small(groups, inside, config.minimum) for _, _, inside in cells]
    tested = [inside for (_, _, inside), reason in zip(cells, reasons, strict=True) if not reason]
    values = _Contrast(rows, error, task, metric, tested)
    point = values(np.ones((1, len(rows))))
    draws = bootstrap(values, groups, resamples=config.resamples, seed=seed) if tested else {}
    p: Iterator[float] = iter(score_test(np.array(tested), error, groups, seed=seed) if tested else [])
    position = iter(range(len(tested)))
    found = []
    for (column, label, inside), reason in zip(cells, reasons, strict=True):
        row = {"task": name, "column": column, "stratum": label, "metric": metric, "n": int(inside.sum()),
               "groups": len(set(groups[inside])), "reason": reason, "_test": None}  # fmt: skip
        if not reason:
            k = next(position)
            row |= _numbers(point, draws, k, level) | {"p": next(p), "_test": (name, _partition(inside))}
            if not np.isfinite(row["value"]):
                row["reason"] = undefined_reason(rows[inside])
        found.append(row)
    return found


def _too_small(groups: np.ndarray, inside: np.ndarray, minimum: int) -> str:
    """Why a stratum is not compared with the rest; empty where it is."""
    for part, name in ((inside, ""), (~inside, "the rest: ")):
        if part.sum() < minimum:
            return f"{name}n < {minimum}"
        if len(set(groups[part])) < GROUPS:
            return f"{name}fewer than {GROUPS} groups"
    return ""


class _Contrast:
    """weights [R, N] -> {"<stratum> <quantity>": [R]}: the metric inside and outside each stratum, and the effect."""

    def __init__(
        self, rows: pd.DataFrame, error: np.ndarray, task: Task, metric: str, strata: Sequence[np.ndarray]
    ) -> None:
        self.error, self.task, self.metric, self.strata = error, task, metric, strata
        sides = {side.tobytes(): side for inside in strata for side in (inside, ~inside)}
        self.parts = {key: (side, rows[side]) for key, side in sides.items()}  # of two strata, one is the other's rest

    def __call__(self, weights: Array) -> dict[str, Array]:
        values = {
            key: self.task.metrics(part, weights[:, side])[self.metric] for key, (side, part) in self.parts.items()
        }
        found: dict[str, Array] = {}
        for k, inside in enumerate(self.strata):
            value, rest = values[inside.tobytes()], values[(~inside).tobytes()]
            found |= {f"{k} value": value, f"{k} rest": rest, f"{k} difference": value - rest}
            found[f"{k} effect"] = standardised_difference(self.error, inside, weights)
        return found


def standardised_difference(error: np.ndarray, inside: np.ndarray, weights: Array) -> Array:
    """(mean inside - mean outside) / pooled standard deviation under each weighting [R]; NaN without spread or rows."""
    moments = []
    for part in (inside, ~inside):
        w, e = weights[:, part], error[part]
        total = w.sum(axis=1)
        mean = np.divide(w @ e, total, out=np.full(len(w), np.nan), where=total > 0)
        squares = w @ e**2 - total * mean**2
        moments.append((mean, np.maximum(squares, 0), total))
    (mean, squares, total), (other, squares_other, total_other) = moments
    pooled = np.sqrt((squares + squares_other) / np.maximum(total + total_other - 2, 1))
    return np.divide(mean - other, pooled, out=np.full(len(weights), np.nan), where=pooled > 1e-12)


def score_test(strata: np.ndarray, error: np.ndarray, groups: np.ndarray, *, seed: int, draws: int = _SIGNS) -> Array:
    """Two-sided p values [S] of no association between each stratum (bool [S, N]) and the error, groups independent.

    A group contributes ``s_g = sum_i (x_i - mean x)(e_i - mean e)`` to the score; under the null its sign is as likely
    the other one. Strata may be a patient's or an image's.
    """
    members = np.unique(groups, return_inverse=True)[1]
    centred = strata - strata.mean(axis=1, keepdims=True)
    product = centred * (error - error.mean())
    scores = np.stack([np.bincount(members, row) for row in product])  # [S, G]
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, scores.shape[1]))
    observed, null = np.abs(scores.sum(axis=1)), np.abs(signs @ scores.T)
    return (1 + (null >= observed * (1 - 1e-9)).sum(axis=0)) / (draws + 1)


def _partition(inside: np.ndarray) -> bytes:
    """The same for a stratum and for its rest: their test is one test."""
    return min(inside.tobytes(), (~inside).tobytes())


def _numbers(point: Mapping[str, Array], draws: Mapping[str, Array], k: int, level: float) -> dict[str, float]:
    row = {name: float(point[f"{k} {name}"][0]) for name in ("value", "rest", "difference", "effect")}
    for name, prefix in (("value", ""), ("difference", "difference_"), ("effect", "effect_")):
        row[f"{prefix}low"], row[f"{prefix}high"] = percentile_interval(draws[f"{k} {name}"], level)
    return row


def _holm(rows: pd.DataFrame) -> Array:
    """Holm's adjusted p of each row; a stratum and its rest count once."""
    tests = rows[rows["p"].notna()].drop_duplicates("_test").sort_values("p", kind="stable")
    m = len(tests)
    steps = np.maximum.accumulate(tests["p"].to_numpy(float) * (m - np.arange(m))) if m else np.zeros(0)
    adjusted = dict(zip(tests["_test"], np.minimum(steps, 1.0), strict=True))
    return np.array([adjusted.get(test, np.nan) for test in rows["_test"]], dtype=float)
