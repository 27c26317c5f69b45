"""Element values as plain Python, whatever state they are in: never an exception, never a warning.

pydicom converts values by the rules of the standard, and warns or raises where a file breaks them: a decimal string of
more than 16 characters, a number with blanks. Scanners break them every day, and its settings are global. So values
are taken as the bytes that pydicom found, and converted here.
"""

import math
import struct
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydicom.charset import decode_bytes, python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.valuerep import TEXT_VR_DELIMS

_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q", "OF": "f", "OD": "d"}
_MAX_VALUES = 4096  # numbers of one element; more are no geometry


@cache
def tag_of(keyword: str) -> int:
    """The tag of a DICOM keyword; a keyword that does not exist is a defect of the caller."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, f"{keyword} is no DICOM keyword"
    return tag


@cache
def _vr_of(tag: int) -> str:
    try:
        return dictionary_VR(tag).split(" or ")[0]
    except KeyError:
        return "LO"


class Elements:
    """A data set, or an item of a sequence, read by keyword or tag.

    Absent, empty and unreadable values are ``""``, ``()`` or None; a number that is not finite stays NaN or inf, since
    a field that holds nonsense is not a field that is absent.
    """

    def __init__(self, dataset: Dataset, encodings: list[str] | None = None, *, signed: bool = False) -> None:
        self._elements: Mapping[Any, Any] = dataset._dict
        self._dataset = dataset
        if encodings is None or "SpecificCharacterSet" in self:
            encodings = _encodings(self.content("SpecificCharacterSet"))
        self._encodings = encodings
        self.signed = signed  # decides elements that are "US or SS"

    def __contains__(self, name: str | int) -> bool:
        return self._tag(name) in self._elements

    def texts(self, name: str | int) -> tuple[str, ...]:
        """The values of a text element, blanks stripped."""
        vr, raw = self._raw(name)
        if raw and isinstance(raw, bytes):
            if vr in _BINARY:
                return tuple(f"{number:g}" for number in self._unpack(vr, raw, name))
            text = self._decode(raw)
            return tuple(part.strip(" \0\t\r\n") for part in text.split("\\")) if text.strip(" \0") else ()
        return ()

    def text(self, name: str | int) -> str:
        """The first value of a text element, or ``""``."""
        values = self.texts(name)
        return values[0] if values else ""

    def numbers(self, name: str | int) -> tuple[float, ...]:
        """The values of a numeric element; text that is no number becomes NaN."""
        vr, raw = self._raw(name)
        if not isinstance(raw, bytes):
            return ()
        if vr in _BINARY:
            return self._unpack(vr, raw, name)
        return tuple(_number(part) for part in raw.split(b"\\")[:_MAX_VALUES]) if raw.strip(b" \0") else ()

    def number(self, name: str | int) -> float | None:
        """The first value of a numeric element, NaN if it is nonsense, None if it is absent."""
        values = self.numbers(name)
        return values[0] if values else None

    def integer(self, name: str | int) -> int | None:
        """The first value as a whole number; None if it is absent or no whole number."""
        value = self.number(name)
        return int(value) if value is not None and math.isfinite(value) and value == int(value) else None

    def content(self, name: str | int) -> bytes:
        """The bytes of an element, or ``b""``."""
        _, raw = self._raw(name)
        return raw if isinstance(raw, bytes) else b""

    def items(self, name: str | int) -> list["Elements"]:
        """The items of a sequence; none if it is absent, empty or unreadable."""
        tag = self._tag(name)
        element = self._elements.get(tag)
        if element is None:
            return []
        value = element.value
        if isinstance(value, bytes):
            value = self._dataset[tag].value  # pydicom parses a sequence of known length when it is asked for
        if not isinstance(value, Sequence):
            return []
        return [Elements(item, self._encodings, signed=self.signed) for item in value]

    def item(self, name: str | int) -> "Elements":
        """The first item of a sequence, or one without elements."""
        items = self.items(name)
        return items[0] if items else Elements(Dataset(), self._encodings)

    def private(self, group: int, creator: str, element: int) -> int | None:
        """The tag of a private element in the block that ``creator`` reserved in ``group``; None without that block."""
        for block in range(0x10, 0x20):
            tag = group << 16 | block
            if tag in self._elements and self.text(tag).startswith(creator):
                return tag << 8 & 0xFF00 | group << 16 | element
        return None

    @staticmethod
    def _tag(name: str | int) -> int:
        return tag_of(name) if isinstance(name, str) else name

    def _raw(self, name: str | int) -> tuple[str, Any]:
        tag = self._tag(name)
        element = self._elements.get(tag)
        if element is None:
            return "", None
        vr = element.VR
        if vr is None or vr == "UN":
            vr = _vr_of(tag)
        if vr == "US" and self.signed and tag in _US_OR_SS:
            vr = "SS"
        return str(vr), element.value

    def _unpack(self, vr: str, raw: bytes, name: str | int) -> tuple[float, ...]:
        element = self._elements[self._tag(name)]
        little = getattr(element, "is_little_endian", True) or element.VR == "UN"
        letter = _BINARY[vr]
        count = min(len(raw) // struct.calcsize(letter), _MAX_VALUES)
        size = count * struct.calcsize(letter)
        return tuple(float(value) for value in struct.unpack(f"{'<' if little else '>'}{count}{letter}", raw[:size]))

    def _decode(self, raw: bytes) -> str:
        if b"\x1b" in raw:  # ISO 2022 changes its character set on the way
            try:
                return decode_bytes(raw, self._encodings, TEXT_VR_DELIMS)
            except (LookupError, ValueError):
                return raw.decode("latin-1")
        return raw.decode(self._encodings[0], errors="replace")


_US_OR_SS = {tag_of(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit", "SmallestImagePixelValue")}


def _number(part: bytes) -> float:
    part = part.strip(b" \0\t\r\n")
    if b"_" in part:  # Python reads 1_000 as a number, DICOM does not
        return math.nan
    try:
        return float(part)
    except ValueError:
        return math.nan


def _encodings(content: bytes) -> list[str]:
    names = content.decode("latin-1").strip(" \0").split("\\")
    known = [python_encoding[name.strip()] for name in names if name.strip() in python_encoding]
    return known or ["iso8859"]
