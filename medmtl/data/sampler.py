"""The order of an epoch, as a function of (seed, epoch): for any number of ranks and workers, from any batch on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medmtl.config import Config
from medmtl.data.case import Case
from medmtl.seeds import generator


class Draw(NamedTuple):
    """One sample of an epoch: ``position`` counts the epoch's samples and seeds the augmentation."""

    epoch: int
    position: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class SamplerConfig(Config):
    """``none``: every case once, shuffled. Otherwise drawn with replacement so that each domain, each class of
    ``target``, or each (domain, class) cell has the same share; ``power`` in [0, 1] goes from none to full balance."""

    balance: Literal["none", "domain", "label", "both"] = "none"
    target: str | None = None
    power: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.balance in ("label", "both") and self.target is None:
            raise ValueError(f"balance {self.balance!r} needs `target`, the column whose classes are balanced")
        return self

    def idle(self) -> Mapping[str, str]:
        if self.balance == "none":
            why = "balance: none takes every case once"
            return {"target": why, "power": why}
        return {"target": "balance: domain looks at no label"} if self.balance == "domain" else {}

    def weights(self, cases: Sequence[Case]) -> Tensor | None:
        """Relative frequencies [N], or None for every case once."""
        if self.balance == "none":
            return None
        keys = [self._cell(case) for case in cases]
        counts = {key: keys.count(key) for key in set(keys)}
        return torch.tensor([counts[key] ** -self.power for key in keys], dtype=torch.float64)

    def _cell(self, case: Case) -> tuple[str, str]:
        label = case.targets.get(self.target or "", "")
        return (
            case.domain if self.balance in ("domain", "both") else "",
            label if self.balance in ("label", "both") else "",
        )


class EpochOrder:
    """Batches of :class:`Draw` for one rank: a batch sampler that can start in the middle.

    ``batch_size`` is that of all ranks together, and rank r takes every world-th sample of the global batch, so that
    the same settings mean the same training on any number of processes. An incomplete last batch is dropped.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int, weights: Tensor | None = None, rank: int = 0, world: int = 1
    ) -> None:
        assert batch_size % world == 0 and size >= batch_size, (size, batch_size, world)
        self.size, self.batch_size, self.seed, self.weights, self.rank, self.world = (
            size,
            batch_size,
            seed,
            weights,
            rank,
            world,
        )
        self.epoch, self.start = 0, 0

    def at(self, epoch: int, batch: int = 0) -> "EpochOrder":
        """Position at ``batch`` of ``epoch``; returns itself."""
        self.epoch, self.start = epoch, batch
        return self

    def batches(self) -> int:
        """Whole batches per epoch."""
        return self.size // self.batch_size

    def order(self) -> list[int]:
        """The epoch's case indices, before sharding."""
        source = generator("order", self.seed, self.epoch)
        if self.weights is None:
            return torch.randperm(self.size, generator=source).tolist()
        return torch.multinomial(self.weights, self.size, replacement=True, generator=source).tolist()

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self.order()
        for batch in range(self.start, self.batches()):
            positions = range(batch * self.batch_size + self.rank, (batch + 1) * self.batch_size, self.world)
            yield [Draw(self.epoch, position, order[position]) for position in positions]

    def __len__(self) -> int:
        return self.batches() - self.start
