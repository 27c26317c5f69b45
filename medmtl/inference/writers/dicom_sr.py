"""All results of a case as a DICOM Structured Report: a Measurement Report (TID 1500, PS3.16), through highdicom.

A task without a map is a measurement group (TID 1501) over the source images; each class that was segmented is a region
of interest (TID 1411) with a reference to its segment, or, without a segmentation to refer to, a group like the others.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceImageForMeasurementGroup,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

from medmtl import __version__
from medmtl.inference.prediction import CasePrediction
from medmtl.inference.writers.dicom_common import (
    AI,
    MAKER,
    MODEL,
    common,
    concept,
    header_of,
    made_uid,
    put_in_order,
    refusals,
    save,
    stand_in,
)
from medmtl.inference.writers.dicom_seg import tracking_uid
from medmtl.inference.writers.findings import NOTICE, Coding, Finding, findings, private, shortened
from medmtl.io.dicom.record import Header
from medmtl.io.dicom.stack import Stack

SERIES_NUMBER = 9002
NAME = "measurements.sr.dcm"
Group = MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations


def write(
    case: CasePrediction, out: Path, *, segmentations: Sequence[Path] = (), coding: Mapping[str, Coding] = {}
) -> list[Path]:
    """``measurements.sr.dcm`` below ``out``; ``segmentations`` are the files of :mod:`dicom_seg` to refer to.

    Values are those of ``predictions.csv``, with 7 significant digits. Nothing is written for a case without any
    result. Raises UserError ``E-OUT-SOURCE``, ``E-OUT-DICOM``, ``E-FILE-CHANGED``.
    """
    found = [item for item in findings(case, coding) if item.measures or item.answer]
    if not found:
        return []
    assert case.source.stack is not None
    header = header_of(case.source.stack)
    with refusals("DICOM report"):
        made = {path.name.removesuffix(".seg.dcm"): dcmread(path, stop_before_pixels=True) for path in segmentations}
        return [save(out / NAME, report(case, found, header, made))]


def report(
    case: CasePrediction, found: Sequence[Finding], header: Dataset, made: Mapping[str, Dataset]
) -> ComprehensiveSR:
    """The report of ``found``; ``header`` is that of the first source file, ``made`` the segmentations by task."""
    stack = case.source.stack
    assert stack is not None
    content = MeasurementReport(
        observation_context=ObservationContext(_observer(case)),
        procedure_reported=concept(private("Automated image analysis, research use only")),
        imaging_measurements=_groups(case, found, made),
        title=codes.DCM.ImagingMeasurementReport,
    )
    digest = hashlib.sha256(content[0].to_json().encode()).hexdigest()
    sources = [_evidence(stack, header, n, used) for n, used in enumerate(stack.headers)]
    ds = ComprehensiveSR(
        evidence=[*sources, *made.values()],
        content=content[0],
        series_instance_uid=made_uid(case.bundle, stack.first.series_uid, stack.key, "SR"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=made_uid(case.bundle, stack.first.series_uid, stack.key, "SR", digest),
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="medmtl results, research use only",
        **common(stack),
    )
    classes = {used.sop_instance_uid: used.sop_class_uid for used in stack.headers}
    for element in ds.CurrentRequestedProcedureEvidenceSequence:
        for item in (item for series in element.ReferencedSeriesSequence for item in series.ReferencedSOPSequence):
            item.ReferencedSOPClassUID = classes.get(item.ReferencedSOPInstanceUID, item.ReferencedSOPClassUID)
    put_in_order(ds, {})
    return ds


def _observer(case: CasePrediction) -> ObserverContext:
    device = DeviceObserverIdentifyingAttributes(
        uid=made_uid(MAKER, __version__, case.bundle),
        name=f"{MAKER} bundle {case.bundle}",
        manufacturer_name=MAKER,
        model_name=MODEL,
    )
    return ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)


def _evidence(stack: Stack, header: Dataset, number: int, used: Header) -> Dataset:
    """A source file as evidence; the first carries the patient and the study."""
    ds = stand_in(stack, header if number == 0 else Dataset(), number)
    ds.SOPInstanceUID, ds.SeriesInstanceUID = used.sop_instance_uid, used.series_uid
    return ds


def _groups(case: CasePrediction, found: Sequence[Finding], made: Mapping[str, Dataset]) -> list[Group]:
    groups: list[Group] = []
    images: Sequence[SourceImageForMeasurementGroup] | None = _images(case)
    for item in found:
        segment = _segment(case, item, made)
        shared: dict[str, Any] = {
            "tracking_identifier": TrackingIdentifier(_tracking(case, item), shortened(_name(item))),
            "finding_type": concept(item.subject),
            "algorithm_id": _algorithm(case, item.task),
            "measurements": [Measurement(concept(m.name), m.value, concept(m.unit)) for m in item.measures],
            "qualitative_evaluations": _answers(item),
        }
        if segment is not None:
            groups.append(VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **shared))
        else:  # a group without images is of all that the report names (TID 1501, row 10): they are named once
            groups.append(MeasurementsAndQualitativeEvaluations(source_images=images, **shared))
            images = None
    return groups


def _images(case: CasePrediction) -> list[SourceImageForMeasurementGroup]:
    """The source files, of a multi-frame file with the frames that the volume is made of."""
    stack = case.source.stack
    assert stack is not None
    frames: dict[str, set[int]] = {}
    for item in stack.slices:
        own = frames.setdefault(item.header.sop_instance_uid, set())
        if len(item.header.frames) > 1 and item.frame.tile is None:
            own.add(item.frame.index + 1)
    return [
        SourceImageForMeasurementGroup(used.sop_class_uid, used.sop_instance_uid, sorted(own) or None)
        for used in stack.headers
        for own in (frames[used.sop_instance_uid],)
    ]


def _segment(case: CasePrediction, item: Finding, made: Mapping[str, Dataset]) -> ReferencedSegment | None:
    """The segment of a class in the segmentation of its task; None without one, or where the class was not found.

    Not ``ReferencedSegment.from_segmentation``, which fails for a segmentation of one segment (highdicom 0.28).
    """
    ds = made.get(item.task)
    if ds is None or item.segment is None or not np.any(case.dense[item.task].labels == item.segment):
        return None
    series = SourceSeriesForSegmentation(ds.ReferencedSeriesSequence[0].SeriesInstanceUID)
    return ReferencedSegment(ds.SOPClassUID, ds.SOPInstanceUID, item.segment, source_series=series)


def _name(item: Finding) -> str:
    """``<task>``, or ``<task>.<class>``: what the columns of ``predictions.csv`` begin with."""
    return item.task if item.segment is None else f"{item.task}.{item.label}"


def _tracking(case: CasePrediction, item: Finding) -> str:
    return tracking_uid(case, item.task, item.segment or 0)


def _answers(item: Finding) -> list[QualitativeEvaluation]:
    return [QualitativeEvaluation(concept(item.subject), concept(item.answer))] if item.answer else []


def _algorithm(case: CasePrediction, task: str) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=f"medmtl {task}"[:64],
        version=case.bundle,
        parameters=[f"medmtl {__version__}", NOTICE],
        family=concept(AI),
        manufacturer=MAKER,
    )
