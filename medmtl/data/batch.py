"""A batch: images, targets, and which targets exist. B batch, C channels, S spatial = (H, W) or (D, H, W)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """One case after preprocessing: ``image [C, *S]``, ``targets {name: [] or [*S]}``, ``labelled {name: bool}``."""

    image: Tensor
    targets: Mapping[str, Tensor]
    labelled: Mapping[str, bool]
    domain: int
    case_id: str
    weights: Mapping[str, float]  # meta column -> what the case weighs in the losses of tasks that weigh by it
    covariates: Tensor | None = None  # [P], where the study has any
    stratum: int = -1  # place of the case's group among those whose items are weighted otherwise; -1: none of them


@dataclass(frozen=True)
class Batch:
    """What a model and its tasks see. A missing target holds a finite placeholder and ``labelled`` False."""

    image: Tensor  # [B, C, *S] float
    targets: Mapping[str, Tensor]  # name -> [B] or [B, *S]
    labelled: Mapping[str, Tensor]  # name -> bool [B]
    domain: Tensor  # int64 [B], -1 = unknown
    case_ids: tuple[str, ...]
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # meta column -> positive float64 [B]
    covariates: Tensor | None = None  # float [B, P], where the study has any
    stratum: Tensor | None = None  # int64 [B], see :class:`Sample`; None: -1 for all

    def to(self, device: torch.device | str, *, memory_format: torch.memory_format = torch.preserve_format) -> "Batch":
        """The same batch on ``device``; copies overlap with computing where the memory is pinned."""

        def move(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        covariates, stratum = self.covariates, self.stratum
        image = self.image.to(device, non_blocking=True, memory_format=memory_format)
        return replace(
            self,
            image=image,
            targets=move(self.targets),
            labelled=move(self.labelled),
            domain=self.domain.to(device, non_blocking=True),
            weights=move(self.weights),
            covariates=None if covariates is None else covariates.to(device, non_blocking=True),
            stratum=None if stratum is None else stratum.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Batch":
        """Called by :class:`torch.utils.data.DataLoader` when ``pin_memory`` is set."""

        def pin(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.pin_memory() for name, tensor in tensors.items()}

        return replace(
            self,
            image=self.image.pin_memory(),
            targets=pin(self.targets),
            labelled=pin(self.labelled),
            domain=self.domain.pin_memory(),
            weights=pin(self.weights),
            covariates=None if self.covariates is None else self.covariates.pin_memory(),
            stratum=None if self.stratum is None else self.stratum.pin_memory(),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; the domain becomes the target ``"domain"``, so that predicting it is a task like any other."""
    first = samples[0]
    targets = {name: torch.stack([s.targets[name] for s in samples]) for name in first.targets}
    labelled = {name: torch.tensor([s.labelled[name] for s in samples]) for name in first.labelled}
    domain = torch.tensor([s.domain for s in samples])
    covariates = [s.covariates for s in samples if s.covariates is not None]
    return Batch(
        image=torch.stack([torch.as_tensor(s.image).float() for s in samples]),
        targets={**targets, "domain": domain.clamp(min=0)},
        labelled={**labelled, "domain": domain >= 0},
        domain=domain,
        case_ids=tuple(s.case_id for s in samples),
        weights={
            column: torch.tensor([s.weights[column] for s in samples], dtype=torch.float64) for column in first.weights
        },
        covariates=torch.stack(covariates) if covariates else None,
        stratum=torch.tensor([s.stratum for s in samples]),
    )
