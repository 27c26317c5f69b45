"""What each item of a score weighs among the items: uniform, or more for some; by group of patients, if asked for."""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medmtl.config import Config

Preset = Literal["uniform", "moderate", "strong"]


class Factors(Config):
    """How many times the weight of another item a key item has. The published values are not known; these are ours."""

    moderate: float = Field(2.0, gt=0)
    strong: float = Field(4.0, gt=0)

    def of(self, preset: Preset) -> float:
        """The factor of a preset; 1 for ``uniform``."""
        return {"uniform": 1.0, "moderate": self.moderate, "strong": self.strong}[preset]


class Emphasis(Config):
    """Weights of the tasks ``items``, of mean 1, those in ``key`` heavier (arXiv 2508.17613; key items: 2508.17619).

    With f the preset's factor, K of the I items being key: ``w_key = f I / (f K + I - K)``, ``w = I / (f K + I - K)``.
    They multiply the tasks' own weights. A group of patients, a value of ``meta.<by>``, may have a preset of its own:
    then task t's loss is ``sum_i w_t(group of i) l_ti / N_t`` over its N_t labelled cases, so that each case's items
    are weighted as its group wants. (Divided by the sum of the weights instead, a group's emphasis on an item would
    turn into the item's emphasis on a group.) Cases of other groups, or of none, follow ``preset``.
    """

    items: tuple[str, ...] = Field(min_length=2)  # tasks
    key: tuple[str, ...] = ("q1", "q4", "q8")  # ADAS-Cog: word recall, delayed word recall, word recognition
    preset: Preset = "uniform"
    factors: Factors = Factors()
    by: str | None = None  # column meta.<this>
    groups: dict[str, Preset] = Field({})  # value of that column -> preset

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.items)) != len(self.items):
            raise ValueError(f"an item is named twice: {list(self.items)}")
        if not self.key or not set(self.key) < set(self.items):
            raise ValueError(f"key items {list(self.key)} are not some, but not all, of the items {list(self.items)}")
        if (self.by is None) != (not self.groups):
            raise ValueError("by names the column, groups its values with their presets: give both or neither")
        return self

    def idle(self) -> Mapping[str, str]:
        presets = {self.preset, *self.groups.values()}
        return {
            f"factors.{name}": f"neither `preset` nor `groups` is {name}"
            for name in type(self.factors).model_fields
            if name not in presets
        }

    @property
    def even(self) -> bool:
        """Whether every item weighs the same for everybody."""
        return {self.preset, *self.groups.values()} == {"uniform"}

    @property
    def strata(self) -> tuple[str, ...]:
        """The groups that have a preset of their own, in order."""
        return tuple(self.groups)

    def weights(self, preset: Preset, tasks: Sequence[str]) -> Tensor:
        """What each of ``tasks`` weighs, [T]; 1 for one that is no item."""
        factor, items, key = self.factors.of(preset), len(self.items), len(set(self.key))
        unit = items / (factor * key + items - key)
        return torch.tensor(
            [1.0 if name not in self.items else unit * factor if name in self.key else unit for name in tasks]
        )

    def table(self, tasks: Sequence[str]) -> Tensor:
        """[G + 1, T]: the weights of each stratum, and last of everybody else, so that stratum -1 is theirs."""
        presets = [*self.groups.values(), self.preset]
        return torch.stack([self.weights(preset, tasks) for preset in presets])
