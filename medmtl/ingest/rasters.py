"""PNG and JPEG files without what says where, when and by whom they were made; their pixels stay as they are.

Photographs carry GPS positions, names, dates, whole previews. Only the parts that a decoder needs are kept, byte by
byte, so nothing is compressed anew.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medmtl.errors import UserError
from medmtl.io.raster import FORMATS, read_image
from medmtl.io.reasons import refusal

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"pHYs", b"IDAT", b"IEND")
_PNG_MOVING = (b"acTL", b"fcTL", b"fdAT")
_SOI, _EOI, _SOS, _COM = 0xD8, 0xD9, 0xDA, 0xFE
_ORIENTATION, _BITS = 0x0112, 258  # tags of EXIF and TIFF


@dataclass(frozen=True)
class Cleaned:
    """A file's bytes without its metadata, and what was removed (kinds of metadata, never their content)."""

    content: bytes
    removed: tuple[str, ...]


def clean(content: bytes) -> Cleaned | None:
    """A PNG or JPEG without metadata; None for a file that must be written anew (TIFF, a picture to be turned)."""
    if content.startswith(_PNG):
        return _clean_png(content)
    if content.startswith(b"\xff\xd8\xff"):
        return _clean_jpeg(content)
    return None


def turned(path: Path) -> bool:
    """Whether EXIF says that the picture is to be shown in another orientation than it is stored in."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # a damaged EXIF block says nothing
        return False


def pixels(path: Path, page: int = 0) -> np.ndarray:
    """The picture upright: uint8 [H, W] or [H, W, 3], or uint16 [H, W], in steps of 1/255 or 1/65535 of full scale.

    Raises ``E-IMG-...`` for what :func:`medmtl.io.raster.read_image` refuses.
    """
    try:
        unit = read_image(path, channels=1, page=page)
    except UserError as error:
        if error.code != "E-IMG-COLOUR":
            raise
        unit = read_image(path, channels=3, page=page)
    deep, shallow = np.rint(unit * np.float32(65535)), np.rint(unit * np.float32(255))
    array = shallow.astype(np.uint8) if np.array_equal(shallow * 257, deep) else deep.astype(np.uint16)
    return array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0))


def check_depth(path: Path) -> None:
    """Refuse colour of 16 bits (``E-RAS-DEPTH``), of which Pillow would read half."""
    with Image.open(path, formats=FORMATS) as image:
        bits = max(image.tag_v2.get(_BITS, (8,))) if image.format == "TIFF" else 8  # type: ignore[attr-defined]
        if image.format == "PNG":
            with path.open("rb") as stream:
                bits = stream.read(25)[24]
        if bits > 8 and image.mode not in ("I;16", "I;16L", "I;16B", "I"):
            raise refusal("E-RAS-DEPTH", f"colour of {bits} bits in a file that must be written anew")


def _clean_png(content: bytes) -> Cleaned:
    kept, removed = [_PNG], []
    for name, chunk in _chunks(content):
        if name in _PNG_KEPT:
            kept.append(chunk)
        elif name in _PNG_MOVING:
            removed.append("animation")
        else:
            removed.append(name.decode("latin-1") if name.isalpha() else "unknown chunk")
    if len(content) > 8 + sum(len(chunk) for _, chunk in _chunks(content)):
        removed.append("bytes after the end")
    return Cleaned(b"".join(kept), tuple(sorted(set(removed))))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and bytes of a PNG's chunks, to its end."""
    at, name = len(_PNG), b""
    while name != b"IEND":
        if at + 12 > len(content):
            raise refusal("E-IMG-DAMAGED", "the PNG ends inside a chunk")
        (length,), name = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        chunk = content[at : at + 12 + length]
        if len(chunk) < 12 + length or struct.unpack(">I", chunk[-4:])[0] != zlib.crc32(chunk[4:-4]):
            raise refusal("E-IMG-DAMAGED", "a chunk of the PNG is cut off or damaged")
        yield name, chunk
        at += len(chunk)


def _clean_jpeg(content: bytes) -> Cleaned:
    """Segments that decoding needs, APP0 (JFIF), APP14 (Adobe's colour transform) and a colour profile."""
    kept, removed, at = [content[:2]], [], 2
    while True:
        while content[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if at + 4 > len(content) or content[at] != 0xFF:
            raise refusal("E-IMG-DAMAGED", "the JPEG ends before its picture, or is damaged")
        marker, (length,) = content[at + 1], struct.unpack(">H", content[at + 2 : at + 4])
        segment = content[at : at + 2 + length]
        if marker == _SOS:
            break
        if _is_needed(marker, segment[4:]):
            kept.append(segment)
        else:
            removed.append("comment" if marker == _COM else _app(segment[4:]))
        at += len(segment)
    end = _end_of_picture(content, at)
    if end < len(content):
        removed.append("bytes after the end")
    return Cleaned(b"".join([*kept, content[at:end]]), tuple(sorted(set(removed))))


def _is_needed(marker: int, payload: bytes) -> bool:
    if marker == 0xE0:
        return payload.startswith(b"JFIF\0") and payload[12:14] == b"\0\0"  # without its own thumbnail
    if marker == 0xEE:
        return payload.startswith(b"Adobe") and len(payload) == 12
    if marker == 0xE2:
        return payload.startswith(b"ICC_PROFILE\0")
    return not (0xE0 <= marker <= 0xEF or marker == _COM)


def _app(payload: bytes) -> str:
    if payload.startswith(b"Exif\0"):
        return "EXIF"
    return "XMP" if payload.startswith(b"http://ns.adobe.com/") else "application data"


def _end_of_picture(content: bytes, at: int) -> int:
    """The byte after the end-of-image marker, scan after scan."""
    while True:
        at = content.find(b"\xff", at + 1)
        if at < 0 or at + 1 >= len(content):
            raise refusal("E-IMG-DAMAGED", "the JPEG ends inside its picture")
        marker = content[at + 1]
        if marker == _EOI:
            return at + 2
        if marker in (0x00, 0xFF) or 0xD0 <= marker <= 0xD7:
            continue
        (length,) = struct.unpack(">H", content[at + 2 : at + 4].ljust(2, b"\0"))  # tables or a header between scans
        at += max(length, 2) + 1
