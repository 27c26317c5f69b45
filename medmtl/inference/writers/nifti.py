"""Label maps and probabilities as NIfTI on the input's own grid, with a sidecar that says what the values mean."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medmtl import __version__
from medmtl.files import write_atomic
from medmtl.inference.prediction import CasePrediction, DenseMap
from medmtl.inference.writers.findings import NOTICE, Coding, coded
from medmtl.io.nifti_write import write_nifti
from medmtl.io.volume import Volume

Probabilities = Literal["none", "float32", "uint8"]
SCALE = 255  # of probabilities as uint8: value / 255, exact to 0.002


def write(
    case: CasePrediction, out: Path, *, probabilities: Probabilities = "none", coding: Mapping[str, Coding] = {}
) -> list[Path]:
    """``<task>.nii.gz`` and ``<task>.json`` of every dense task below ``out``, with the affine of the input.

    With ``probabilities`` also ``<task>.probabilities.nii.gz`` [I, J, K, classes], background included: float32, or
    uint8 of which 255 is 1 (NIfTI's slope stays 1, so that every reader gets the same integers).
    """
    volume = case.image
    assert isinstance(volume, Volume), "a picture has no NIfTI"
    paths = []
    for task, dense in case.dense.items():
        labels = dense.labels.astype(np.uint8 if len(dense.classes) <= 256 else np.uint16)
        paths.append(write_nifti(out / f"{task}.nii.gz", _like(volume, labels)))
        if probabilities != "none":
            chances = np.moveaxis(dense.probabilities, 0, -1)
            stored = chances.astype(np.float32) if probabilities == "float32" else _scaled(chances)
            paths.append(write_nifti(out / f"{task}.probabilities.nii.gz", _like(volume, stored)))
        tree = _sidecar(case, task, dense, probabilities, coding)
        paths.append(write_atomic(out / f"{task}.json", json.dumps(tree, indent=1, ensure_ascii=False) + "\n"))
    return paths


def _like(volume: Volume, array: np.ndarray) -> Volume:
    """``array`` in the place of ``volume``."""
    assert array.shape[:3] == volume.array.shape[:3], f"{array.shape} on a grid of {volume.array.shape}"
    return replace(volume, array=array, colour=False, time_step_s=None, units="", notes=())


def _scaled(chances: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(chances, 0, 1) * SCALE).astype(np.uint8)


def _sidecar(
    case: CasePrediction, task: str, dense: DenseMap, probabilities: Probabilities, coding: Mapping[str, Coding]
) -> dict[str, Any]:
    classes = []
    for index, name in enumerate(dense.classes):
        concept = coded(name, coding, task=task) if index else None
        code = {"value": concept.value, "scheme": concept.scheme, "meaning": concept.meaning} if concept else None
        classes.append({"value": index, "name": name, "code": code, "voxels": int((dense.labels == index).sum())})
    stored = {"none": None, "float32": "probability", "uint8": f"probability * {SCALE}, rounded"}[probabilities]
    return {
        "notice": NOTICE,
        "source": case.source.name,
        "task": task,
        "bundle": case.bundle,
        "medmtl": __version__,
        "classes": classes,
        "probabilities": stored,
        "not_looked_at_voxels": int((~dense.inside).sum()),  # background in the labels, 0 in the probabilities
        "warnings": [*case.warnings, *(f"{field}: {what}" for field, what in case.gate.items())],
    }
