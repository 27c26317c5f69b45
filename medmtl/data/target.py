"""How a manifest cell becomes a tensor: a class, a number or a mask. Errors name row, cell and remedy."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medmtl.data.case import Case
from medmtl.errors import UserError
from medmtl.files import inside
from medmtl.io.raster import read_mask


@dataclass(frozen=True)
class ClassTarget:
    """A class by name -> its index, int64 []. The names are those of the task's ``classes``, in order."""

    classes: tuple[str, ...]
    dense: bool = False

    def read(self, case: Case, cell: str, root: Path) -> Tensor:
        if cell not in self.classes:
            raise UserError(
                "E-TGT-CLASS",
                f"label {cell!r} is none of the task's classes {', '.join(self.classes)}",
                "correct the cell or extend `classes`",
                where=f"manifest row {case.row}, case {case.case_id}",
            )
        return torch.tensor(self.classes.index(cell))

    def placeholder(self, size: tuple[int, ...]) -> Tensor:
        return torch.tensor(0)


@dataclass(frozen=True)
class NumberTarget:
    """A finite number within [low, high] -> float32 []."""

    low: float
    high: float
    dense: bool = False

    def read(self, case: Case, cell: str, root: Path) -> Tensor:
        where = f"manifest row {case.row}, case {case.case_id}"
        try:
            value = float(cell)
        except ValueError as error:
            raise UserError(
                "E-TGT-NUMBER",
                f"{cell!r} is not a number",
                "correct the cell, or empty it if the label is missing",
                where=where,
            ) from error
        if not math.isfinite(value) or not self.low <= value <= self.high:
            raise UserError(
                "E-TGT-RANGE",
                f"{cell} is outside the task's range {self.low} to {self.high}",
                "correct the cell, or `low` and `high`",
                where=where,
            )
        return torch.tensor(value)

    def placeholder(self, size: tuple[int, ...]) -> Tensor:
        return torch.tensor(float(self.low))


@dataclass(frozen=True)
class MaskTarget:
    """A label image whose pixel values are class indices 0 .. K-1 -> int64 [*S]."""

    classes: tuple[str, ...]
    dense: bool = True

    def read(self, case: Case, cell: str, root: Path) -> Tensor:
        mask = read_mask(inside(root, cell))
        values = np.unique(mask)
        if values[-1] >= len(self.classes):
            raise UserError(
                "E-TGT-MASK",
                f"mask {cell} holds the values {values.tolist()}, the task has {len(self.classes)} "
                f"classes (0 to {len(self.classes) - 1})",
                "rewrite the mask with class indices or extend `classes`",
                where=f"manifest row {case.row}, case {case.case_id}",
            )
        return torch.from_numpy(mask.astype(np.int64))

    def placeholder(self, size: tuple[int, ...]) -> Tensor:
        return torch.zeros(size, dtype=torch.int64)


Target = ClassTarget | NumberTarget | MaskTarget
