"""One shared encoder, one head per task."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from medmtl.models.head import AdversaryHead, pooled_head


class MultiTaskModel(nn.Module):
    """``forward(image [B, C, *S], covariates [B, P]) -> {task: output}``; every head runs on every image, so the graph
    is always whole. Without covariates a model that wants them (:meth:`fuse`) takes every case for one that has none.
    """

    absent: Tensor

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.fused: tuple[str, ...] = ()  # the heads that see covariates
        self.register_buffer("absent", torch.zeros(0), persistent=False)

    def fuse(self, tasks: Sequence[str], absent: Tensor, *, image: bool = True, covariates: bool = True) -> None:
        """Let the heads of ``tasks`` see covariates; ``absent`` [P] is a case of which none is known."""
        for name in tasks:
            head = pooled_head(self.heads[name])
            assert head is not None, f"{name} has no pooled head"
            head.fuse(len(absent), image=image, covariates=covariates)
        self.fused, self.absent = tuple(tasks), absent

    def forward(self, image: Tensor, covariates: Tensor | None = None) -> dict[str, Tensor]:
        pyramid = self.encoder(image)
        if self.fused and covariates is None:
            covariates = self.absent.expand(image.shape[0], -1)
        return {
            name: _crop(head(pyramid, covariates) if name in self.fused else head(pyramid), image)
            for name, head in self.heads.items()
        }

    def shared(self, scope: Literal["all", "last"] = "all") -> list[nn.Parameter]:
        """The parameters that the tasks share, in order of definition: the whole encoder, or its last quarter.

        ``last`` is the usual economy of gradient balancing: the trailing parameters that together hold at least 25 % of
        the encoder, the ones nearest to the heads.
        """
        parameters = [p for p in self.encoder.parameters() if p.requires_grad]
        if scope == "all":
            return parameters
        wanted = 0.25 * sum(p.numel() for p in parameters)
        held = 0
        for start in range(len(parameters) - 1, -1, -1):
            held += parameters[start].numel()
            if held >= wanted:
                return parameters[start:]
        return parameters

    def advance(self, progress: float) -> None:
        """Tell scheduled heads how far training is, in [0, 1]."""
        for head in self.heads.values():
            if isinstance(head, AdversaryHead):
                head.advance(progress)


def _crop(output: Tensor, image: Tensor) -> Tensor:
    """Dense outputs cut to the image: strides round the size up where they do not divide it."""
    if output.ndim != image.ndim:
        return output
    for axis, size in enumerate(image.shape[2:], start=2):
        output = output.narrow(axis, 0, size)
    return output
