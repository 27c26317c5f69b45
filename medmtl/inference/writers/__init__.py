"""Results as files, one function for each format: the same case and settings give the same bytes.

Every file says that it is for research only. None holds more of the patient than its source: DICOM results copy the
patient from the source file, everything else knows the source by the name that the job gave it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, field_validator

from medmtl.config import Config
from medmtl.inference.prediction import CasePrediction
from medmtl.inference.writers import dicom_seg, dicom_sr, nifti, record, report
from medmtl.inference.writers.dicom_common import InvalidUID
from medmtl.inference.writers.findings import Coding
from medmtl.io.volume import Volume

Format = Literal["nifti", "dicom-seg", "dicom-sr", "json", "html"]
FORMATS: tuple[Format, ...] = get_args(Format)


class Output(Config):
    """Which files are written beside the tables, and what is in them."""

    formats: tuple[Format, ...] = ()
    probabilities: nifti.Probabilities = "none"  # of NIfTI: maps of the classes' probabilities beside the labels
    segmentation: dicom_seg.Kind = "binary"
    coding: dict[str, Coding] = Field(default_factory=dict)  # class, <task>.<class> or task -> its code elsewhere

    @field_validator("formats")
    @classmethod
    def _once(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        return tuple(name for name in FORMATS if name in formats)


@dataclass(frozen=True)
class Written:
    """The files of a case, and what could not be written for it and why."""

    paths: tuple[Path, ...]
    warnings: tuple[str, ...] = ()


def write_case(case: CasePrediction, out: Path, output: Output) -> Written:
    """Every chosen format below ``out``, the folder of this case; what its source cannot have is a warning: also DICOM
    results of a source whose UIDs are none.

    Raises UserError: ``E-OUT-SOURCE`` and ``E-FILE-CHANGED`` (a DICOM source that is no longer what was read),
    ``E-OUT-DICOM`` (its headers allow no DICOM result), EnvironmentFailure (``E-DISK``).
    """
    paths: dict[Format, list[Path]] = {}
    warnings = []
    for name in output.formats:
        if reason := _lacking(case, name):
            warnings.append(f"W-OUT-FORMAT no {name}: {reason}")
            continue
        try:
            paths[name] = _written(case, out, output, name, paths.get("dicom-seg", ()))
        except InvalidUID as error:
            warnings.append(f"W-OUT-FORMAT no {name}: {error.what}")
    return Written(tuple(path for made in paths.values() for path in made), tuple(warnings))


def _written(
    case: CasePrediction, out: Path, output: Output, name: Format, segmentations: Sequence[Path]
) -> list[Path]:
    match name:
        case "nifti":
            return nifti.write(case, out, probabilities=output.probabilities, coding=output.coding)
        case "dicom-seg":
            return dicom_seg.write(case, out, kind=output.segmentation, coding=output.coding)
        case "dicom-sr":
            return dicom_sr.write(case, out, segmentations=segmentations, coding=output.coding)
        case "json":
            return record.write(case, out, coding=output.coding)
        case "html":
            return report.write(case, out)


def _lacking(case: CasePrediction, name: Format) -> str:
    """Why a case cannot have a format; empty if it can."""
    if name == "nifti" and not isinstance(case.image, Volume):
        return "the input is a picture"
    if name in ("dicom-seg", "dicom-sr") and case.source.stack is None:
        return "the input is no DICOM"
    if name in ("nifti", "dicom-seg") and not case.dense:
        return "no task of the bundle makes a map"
    return ""


write_index = report.write_index
