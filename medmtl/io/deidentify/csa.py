"""Siemens CSA image header (0029,xx10), cut down to numbers.

A Siemens mosaic cannot be placed in space without three numbers that are nowhere else: how many slices it holds, their
normal, and the direction of phase encoding. The header around them holds free text, names of protocols and whatever
memory held before, so it is taken apart and a new one is written from the tags below. Layout of format SV10 (little
endian): ``"SV10"``, 4 bytes, number of tags, 77; per tag name[64], vm, vr[4], syngo type, number of items, 77 or 205;
per item four int32 of which the second is its length, then the text, padded to 4 bytes.
"""

import re
import struct

KEPT = frozenset({
    "NumberOfImagesInMosaic", "SliceNormalVector", "PhaseEncodingDirectionPositive", "BandwidthPerPixelPhaseEncode",
    "MosaicRefAcqTimes", "SliceMeasurementDuration", "TimeAfterStart", "RealDwellTime", "ProtocolSliceNumber",
    "B_value", "B_matrix", "DiffusionGradientDirection",
})  # fmt: skip
_TAG = struct.Struct("<64si4siii")
_ITEM = struct.Struct("<4i")
_NUMBER = re.compile(rb"[ \0]*([-+]?\d{1,16}(?:\.\d{0,16})?(?:[eE][-+]?\d{1,3})?)[ \0]*")
_MOST = 1000  # tags, and items of a tag; real headers hold about 100


def numbers_only(header: bytes) -> bytes | None:
    """A header of format SV10 with the tags of ``KEPT`` alone; None where there are none, or the format is another."""
    try:
        tags = [tag for tag in _tags(header) if tag is not None]
    except (struct.error, ValueError):
        return None
    if not tags:
        return None
    return b"".join([b"SV10\4\3\2\1", struct.pack("<II", len(tags), 77), *tags])


def _tags(header: bytes) -> list[bytes | None]:
    if header[:4] != b"SV10":
        raise ValueError("not SV10")
    (count,) = struct.unpack_from("<I", header, 8)
    position, tags = 16, []
    if not 0 < count <= _MOST:
        raise ValueError("implausible number of tags")
    for _ in range(count):
        name, vm, vr, syngo, n_items, _ = _TAG.unpack_from(header, position)
        position += _TAG.size
        items = []
        if not 0 <= n_items <= _MOST:
            raise ValueError("implausible number of items")
        for _ in range(n_items):
            length = _ITEM.unpack_from(header, position)[1]
            position += _ITEM.size
            if length < 0 or position + length > len(header):
                raise ValueError("an item leaves the header")
            items.append(header[position : position + length])
            position += length + -length % 4
        tags.append(_rewritten(name.split(b"\0")[0], vm, vr.split(b"\0")[0], syngo, items))
    return tags


def _rewritten(name: bytes, vm: int, vr: bytes, syngo: int, items: list[bytes]) -> bytes | None:
    """The tag with its numbers, and zeros where the original has whatever memory held; None if it is not kept."""
    if name.decode("latin-1") not in KEPT or vr not in (b"US", b"IS", b"DS", b"FD", b"FL", b"UL", b"SL", b"SS"):
        return None
    numbers = [_NUMBER.fullmatch(item) if item.strip(b" \0") else None for item in items]
    if any(match is None and item.strip(b" \0") for match, item in zip(numbers, items, strict=True)):
        return None
    parts = [_TAG.pack(name, vm, vr, syngo, len(items), 77)]
    for match in numbers:
        text = match[1] + b"\0" if match else b""
        parts += [_ITEM.pack(len(text), len(text), 77, len(text)), text, b"\0" * (-len(text) % 4)]
    return b"".join(parts)
