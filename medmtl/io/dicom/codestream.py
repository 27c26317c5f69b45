"""What a compressed frame says of itself, before a decoder is let at it: its size, and whether it is whole.

Decoders fill what is missing of a damaged stream with grey and say nothing, or end the whole process (gdcm lets C++
exceptions pass). So the markers of a stream are walked first; they say nothing of damage between them.
"""

import re
import struct

from medmtl.io.dicom.record import Pixels
from medmtl.io.dicom.syntax import is_jpeg, is_jpeg_2000

_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOFn of JPEG, and that of JPEG-LS
_JPEG_LS_FRAME = 0xF7
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in entropy-coded data: neither a stuffed byte nor a restart
_LS_MARKER = re.compile(rb"\xff[\x80-\xfe]")  # JPEG-LS stuffs a bit instead (T.87 A.1)
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0), 0xF8})


class _Damaged(Exception):
    """The stream is not built as the standard says."""


def stream_fault(frame: bytes, pixels: Pixels) -> tuple[str, str] | None:
    """Why a frame of the JPEG family must not be decoded; None for other syntaxes, or if nothing is wrong."""
    if not (is_jpeg(pixels.syntax) or is_jpeg_2000(pixels.syntax)):
        return None
    if b"\xff\xd9" not in frame[-64:]:  # padding may follow
        return "E-DCM-TRUNCATED", f"a compressed frame of {len(frame):,} bytes has no end marker"
    try:
        size = _jpeg_2000_size(frame) if is_jpeg_2000(pixels.syntax) else _jpeg_size(frame)
    except (_Damaged, struct.error, IndexError) as error:
        return "E-DCM-PIXELS", f"a compressed frame is damaged: {error}"
    expected = pixels.rows, pixels.columns, pixels.samples
    if size != expected:
        found, wanted = (f"{s[1]} x {s[0]} pixels of {s[2]} samples" for s in (size, expected))
        return "E-DCM-PIXELS", f"a compressed frame of {found}, the header says {wanted}"
    return None


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int]:
    """(rows, columns, components) of a raw code stream, or of one in a JP2 file (T.800 A.5.1)."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0:
        raise _Damaged("no image size")
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    return bottom - top, right - left, struct.unpack_from(">H", frame, start + 40)[0]


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """(rows, columns, components); the whole stream is walked from marker to marker (T.81 B.1.1)."""
    if frame[:2] != b"\xff\xd8":
        raise _Damaged("it does not begin as a JPEG stream")
    size, at, scans = None, 2, 0
    while True:
        while frame[at] == 0xFF and frame[at + 1] == 0xFF:
            at += 1
        if frame[at] != 0xFF:
            raise _Damaged(f"no marker at byte {at:,}")
        marker = frame[at + 1]
        if marker == 0xD9:
            break
        length = struct.unpack_from(">H", frame, at + 2)[0]
        if length < 2 or at + 2 + length > len(frame):
            raise _Damaged(f"a segment of {length} bytes at byte {at:,}")
        if marker in _FRAME_HEADERS:
            if size is not None:
                raise _Damaged("two frames")
            rows, columns, components = struct.unpack_from(">2HB", frame, at + 5)
            size, pattern = (rows, columns, components), _LS_MARKER if marker == _JPEG_LS_FRAME else _MARKER
        elif marker not in _TABLES and marker != 0xDA:
            raise _Damaged(f"an unknown marker FF {marker:02X} at byte {at:,}")
        at += 2 + length
        if marker == 0xDA:
            if size is None:
                raise _Damaged("a scan before its frame")
            found = pattern.search(frame, at)
            if found is None:
                raise _Damaged("a scan without an end")
            at, scans = found.start(), scans + 1
    if size is None or not scans:
        raise _Damaged("no scan")
    return size
