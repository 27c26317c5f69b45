"""Reads the header of a DICOM file: everything but its pixels, which must nevertheless all be there."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from medmtl.errors import UserError
from medmtl.io.dicom.directory import directory_fault
from medmtl.io.dicom.drawn import DRAWN_TAGS, drawn_of
from medmtl.io.dicom.elements import Elements, tag_of
from medmtl.io.dicom.extent import Fault, claim_fault, fragments_fault, native_fault
from medmtl.io.dicom.facts import FACT_TAGS, acquisition_facts, private_facts
from medmtl.io.dicom.frames import PRIVATE_ELEMENTS, SPLIT_TAGS, classic_frame
from medmtl.io.dicom.groups import FirstFrame, group_frames
from medmtl.io.dicom.kinds import IMAGE, NO_PIXELS, kind_of
from medmtl.io.dicom.mosaic import tile_count, tile_frames
from medmtl.io.dicom.parse import PIXEL_TAGS, PREAMBLE_BYTES, Parsed, parse, regular_file
from medmtl.io.dicom.record import DRAWN, Frame, Header, Limits, NotDicom, Pixels, header_from_json, header_to_json
from medmtl.io.dicom.syntax import is_encapsulated, is_known, name_of
from medmtl.io.reasons import refusal
from medmtl.io.volume import Note

__all__ = [
    "Frame",
    "Header",
    "Limits",
    "NotDicom",
    "Pixels",
    "header_from_json",
    "header_of",
    "header_to_json",
    "read_header",
]

_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
_PHILIPS_SCALE = (0x2005, "Philips MR Imaging DD 001", 0x0E)
_PHILIPS_FRAME = (0x2005, "Philips MR Imaging DD 005", 0x0F)
_KEYWORDS = (
    "SpecificCharacterSet", "SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID",
    "FrameOfReferenceUID", "InstanceNumber", "ImagesInAcquisition", "NumberOfSlices", "FrameTime", "NumberOfFrames",
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PlanarConfiguration", "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "PixelSpacing",
    "RedPaletteColorLookupTableDescriptor", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
    "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionIndexSequence",
    "ImagerPixelSpacing", "NominalScannedPixelSpacing", "SequenceOfUltrasoundRegions", "PresentationLUTShape",
    "DirectoryRecordSequence",
)  # fmt: skip
_PHOTOMETRIC = {
    1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
}
_CM = 3  # (0018,6024)
_BLOCKS = range(0x10, 0x20)
_PRIVATE = (*PRIVATE_ELEMENTS.values(), _PHILIPS_SCALE, (0x0019, "", 0x0A), (0x0029, "", 0x10))
_WANTED = (
    frozenset(tag_of(keyword) for keyword in _KEYWORDS)
    | FACT_TAGS
    | SPLIT_TAGS
    | DRAWN_TAGS
    | {group << 16 | block for group, _, _ in _PRIVATE for block in _BLOCKS}
    | {group << 16 | block << 8 | element for group, _, element in _PRIVATE for block in _BLOCKS}
)


def read_header(path: Path, *, limits: Limits = Limits(), keywords: tuple[str, ...] = ()) -> Header:
    """The header of the DICOM file at ``path``; no pixel is read.

    ``keywords`` are further DICOM keywords whose text is kept in ``Header.private`` (to join a table on).
    A file whose header can be read but whose pixels cannot be used (cut off, an absurd claim) comes back with
    ``fault`` set; :func:`medmtl.io.dicom.series.plan` refuses it, and the series that it is missing from.

    Raises NotDicom for a file that is no DICOM at all, and UserError: ``E-FILE-EMPTY``, ``E-FILE-OPEN``,
    ``E-DCM-HEADER`` (cut off or malformed before it says which series it is of).
    """
    with regular_file(path) as (stream, status):
        return header_of(path, stream, status, limits=limits, keywords=keywords)


def header_of(
    path: Path, stream: BinaryIO, status: os.stat_result, *, limits: Limits = Limits(), keywords: tuple[str, ...] = ()
) -> Header:
    """:func:`read_header` of a file that is open, from its first byte on."""
    try:
        stream.seek(0)
        wanted = _WANTED | {tag_of(keyword) for keyword in keywords}
        parsed = parse(stream, status.st_size, limits, wanted)
        return _header(path, status, stream, parsed, limits, keywords)
    except NotDicom as error:
        raise NotDicom(error.code, error.what, error.remedy, where=path.name) from None
    except UserError as error:
        raise UserError(error.code, error.what, error.remedy, where=path.name) from error
    except Exception as error:  # MemoryError and RecursionError too; a header must never end in a traceback
        raise refusal("E-DCM-HEADER", f"the header cannot be read ({type(error).__name__})", where=path.name) from error


@dataclass(frozen=True)
class _Identity:
    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    study_uid: str
    patient_id: str
    modality: str


def _header(
    path: Path, status: os.stat_result, stream: BinaryIO, parsed: Parsed, limits: Limits, keywords: tuple[str, ...]
) -> Header:
    elements = parsed.elements
    elements.signed = elements.integer("PixelRepresentation") == 1
    identity = _identity(parsed)
    kind = kind_of(identity.sop_class_uid, identity.modality, has_pixels=parsed.pixel_tag is not None)
    if not (identity.sop_class_uid or identity.modality) or (kind == IMAGE and not identity.series_uid):
        if not parsed.preamble or parsed.end <= PREAMBLE_BYTES:
            raise NotDicom("I-NOT-DICOM", "it is no DICOM file", "nothing")
        raise refusal("E-DCM-HEADER", parsed.cut or "it does not name its SOP class, or not its series")
    notes = () if parsed.preamble else (Note("W-DCM-PREAMBLE", "the file lacks its preamble"),)
    common = Header(
        path=path,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        kind=kind,
        manufacturer=elements.text("Manufacturer"),
        frame_of_reference_uid=elements.text("FrameOfReferenceUID"),
        image_type=elements.texts("ImageType"),
        instance_number=elements.integer("InstanceNumber"),
        private=private_facts(elements, keywords),
        notes=notes,
        **vars(identity),
    )
    if parsed.cut and kind in (IMAGE, NO_PIXELS):  # it may have been an image before it was cut
        return replace(common, kind=IMAGE, fault=("E-DCM-HEADER", parsed.cut))
    if kind == "DICOMDIR":
        return replace(common, fault=directory_fault(elements))
    if kind in DRAWN:
        return _drawn(common, parsed, stream, limits)
    if kind != IMAGE:
        return common
    if parsed.pixel_tag is None:
        return replace(common, fault=("E-DCM-TRUNCATED", f"it ends at byte {parsed.end:,}, before its pixels"))
    return _image(common, parsed, stream, limits)


def _drawn(common: Header, parsed: Parsed, stream: BinaryIO, limits: Limits) -> Header:
    """A segmentation, with its pixels' size but none of its frames; or a structure set, which has no pixels."""
    header = replace(common, drawn=drawn_of(parsed.elements, common.kind))
    if parsed.cut:
        return replace(header, fault=("E-DCM-HEADER", parsed.cut))
    if common.kind != "SEG":
        return header
    if parsed.pixel_tag is None:
        return replace(header, fault=("E-DCM-TRUNCATED", f"it ends at byte {parsed.end:,}, before its pixels"))
    pixels = _pixels(parsed)
    if isinstance(pixels, str):
        return replace(header, fault=("E-DCM-HEADER", pixels))
    fault, _ = _pixels_fault(pixels, common.size, parsed, stream, limits)
    return replace(header, pixels=pixels, fault=fault)


def _pixels_fault(
    pixels: Pixels, size: int, parsed: Parsed, stream: BinaryIO, limits: Limits
) -> tuple[Fault | None, Note | None]:
    """Why pixels as they are described cannot be used; and a note of what is behind them."""
    if fault := claim_fault(pixels, size, limits):
        return fault, None
    if pixels.length is None:
        return fragments_fault(stream, pixels, size), None
    if not is_encapsulated(pixels.syntax):
        return native_fault(parsed.stream, pixels, parsed.size)
    if not is_known(pixels.syntax):  # it may have its own way of laying pixels down
        return ("E-DCM-CODEC", f"no decoder is known for {name_of(pixels.syntax)}"), None
    return ("E-DCM-PIXELS", "compressed pixels that are not in fragments"), None


def _image(common: Header, parsed: Parsed, stream: BinaryIO, limits: Limits) -> Header:
    elements = parsed.elements
    pixels = _pixels(parsed)
    if isinstance(pixels, str):
        return replace(common, fault=("E-DCM-HEADER", pixels))
    fault, note = _pixels_fault(pixels, common.size, parsed, stream, limits)
    if fault:
        return replace(common, pixels=pixels, fault=fault)
    tiles = tile_count(elements, common.image_type)
    frames = _frames(elements, pixels, tiles, mapped=common.sop_class_uid == _PARAMETRIC_MAP)
    if frames is None:
        return replace(
            common,
            pixels=pixels,
            fault=("E-DCM-MOSAIC", "the mosaic's private header does not say where its slices lie"),
        )
    first = FirstFrame(elements)
    return replace(
        common,
        pixels=pixels,
        frames=frames,
        mosaic_tiles=max(tiles, 0),
        expected_slices=elements.integer("ImagesInAcquisition") or elements.integer("NumberOfSlices"),
        thickness_mm=_length(first.number("SliceThickness")),
        slice_spacing_mm=_length(first.number("SpacingBetweenSlices")),
        private_scale=_private_scale(elements),
        frame_time_ms=_length(elements.number("FrameTime")),
        detector_spacing=_pair(elements, "ImagerPixelSpacing") or _pair(elements, "NominalScannedPixelSpacing"),
        region_spacing=_region_spacing(elements),
        facts={**first.facts(), **acquisition_facts(elements)},
        notes=(*common.notes, *((note,) if note else ())),
    )


def _identity(parsed: Parsed) -> _Identity:
    elements, meta = parsed.elements, parsed.meta
    return _Identity(
        elements.text("SOPInstanceUID") or meta.text("MediaStorageSOPInstanceUID"),
        elements.text("SOPClassUID") or meta.text("MediaStorageSOPClassUID"),
        elements.text("SeriesInstanceUID"),
        elements.text("StudyInstanceUID"),
        elements.text("PatientID"),
        elements.text("Modality"),
    )


def _pixels(parsed: Parsed) -> Pixels | str:
    """The description of the pixels, or what is wrong with it."""
    elements = parsed.elements
    assert parsed.pixel_tag is not None
    element = PIXEL_TAGS[parsed.pixel_tag]
    is_float = element != "PixelData"
    names = ("Rows", "Columns", "BitsAllocated")
    rows, columns, allocated = (elements.integer(name) or 0 for name in names)
    samples = elements.integer("SamplesPerPixel") or 1
    frames = elements.integer("NumberOfFrames") if "NumberOfFrames" in elements else 1
    stored = allocated if is_float else elements.integer("BitsStored") or allocated
    high_bit = None if is_float else elements.integer("HighBit")
    for name, value in (*zip(names, (rows, columns, allocated), strict=True), ("NumberOfFrames", frames)):
        if value is None or value < 1:
            return f"{name} is missing or no positive number"
    assert frames is not None
    if (allocated, is_float) not in ((1, False), (8, False), (16, False), (32, False), (32, True), (64, True)):
        return f"pixels of {allocated} bits"
    if not 1 <= stored <= allocated or not stored - 1 <= (stored - 1 if high_bit is None else high_bit) < allocated:
        return f"{stored} bits stored up to bit {high_bit} of {allocated} allocated"
    photometric = elements.text("PhotometricInterpretation")
    if photometric not in _PHOTOMETRIC.get(samples, ()):
        return f"{samples} samples per pixel of photometric interpretation {photometric[:16]!r}"
    padding = elements.number("PixelPaddingValue")
    limit = elements.number("PixelPaddingRangeLimit")
    return Pixels(
        element=element,
        offset=parsed.pixel_offset,
        length=parsed.pixel_length,
        syntax=parsed.syntax,
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        allocated=allocated,
        stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        signed=elements.integer("PixelRepresentation") == 1,
        photometric=photometric,
        planar=elements.integer("PlanarConfiguration") or 0,
        padding=None if padding is None else _range(padding, padding if limit is None else limit),
        vr=parsed.pixel_vr,
        lut=bool(elements.items("ModalityLUTSequence")),
        palette="RedPaletteColorLookupTableDescriptor" in elements,
    )


def _frames(elements: Elements, pixels: Pixels, tiles: int, *, mapped: bool) -> tuple[Frame, ...] | None:
    if "PerFrameFunctionalGroupsSequence" in elements or "SharedFunctionalGroupsSequence" in elements:
        return group_frames(elements, pixels.frames, mapped=mapped)
    frame = classic_frame(elements)
    if tiles:
        return tile_frames(frame, elements, pixels, tiles) if tiles > 0 and pixels.frames == 1 else None
    if pixels.frames == 1:
        return (frame,)
    # a position of the file is not one of each frame
    return tuple(replace(frame, index=index, position=None, orientation=None) for index in range(pixels.frames))


def _range(first: float, second: float) -> tuple[float, float]:
    return min(first, second), max(first, second)


def _length(value: float | None) -> float | None:
    """A length that can be one: positive and finite."""
    return value if value is not None and 0 < value < math.inf else None


def _pair(elements: Elements, keyword: str) -> tuple[float, float] | None:
    values = elements.numbers(keyword)
    return (values[0], values[1]) if len(values) == 2 and all(map(_length, values)) else None


def _region_spacing(elements: Elements) -> tuple[float, float] | None:
    """(rows, columns) mm of the 2-D regions of an ultrasound image (PS3.3 C.8.5.5), if all have the same."""
    found = set()
    for region in elements.items("SequenceOfUltrasoundRegions"):
        if region.integer("RegionSpatialFormat") != 1:
            continue
        if (region.integer("PhysicalUnitsXDirection"), region.integer("PhysicalUnitsYDirection")) != (_CM, _CM):
            return None
        found.add((region.number("PhysicalDeltaY"), region.number("PhysicalDeltaX")))
    if len(found) != 1:
        return None
    down, across = (abs(value or 0) * 10 for value in found.pop())
    return (down, across) if _length(down) and _length(across) else None


def _private_scale(elements: Elements) -> float | None:
    """Philips' scale slope, of a classic file or of the first frame of an enhanced one."""
    for item in (elements, *elements.items("PerFrameFunctionalGroupsSequence")[:1]):
        nested = item.private(*_PHILIPS_FRAME)
        for place in (item, *(item.items(nested)[:1] if nested else ())):
            tag = place.private(*_PHILIPS_SCALE)
            if tag and (scale := _length(place.number(tag))):
                return scale
    return None
