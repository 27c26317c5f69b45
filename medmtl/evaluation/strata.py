"""A column of a case table as strata: categories as they are, numbers in bins of equal counts, a missing value as one.

A value that few cases share could name a patient, so it is pooled; nothing below the guard is ever shown by its value.
Whole numbers that no two groups share number them (a record, a patient) and measure nothing. An age has ties.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from medmtl.evaluation.summary import UNKNOWN

MISSING, OTHER = "missing", "other values"
BINS = 4  # of a numeric column
_FEW = 6  # a numeric column with at most so many values is taken for categories (a visit, a count)
_NUMBERED = 20  # groups: of fewer, ages could all differ by chance
_UNSHARED = 0.95  # of the values of a column that numbers groups or cases: those of a single group
_MOST = 12  # strata of a column: the most frequent values, the others pooled


class Strata(NamedTuple):
    """One column: the stratum of each case, or why it has none."""

    column: str
    of_case: dict[str, str]  # case_id -> stratum
    skipped: str = ""


def stratify(table: pd.DataFrame, column: str, *, minimum: int, groups: int, named: bool = False) -> Strata:
    """The strata of ``column`` over the cases of a table; a value needs ``minimum`` cases of ``groups`` groups.

    A column that numbers the groups has none, unless it was asked for by name (``named``).
    """
    cases = table.drop_duplicates("case_id").sort_values("case_id", ignore_index=True)
    text = cases[column].map(lambda value: "" if pd.isna(value) else str(value).strip())
    known = text != ""
    if not known.any():
        return Strata(column, {}, "empty")
    numbers = pd.to_numeric(text[known], errors="coerce")
    numeric = bool(np.isfinite(numbers).all()) and numbers.nunique() > _FEW
    if numeric and not named and _identifies(numbers.to_numpy(float), cases.loc[known, "group"]):
        return Strata(column, {}, "whole numbers that hardly two groups share, as a record's; name it to see it")
    labels = text.copy()
    labels[known] = _binned(numbers.to_numpy(float)) if numeric else text[known]
    labels[~known] = UNKNOWN if column == "domain" else MISSING
    if not numeric:
        labels[known] = _pooled(cases[known], labels[known], minimum, groups)
        if known.all() and set(labels) == {OTHER}:
            return Strata(column, {}, f"no value is shared by {minimum} cases of {groups} groups")
    if labels.nunique() < 2:
        return Strata(column, {}, "the same for every case")
    return Strata(column, dict(zip(cases["case_id"], labels, strict=True)))


def _identifies(values: np.ndarray, group: pd.Series) -> bool:
    """Whether numbers tell groups apart as an identifier does: whole, as many as groups, nearly all of one group."""
    if not (values == np.round(values)).all() or group.nunique() < _NUMBERED:
        return False
    of_value = group.astype(str).groupby(values).nunique()
    return len(of_value) >= _UNSHARED * group.nunique() and bool((of_value == 1).mean() >= _UNSHARED)


def _binned(values: np.ndarray) -> list[str]:
    """Bins ``(a, b]`` between quantiles, named by their ends."""
    edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    edges = edges[edges < values.max()]  # nothing lies above the maximum
    names = [f"{edge:.4g}" for edge in edges]
    middle = [f"above {a} to {b}" for a, b in pairwise(names)]
    labels = [f"up to {names[0]}", *middle, f"above {names[-1]}"]
    return [labels[k] for k in np.searchsorted(edges, values, side="left")]


def _pooled(cases: pd.DataFrame, labels: pd.Series, minimum: int, groups: int) -> pd.Series:
    """Values below the guard, and those beyond the most frequent, under one name."""
    counts = labels.value_counts(sort=False)
    patients = pd.DataFrame({"label": labels, "group": cases["group"]}).drop_duplicates()["label"].value_counts()
    kept = counts[(counts >= minimum) & (patients.reindex(counts.index) >= groups)].sort_index()
    kept = kept.sort_values(ascending=False, kind="stable").head(_MOST)
    return labels.where(labels.isin(kept.index), OTHER)
