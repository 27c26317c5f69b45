"""Training that starts from a bundle, and parts of a model that stay as they are.

A part is a module by its name in the model: ``encoder``, ``heads.<task>``, or a module inside one of them.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from medmtl.bundle import SPEC, Bundle, ModelSpec, bundle_id, read_spec
from medmtl.config import Config, plain, validate
from medmtl.errors import UserError
from medmtl.models.multitask import MultiTaskModel
from medmtl.tasks import AnyTask
from medmtl.tasks.regression import Regression

_MEANING = ("kind", "classes", "levels", "annotators", "low", "high")  # of a head's output: alike, or left open


class InitConfig(Config):
    """A bundle, and which of its parts the model starts from; the others start as they would without it."""

    bundle: str
    parts: tuple[str, ...] = Field(("encoder",), min_length=1)

    def head_names(self) -> tuple[str, ...]:
        """The tasks whose whole head starts from the bundle."""
        return tuple(part.removeprefix("heads.") for part in self.parts if part.count(".") == 1 and _is_head(part))


def read_source(init: InitConfig) -> tuple[ModelSpec, str]:
    """The specification and the id of the bundle that is started from; its weights are not read."""
    path = Path(init.bundle) / SPEC
    if not path.is_file():
        raise UserError(
            "E-INIT-BUNDLE",
            f"no {SPEC}",
            "give the folder of a bundle (runs/.../bundle), as init.bundle=...",
            where=f"init.bundle {init.bundle}",
        )
    tree = read_spec(path)
    return validate(ModelSpec, tree.get("model") or {}, where=str(path)), bundle_id(tree)


def check_parts(parts: Iterable[str], tasks: Iterable[str], *, key: str) -> None:
    """Raise a ValueError that lists the parts when one of ``parts`` is neither of the encoder nor of a task's head."""
    known = ["encoder", *(f"heads.{name}" for name in tasks)]
    for part in parts:
        if not any(part == name or part.startswith(f"{name}.") for name in known):
            raise ValueError(f"{key} names {part!r}; the model's parts are {', '.join(known)}, and modules inside them")


def inherited(name: str, task: AnyTask, source: ModelSpec, *, labelled: bool) -> AnyTask:
    """``task`` with what its head's output is expressed in (a number's centre and scale) as the bundle has it.

    Not ``labelled``: the training part has no label, so everything that is fitted on labels is the bundle's. Raises
    E-INIT-TASK where the bundle's task means something else.
    """
    other = source.tasks.get(name)
    here = f"tasks.{name}"
    if other is None:
        raise UserError(
            "E-INIT-TASK",
            f"the bundle has no task {name!r}",
            f"remove heads.{name} from init.parts, or name one of {', '.join(source.tasks)}",
            where=here,
        )
    differ = [key for key in _MEANING if getattr(task, key, None) not in (None, (), getattr(other, key, None))]
    if differ:
        raise UserError(
            "E-INIT-TASK",
            f"{differ[0]} is {getattr(task, differ[0], None)!r}, in the bundle {getattr(other, differ[0], None)!r}",
            f"write the same, or remove heads.{name} from init.parts",
            where=here,
        )
    if not labelled:
        here_alone = ("target", "weight", "auxiliary", "weigh", "sum_of")
        own = {key: getattr(task, key) for key in here_alone if hasattr(task, key)}
        return other.model_copy(update=own)
    if isinstance(task, Regression) and isinstance(other, Regression):
        return task.model_copy(update={"centre": other.centre, "scale": other.scale})
    return task


def start_from(model: MultiTaskModel, bundle: Bundle, parts: Iterable[str]) -> int:
    """Copy the parameters and statistics of ``parts`` from the bundle's model; returns how many numbers."""
    count = 0
    for part in parts:
        mine, other = find_part(model, part, key="init.parts"), find_part(bundle.model, part, key="init.parts")
        state = other.state_dict()
        try:
            mine.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                "E-INIT-SHAPE",
                f"the bundle's {part} is another network: {reason[:300]}",
                "use the encoder and the head settings of the bundle, or start fewer parts from it",
                where="init.parts",
            ) from error
        count += sum(tensor.numel() for tensor in state.values())
    return count


def freeze(model: MultiTaskModel, parts: Iterable[str]) -> int:
    """Keep ``parts`` as they are: no gradients, evaluation mode in every forward pass (so batch statistics stay, too).

    Gradients still pass through a frozen head into the encoder. Returns how many parameters were frozen.
    """
    frozen = [find_part(model, part, key="optim.freeze") for part in parts]
    for module in frozen:
        module.requires_grad_(False)
        module.register_forward_pre_hook(_still)
    if frozen and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("E-CFG-FREEZE", "nothing is left to train", "freeze less", where="optim.freeze")
    return sum(parameter.numel() for module in frozen for parameter in module.parameters())


def _still(module: nn.Module, arguments: Any) -> None:
    """A forward pre-hook (a function of its own, so that a copy of the model has it too): evaluation mode."""
    module.eval()


def find_part(model: MultiTaskModel, part: str, *, key: str) -> nn.Module:
    """The module called ``part``; E-CFG-PART lists the parts, and the closest name, where there is none."""
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    if part in modules and part not in ("", "heads"):
        return modules[part]
    parts = ", ".join(["encoder", *(f"heads.{name}" for name in model.heads)])
    close = difflib.get_close_matches(part, list(modules), n=1)
    raise UserError(
        "E-CFG-PART",
        f"the model has no part {part!r}" + (f", did you mean {close[0]!r}?" if close else ""),
        f"write some of {parts}, or a module inside them",
        where=key,
    )


def same_input(source: ModelSpec, spec: ModelSpec) -> bool:
    """Whether the bundle's model saw images that were prepared as these are."""
    return plain(source.preprocess) == plain(spec.preprocess)


def _is_head(part: str) -> bool:
    return part.startswith("heads.")
