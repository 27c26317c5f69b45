"""What was predicted for one input: all that a writer needs, and nothing that it must look up again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from medmtl.io.dicom.stack import Stack
from medmtl.io.volume import Volume
from medmtl.tasks import AnyTask

Cell = str | float
Kind = Literal["raster", "nifti", "dicom"]


@dataclass(frozen=True)
class Source:
    """Where an input came from.

    ``name`` is unique in the job and safe in a file name: the path below the source folder for pictures and NIfTI
    files, modality and a hash of its UIDs for DICOM, whose names and folders may name a patient.
    """

    kind: Kind
    name: str
    files: tuple[Path, ...]  # absolute; of a DICOM volume every instance, in the order of its slices
    page: int = 0  # of a TIFF
    stack: Stack | None = None  # DICOM: which instance and frame each slice of the volume came from


@dataclass(frozen=True)
class DenseMap:
    """A dense task's result on the input's own grid S: (H, W) of a picture, (I, J, K) of a volume."""

    probabilities: npt.NDArray[np.float32]  # [K, *S]; 0 where the network did not look
    labels: npt.NDArray[np.integer]  # [*S] class indices: the most probable class, 0 (background) where not ``inside``
    inside: npt.NDArray[np.bool_]  # [*S], where the network looked
    classes: tuple[str, ...]  # K names, the background first


@dataclass(frozen=True)
class CasePrediction:
    """The results of one input."""

    source: Source
    image: npt.NDArray[np.float32] | Volume  # a picture [C, H, W] in [0, 1], or a volume
    tasks: Mapping[str, AnyTask]  # of the bundle, without the domain's
    cells: Mapping[str, Cell]  # its row of predictions.csv: ``<task>.label``, ``<task>.p.<class>``, ``<task>.value``...
    dense: Mapping[str, DenseMap]  # by task
    bundle: str  # id
    warnings: tuple[str, ...] = ()
    gate: Mapping[str, str] = field(default_factory=dict)  # field of the fingerprint -> what is wrong with it
