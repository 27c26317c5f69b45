"""Imports go downwards only, and a library is imported at its edge alone: read from the syntax trees."""

import ast
import socket
from pathlib import Path

import pytest

import medmtl

ROOT = Path(medmtl.__file__).parent
LAYERS = {
    "__init__": -1, "errors": 0, "seeds": 0, "distributed": 0, "torchvision_ops": 0, "signals": 0, "progress": 0,
    "files": 0.1, "config": 0.1, "stats": 0.1, "process": 0.1, "bars": 0.1,
    "ledger": 0.2, "outfolder": 0.2,
    "io": 1, "losses": 1, "metrics": 1, "mask_metrics": 1, "agreement": 1.1,
    "data": 2, "models": 2,
    "tasks": 3,
    "balance": 4,
    "bundle": 5, "predictor": 5.1, "fingerprint": 5.2, "finetune": 5.2, "export": 5.3,
    "ingest": 5.9,
    "engine": 6, "inference": 6, "evaluation": 6, "controls": 6.5,
    "study": 7, "prepared": 7.1, "runs": 7.1, "card": 7.2, "assembly": 7.2, "experiment": 7.25, "results": 7.3,
    "nested": 7.4, "pooling": 7.4, "crossval": 7.5, "sweep": 7.5,
    "demo": 8, "doctor": 8, "cli": 8.1, "ui": 8, "__main__": 8.2,
}  # fmt: skip
EDGES = {  # library -> the only places that may import it
    "mlflow": ("engine/mlflow.py", "engine/mlflow_rows.py", "engine/mlflow_store.py", "engine/pyfunc_model.py"),
    "timm": ("models/",),
    "monai.networks": ("models/",),
    "torchvision": ("models/",),
    "torchjd": ("balance/",),
    "matplotlib": ("evaluation/plots/",),
    "highdicom": ("io/dicom/", "inference/writers/"),
    "dicomanonymizer": ("io/deidentify/",),
    "isal": ("io/",),
    "onnxruntime": ("export/",),
    "ray": ("inference/cluster_ray.py",),
    "typer": ("cli/",),
    "nibabel": ("io/", "inference/writers/"),
    "pydicom": ("io/", "data/synthetic/", "inference/writers/"),
    "SimpleITK": ("io/", "agreement/"),
}
MODULES = sorted(ROOT.rglob("*.py"))


def _imports(path):
    """Absolute names of what a file imports, at its top or inside a function; an ``if TYPE_CHECKING`` block too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward(path, package, names):
    """The imports of a module of ``package`` that do not go strictly down, nor stay in the package."""
    for name in names:
        if name == "medmtl" or name.startswith("medmtl."):
            other = name.split(".")[1] if "." in name else "__init__"
            other = other if other in LAYERS else "__init__"  # from medmtl import __version__
            if other != package and LAYERS[other] >= LAYERS[package]:
                yield f"{path}: {package} ({LAYERS[package]}) imports {name} ({LAYERS[other]})"


def test_every_module_has_a_layer():
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in MODULES} <= set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path):
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert not list(upward(path, package, _imports(path)))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_library_stays_at_its_edge(path):
    place = path.relative_to(ROOT).as_posix()
    for name in _imports(path):
        for library, allowed in EDGES.items():
            if name == library or name.startswith(f"{library}."):
                assert place.startswith(allowed), f"{place} imports {name}"


def test_the_check_can_fail():
    assert list(upward("x", "data", ["medmtl.models.head.PoolConfig"]))  # neighbours in one layer
    assert list(upward("x", "inference", ["medmtl.engine.fit"]))
    assert list(upward("x", "evaluation", ["medmtl.inference.pipeline"]))
    assert list(upward("x", "config", ["medmtl.cli"]))
    assert not list(upward("x", "data", ["medmtl.data.case", "medmtl.errors.UserError", "medmtl.__version__", "torch"]))


def test_there_is_no_network_here():
    with socket.socket() as sock, pytest.raises(PermissionError, match="no network"):
        sock.connect(("192.0.2.1", 80))
    with pytest.raises(socket.gaierror, match="no network"):
        socket.getaddrinfo("example.org", 80)
