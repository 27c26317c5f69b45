"""What is known of a patient beside the image (age, sex, education, a baseline score), as numbers for the heads."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from medmtl.config import Config
from medmtl.data.case import Case
from medmtl.errors import UserError

Use = Literal["both", "image", "covariates"]


class Scale(Config):
    """Mean and standard deviation of a numeric column over the training cases that have it."""

    mean: float
    deviation: float = Field(gt=0)


class Covariates(Config):
    """Columns ``meta.<name>``, fitted on the training part and encoded as [P] (:attr:`names` says what each is).

    A number becomes ``(x - mean) / deviation`` and an indicator; missing, it is 0, the training mean, with indicator 1.
    A category becomes one of the training categories' places and an indicator; one that is missing, or that training
    did not have, is no place with indicator 1. Where training misses nothing, an indicator's weight stays at its start,
    which is zero: then missing *means* average. A model that is given an image alone sees a case of which nothing is
    known (:meth:`absent`).

    ``use`` is for ablation, in training and inference alike: with ``image`` the heads see zeros for the covariates,
    with ``covariates`` zeros for the pooled image.
    """

    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    tasks: tuple[str, ...] | None = None  # whose heads see them; None: every task with a pooled head but the domain's
    use: Use = "both"
    scales: dict[str, Scale] = Field({})  # by numeric column, resolved by fit
    categories: dict[str, tuple[str, ...]] = Field({})  # by categorical column, in order, resolved by fit

    @model_validator(mode="after")
    def _check(self) -> Self:
        columns = [*self.numeric, *self.categorical]
        if not columns or len(set(columns)) != len(columns):
            raise ValueError(f"numeric and categorical name one or more different columns, found {columns}")
        if any(column.startswith("meta.") for column in columns):
            raise ValueError("columns are named without 'meta.'")
        return self

    def idle(self) -> Mapping[str, str]:
        why = "fit takes it from the training cases"
        return {"scales": why, "categories": why}

    @property
    def names(self) -> tuple[str, ...]:
        """What the P numbers are: ``age, age?, sex=F, sex=M, sex?``, where ``?`` is an indicator of what is missing."""
        numbers = [name for column in self.numeric for name in (column, f"{column}?")]
        places = [
            name
            for column in self.categorical
            for name in (*(f"{column}={value}" for value in self.categories[column]), f"{column}?")
        ]
        return (*numbers, *places)

    def fit(self, cases: Sequence[Case]) -> Self:
        """These settings with scales and categories of the *training* cases."""
        scales, categories = {}, {}
        for column in self.numeric:
            values = [number for case in cases if (number := _number(case.meta, column, _where(case))) is not None]
            _refuse_empty(values, column)
            scales[column] = Scale(mean=float(np.mean(values)), deviation=float(np.std(values)) or 1.0)
        for column in self.categorical:
            found = {case.meta[column] for case in cases if column in case.meta}
            _refuse_empty(found, column)
            categories[column] = tuple(sorted(found))
        return self.model_copy(update={"scales": scales, "categories": categories})

    def check(self, cases: Iterable[Case]) -> None:
        """Read every case's cells once, so that a bad one does not end an epoch."""
        for case in cases:
            for column in self.numeric:
                _number(case.meta, column, _where(case))

    def encode(self, meta: Mapping[str, str], *, where: str = "") -> Tensor:
        """The cells of one case, float32 [P]; ``where`` names the case in an error."""
        row: list[float] = []
        for column in self.numeric:
            number, scale = _number(meta, column, where), self.scales[column]
            row += [0.0, 1.0] if number is None else [(number - scale.mean) / scale.deviation, 0.0]
        for column in self.categorical:
            places = [float(meta.get(column) == value) for value in self.categories[column]]
            row += [*places, 1.0 - sum(places)]
        return torch.tensor(row, dtype=torch.float32)

    def absent(self) -> Tensor:
        """The encoding of a case of which nothing is known, [P]."""
        return self.encode({})

    def of(self, case: Case) -> Tensor:
        """The encoding of a case, [P]."""
        return self.encode(case.meta, where=_where(case))


def _where(case: Case) -> str:
    return f"manifest row {case.row}, case {case.case_id}"


def _number(meta: Mapping[str, str], column: str, where: str) -> float | None:
    cell = meta.get(column)
    if cell is None or not cell.strip():
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            "E-COV-NUMBER",
            f"meta.{column} is {cell!r}, a numeric covariate is a finite number",
            "correct the cell, empty it if the value is missing, or name the column under covariates.categorical",
            where=where,
        )
    return value


def _refuse_empty(values: Sequence[float] | set[str], column: str) -> None:
    if not values:
        raise UserError(
            "E-CFG-COVARIATE",
            f"no training case has a value in meta.{column}",
            "fill the column, or take it out of the study's covariates",
            where="covariates",
        )
