"""Siemens mosaics: a volume of which all slices are tiles of one image, and what the private header says of them.

The position of such a file is that of the whole mosaic as if it were one slice with the volume's centre, so the first
pixel of the first slice lies further in by half of what the mosaic is larger than a tile. The slices follow each other
along the private slice normal, which may be opposite to the normal of the image orientation.
"""

import math
import struct
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from medmtl.io.dicom.elements import Elements
from medmtl.io.dicom.record import Frame, Pixels, Vector
from medmtl.io.reasons import refusal

_CREATORS = (0x0019, "SIEMENS MR HEADER", 0x0A), (0x0029, "SIEMENS CSA HEADER", 0x10)
_MAX_ITEMS, _MAX_TAGS = 1000, 4096


def tile_count(elements: Elements, image_type: tuple[str, ...]) -> int:
    """How many slices the mosaic holds; 0 if the image is none, -1 if it is one and nothing says how many."""
    if "MOSAIC" not in image_type:
        return 0
    tag = elements.private(*_CREATORS[0])
    stated = elements.integer(tag) if tag else None
    values = csa_values(_csa(elements), "NumberOfImagesInMosaic")
    found = {count for count in (stated, int(values[0]) if values and math.isfinite(values[0]) else None) if count}
    count = found.pop() if len(found) == 1 else 0  # two that disagree say nothing
    return count if 0 < count <= 4096 else -1


def check_tiles(mosaic: npt.NDArray[Any], tiles: int) -> None:
    """Refuse a mosaic [rows, columns] that holds more than the ``tiles`` that its header states (``E-DCM-MOSAIC``).

    Scanners leave the rest of the mosaic at one value; slices there would be lost.
    """
    side = mosaic_side(tiles)
    rows, columns = mosaic.shape[0] // side, mosaic.shape[1] // side
    places = ((tile, *divmod(tile, side)) for tile in range(tiles, side * side))
    filled = [
        tile + 1
        for tile, down, across in places
        if (rest := mosaic[down * rows : (down + 1) * rows, across * columns : (across + 1) * columns]).size
        and rest.min() != rest.max()
    ]
    if filled:
        raise refusal(
            "E-DCM-MOSAIC", f"the header states {tiles} tiles, the mosaic holds an image in tile {filled[-1]}"
        )


def mosaic_side(tiles: int) -> int:
    """Tiles per row and per column of the mosaic."""
    return math.isqrt(tiles - 1) + 1


def tile_frames(frame: Frame, elements: Elements, pixels: Pixels, tiles: int) -> tuple[Frame, ...] | None:
    """A frame per tile, each with its own position; None where the header does not say where they are."""
    side = mosaic_side(tiles)
    normal = csa_values(_csa(elements), "SliceNormalVector")
    step = elements.number("SpacingBetweenSlices") or elements.number("SliceThickness")
    if frame.position is None or frame.orientation is None or frame.spacing is None or len(normal) != 3:
        return None
    if not step or not math.isfinite(step) or not all(map(math.isfinite, normal)):
        return None
    if pixels.columns % side or pixels.rows % side:
        return None
    right = frame.spacing[1] * (pixels.columns - pixels.columns // side) / 2
    down = frame.spacing[0] * (pixels.rows - pixels.rows // side) / 2
    row, column = frame.orientation[:3], frame.orientation[3:]
    first = tuple(frame.position[a] + row[a] * right + column[a] * down for a in range(3))
    return tuple(
        replace(frame, tile=tile, position=_vector([first[a] + tile * step * normal[a] for a in range(3)]))
        for tile in range(tiles)
    )


def csa_values(content: bytes, name: str) -> tuple[float, ...]:
    """The numbers of one entry of a CSA header (format SV10, or the older one without a signature).

    Layout as nibabel documents it (nicom/siemens_csa): entries of name, vm, VR, syngo type and number of items, each of
    which has four integers, of which one gives its length, and text padded to four bytes. Anything odd gives ``()``.
    """
    try:
        return _csa_values(content, name.encode())
    except (struct.error, IndexError, ValueError):
        return ()


def _csa_values(content: bytes, name: bytes) -> tuple[float, ...]:
    new = content[:4] == b"SV10"
    at = 8 if new else 0
    count = struct.unpack_from("<I", content, at)[0]
    at += 8
    first_items = struct.unpack_from("<i", content, at + 76)[0]  # added to every length of the older format
    for _ in range(min(count, _MAX_TAGS)):
        found = content[at : at + 64].split(b"\0", 1)[0]
        items = struct.unpack_from("<i", content, at + 76)[0]
        at += 84
        values = []
        for _ in range(min(max(items, 0), _MAX_ITEMS)):
            lengths = struct.unpack_from("<4i", content, at)
            length = lengths[1] if new else lengths[0] - first_items
            if length < 0 or length > len(content):
                break
            values.append(content[at + 16 : at + 16 + length].split(b"\0", 1)[0].strip())
            at += 16 + -(-length // 4) * 4
        if found == name:
            return tuple(float(value) for value in values if value)
    return ()


def _csa(elements: Elements) -> bytes:
    tag = elements.private(*_CREATORS[1])
    return elements.content(tag) if tag else b""


def _vector(values: list[float]) -> Vector:
    x, y, z = values
    return x, y, z
