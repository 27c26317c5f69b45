"""Agreement by who annotated, with which tool and skill: means over pairs with intervals clustered by patient."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pandas as pd

from medmtl.agreement.pairs import DISTANCE, PAIR_COLUMNS, known_measure
from medmtl.errors import UserError
from medmtl.metrics import weighted_nanmean
from medmtl.stats import bootstrap, percentile_interval

LEVEL_COLUMNS = ("level", "value", "low", "high", "pairs", "undefined", "images", "groups", "reason")


def agreement_by(
    pairs: pd.DataFrame,
    by: Literal["all", "annotator"] | str = "all",
    *,
    measure: str = "dice",
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    minimum: int = 5,
) -> pd.DataFrame:
    """``LEVEL_COLUMNS``: the mean of a measure over the pairs of each level, sorted by level.

    ``by="annotator"``: the pairs that an annotator is part of, so a pair counts for both. Another name is a trait of
    the masks (``tool``, ``skill``): the levels are unordered pairs, ``"S1 - S1"``, ``"S1 - S2"``; or a column of the
    table that says something of the image. Who annotated what was rarely drawn at random, so a difference between
    levels may be one between their images.

    Groups are resampled (:mod:`medmtl.stats`); below ``minimum`` groups the interval is omitted with a ``reason``.
    """
    known_measure(measure)
    if measure in DISTANCE and pairs["unit"].nunique() > 1:
        raise UserError("E-AGR-UNIT", "distances in mm and in px cannot be averaged",
                        "give every image a spacing, or none")  # fmt: skip
    rows = [
        {"level": name, **_mean(part, measure, resamples, seed, level, minimum)} for name, part in _levels(pairs, by)
    ]
    return pd.DataFrame(rows, columns=LEVEL_COLUMNS).sort_values("level", ignore_index=True)


def _levels(pairs: pd.DataFrame, by: str) -> Iterator[tuple[str, pd.DataFrame]]:
    if by == "all":
        yield "all", pairs
        return
    if by == "annotator":
        for name in sorted({*pairs["a"], *pairs["b"]}):
            yield str(name), pairs[(pairs["a"] == name) | (pairs["b"] == name)]
        return
    if f"{by}.a" not in pairs.columns and by in set(pairs.columns) - {*PAIR_COLUMNS}:
        for name, part in pairs.groupby(pairs[by].astype(str), sort=True):
            yield str(name), part
        return
    if f"{by}.a" not in pairs.columns:
        traits = sorted(column.removesuffix(".a") for column in pairs.columns if column.endswith(".a"))
        raise UserError("E-AGR-TRAIT", f"the masks have no trait {by!r}", f"use one of {', '.join(traits) or 'none'}")
    sides = pairs[[f"{by}.a", f"{by}.b"]].fillna("").astype(str)
    names = [" - ".join(sorted(value or "unknown" for value in side)) for side in sides.to_numpy()]
    for name, part in pairs.groupby(np.array(names, dtype=object), sort=True):
        yield str(name), part


def _mean(
    part: pd.DataFrame, measure: str, resamples: int, seed: int, level: float, minimum: int
) -> dict[str, float | int | str]:
    values, defined = part[measure].to_numpy(float), part[part[measure].notna()]
    groups = defined["group"].astype(str).nunique()
    value = float(np.nanmean(values)) if len(defined) else float("nan")
    low = high = float("nan")
    reason = "" if groups >= minimum else f"fewer than {minimum} groups: interval omitted"
    if not len(defined):
        reason = "no pair with a value"
    elif not reason:
        draws = bootstrap(
            lambda weights: {measure: weighted_nanmean(values, weights)},
            part["group"].to_numpy(),
            resamples=resamples,
            seed=seed,
        )
        low, high = percentile_interval(draws[measure], level)
    return {
        "value": value,
        "low": low,
        "high": high,
        "pairs": len(defined),
        "undefined": len(part) - len(defined),
        "images": int(defined["image"].nunique()),
        "groups": groups,
        "reason": reason,
    }
