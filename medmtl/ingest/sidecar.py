"""The JSON file beside an image: how it was acquired, in BIDS's names and units, and nothing about whom."""

import math
from collections.abc import Mapping
from typing import Any

from medmtl import __version__
from medmtl.ingest.naming import cell
from medmtl.io.dicom.record import Header
from medmtl.io.volume import Volume

# DICOM keyword -> (BIDS name, factor): times are seconds in BIDS (specification 1.9, MRI), milliseconds in DICOM
_RENAMED = {
    "RepetitionTime": ("RepetitionTime", 1e-3),
    "EchoTime": ("EchoTime", 1e-3),
    "InversionTime": ("InversionTime", 1e-3),
    "FrameReferenceTime": ("FrameReferenceTime", 1e-3),
    "ManufacturerModelName": ("ManufacturersModelName", None),
    "BodyPartExamined": ("BodyPart", None),
    "SeriesNumber": ("SeriesNumber", None),
}
_LEFT_OUT = frozenset({"PatientAge", "PatientSex", "PatientWeight", "PatientSize", "StationName", "DeviceSerialNumber"})


def sidecar(
    *,
    kind: str,
    volume: Volume | None,
    header: Header | None,
    split: Mapping[str, str | float],
    notes: tuple[tuple[str, str], ...],
) -> dict[str, Any]:
    """The content of a sidecar. ``split`` is how a volume differs from its siblings in the series."""
    tree: dict[str, Any] = {
        "ConversionSoftware": "medmtl",
        "ConversionSoftwareVersion": __version__,
        "SourceKind": kind,
    }
    if header is not None:
        tree["Modality"] = cell(header.modality)
        for keyword, value in {**header.facts, **split}.items():
            if keyword not in _LEFT_OUT:
                name, factor = _RENAMED.get(keyword, (keyword, None))
                tree[name] = _value(value, factor)
    if volume is not None:
        tree["Units"] = volume.units or None
        tree["SpacingMm"] = [round(step, 6) for step in volume.spacing] if volume.spacing else None
        if volume.time_step_s is not None:
            tree["TimeStep"] = volume.time_step_s
    tree["Notes"] = [{"code": code, "what": what} for code, what in notes]
    return {key: value for key, value in tree.items() if value is not None and value != ""}


def _value(value: Any, factor: float | None) -> Any:
    if isinstance(value, tuple | list):
        return [_value(part, factor) for part in value]
    if isinstance(value, str):
        return cell(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    scaled = value if factor is None else float(f"{value * factor:.12g}")
    return int(scaled) if isinstance(scaled, float) and scaled.is_integer() and abs(scaled) < 1e15 else scaled
