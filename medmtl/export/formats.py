"""The file formats: how a network is written to one file, and how that file is run, without any of our code in it."""

import contextlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medmtl.errors import EnvironmentFailure, UserError
from medmtl.export.network import Portable
from medmtl.files import atomic_path

Runner = Callable[[tuple[Tensor, ...]], dict[str, Tensor]]  # the network's inputs -> decoded outputs by task
Kind = Literal["onnx", "torchscript", "torch-export"]
ABOUT = "medmtl.json"  # name of the description inside TorchScript and torch.export archives
_ONNX = ("onnx", "onnxruntime", "onnxscript")
_PROTOBUF = 2**31 - 2**20  # bytes that one ONNX file may have


@dataclass(frozen=True)
class Format:
    """How one kind of file is written and run."""

    suffix: str
    write: Callable[[Portable, tuple[Tensor, ...], Mapping[str, Any], Path], None]
    open: Callable[[Path, tuple[str, ...]], Runner]
    needs: tuple[str, ...] = ()

    def check(self) -> None:
        """Refused where a library is missing that the format needs."""
        missing = [name for name in self.needs if not installed((name,))]
        if missing:
            raise EnvironmentFailure(
                "E-EXP-EXTRA",
                f"{', '.join(missing)} is not installed",
                "pip install 'medmtl[export]'",
                where="--format",
            )


def installed(libraries: Sequence[str]) -> bool:
    """Whether all of the ``libraries`` can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in libraries)


def _write_onnx(network: Portable, inputs: tuple[Tensor, ...], about: Mapping[str, Any], path: Path) -> None:
    """By torch's exporter of :mod:`torch.export` programs; the batch is a dynamic axis, outputs are named as tasks."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > _PROTOBUF:
        raise UserError("E-EXP-LARGE", f"{size / 2**30:.1f} GiB of weights", "an ONNX file holds 2; use torch-export")
    with _traced("onnx"):
        program = torch.onnx.export(
            network,
            inputs,
            dynamo=True,
            dynamic_shapes=_dynamic(inputs),
            input_names=_names(inputs),
            output_names=list(network.tasks),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    for key, value in about.items():
        program.model.metadata_props[f"medmtl.{key}"] = value if isinstance(value, str) else json.dumps(value)
    program.model.doc_string = f"medmtl bundle {about['bundle']}; {about['use']}"
    with atomic_path(path) as temporary:
        program.save(temporary, external_data=False)


def _open_onnx(path: Path, tasks: tuple[str, ...]) -> Runner:
    import onnxruntime  # an extra: checked by Format.check

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in zip(_names(inputs), inputs, strict=True)}
        return {
            name: torch.from_numpy(array) for name, array in zip(tasks, session.run(list(tasks), arrays), strict=True)
        }

    return run


class _Named(nn.Module):
    """A network whose outputs carry their names."""

    def __init__(self, network: Portable) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, covariates: Tensor | None = None) -> dict[str, Tensor]:
        return dict(zip(self.network.tasks, self.network(image, covariates), strict=True))


class _Checked(nn.Module):
    """A traced network as ``forward(image) -> {task: tensor}`` that refuses another size than it was traced for."""

    def __init__(self, traced: nn.Module, shape: list[int]) -> None:
        super().__init__()
        self.traced, self.shape = traced, shape

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        if image.shape[1:] != self.shape:
            raise ValueError(f"expected an image of [batch] + {self.shape}, found {image.shape}")
        return self.traced(image)


class _CheckedWithCovariates(_Checked):
    """The same with ``forward(image, covariates)``: TorchScript knows no signature that depends on the network."""

    def forward(self, image: Tensor, covariates: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        if image.shape[1:] != self.shape:
            raise ValueError(f"expected an image of [batch] + {self.shape}, found {image.shape}")
        return self.traced(image, covariates)


def _write_torchscript(network: Portable, inputs: tuple[Tensor, ...], about: Mapping[str, Any], path: Path) -> None:
    with _traced("torchscript"), torch.no_grad():
        traced = torch.jit.trace(_Named(network), inputs, strict=False, check_trace=False)  # other inputs are compared
        kind = _Checked if len(inputs) == 1 else _CheckedWithCovariates
        scripted = torch.jit.script(kind(traced, list(inputs[0].shape[1:])).eval())
    with atomic_path(path) as temporary:
        torch.jit.save(scripted, temporary, _extra_files={ABOUT: json.dumps(about)})


def _open_torchscript(path: Path, tasks: tuple[str, ...]) -> Runner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network = torch.jit.load(path, map_location="cpu")
    return lambda inputs: {name: value for name, value in network(*inputs).items() if name in tasks}


def _write_program(network: Portable, inputs: tuple[Tensor, ...], about: Mapping[str, Any], path: Path) -> None:
    with _traced("torch-export"), torch.no_grad():
        program = torch.export.export(_Named(network), inputs, dynamic_shapes=_dynamic(inputs))
    program.example_inputs = None  # they would be a pickle, and nobody needs them
    with atomic_path(path) as temporary:
        torch.export.save(program, temporary, extra_files={ABOUT: json.dumps(about)})


def _open_program(path: Path, tasks: tuple[str, ...]) -> Runner:
    module = torch.export.load(path).module()
    return lambda inputs: {name: value for name, value in module(*inputs).items() if name in tasks}


FORMATS: dict[Kind, Format] = {
    "onnx": Format(".onnx", _write_onnx, _open_onnx, needs=_ONNX),
    "torchscript": Format(".ts", _write_torchscript, _open_torchscript),
    "torch-export": Format(".pt2", _write_program, _open_program),
}


def _names(inputs: tuple[Tensor, ...]) -> list[str]:
    return ["image", "covariates"][: len(inputs)]


def _dynamic(inputs: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch")
    return tuple({0: batch} for _ in inputs)


@contextlib.contextmanager
def _traced(kind: str) -> Iterator[None]:
    """Warnings about what a trace holds fixed say nothing here: sizes are fixed, and what was written is compared."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        if isinstance(error, UserError):
            raise
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            "E-EXP-TRACE",
            f"torch cannot express this network: {first[0][:200]}",
            "choose another format",
            where=f"--format {kind}",
        ) from error
