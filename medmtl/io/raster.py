"""PNG, JPEG and TIFF files as arrays, and PNG files from arrays: nothing is guessed, what does not fit is refused.

Colour is never made from grey nor grey from colour, alpha is never dropped unless it hides nothing, and a mask is never
read from a lossy file: each of these would change what a network sees without anybody noticing.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from medmtl.errors import SafetyRefusal, UserError
from medmtl.files import write_atomic

FORMATS = ("PNG", "JPEG", "TIFF")  # no others: some of Pillow's readers start programs (EPS) or are rarely tested
MAX_PIXELS = 2**27  # 134 million, 11,585 squared; a larger image belongs in tiles, or is a decompression bomb
_GREY16 = ("I;16", "I;16L", "I;16B")
_COLOUR_NAME = {1: "grey", 3: "RGB"}
_T = TypeVar("_T")


def read_image(path: Path, *, channels: int, page: int = 0) -> np.ndarray:
    """An image as float32 [C, H, W] in [0, 1], upright as its EXIF orientation says.

    8 bits are divided by 255, 16-bit grey by 65535, 1 bit becomes 0 and 1. Palettes become RGB. 16-bit RGB is read by
    Pillow with its upper 8 bits. ``channels`` is 1 (grey) or 3 (RGB); ``page`` counts from 0 in a TIFF of many pages.

    Raises UserError (``E-IMG-...``) for another colour than asked for, for alpha that is not opaque, and for a file
    that is missing, empty, damaged, not an image or too large.
    """
    assert channels in _COLOUR_NAME, f"channels = {channels}; an image has 1 or 3"
    pixels = _open(path, page, lambda image: _plain(image, path.name))
    check_colour(1 if pixels.ndim == 2 else 3, channels, path.name)
    scale = 65535 if pixels.dtype == np.uint16 else 255
    unit = pixels.astype(np.float32) / np.float32(scale)
    return np.ascontiguousarray(unit[None] if channels == 1 else unit.transpose(2, 0, 1))


def channels_of(mode: str, kind: str | None, name: str) -> int:
    """What :func:`read_image` makes of an image of Pillow's ``mode`` and format ``kind``: 1 (grey) or 3 (RGB).

    E-IMG-MODE where it is neither. Alpha that is not opaque lies in the pixels, not in the mode.
    """
    pixel = Image.new(mode, (1, 1))
    if mode in ("LA", "RGBA"):
        pixel.putalpha(255)
    pixel.format = kind
    return 1 if _plain(pixel, name).ndim == 2 else 3


def check_colour(found: int, channels: int, name: str) -> None:
    """E-IMG-COLOUR where an image has other channels than were asked for."""
    if found != channels:
        raise UserError(
            "E-IMG-COLOUR",
            f"the image is {_COLOUR_NAME[found]}, {_COLOUR_NAME[channels]} was expected",
            f"set preprocess.channels to {found}, or convert every image of the study the same way",
            where=name,
        )


def read_mask(path: Path, *, page: int = 0) -> np.ndarray:
    """A label image as uint8 or uint16 [H, W]: the pixel values of a grey image, or the indices of a palette.

    A 1-bit image becomes 0 and 1. Colour, alpha, floating point and JPEG (its compression invents labels) are refused.
    """
    return _open(path, page, lambda image: _labels(image, path.name))


def pages(path: Path) -> int:
    """How many pages (frames) the file holds; 1 for all but a TIFF of many pages."""
    return _open(path, 0, lambda image: int(getattr(image, "n_frames", 1)))


def write_png(path: Path, array: np.ndarray, *, level: int = 6) -> Path:
    """Write uint8 [H, W] or [H, W, 3], uint16 [H, W], or bool [H, W] (as 0 and 1): whole or not at all.

    No time, name or other metadata is stored, so equal arrays give equal bytes. ``level`` is zlib's: 0 (fast) to 9.
    """
    pixels = array.astype(np.uint8) if array.dtype == np.bool_ else array
    fits = (pixels.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[2:] == (3,))) or (
        pixels.dtype == np.uint16 and pixels.ndim == 2
    )
    assert fits, f"a PNG needs uint8 [H, W] or [H, W, 3], or uint16 [H, W]; got {array.dtype} {list(array.shape)}"
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG", compress_level=level)
    return write_atomic(path, stream.getvalue())


def _open(path: Path, page: int, read: Callable[[Image.Image], _T]) -> _T:
    """Open the file, turn to ``page`` and ``read`` it; whatever a decoder raises becomes an error with a remedy."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path)
            _turn_to(image, page, path)
            return read(image)
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except FileNotFoundError as error:
        raise UserError("E-IMG-FILE", "no such file", "restore the file or drop its row", where=path.name) from error
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(
            "E-IMG-FILE", "the file cannot be opened", "check that it is a file that you may read", where=path.name
        ) from error
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        raise UserError(
            "E-IMG-EMPTY" if empty else "E-IMG-FORMAT",
            "the file is empty (0 bytes)" if empty else f"not a readable {', '.join(FORMATS)} image",
            "copy the file again from its source" if empty else "convert it to PNG, or drop its row",
            where=path.name,
        ) from error
    except Exception as error:  # a damaged file can raise anything inside a decoder: OSError, SyntaxError, struct.error
        raise UserError(
            "E-IMG-DAMAGED",
            f"the image is cut off or damaged ({type(error).__name__})",
            "copy the file again from its source, or drop its row",
            where=path.name,
        ) from error


def _turn_to(image: Image.Image, page: int, path: Path) -> None:
    count = int(getattr(image, "n_frames", 1))
    if not 0 <= page < count:
        raise UserError(
            "E-IMG-PAGE", f"page {page} was asked for, the file has {count}", "count pages from 0", where=path.name
        )
    if page:
        image.seek(page)
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(path)


def _too_large(path: Path) -> SafetyRefusal:
    return SafetyRefusal(
        "E-IMG-BOMB",
        f"the image claims more than {MAX_PIXELS:,} pixels",
        "cut it into tiles; if it should be small, the file is hostile or damaged",
        where=path.name,
    )


def _plain(image: Image.Image, name: str) -> np.ndarray:
    """Pixels as uint8 [H, W] or [H, W, 3], or uint16 [H, W]: palette resolved, opaque alpha dropped, upright."""
    if image.mode in _GREY16 or (image.mode == "I" and image.format == "PNG"):
        return np.asarray(_upright(image)).astype(np.uint16)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif "transparency" in image.info and image.mode in ("1", "L", "RGB"):
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")  # one colour is declared transparent
    image = _upright(image)
    if image.mode in ("RGBA", "LA"):
        lowest = int(np.asarray(image.getchannel("A")).min())
        if lowest < 255:
            raise UserError(
                "E-IMG-ALPHA",
                f"the image (mode {image.mode}) is partly transparent (lowest alpha {lowest} of 255)",
                "flatten it on the background that you mean",
                where=name,
            )
        return np.asarray(image.convert("RGB" if image.mode == "RGBA" else "L"))
    match image.mode:
        case "L" | "RGB":
            return np.asarray(image)
        case "1":
            return np.asarray(image.convert("L"))
        case "YCbCr":
            return np.asarray(image.convert("RGB"))
    raise UserError(
        "E-IMG-MODE",
        f"pixels of mode {image.mode} have no agreed scale or colour here",
        "convert the image to 8-bit grey or RGB, or to 16-bit grey",
        where=name,
    )


def _upright(image: Image.Image) -> Image.Image:
    """The image, turned where it lies as its EXIF orientation says: not copied, as most have none."""
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _labels(image: Image.Image, name: str) -> np.ndarray:
    if image.format not in ("PNG", "TIFF"):
        raise UserError(
            "E-IMG-MASK",
            f"a mask in {image.format}, which is lossy",
            "write the mask as PNG from its source",
            where=name,
        )
    mode = image.mode
    upright = _upright(image)
    if mode in _GREY16 or (mode == "I" and image.format == "PNG"):
        return np.asarray(upright).astype(np.uint16)
    if mode in ("L", "P", "1"):
        return np.asarray(upright).astype(np.uint8)
    raise UserError(
        "E-IMG-MASK",
        f"a mask of mode {mode}; pixel values must be class indices",
        "write a grey (8 or 16 bit), palette or 1-bit PNG",
        where=name,
    )
