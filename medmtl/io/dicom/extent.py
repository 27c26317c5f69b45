"""How large the pixels of a file must be, and whether they are all there: arithmetic, before anything is allocated."""

from typing import BinaryIO, Literal

from medmtl.io.dicom.record import Limits, Pixels
from medmtl.io.dicom.syntax import BIG_ENDIAN, is_encapsulated
from medmtl.io.volume import Note

Fault = tuple[str, str]
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def claim_fault(pixels: Pixels, size: int, limits: Limits) -> Fault | None:
    """``E-DCM-CLAIM`` where the header claims more than can be meant."""
    claim = f"{pixels.columns} x {pixels.rows} x {pixels.frames} pixels, {pixels.decoded_bytes:,} bytes"
    if pixels.decoded_bytes > limits.max_bytes:
        return "E-DCM-CLAIM", f"the header claims {claim}; the limit is {limits.max_bytes:,}"
    if is_encapsulated(pixels.syntax):
        if pixels.frames * 8 > size:  # every frame has a fragment, and a fragment a header of eight bytes
            return "E-DCM-CLAIM", f"the header claims {claim}, in a file of {size:,} bytes"
    elif native_bytes(pixels) > limits.max_ratio * size and not _deflated(pixels):
        return "E-DCM-CLAIM", f"the header claims {claim}, in an uncompressed file of {size:,} bytes"
    return None


def native_bytes(pixels: Pixels) -> int:
    """Bytes of uncompressed pixels (PS3.3 C.7.6.3, PS3.5 8.1.1)."""
    values = pixels.rows * pixels.columns * pixels.samples
    if pixels.photometric == "YBR_FULL_422" and not is_encapsulated(pixels.syntax):
        values = values * 2 // 3  # two pixels share their chroma
    return (values * pixels.frames * pixels.allocated + 7) // 8


def native_fault(stream: BinaryIO, pixels: Pixels, end: int) -> tuple[Fault | None, Note | None]:
    """Whether uncompressed pixels are all there, given where their stream ends; and a note of what is behind them."""
    expected, there = native_bytes(pixels), end - pixels.offset
    length = there if pixels.length is None else min(pixels.length, there)
    if length < expected:
        return ("E-DCM-TRUNCATED", f"{expected:,} bytes of pixels were expected, {max(length, 0):,} are there"), None
    surplus = length - expected - expected % 2
    behind = end - pixels.offset - (pixels.length or 0)
    if surplus <= 0 and behind > 0 and not _is_element(stream, pixels):
        surplus = behind
    elif surplus >= max(expected // pixels.frames, 2):
        return ("E-DCM-PIXELS", f"the pixel data hold {length:,} bytes, the header accounts for {expected:,}"), None
    return None, Note("W-DCM-TRAILING", f"{surplus} bytes behind the pixels") if surplus > 0 else None


def fragments_fault(stream: BinaryIO, pixels: Pixels, size: int) -> Fault | None:
    """Whether encapsulated pixels are all there (PS3.5 A.4): the items are walked by their lengths, not read."""
    position, items, content = pixels.offset, 0, 0
    while True:
        stream.seek(position)
        head = stream.read(8)
        length = int.from_bytes(head[4:], "little")
        if len(head) == 8 and head[:4] == _DELIMITER:
            break
        if len(head) < 8 or head[:4] != _ITEM or position + 8 + length > size:
            if len(head) == 8 and head[:4] != _ITEM:
                return "E-DCM-PIXELS", f"no fragment begins at byte {position:,}"
            return (
                "E-DCM-TRUNCATED",
                f"the pixel data break off in fragment {items}: {position + 8 + length:,} bytes were expected, "
                f"the file has {size:,}",
            )
        position, items = position + 8 + length, items + 1
        content += length if items > 1 else 0
    if items - 1 < pixels.frames or not content:  # the first item is the offset table
        return "E-DCM-PIXELS", f"{max(items - 1, 0)} fragments for {pixels.frames} frames"
    return None


def _is_element(stream: BinaryIO, pixels: Pixels) -> bool:
    """Whether another element follows the pixels, as its tag would be higher: padding, or a signature."""
    stream.seek(pixels.offset + (pixels.length or 0))
    head = stream.read(4)
    order: Literal["little", "big"] = "big" if pixels.syntax == BIG_ENDIAN else "little"
    return len(head) == 4 and int.from_bytes(head[:2], order) > 0x7FE0


def _deflated(pixels: Pixels) -> bool:
    return pixels.syntax.endswith(".1.99")
