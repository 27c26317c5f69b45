"""Everything inference needs in one folder: ``spec.yaml`` + ``weights.safetensors`` + ``README.md`` (the model card).

There is no second, hand-copied inference configuration, and nothing is ever unpickled.

``spec.yaml`` holds the SHA-256 of the weights and one of everything else that it says (``spec_sha256``), so an edit by
hand and a copy of two halves are refused. That protects from accidents, not from malice: it is no signature, and who
can write the file can compute the digest anew. Nor does it cover the model card. A bundle that was written before the
digest existed loads without that protection.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from medmtl import __version__
from medmtl.config import Config, digest, plain, read_yaml, validate
from medmtl.data.covariates import Covariates
from medmtl.data.preprocess import Preprocess
from medmtl.errors import SafetyRefusal, UserError
from medmtl.files import write_atomic
from medmtl.models.encoders import AnyEncoder
from medmtl.models.multitask import MultiTaskModel
from medmtl.models.views import ViewSet
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import Classification
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression

FORMAT, UNSEALED = 2, 1  # what is written, and what could be written without a digest of the specification
SPEC, WEIGHTS, CARD = "spec.yaml", "weights.safetensors", "README.md"
_DIGEST = "spec_sha256"
_KEYS = ("format", "medmtl", "weights_sha256", "model", "provenance", _DIGEST)  # of a specification tree


class ModelSpec(Config):
    """What the model computes: preprocessing, encoder, tasks, covariates, and the views that inference averages over.

    Inference on an image without covariates takes the case for one of which none is known.
    """

    preprocess: Preprocess
    encoder: AnyEncoder
    tasks: dict[str, AnyTask] = Field(min_length=1)
    covariates: Covariates | None = None
    views: ViewSet = "identity"

    @model_validator(mode="after")
    def _check(self) -> "ModelSpec":
        bad = [name for name in self.tasks if not name.replace("_", "").replace("-", "").isalnum()]
        if bad:
            raise ValueError(f"task names are letters, digits, '-' and '_', found {bad[0]!r}")
        check_tasks(self.tasks, self.covariates)
        return self

    @property
    def fused(self) -> tuple[str, ...]:
        """The tasks whose heads see covariates."""
        if self.covariates is None:
            return ()
        if self.covariates.tasks is not None:
            return self.covariates.tasks
        return tuple(name for name, task in self.tasks.items() if isinstance(task, FUSING))

    def build(self, *, load_weights: bool = False) -> MultiTaskModel:
        """The model with fresh parameters; ``load_weights`` lets the encoder start from its pretrained file."""
        encoder = self.encoder.build(self.preprocess.channels, load_weights=load_weights)
        model = MultiTaskModel(encoder, {name: task.head(encoder) for name, task in self.tasks.items()})
        if self.covariates is not None:
            use = self.covariates.use
            absent = self.covariates.absent()
            model.fuse(self.fused, absent, image=use != "covariates", covariates=use != "image")
        return model


FUSING = (Classification, Ordinal, Regression)  # their heads are pooled; a domain must not be told by the covariates


def check_tasks(tasks: Mapping[str, AnyTask], covariates: Covariates | None) -> None:
    """ValueError where a task refers to one that is not there or is no number, or covariates to one without a head."""
    for name, task in tasks.items():
        for item in task.sum_of if isinstance(task, Regression) else ():
            if item == name or not isinstance(tasks.get(item), Regression | Ordinal):
                raise ValueError(f"tasks.{name}.sum_of: {item!r} is no other regression or ordinal task")
    for name in (covariates.tasks or ()) if covariates is not None else ():
        if not isinstance(tasks.get(name), FUSING):
            raise ValueError(f"covariates.tasks: {name!r} is no classification, ordinal or regression task")
    if covariates is not None and (covariates.tasks == () or not any(isinstance(t, FUSING) for t in tasks.values())):
        raise ValueError("covariates: no task sees them; they are for classification, ordinal and regression")


@dataclass(frozen=True)
class Bundle:
    """A model that was read back: specification, parameters, where it came from, and its id."""

    spec: ModelSpec
    model: MultiTaskModel
    provenance: Mapping[str, Any]
    id: str  # first 12 hexadecimal digits of the SHA-256 of spec and weights
    folder: Path
    sealed: bool = True  # its specification has a digest, so that nobody can have edited it by mistake


def save_bundle(folder: Path, spec: ModelSpec, model: nn.Module, *, provenance: Mapping[str, Any], card: str) -> str:
    """Write the bundle, ``spec.yaml`` last, which holds the SHA-256 of the weights and of itself. Returns the id."""
    content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    (folder / SPEC).unlink(missing_ok=True)  # a bundle without its specification is none: no mix of two
    write_atomic(folder / WEIGHTS, content)
    tree = {
        "format": FORMAT,
        "medmtl": __version__,
        "weights_sha256": _sha256(content),
        "model": plain(spec),
        "provenance": dict(provenance),
    }
    tree = yaml.safe_load(_yaml(tree))  # digests are those of what is read back: YAML folds a text of line breaks
    tree[_DIGEST] = _digest(tree)
    identity = bundle_id(tree)
    write_atomic(folder / CARD, card.replace("{bundle_id}", identity))
    write_atomic(folder / SPEC, _yaml(tree))
    return identity


def load_bundle(folder: Path | str) -> Bundle:
    """Read a bundle; refused when a part is missing, of another format, or not the one that was written with it."""
    folder = Path(folder)
    for name in (SPEC, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                "E-BUN-FILE",
                f"no {name}",
                "give the folder that `medmtl train` wrote (runs/.../bundle)",
                where=str(folder),
            )
    tree = read_spec(folder / SPEC)
    content = (folder / WEIGHTS).read_bytes()
    if _sha256(content) != tree.get("weights_sha256"):
        raise SafetyRefusal(
            "E-BUN-HASH",
            f"the weights' SHA-256 is not the one in {SPEC}",
            "copy the bundle again",
            where=str(folder / WEIGHTS),
        )
    spec = validate(ModelSpec, tree.get("model") or {}, where=str(folder / SPEC))
    tensors = _tensors(content, where=str(folder / WEIGHTS))
    model = spec.build()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            "E-BUN-WEIGHTS",
            f"the weights do not fit the specification: {error}",
            "use the versions of torch and timm named in its provenance",
            where=str(folder),
        ) from error
    return Bundle(spec, model.eval(), tree.get("provenance") or {}, bundle_id(tree), folder, _DIGEST in tree)


def read_spec(path: Path) -> dict[str, Any]:
    """The specification tree in ``path``, its model not yet validated.

    Raises E-BUN-FORMAT where it is of another format or holds what none of this format does, and E-BUN-HASH where it
    was altered since it was written, or has lost its digest; only one of format 1 may be without.
    """
    tree = read_yaml(path)
    if (wrong := _wrong(tree)) is not None:
        raise UserError(
            "E-BUN-FORMAT",
            wrong,
            f"copy the bundle again, or use the version that wrote it ({tree.get('medmtl')})",
            where=str(path),
        )
    kept = tree.get(_DIGEST)
    unsealed = tree["format"] == UNSEALED and kept is None
    if not unsealed and kept != _digest(tree):
        raise SafetyRefusal(
            "E-BUN-HASH",
            f"the specification was altered since it was written: {_DIGEST} is {'another' if kept else 'not there'}",
            "copy the bundle again; for other classes, thresholds or preprocessing train or fine-tune a new one",
            where=str(path),
        )
    return tree


def _wrong(tree: Mapping[str, Any]) -> str | None:
    """What is wrong with a specification tree, whatever its model; None if nothing is."""
    if tree.get("format") not in (UNSEALED, FORMAT):
        return f"format {tree.get('format')!r}, this medmtl {__version__} reads {UNSEALED} and {FORMAT}"
    unknown = [key for key in tree if key not in _KEYS]
    if unknown:
        return f"unknown key {unknown[0]!r}, a bundle has {', '.join(_KEYS)}"
    missing = [key for key in ("weights_sha256", "model") if key not in tree]
    if missing:
        return f"no {missing[0]}"
    provenance = tree.get("provenance")
    if not isinstance(provenance, Mapping | None):
        return f"provenance: a mapping was expected, found {type(provenance).__name__}"
    try:
        _digest(tree)
    except (TypeError, ValueError, RecursionError) as error:  # a date, bytes, a node that is its own child
        return f"holds what JSON cannot say: {error}"
    return None


def _tensors(content: bytes, *, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; anything else (a pickle, say) is refused unread, though its hash be right."""
    try:
        return load_tensors(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # KeyError: of a type that torch does not have
        raise SafetyRefusal(
            "E-BUN-WEIGHTS",
            f"no safetensors file: {error}",
            "nothing else is read; get the bundle anew from where it was trained",
            where=where,
        ) from error


def bundle_id(tree: Mapping[str, Any]) -> str:
    """The id of a specification tree: it depends on the model and its weights, not on the provenance."""
    return digest({key: tree[key] for key in ("format", "weights_sha256", "model")})[:12]


def _digest(tree: Mapping[str, Any]) -> str:
    """SHA-256 of a specification tree without its digest, in canonical JSON."""
    return digest({key: value for key, value in tree.items() if key != _DIGEST})


def _yaml(tree: Mapping[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def example_input(spec: ModelSpec) -> torch.Tensor:
    """Zeros of the size that the network sees, [1, C, *S]; 64 pixels an axis where the specification leaves it open."""
    size = spec.preprocess.input_size or spec.preprocess.resize or (64,) * (2 if spec.preprocess.volume is None else 3)
    return torch.zeros(1, spec.preprocess.channels, *size)
