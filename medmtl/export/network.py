"""What is exported: the network with everything behind it, up to decoded outputs averaged over views."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medmtl import __version__
from medmtl.bundle import Bundle, ModelSpec
from medmtl.config import plain
from medmtl.errors import UserError
from medmtl.models.head import AdversaryHead
from medmtl.models.views import VIEWS
from medmtl.tasks import AnyTask
from medmtl.tasks.annotators import AnnotatorsHead
from medmtl.tasks.classification import Classification, ClassificationBase
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

USE = "research use only, not a medical device"


class Portable(nn.Module):
    """``forward(image [B, C, *S], covariates [B, P]) -> ([B, K, ...] or [B], ...)``, one tensor for each of ``tasks``.

    These are probabilities and values in physical units, as :meth:`medmtl.predictor.Predictor.decode` gives them for an
    image of one window. A copy: the bundle's model is left as it is. ``covariates`` belongs to the signature only
    where :attr:`columns` are not empty.
    """

    def __init__(self, bundle: Bundle, tasks: Sequence[str], *, covariates: bool = True) -> None:
        super().__init__()
        spec = bundle.spec
        self.tasks = tuple(tasks)
        self.decoders = {name: spec.tasks[name].decode for name in self.tasks}
        self.views = VIEWS[spec.views]
        self.model = copy.deepcopy(bundle.model).eval().requires_grad_(False)
        self.model.heads = nn.ModuleDict({name: _forwards(self.model.heads[name]) for name in self.tasks})
        sees = covariates and spec.covariates is not None and any(name in spec.fused for name in self.tasks)
        self.columns = spec.covariates.names if sees and spec.covariates is not None else ()

    def forward(self, image: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, ...]:
        sums: dict[str, Tensor] = {}
        for view in self.views:
            outputs = self.model(view.apply(image), covariates)
            for name in self.tasks:
                decoded = self.decoders[name](outputs[name].float())
                decoded = view.undo(decoded) if decoded.ndim == image.ndim else decoded
                sums[name] = sums[name] + decoded if name in sums else decoded
        return tuple(sums[name] / len(self.views) for name in self.tasks)

    def inputs(self, image: Tensor, covariates: Tensor | None) -> tuple[Tensor, ...]:
        """What the exported network is called with: without ``covariates``, each case for one of which none is known.

        The order is that of :meth:`forward`; ``covariates`` [B, P] are left out where no chosen task sees them.
        """
        if not self.columns:
            return (image,)
        return image, self.model.absent.expand(image.shape[0], -1) if covariates is None else covariates


def _forwards(head: nn.Module) -> nn.Module:
    """A head without what is for training alone: an adversary's gradient reversal, the annotators' matrices."""
    match head:
        case AdversaryHead():
            return head.inner
        case AnnotatorsHead():
            return head.decoder
    return head


@dataclass(frozen=True)
class Choice:
    """Tasks that go into one file, and the size [*S] of what the network sees."""

    tasks: tuple[str, ...]
    size: tuple[int, ...]


def chosen(spec: ModelSpec, tasks: Sequence[str], *, split: bool, size: Sequence[int] | None) -> list[Choice]:
    """One choice for all ``tasks`` (none given: every task), or with ``split`` one for each."""
    unknown = [name for name in tasks if name not in spec.tasks]
    if unknown:
        raise UserError(
            "E-EXP-TASK", f"no task {unknown[0]!r}", f"choose among {', '.join(spec.tasks)}", where="--task"
        )
    names = tuple(name for name in spec.tasks if not tasks or name in tasks)
    seen = _size(spec, size)
    return [Choice((name,), seen) for name in names] if split else [Choice(names, seen)]


def _size(spec: ModelSpec, given: Sequence[int] | None) -> tuple[int, ...]:
    """The size that the specification fixes, or where it leaves that open, the ``given`` one."""
    fixed = spec.preprocess.input_size or spec.preprocess.resize
    axes = 2 if spec.preprocess.volume is None else 3
    if fixed is None and given is None:
        raise UserError(
            "E-EXP-SIZE", "the specification leaves the image's size open", f"give --size with {axes} numbers of pixels"
        )
    if fixed is not None and given is not None and tuple(given) != fixed:
        raise UserError("E-EXP-SIZE", f"the network sees {list(fixed)}, found {list(given)}", "leave --size out")
    size = tuple(fixed or given or ())
    if len(size) != axes or min(size) < 1:
        raise UserError("E-EXP-SIZE", f"{axes} positive numbers were expected, found {list(size)}", "correct --size")
    return size


def example_inputs(network: Portable, spec: ModelSpec, choice: Choice) -> tuple[Tensor, ...]:
    """Two cases of zeros: with one, torch would take the batch's size for a constant."""
    return network.inputs(torch.zeros(2, spec.preprocess.channels, *choice.size), None)


def about(bundle: Bundle, network: Portable, choice: Choice) -> dict[str, Any]:
    """What a consumer of the file must know, as plain values: tasks, input, preprocessing, where it comes from."""
    spec = bundle.spec
    return {
        "bundle": bundle.id,
        "medmtl": __version__,
        "use": USE,
        "tasks": {name: _answer(spec.tasks[name]) for name in choice.tasks},
        "input": {"image": ["batch", spec.preprocess.channels, *choice.size], "covariates": list(network.columns)},
        "covariates": plain(spec.covariates) if network.columns and spec.covariates is not None else None,
        "views": spec.views,
        "preprocess": plain(spec.preprocess),
    }


def _answer(task: AnyTask) -> dict[str, Any]:
    """How to read a task's tensor."""
    known: dict[str, Any] = {"kind": task.kind}
    match task:
        case Regression():
            return known | {"output": "value [batch]", "unit": task.unit, "low": task.low, "high": task.high}
        case Ordinal():
            answer = {"output": "probabilities [batch, level]", "classes": list(task.levels), "unit": task.unit}
            return known | answer | {"values": list(task.values)}
        case Segmentation():
            return known | {"output": "probabilities [batch, class, *size]", "classes": list(task.classes)}
        case Classification() if task.binary:
            known |= {
                "positive": task.classes[task.positive_index],
                "threshold": 0.5 if task.threshold is None else task.threshold,
            }
    assert isinstance(task, ClassificationBase)
    return known | {"output": "probabilities [batch, class]", "classes": list(task.classes)}
