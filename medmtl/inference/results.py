"""What the network said of an input, as its row of the table and as maps on its own grid."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from medmtl.data.preprocess import Preprocess
from medmtl.errors import UserError
from medmtl.fingerprint import Verdict
from medmtl.inference.forward import Decoded
from medmtl.inference.listing import Input
from medmtl.inference.prediction import CasePrediction, Cell, DenseMap, Source
from medmtl.inference.reading import Loaded, is_finite
from medmtl.inference.writers.table import global_cells
from medmtl.io.volume import Volume
from medmtl.tasks import AnyTask
from medmtl.tasks.segmentation import Segmentation


def case_prediction(
    loaded: Loaded,
    decoded: Decoded,
    *,
    tasks: Mapping[str, AnyTask],
    preprocess: Preprocess,
    root: Path,
    bundle: str,
    verdict: Verdict,
) -> CasePrediction:
    """The results of an input; refuses those that are no finite numbers (``E-PRE-FINITE``)."""
    assert loaded.shown is not None
    cells: dict[str, Cell] = {}
    dense: dict[str, DenseMap] = {}
    for name, task in tasks.items():
        check_finite(name, decoded.outputs[name])
        if isinstance(task, Segmentation):
            dense[name] = _native(loaded, decoded.outputs[name], task, preprocess)
            cells |= _shares(name, dense[name], loaded.shown)
        else:
            cells |= global_cells(name, task, decoded.outputs[name])
        if name in decoded.spread:
            cells[f"{name}.spread"] = decoded.spread[name]
    return CasePrediction(
        source=source_of(loaded.item, root),
        image=loaded.shown,
        tasks=tasks,
        cells=cells,
        dense=dense,
        bundle=bundle,
        warnings=warnings_of(loaded, preprocess, tasks),
        gate=verdict.fields,
    )


def source_of(item: Input, root: Path) -> Source:
    """Where an input came from, for writers."""
    if item.stack is not None:
        files = tuple(header.path for header in item.stack.headers)
    else:
        files = tuple((root / found.path).absolute() for found in item.files)
    assert item.kind != "file", item.id
    return Source(item.kind, item.name, files, page=item.page, stack=item.stack)


def check_finite(name: str, value: Tensor) -> None:
    if not is_finite(value):
        raise UserError(
            "E-PRE-FINITE",
            f"the output of {name!r} is not a finite number",
            "look at the image; if it is like the others, the bundle is damaged",
        )


def _native(loaded: Loaded, probabilities: Tensor, task: Segmentation, preprocess: Preprocess) -> DenseMap:
    """Probabilities on the native grid, then the most probable class; background where the network did not look."""
    maps, inside = preprocess.restore(probabilities, loaded.native)
    if loaded.grid is not None:
        weight = loaded.grid.to_native(inside[None].float())[0]
        maps, inside = loaded.grid.to_native(maps), weight >= 0.5
        maps = maps / weight.clamp_min(0.5) * inside  # beside the window's edge, part of a voxel was not looked at
    best = maps.max(0).indices  # the first of the largest, as argmax, which takes ten times as long over this axis
    labels = best.masked_fill(~inside, 0).numpy()
    small = np.uint8 if len(task.classes) <= 256 else np.uint16
    return DenseMap(maps.numpy(), labels.astype(small), inside.numpy(), tuple(task.classes))


def _shares(name: str, dense: DenseMap, image: object) -> dict[str, Cell]:
    """The share of each foreground class in what the network saw; of a volume, its millilitres too."""
    seen = dense.labels[dense.inside]
    counts = np.bincount(seen, minlength=len(dense.classes))
    cells: dict[str, Cell] = {
        f"{name}.fraction.{label}": float(counts[k]) / max(len(seen), 1) for k, label in enumerate(dense.classes) if k
    }
    if isinstance(image, Volume) and image.affine is not None:
        millilitres = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000  # of a voxel, sheared or not
        cells |= {f"{name}.ml.{label}": float(counts[k]) * millilitres for k, label in enumerate(dense.classes) if k}
    return cells


def warnings_of(loaded: Loaded, preprocess: Preprocess, tasks: Mapping[str, AnyTask]) -> tuple[str, ...]:
    """What the user should know of a case beside its results."""
    found = [f"{note.code} {note.what}" for note in loaded.notes]
    if loaded.item.frames > 1:
        found.append(f"W-PRE-FRAMES the file holds {loaded.item.frames} images, the first was predicted")
    if loaded.blank:
        found.append("W-PRE-BLANK every pixel has the same value")
    share = _seen(preprocess, loaded.native)
    dense = any(isinstance(task, Segmentation) for task in tasks.values())
    if share < (1.0 if dense else 0.5):
        found.append(f"W-PRE-WINDOW the network saw the centre only, {100 * share:.0f} % of the image")
    return tuple(found)


def _seen(preprocess: Preprocess, native: Sequence[int]) -> float:
    """The share of an image that lies in the window."""
    grid = preprocess.resize or tuple(native)
    return math.prod(min(n, w) / n for n, w in zip(grid, preprocess.window or grid, strict=True))


def referral(verdict: Verdict) -> str:
    """Why a reader should look at a case that has a result; empty where nothing says so.

    A bundle that holds a rule for deferring near-threshold cases would add its reason here; none does so far.
    """
    return f"unlike the training images: {', '.join(verdict.fields)}" if verdict.level in ("warn", "refuse") else ""
