"""Cases for the writers' tests: phantom scans with a map whose every voxel is known, and one result of each kind."""

from dataclasses import replace

import numpy as np

from medmtl.data.synthetic.dicom import write_phantom
from medmtl.inference.prediction import CasePrediction, DenseMap, Source
from medmtl.inference.writers.table import cell
from medmtl.io.dicom.header import read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import Policy, plan
from medmtl.tasks.classification import Classification
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

CLASSES = ("background", "lesion", "growth zone ü")
TASKS = {
    "diagnosis": Classification(classes=("benign", "malignant"), threshold=0.3),
    "adas_cog": Regression(low=0, high=85, unit="points"),
    "grade": Ordinal(low=0, high=3),
    "stage": Ordinal(classes=("I", "II", "III")),
    "cdr": Ordinal(classes=("0", "0.5", "1", "2")),
    "seg": Segmentation(classes=CLASSES),
}
CELLS = {
    "diagnosis.label": "malignant", "diagnosis.p.benign": 0.6543210987, "diagnosis.p.malignant": 0.3456789013,
    "adas_cog.value": 17.123456789, "adas_cog.unit": "points",
    "grade.level": "2", "grade.expected": 1.875, "grade.p.0": 0.125, "grade.p.1": 0.25, "grade.p.2": 0.25,
    "grade.p.3": 0.375,
    "stage.level": "II", "stage.p.I": 0.25, "stage.p.II": 0.25, "stage.p.III": 0.5,
    "cdr.level": "1", "cdr.expected": 1.125, "cdr.p.0": 0.125, "cdr.p.0.5": 0.25, "cdr.p.1": 0.25, "cdr.p.2": 0.375,
    "seg.fraction.lesion": 0.012345678, "seg.fraction.growth zone ü": 1.5e-07,
}  # fmt: skip
NOTICE = "Research use only"


def stacks(folder, policy=Policy()):
    found = plan([read_header(path) for path in sorted(folder.rglob("*.dcm"))], policy)
    assert not found.refused, found.refused[0].error
    return found.volumes


def phantom(folder, kind, *, which=0, policy=Policy()):
    """A case over the volume ``which`` of a phantom folder, and the folder's truth."""
    truth = write_phantom(folder, kind)
    return case_of(stacks(folder, policy)[which]), truth


def case_of(stack, *, dense=None):
    volume = load(stack)
    dense = dense_of(blobs(stack.shape[:3])) if dense is None else dense
    source = Source("dicom", "P7QX/1", tuple(header.path for header in stack.headers), stack=stack)
    return CasePrediction(source, volume, TASKS, CELLS, {"seg": dense}, "abc123def456")


def with_tasks(case, *names, dense=None):
    """The same case of a bundle of fewer tasks."""
    cells = {key: value for key, value in case.cells.items() if key.split(".")[0] in names}
    tasks = {name: case.tasks[name] for name in names}
    return replace(case, tasks=tasks, cells=cells, dense=case.dense if dense is None else dense)


def blobs(shape):
    """Two boxes that no mirror image, transposition or reversal of the grid leaves in place."""
    columns, rows, slices = shape
    labels = np.zeros(shape, np.uint8)
    labels[columns // 7 : columns // 7 + 6, rows // 2 + 3 : rows // 2 + 8, min(1, slices - 1) : max(slices // 3, 1)] = 1
    labels[
        columns // 2 + 9 : columns // 2 + 12, rows // 5 : rows // 5 + 2, slices // 2 : max(slices - 2, slices // 2 + 1)
    ] = 2
    return labels


def dense_of(labels, classes=CLASSES):
    """A map of these labels: 0.7 for the class itself, the rest for the next one."""
    own = np.stack([labels == k for k in range(len(classes))])
    return DenseMap(
        (0.7 * own + 0.3 * np.roll(own, 1, axis=0)).astype(np.float32), labels, np.ones(labels.shape, bool), classes
    )


def centroid_mm(affine, mask):
    """World coordinates (RAS mm) of the middle of a mask [I, J, K]."""
    return affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]


def tabled(case, column):
    """What ``predictions.csv`` says in a column."""
    return cell(case.cells[column])
