"""One shared encoder, one head per task."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from medmtl.models.head import AdversaryHead


class MultiTaskModel(nn.Module):
    """``forward(image [B, C, *S]) -> {task: output}``; every head runs on every image, so the graph is always whole."""

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        pyramid = self.encoder(image)
        return {name: _crop(head(pyramid), image) for name, head in self.heads.items()}

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
