"""Training that has left the finite numbers: what is said then, and validation watched for it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from medmtl.engine import checkpoint
from medmtl.engine.optim import OptimConfig
from medmtl.engine.progress import Progress
from medmtl.errors import UserError


@contextmanager
def watched(model: nn.Module) -> Iterator[set[str]]:
    """The tasks that have an output within the block that is not finite.

    Such an output becomes 0, so that the block comes to its end on every rank: one that stopped alone would leave the
    others waiting for it. What was computed from it is worth nothing.
    """
    bad: set[str] = set()

    def look(module: nn.Module, inputs: object, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        bad.update(name for name, output in outputs.items() if not torch.isfinite(output).all())
        return {name: output.nan_to_num(0.0, 0.0, 0.0) if name in bad else output for name, output in outputs.items()}

    hook = model.register_forward_hook(look)
    try:
        yield bad
    finally:
        hook.remove()


def diverged(what: str, p: Progress, optim: OptimConfig, precision: Literal["fp32", "bf16"]) -> UserError:
    """The error that ends a training whose gradients or outputs are not finite; ``p`` is before the step is counted."""
    ways = [f"lower optim.learning_rate (it is {optim.learning_rate:g})"]
    if optim.clip_norm is None:
        ways.append("set optim.clip_norm: 1")
    if precision == "bf16":
        ways.append("set fit.precision: fp32")
    kept = f"the model of epoch {p.best_epoch + 1} is kept in {checkpoint.BEST}"
    if p.best_epoch < 0:
        kept = "no epoch before it has left a model to go back to"
    return UserError(
        "E-FIT-NAN",
        what,
        f"{', '.join(ways)}, or check the data: other settings are another run; {kept}",
        where=f"epoch {p.epoch + 1}, after {p.step} steps",
    )
