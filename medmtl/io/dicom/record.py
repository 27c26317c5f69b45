"""What is kept of a DICOM file without its pixels: plain values that can be pickled, and written as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medmtl.errors import UserError
from medmtl.io.volume import Note

Vector = tuple[float, float, float]
Value = str | float
DRAWN = ("SEG", "RTSTRUCT")  # kinds of objects that hold masks of images
Fact = str | float | tuple[float, ...] | tuple[str, ...]


class NotDicom(UserError):
    """The file is something else; to be ignored by kind, not refused."""


@dataclass(frozen=True)
class Limits:
    """How much a header may claim before anything is allocated."""

    max_bytes: int = 4 * 2**30  # the decoded pixels of one file
    max_ratio: float = 200.0  # decoded pixels to the size of an uncompressed file
    max_header: int = 256 * 2**20  # one element that is no pixel data


@dataclass(frozen=True)
class Frame:
    """One image plane: a classic file's only one, a frame of a multi-frame file, or a tile of a Siemens mosaic.

    Lengths are mm in DICOM's patient system (LPS). What is None was absent or unreadable; ``broken`` names what was
    present and no finite number.
    """

    index: int  # of the frame in its file, from 0
    tile: int | None = None  # of the mosaic in the frame, from 0
    position: Vector | None = None  # centre of the first pixel, (0020,0032)
    orientation: tuple[float, ...] | None = None  # direction of a row, then of a column, (0020,0037)
    spacing: tuple[float, float] | None = None  # between rows, then between columns, (0028,0030)
    slope: float | None = None
    intercept: float | None = None
    units: str = ""
    split: Mapping[str, Value] = field(default_factory=dict)  # what can tell two frames at one position apart
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pixels:
    """How the pixels of a file are stored, and where."""

    element: str  # PixelData, FloatPixelData or DoubleFloatPixelData
    offset: int  # of the value's first byte in the file; of the encapsulated items where ``length`` is None
    length: int | None  # bytes; None if encapsulated
    syntax: str  # transfer syntax UID
    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int  # bits
    stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: int
    padding: tuple[float, float] | None = None  # stored values from (0028,0120) to (0028,0121), both included
    vr: str = "OW"
    lut: bool = False  # a Modality LUT Sequence
    palette: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of one stored value; 1-bit pixels count as one byte, as they are when decoded."""
        return max(1, self.allocated // 8)

    @property
    def decoded_bytes(self) -> int:
        return self.rows * self.columns * self.frames * self.samples * self.itemsize


@dataclass(frozen=True)
class Thing:
    """A segment or region of interest: its number, its code where it has one, and what somebody called it."""

    number: int
    code: tuple[str, str] = ("", "")  # coding scheme, meaning
    modifiers: tuple[tuple[str, str], ...] = ()  # of the code: left, right, ...
    label: str = field(default="", repr=False)  # a person typed it: private


@dataclass(frozen=True)
class Drawn:
    """The things of an object, and the images that they are drawn on."""

    things: tuple[Thing, ...]
    images: tuple[str, ...] = field(repr=False)  # SOP instance UIDs
    series: tuple[str, ...] = field(default=(), repr=False)  # series instance UIDs, for objects that name no image
    way: str = ""  # SegmentationType: BINARY, FRACTIONAL, LABELMAP


@dataclass(frozen=True)
class Header:
    """One DICOM file without its pixels.

    ``private`` holds what may identify a patient (for joining tables, and for telling volumes apart) and must not be
    written outside the private folder; so are the UIDs and ``patient_id``. ``facts`` holds acquisition facts by DICOM
    keyword, from a list without identifiers, dates and free text.
    """

    path: Path = field(repr=False)
    size: int
    mtime_ns: int
    sop_instance_uid: str = field(repr=False)
    sop_class_uid: str
    series_uid: str = field(repr=False)
    study_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    modality: str
    kind: str  # "image", or why the file is none: "SR", "SEG", "RTSTRUCT", "DICOMDIR", ...
    manufacturer: str = ""
    frame_of_reference_uid: str = ""
    image_type: tuple[str, ...] = ()
    instance_number: int | None = None
    expected_slices: int | None = None  # ImagesInAcquisition or NumberOfSlices
    thickness_mm: float | None = None
    slice_spacing_mm: float | None = None  # SpacingBetweenSlices
    mosaic_tiles: int = 0  # images in a Siemens mosaic; 0 if it is none
    private_scale: float | None = None  # Philips (2005,100E), where it says something else than the DICOM rescale
    frame_time_ms: float | None = None
    detector_spacing: tuple[float, float] | None = None  # (rows, columns) mm at the detector, of a projection
    region_spacing: tuple[float, float] | None = None  # (rows, columns) mm of an ultrasound image
    pixels: Pixels | None = None
    frames: tuple[Frame, ...] = ()
    facts: Mapping[str, Fact] = field(default_factory=dict)
    private: Mapping[str, str] = field(default_factory=dict, repr=False)
    notes: tuple[Note, ...] = ()
    fault: tuple[str, str] | None = None  # (code, what): readable as a header, but its pixels cannot be used
    drawn: Drawn | None = field(default=None, repr=False)  # of a SEG or RTSTRUCT: what it draws on which images

    @property
    def is_image(self) -> bool:
        return self.kind == "image"


def header_to_json(header: Header) -> dict[str, Any]:
    """The header as values that ``json`` writes; it identifies the patient, so it belongs into the private folder."""
    return {  # dataclasses.asdict copies every value of every frame deeply, which takes longer than parsing the file
        **vars(header),
        "path": str(header.path),
        "pixels": dict(vars(header.pixels)) if header.pixels else None,
        "frames": [{**vars(frame), "split": dict(frame.split)} for frame in header.frames],
        "facts": dict(header.facts),
        "private": dict(header.private),
        "notes": [dict(vars(note)) for note in header.notes],
        "drawn": asdict(header.drawn) if header.drawn else None,
    }


def header_from_json(tree: Mapping[str, Any]) -> Header:
    """The header that :func:`header_to_json` took apart, equal in every field."""
    pixels = tree["pixels"]
    return Header(
        **{
            **tree,
            "path": Path(tree["path"]),
            "image_type": tuple(tree["image_type"]),
            "detector_spacing": _tuple(tree["detector_spacing"]),
            "region_spacing": _tuple(tree["region_spacing"]),
            "pixels": Pixels(**{**pixels, "padding": _tuple(pixels["padding"])}) if pixels else None,
            "frames": tuple(_frame(frame) for frame in tree["frames"]),
            "facts": {key: _tuple(value) if isinstance(value, list) else value for key, value in tree["facts"].items()},
            "notes": tuple(Note(**note) for note in tree["notes"]),
            "fault": _tuple(tree["fault"]),
            "drawn": _drawn(tree["drawn"]) if tree["drawn"] else None,
        }
    )


def _frame(tree: Mapping[str, Any]) -> Frame:
    tuples = {key: _tuple(tree[key]) for key in ("position", "orientation", "spacing", "broken")}
    return Frame(**{**tree, **tuples})


def _drawn(tree: Mapping[str, Any]) -> Drawn:
    things = tuple(
        Thing(thing["number"], tuple(thing["code"]), tuple(map(tuple, thing["modifiers"])), thing["label"])
        for thing in tree["things"]
    )
    return Drawn(things, tuple(tree["images"]), tuple(tree["series"]), tree["way"])


def _tuple(value: Any) -> Any:
    return None if value is None else tuple(value)
