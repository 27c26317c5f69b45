"""The results of a case as named quantities and answers, with codes: what the structured reports are made of.

A code comes from the user's ``coding``, else from a short list of plain names (lesion, liver), else from our own scheme
99MEDMTL, whose codes mean what the bundle's classes mean and nothing beyond it.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict, Field

from medmtl.config import Config
from medmtl.inference.prediction import CasePrediction, Cell
from medmtl.io.volume import Volume
from medmtl.tasks import AnyTask
from medmtl.tasks.base import Task
from medmtl.tasks.classification import Classification, ClassificationBase
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

PRIVATE = "99MEDMTL"
NOTICE = "Research use only. Not a medical device; not for diagnosis or treatment."
_CODE, _MEANING = 16, 64  # characters that DICOM allows: SH and LO


class Concept(Config):
    """A coded concept: DICOM's triplet. Codes of digits alone may be written as numbers in YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, coerce_numbers_to_str=True)

    value: str = Field(min_length=1, max_length=_MEANING)
    scheme: str = Field("SCT", min_length=1, max_length=_CODE)
    meaning: str = Field(min_length=1, max_length=_MEANING)


class Coding(Concept):
    """What a class or task is called elsewhere; ``category`` is of a segment (CID 7150), an organ or a lesion say."""

    category: Concept | None = None


def sct(value: str, meaning: str) -> Concept:
    return Concept(value=value, meaning=meaning)


ORGAN, ABNORMAL, TISSUE = (
    sct("91723000", "Anatomical Structure"),
    sct("49755003", "Morphologically Abnormal Structure"),
    sct("85756007", "Tissue"),
)
_ABNORMAL = {
    "lesion": "52988006", "neoplasm": "108369006", "nodule": "27925004", "mass": "4147007", "cyst": "367643001",
    "edema": "79654002", "necrosis": "6574001", "hemorrhage": "50960005", "hematoma": "35566002", "ulcer": "56208002",
}  # fmt: skip
_ORGANS = {
    "liver": "10200004", "kidney": "64033007", "spleen": "78961009", "pancreas": "15776009", "brain": "12738006",
    "heart": "80891009", "lung": "39607008", "prostate": "41216001", "cervix": "71252005", "skin": "39937001",
    "bladder": "89837001", "stomach": "69695003", "colon": "71854001", "esophagus": "32849002", "aorta": "15825003",
    "uterus": "35039007", "breast": "76752008", "hippocampus": "5366008",
}  # fmt: skip
_SYNONYMS = {
    "tumor": "neoplasm", "tumour": "neoplasm", "oedema": "edema", "haemorrhage": "hemorrhage",
    "haematoma": "hematoma", "oesophagus": "esophagus",
}  # fmt: skip
KNOWN: Mapping[str, Coding] = {
    **{name: Coding(value=v, meaning=name.capitalize(), category=ABNORMAL) for name, v in _ABNORMAL.items()},
    **{name: Coding(value=v, meaning=name.capitalize(), category=ORGAN) for name, v in _ORGANS.items()},
}

VOLUME = sct("118565006", "Volume")
ONE = Concept(value="1", scheme="UCUM", meaning="no units")
MM3 = Concept(value="mm3", scheme="UCUM", meaning="cubic millimeter")
_UCUM = {
    "": ("1", "no units"), "%": ("%", "percent"), "mm": ("mm", "millimeter"), "cm": ("cm", "centimeter"),
    "mm2": ("mm2", "square millimeter"), "cm2": ("cm2", "square centimeter"), "mm3": ("mm3", "cubic millimeter"),
    "cm3": ("cm3", "cubic centimeter"), "ml": ("ml", "milliliter"), "mL": ("ml", "milliliter"), "l": ("l", "liter"),
    "g": ("g", "gram"), "kg": ("kg", "kilogram"), "s": ("s", "second"), "years": ("a", "year"), "year": ("a", "year"),
    "months": ("mo", "month"), "days": ("d", "day"), "weeks": ("wk", "week"), "HU": ("[hnsf'U]", "Hounsfield unit"),
    "score": ("{score}", "score"), "points": ("{points}", "points"), "mm/year": ("mm/a", "millimeter per year"),
}  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """A number of a finding. ``column`` is the one of ``predictions.csv`` that holds it, empty where none does."""

    name: Concept
    value: float
    unit: Concept
    column: str = ""


@dataclass(frozen=True)
class Finding:
    """The result of a task; of a dense task one for each foreground class, ``segment``, counted from 1."""

    task: str
    subject: Concept  # the task, or the class that was segmented
    label: str  # the same in the bundle's words
    answer: Concept | None = None  # a class or a named level
    answer_column: str = ""
    measures: tuple[Measure, ...] = ()
    segment: int | None = None


def coded(name: str, coding: Mapping[str, Coding], *, task: str = "") -> Coding:
    """The concept that a class (of ``task``) or a task stands for; the user's first, ``<task>.<class>`` before it."""
    for key in (f"{task}.{name}", name) if task else (name,):
        if key in coding:
            return coding[key]
    plain = name.strip().lower()
    return KNOWN.get(_SYNONYMS.get(plain, plain)) or private(name)


def private(meaning: str) -> Coding:
    """A concept of our own scheme; its code is the name where that is a code, else begun by it and made unique."""
    code = re.sub(r"[^A-Za-z0-9._-]+", "_", meaning).strip("_")
    if code != meaning or len(code) > _CODE:
        code = f"{code[:7]}-{hashlib.sha256(meaning.encode()).hexdigest()[:8]}"
    return Coding(value=code, scheme=PRIVATE, meaning=shortened(meaning))


def shortened(text: str, length: int = _MEANING) -> str:
    """Text as a code meaning or label: no backslash, which separates values, and no more than DICOM allows."""
    clean = " ".join(text.replace("\\", "/").split()) or "unnamed"
    return clean if len(clean) <= length else f"{clean[: length - 3]}..."


def unit_of(text: str) -> Concept:
    """A unit in UCUM; what UCUM does not know becomes an annotation of the unit 1, ``{points}``."""
    if text in _UCUM:
        return Concept(value=_UCUM[text][0], scheme="UCUM", meaning=_UCUM[text][1])
    inner = re.sub(r"([^!-z|~]|\\)+", "_", text)[: _CODE - 2]
    return Concept(value=f"{{{inner}}}", scheme="UCUM", meaning=shortened(text))


def findings(case: CasePrediction, coding: Mapping[str, Coding]) -> tuple[Finding, ...]:
    """Everything that was found in ``case``, in the order of its tasks; a cell that is absent is left out."""
    return tuple(found for name, task in case.tasks.items() for found in _of(case, name, task, coding))


def _of(case: CasePrediction, name: str, task: AnyTask, coding: Mapping[str, Coding]) -> Iterator[Finding]:
    subject = coded(name, coding)
    match task:
        case Segmentation():
            yield from _segments(case, name, task, coding)
        case Regression():
            measures = _measures(case.cells, {f"{name}.value": subject}, unit_of(task.unit))
            yield Finding(name, subject, name, measures=(*measures, *_spread(case.cells, name, unit_of(task.unit))))
        case Ordinal():
            yield _ordinal(case, name, task, subject, coding)
        case ClassificationBase():
            label = case.cells.get(f"{name}.label")
            answer = None if label is None else coded(str(label), coding, task=name)
            chances = _chances(case.cells, name, task.classes)
            yield Finding(
                name,
                subject,
                name,
                answer,
                f"{name}.label",
                (*chances, *_threshold(task), *_spread(case.cells, name, ONE)),
            )


def _ordinal(case: CasePrediction, name: str, task: Ordinal, subject: Coding, coding: Mapping[str, Coding]) -> Finding:
    column, expected = f"{name}.level", private(f"Expected {name}")
    chances = _chances(case.cells, name, task.levels)
    mean = _measures(case.cells, {f"{name}.expected": expected}, unit_of(task.unit))
    mean = (*mean, *_spread(case.cells, name, ONE))  # of probabilities, as of any label
    if task.classes:
        label = case.cells.get(column)
        answer = None if label is None else coded(str(label), coding, task=name)
        return Finding(name, subject, name, answer, column, (*mean, *chances))
    level = _measures(case.cells, {column: subject}, unit_of(task.unit))
    return Finding(name, subject, name, measures=(*level, *mean, *chances))


def _segments(case: CasePrediction, name: str, task: Segmentation, coding: Mapping[str, Coding]) -> Iterator[Finding]:
    for segment, label in enumerate(task.classes[1:], start=1):
        share = {f"{name}.fraction.{label}": private(f"Fraction of {label}")}
        measures = _measures(case.cells, share, ONE)
        measures = (*measures, *_volume(case, name, label, segment), *_spread(case.cells, name, ONE))
        yield Finding(name, coded(label, coding, task=name), label, measures=measures, segment=segment)


def _volume(case: CasePrediction, name: str, label: str, segment: int) -> tuple[Measure, ...]:
    """The table's millilitres of a class; where it has none, the voxels' own volume."""
    if measures := _measures(case.cells, {f"{name}.ml.{label}": VOLUME}, unit_of("ml")):
        return measures
    volume = volume_mm3(case, name, segment)
    return () if volume is None else (Measure(VOLUME, volume, MM3),)


def volume_mm3(case: CasePrediction, task: str, segment: int) -> float | None:
    """Voxels of a class times the size of one; None of a picture, or where nothing says how large a voxel is."""
    if task not in case.dense or not isinstance(case.image, Volume) or case.image.affine is None:
        return None
    voxel = abs(float(np.linalg.det(case.image.affine[:3, :3])))
    return float(np.count_nonzero(case.dense[task].labels == segment)) * voxel


def _chances(cells: Mapping[str, Cell], name: str, labels: tuple[str, ...]) -> tuple[Measure, ...]:
    return _measures(cells, {f"{name}.p.{label}": private(f"Probability of {label}") for label in labels}, ONE)


def _spread(cells: Mapping[str, Cell], name: str, unit: Concept) -> tuple[Measure, ...]:
    """How far several bundles are apart, where several made the prediction."""
    return _measures(cells, {f"{name}.spread": private(f"Spread of {name}")}, unit)


def _threshold(task: ClassificationBase) -> tuple[Measure, ...]:
    """Of a label out of two: the probability from which the positive class is the answer."""
    found = threshold_of(task)
    return () if found is None else (Measure(private(f"Threshold of {found[0]}"), found[1], ONE),)


def threshold_of(task: Task) -> tuple[str, float] | None:
    """The class that a binary task decides on, and from which probability; None of other tasks."""
    if not isinstance(task, Classification) or not task.binary:
        return None
    return task.classes[task.positive_index], 0.5 if task.threshold is None else task.threshold


def _measures(cells: Mapping[str, Cell], names: Mapping[str, Concept], unit: Concept) -> tuple[Measure, ...]:
    """The numbers in these columns, as exact as ``predictions.csv`` has them: 7 significant digits."""
    present = ((name, column, cells[column]) for column, name in names.items() if cells.get(column, "") != "")
    return tuple(Measure(name, float(f"{float(value):.7g}"), unit, column) for name, column, value in present)
