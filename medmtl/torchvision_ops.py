"""timm imports torchvision; torchvision's compiled operators do not load beside a CPU-only torch.

torchvision registers *fake* kernels for its operators at import, which fails with ``operator torchvision::nms does not
exist`` when the extension could not be loaded (a wheel built against CUDA next to a CPU torch). Declaring the two
schemas first lets the import pass. medmtl calls none of these operators; where the extension loads, nothing is done.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing() -> tuple[str, ...]:
    """Declare the operator schemas that the installed torchvision cannot declare itself; returns their names."""
    if _extension_loads():
        return ()
    missing = tuple(name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name))
    for name in missing:
        torch.library.define(f"torchvision::{name}", _SCHEMA)
    return missing


def _extension_loads() -> bool:
    """Whether torchvision's ``_C`` library is there and its dependencies resolve (tried as torchvision itself does)."""
    package = importlib.util.find_spec("torchvision")
    folders = list(package.submodule_search_locations or []) if package else []
    libraries = [library for folder in folders for library in Path(folder).glob("_C.*")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)
