"""The frames of a multi-frame file, each with its own place, scale and time, out of functional groups (PS3.3 C.7.6.16).

Where an element can be in the data set, in the shared or in the per-frame groups, the most particular one counts.
"""

import math
from collections.abc import Iterable
from typing import Any

from medmtl.io.dicom.elements import Elements, tag_of
from medmtl.io.dicom.frames import classic_frame, classic_split, put_direction, put_number, seconds, vector
from medmtl.io.dicom.record import Fact, Frame, Value

MACROS = {  # element -> the sequences of a functional group that it can be in
    "ImagePositionPatient": ("PlanePositionSequence",),
    "ImageOrientationPatient": ("PlaneOrientationSequence",),
    "PixelSpacing": ("PixelMeasuresSequence",),
    "SliceThickness": ("PixelMeasuresSequence",),
    "SpacingBetweenSlices": ("PixelMeasuresSequence",),
    "RescaleSlope": ("PixelValueTransformationSequence",),
    "RescaleIntercept": ("PixelValueTransformationSequence",),
    "RescaleType": ("PixelValueTransformationSequence",),
    "EffectiveEchoTime": ("MREchoSequence",),
    "RepetitionTime": ("MRTimingAndRelatedParametersSequence",),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence",),
    "EchoTrainLength": ("MRTimingAndRelatedParametersSequence",),
    "InversionTimes": ("MRModifierSequence",),
    "DiffusionBValue": ("MRDiffusionSequence",),
    "DiffusionDirectionality": ("MRDiffusionSequence",),
    "TemporalPositionIndex": ("FrameContentSequence",),
    "FrameAcquisitionNumber": ("FrameContentSequence",),
    "FrameAcquisitionDateTime": ("FrameContentSequence",),
    "FrameReferenceDateTime": ("FrameContentSequence",),
    "StackID": ("FrameContentSequence",),
    "DimensionIndexValues": ("FrameContentSequence",),
    "NominalCardiacTriggerDelayTime": ("CardiacSynchronizationSequence",),
    "FrameType": ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence",
                  "XRay3DFrameTypeSequence", "ParametricMapFrameTypeSequence"),
    "ComplexImageComponent": ("MRImageFrameTypeSequence",),
    "ConvolutionKernel": ("CTReconstructionSequence",),
    "KVP": ("CTXRayDetailsSequence",),
    "RealWorldValueSlope": ("RealWorldValueMappingSequence",),
    "RealWorldValueIntercept": ("RealWorldValueMappingSequence",),
}  # fmt: skip
_IN_ORDER = ("ImagePositionPatient", "ImageOrientationPatient", "InStackPositionNumber", "SliceLocation")
_FACTS = {
    "EchoTime": "EffectiveEchoTime", "RepetitionTime": "RepetitionTime", "FlipAngle": "FlipAngle", "KVP": "KVP",
    "InversionTime": "InversionTimes", "EchoTrainLength": "EchoTrainLength", "SliceThickness": "SliceThickness",
    "SpacingBetweenSlices": "SpacingBetweenSlices",
}  # fmt: skip


def group_frames(elements: Elements, count: int, *, mapped: bool) -> tuple[Frame, ...]:
    """The ``count`` frames of a file with functional groups; ``mapped``: real values come from the value mapping."""
    shared = elements.item("SharedFunctionalGroupsSequence")
    per_frame = elements.items("PerFrameFunctionalGroupsSequence")
    pointers = _dimensions(elements)
    common = classic_split(elements)
    for name in ("AcquisitionTime", "ContentTime"):  # of the whole file: other frames may say their own
        common.pop(name, None)
    whole = classic_frame(elements)
    empty = elements.item(0xFFFFFFFF)
    shared_macros = _Groups((shared,))
    return tuple(
        _group_frame(
            index,
            _Groups((per_frame[index] if index < len(per_frame) else empty,), shared_macros),
            whole,
            common,
            pointers,
            mapped,
        )
        for index in range(count)
    )


class FirstFrame:
    """What a file says of its acquisition in the functional groups of its first frame, or in the data set."""

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        first = elements.items("PerFrameFunctionalGroupsSequence")[:1]
        self._look = _Groups((*first, elements.item("SharedFunctionalGroupsSequence")))

    def number(self, keyword: str) -> float | None:
        """The number in the groups, else in the data set."""
        item = self._look(keyword)
        return self._elements.number(keyword) if item is None else item.number(keyword)

    def facts(self) -> dict[str, Fact]:
        """What the groups say of the acquisition, by the keyword that a classic file has it under."""
        facts: dict[str, Fact] = {}
        for name, keyword in _FACTS.items():
            item = self._look(keyword)
            value = None if item is None else item.number(keyword)
            if value is not None and math.isfinite(value):
                facts[name] = value
        return facts


class _Groups:
    """Looks elements up in the macros of a frame's functional groups, then in the shared ones."""

    def __init__(self, groups: Iterable[Elements], behind: "_Groups | None" = None) -> None:
        self._groups, self._behind = tuple(groups), behind
        self._items: dict[str, Elements | None] = {}

    def __call__(self, keyword: str) -> Elements | None:
        for sequence in MACROS[keyword]:
            if sequence not in self._items:
                self._items[sequence] = next((g.item(sequence) for g in self._groups if sequence in g), None)
            item = self._items[sequence]
            if item is not None and keyword in item:
                return item
        return self._behind(keyword) if self._behind else None


def _group_frame(
    index: int,
    look: _Groups,
    whole: Frame,
    common: dict[str, Value],
    pointers: tuple[str, ...],
    mapped: bool,
) -> Frame:
    broken: list[str] = []
    slope, intercept = (
        ("RealWorldValueSlope", "RealWorldValueIntercept") if mapped else ("RescaleSlope", "RescaleIntercept")
    )
    return Frame(
        index,
        position=_in_groups(look, "ImagePositionPatient", 3, broken),
        orientation=_in_groups(look, "ImageOrientationPatient", 6, broken) or whole.orientation,
        spacing=_in_groups(look, "PixelSpacing", 2, broken) or whole.spacing,
        slope=_group_scale(look, slope, whole.slope),
        intercept=_group_scale(look, intercept, whole.intercept),
        units=_group_text(look, "RescaleType") or whole.units,
        split={**common, **_group_split(look, pointers)},
        broken=tuple(broken),
    )


def _group_split(look: _Groups, pointers: tuple[str, ...]) -> dict[str, Value]:
    split: dict[str, Value] = {}
    for name, keyword in (("ImageType", "FrameType"), ("ComplexImageComponent",) * 2, ("StackID",) * 2,
                          ("ConvolutionKernel",) * 2, ("DiffusionDirectionality",) * 2):  # fmt: skip
        item = look(keyword)
        if item is not None and (texts := item.texts(keyword)):
            split[name] = "\\".join(texts)
    for name, keyword in (("EchoTime", "EffectiveEchoTime"), ("InversionTime", "InversionTimes"),
                          ("FlipAngle",) * 2, ("DiffusionBValue",) * 2, ("TemporalPositionIndex",) * 2,
                          ("AcquisitionNumber", "FrameAcquisitionNumber"), ("SliceThickness",) * 2,
                          ("TriggerTime", "NominalCardiacTriggerDelayTime")):  # fmt: skip
        item = look(keyword)
        if item is not None:
            put_number(split, name, item.number(keyword))
    diffusion = look("DiffusionBValue")
    if diffusion is not None:
        direction = diffusion.item("DiffusionGradientDirectionSequence").numbers("DiffusionGradientOrientation")
        put_direction(split, direction)
    item = look("FrameAcquisitionDateTime")
    if item is not None:
        put_number(split, "AcquisitionTime", seconds(item.text("FrameAcquisitionDateTime"), ""))
    item = look("DimensionIndexValues")
    if item is not None:
        for name, value in zip(pointers, item.numbers("DimensionIndexValues"), strict=False):
            if name:
                put_number(split, f"Dimension {name}", value)
    return split


def _dimensions(elements: Elements) -> tuple[str, ...]:
    """A name per dimension of the file's index, empty where it counts positions (PS3.3 C.7.6.17)."""
    names = []
    for item in elements.items("DimensionIndexSequence"):
        content = item.content("DimensionIndexPointer")
        group, element = (int.from_bytes(content[at : at + 2], "little") for at in (0, 2))
        tag = group << 16 | element
        position = any(tag == tag_of(keyword) for keyword in _IN_ORDER)
        names.append("" if position else f"{group:04X},{element:04X}")
    return tuple(names)


def _in_groups(look: _Groups, keyword: str, length: int, broken: list[str]) -> Any:
    item = look(keyword)
    return None if item is None else vector(item, keyword, length, broken)


def _group_scale(look: _Groups, keyword: str, otherwise: float | None) -> float | None:
    item = look(keyword)
    return otherwise if item is None else item.number(keyword)


def _group_text(look: _Groups, keyword: str) -> str:
    item = look(keyword)
    return "" if item is None else item.text(keyword)
