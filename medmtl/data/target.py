"""How a manifest cell becomes a tensor: a class, a number, a level or a mask. Errors name row, cell and remedy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medmtl.agreement.consensus import staple_labels
from medmtl.data.case import Case
from medmtl.data.grid import VolumeGrid
from medmtl.errors import UserError
from medmtl.files import inside
from medmtl.io.masks import check_mask
from medmtl.io.nifti import read_nifti
from medmtl.io.raster import read_mask
from medmtl.io.volume import Volume

_SHOWN = 8  # values of a mask that an error tells


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
class LevelTarget:
    """A whole number within [low, high] -> its place from ``low`` on, int64 []."""

    low: int
    high: int
    dense: bool = False

    def read(self, case: Case, cell: str, root: Path) -> Tensor:
        value = float(NumberTarget(self.low, self.high).read(case, cell, root))
        if not value.is_integer():
            raise UserError(
                "E-TGT-LEVEL",
                f"{cell} is not one of the levels {self.low} to {self.high}",
                "correct the cell, or use kind: regression for numbers in between",
                where=f"manifest row {case.row}, case {case.case_id}",
            )
        return torch.tensor(int(value) - self.low)

    def placeholder(self, size: tuple[int, ...]) -> Tensor:
        return torch.tensor(0)


Like = tuple[VolumeGrid, Volume]  # what a mask has to fit: the study's grid, and the image


def _some(values: npt.NDArray[Any]) -> str:
    """The first values of many."""
    return ", ".join(str(value) for value in values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "")


@dataclass(frozen=True)
class MaskTarget:
    """A label image whose pixel values are class indices 0 .. K-1 -> int64 [*S].

    Read ``like`` (the grid of the study's volumes, the image), it is a NIfTI mask that must lie where its image lies.
    """

    classes: tuple[str, ...]
    dense: bool = True

    def read(self, case: Case, cell: str, root: Path, like: Like | None = None) -> Tensor:
        if like is not None:
            grid, image = like
            found = check_mask(
                read_nifti(inside(root, cell), labels=True), image, values=range(len(self.classes)), name=cell
            )
            return grid.labels(found, image)
        mask = read_mask(inside(root, cell))
        values = np.unique(mask)
        if values[-1] >= len(self.classes):
            raise UserError(
                "E-TGT-MASK",
                f"mask {cell} holds the values {_some(values)}, the task has {len(self.classes)} "
                f"classes (0 to {len(self.classes) - 1})",
                "rewrite the mask with class indices or extend `classes`",
                where=f"manifest row {case.row}, case {case.case_id}",
            )
        return torch.from_numpy(mask.astype(np.int64))

    def placeholder(self, size: tuple[int, ...]) -> Tensor:
        return torch.zeros(size, dtype=torch.int64)


ABSENT = -1  # everywhere in the plane of an annotator who did not annotate the image


@dataclass(frozen=True)
class AnnotatorsTarget:
    """The masks of several annotators, columns ``target.<name>.<annotator>``, any of them empty -> int64 [P, *S].

    One plane per annotator, in order, :data:`ABSENT` where there is no mask; with ``staple`` a last plane holds the
    consensus by STAPLE, computed once on the image's own grid. A case without any mask is unlabelled.
    """

    classes: tuple[str, ...]
    annotators: tuple[str, ...]
    staple: bool = False
    dense: bool = True

    def columns(self, name: str) -> tuple[str, ...]:
        """The manifest's columns, one for each annotator."""
        return tuple(f"{name}.{annotator}" for annotator in self.annotators)

    def planes(self, case: Case, name: str, root: Path, like: Like | None = None) -> dict[int, Tensor]:
        """Number of the plane -> uint8 or int64 [*S], for the masks that there are."""
        reader = MaskTarget(self.classes)
        kind = torch.uint8 if len(self.classes) < 256 else torch.int64  # many masks are kept in memory
        found = {
            number: reader.read(case, case.targets[f"{name}.{annotator}"], root, like).to(kind)
            for number, annotator in enumerate(self.annotators)
            if f"{name}.{annotator}" in case.targets
        }
        if len({mask.shape for mask in found.values()}) > 1:
            sizes = ", ".join(f"{self.annotators[i]} {tuple(mask.shape)}" for i, mask in found.items())
            raise UserError("E-TGT-SIZE", f"the masks of target.{name} differ in size: {sizes}",
                            "make every mask on the image's own grid")  # fmt: skip
        if found and self.staple:
            consensus = staple_labels(torch.stack(list(found.values())).numpy(), classes=len(self.classes))
            found[len(self.annotators)] = torch.from_numpy(consensus).to(kind)
        return found

    def join(self, planes: Mapping[int, Tensor], size: tuple[int, ...]) -> Tensor:
        """int64 [P, *S] of planes after augmentation; without any, the placeholder."""
        joined = torch.full((len(self.annotators) + self.staple, *size), ABSENT, dtype=torch.int64)
        for number, plane in planes.items():
            joined[number] = plane
        return joined if planes else self.placeholder(size)

    def placeholder(self, size: tuple[int, ...]) -> Tensor:
        """The first annotator found nothing."""
        joined = torch.full((len(self.annotators) + self.staple, *size), ABSENT, dtype=torch.int64)
        joined[0] = 0
        if self.staple:
            joined[-1] = 0
        return joined


Target = ClassTarget | NumberTarget | LevelTarget | MaskTarget | AnnotatorsTarget
