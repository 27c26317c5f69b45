"""The frame of a classic file: its place, scale, and what can tell it from another frame at the same position."""

import math
from datetime import date
from typing import Any

from medmtl.io.dicom.elements import Elements, tag_of
from medmtl.io.dicom.record import Frame, Value

_SPLIT_NUMBERS = (
    "EchoTime", "EchoNumbers", "InversionTime", "FlipAngle", "TemporalPositionIdentifier", "TemporalPositionIndex",
    "AcquisitionNumber", "TriggerTime", "FrameReferenceTime", "SliceThickness",
)  # fmt: skip
_SPLIT_NUMBER_TAGS = tuple((keyword, tag_of(keyword)) for keyword in _SPLIT_NUMBERS)
SPLIT_TAGS = frozenset(
    tag_of(keyword)
    for keyword in (
        *_SPLIT_NUMBERS,
        "ImageType",
        "ConvolutionKernel",
        "DiffusionBValue",
        "DiffusionGradientOrientation",
        "AcquisitionDateTime",
        "AcquisitionDate",
        "AcquisitionTime",
        "ContentDate",
        "ContentTime",
        "ComplexImageComponent",
        "EffectiveEchoTime",
    )
)
PRIVATE_ELEMENTS = {  # (group, creator, element)
    "siemens_b": (0x0019, "SIEMENS MR HEADER", 0x0C),
    "siemens_direction": (0x0019, "SIEMENS MR HEADER", 0x0E),
    "philips_b": (0x2001, "Philips Imaging DD 001", 0x03),
    "ge_b": (0x0043, "GEMS_PARM_01", 0x39),
}


def classic_frame(elements: Elements, *, index: int = 0, tile: int | None = None) -> Frame:
    """The only frame of a file of one image."""
    broken: list[str] = []
    return Frame(
        index,
        tile,
        position=vector(elements, "ImagePositionPatient", 3, broken),
        orientation=vector(elements, "ImageOrientationPatient", 6, broken),
        spacing=vector(elements, "PixelSpacing", 2, broken),
        slope=elements.number("RescaleSlope"),
        intercept=elements.number("RescaleIntercept"),
        units=elements.text("Units") or elements.text("RescaleType"),
        split=classic_split(elements),
        broken=tuple(broken),
    )


def classic_split(elements: Elements) -> dict[str, Value]:
    split: dict[str, Value] = {}
    for name in ("ImageType", "ConvolutionKernel", "ComplexImageComponent"):
        if texts := elements.texts(name):
            split[name] = "\\".join(texts)
    for name, tag in _SPLIT_NUMBER_TAGS:
        put_number(split, name, elements.number(tag))
    if "EchoTime" not in split:
        put_number(split, "EchoTime", elements.number("EffectiveEchoTime"))
    put_number(split, "DiffusionBValue", _b_value(elements))
    direction = elements.numbers("DiffusionGradientOrientation")
    private = elements.private(*PRIVATE_ELEMENTS["siemens_direction"])
    if not direction and private:
        direction = elements.numbers(private)
    put_direction(split, direction)
    moment = elements.text("AcquisitionDateTime")
    acquired = seconds(moment, "") if moment else _moment(elements, "Acquisition")
    put_number(split, "AcquisitionTime", acquired)
    put_number(split, "ContentTime", _moment(elements, "Content"))
    return split


def put_number(split: dict[str, Value], name: str, value: float | None) -> None:
    if value is not None and math.isfinite(value):
        split[name] = round(value, 4)


def put_direction(split: dict[str, Value], direction: tuple[float, ...]) -> None:
    if len(direction) == 3 and all(math.isfinite(value) for value in direction):
        split["DiffusionGradient"] = "\\".join(f"{value + 0:.4f}" for value in direction)


def seconds(day: str, time: str) -> float | None:
    """Seconds of a DICOM date and time (or one DT value in ``day``), for their differences; None where unreadable."""
    if not time and len(day) > 8:
        day, time = day[:8], day[8:].split("+")[0].split("-")[0]
    time = time.replace(":", "")
    try:
        days = date(int(day[:4]), int(day[4:6]), int(day[6:8])).toordinal() if len(day) == 8 else 0
        clock = (int(time[:2]) * 60 + int(time[2:4] or 0)) * 60 + float(time[4:] or 0) if time else None
    except ValueError:
        return None
    return None if clock is None else days * 86400 + clock


def vector(elements: Elements, keyword: str, length: int, broken: list[str]) -> Any:
    values = elements.numbers(keyword)
    if len(values) == length and all(math.isfinite(value) for value in values):
        return values
    if values:
        broken.append(keyword)
    return None


def _b_value(elements: Elements) -> float | None:
    value = elements.number("DiffusionBValue")
    if value is not None:
        return value
    for name in ("siemens_b", "philips_b", "ge_b"):
        tag = elements.private(*PRIVATE_ELEMENTS[name])
        found = elements.number(tag) if tag else None
        if found is not None:
            return found % 1e6 if name == "ge_b" else found  # GE adds a multiple of 10^6 or 10^9
    return None


def _moment(elements: Elements, which: str) -> float | None:
    return seconds(elements.text(f"{which}Date"), elements.text(f"{which}Time"))
