"""The stored values of frames: read from their bytes where they are plain, decoded by pydicom's plug-ins where not."""

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder

from medmtl.errors import UserError
from medmtl.io.dicom.codestream import stream_fault
from medmtl.io.dicom.parse import parse, regular_file
from medmtl.io.dicom.record import Header, Limits, Pixels
from medmtl.io.dicom.syntax import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    is_encapsulated,
    name_of,
    package_for,
    plugins_for,
    uid_of,
)
from medmtl.io.reasons import refusal

Array = npt.NDArray[Any]


def stored_frames(header: Header, indices: Sequence[int]) -> Iterator[Array]:
    """The frames ``indices`` of a file as stored, unused bits included: [rows, columns], or RGB [rows, columns, 3].

    Raises UserError: ``E-FILE-CHANGED``, ``E-FILE-OPEN``, ``E-DCM-CODEC``, ``E-DCM-PIXELS``, ``E-DCM-TRUNCATED``.
    """
    pixels = header.pixels
    assert pixels is not None
    try:
        with regular_file(header.path) as (file, status):
            if (status.st_size, status.st_mtime_ns) != (header.size, header.mtime_ns):
                raise refusal("E-FILE-CHANGED", "the file was changed since its header was read")
            deflated = pixels.syntax == DEFLATED
            stream = parse(file, status.st_size, Limits(), frozenset()).stream if deflated else file
            frames = _plain_frames if is_plain(pixels) else _decoded_frames
            yield from frames(stream, pixels, indices)
            after = os.fstat(file.fileno())
            if (after.st_size, after.st_mtime_ns) != (header.size, header.mtime_ns):
                raise refusal("E-FILE-CHANGED", "the file was written to while it was read")
    except UserError as error:
        raise UserError(error.code, error.what, error.remedy, where=header.path.name) from error
    except OSError as error:
        raise refusal("E-FILE-OPEN", f"it cannot be read ({error.strerror})", where=header.path.name) from error


def is_plain(pixels: Pixels) -> bool:
    """Whether the values of a frame are its bytes, one after the other."""
    whole_bytes = pixels.allocated in (16, 32, 64) or (pixels.allocated == 8 and pixels.syntax != BIG_ENDIAN)
    return whole_bytes and pixels.samples == 1 and not is_encapsulated(pixels.syntax)


def plain_dtype(pixels: Pixels) -> np.dtype[Any]:
    """The type of a stored value in the file."""
    kind = "f" if pixels.element != "PixelData" else "i" if pixels.signed else "u"
    return np.dtype(f"{'>' if pixels.syntax == BIG_ENDIAN else '<'}{kind}{pixels.itemsize}")


def _plain_frames(stream: BinaryIO, pixels: Pixels, indices: Sequence[int]) -> Iterator[Array]:
    dtype = plain_dtype(pixels)
    for index in indices:
        values = np.empty((pixels.rows, pixels.columns), dtype)
        stream.seek(pixels.offset + index * values.nbytes)
        found = stream.readinto(values.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
        if found < values.nbytes:
            raise refusal("E-DCM-TRUNCATED", f"frame {index} ends after {found:,} of {values.nbytes:,} bytes")
        yield values if dtype.isnative else values.astype(dtype.newbyteorder("="))


def _decoded_frames(stream: BinaryIO, pixels: Pixels, indices: Sequence[int]) -> Iterator[Array]:
    stream.seek(pixels.offset)
    content = stream.read() if pixels.length is None else stream.read(pixels.length)
    decoder = _decoder(EXPLICIT if pixels.syntax == DEFLATED else pixels.syntax)
    if is_encapsulated(pixels.syntax):
        _check_streams(content, pixels)
    options: dict[str, Any] = {
        "pixel_keyword": pixels.element,
        "rows": pixels.rows,
        "columns": pixels.columns,
        "number_of_frames": pixels.frames,
        "samples_per_pixel": pixels.samples,
        "bits_allocated": pixels.allocated,
        "bits_stored": pixels.stored,
        "pixel_representation": int(pixels.signed),
        "photometric_interpretation": pixels.photometric,
        "planar_configuration": pixels.planar,
        "pixel_vr": pixels.vr,
    }
    plugin = next((name for name in plugins_for(pixels.syntax) if name in decoder.available_plugins), "")
    decoded = decoder.iter_array(
        content, indices=list(indices), raw=pixels.samples == 1, decoding_plugin=plugin, **options
    )
    shape = (pixels.rows, pixels.columns, 3) if pixels.samples == 3 else (pixels.rows, pixels.columns)
    for _ in indices:
        with warnings.catch_warnings():  # plug-ins that fail before one succeeds
            warnings.simplefilter("ignore")
            values = _next(decoded)
        if values.shape != shape:
            raise refusal("E-DCM-PIXELS", f"a frame was decoded to {list(values.shape)}, not {list(shape)}")
        yield values


def _next(decoded: Iterator[tuple[Array, Any]]) -> Array:
    try:
        return next(decoded)[0]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # damaged data can raise anything in a decoder; Rust's panic is no Exception
        raise refusal("E-DCM-PIXELS", f"the pixels cannot be decoded ({type(error).__name__})") from error


def _decoder(syntax: str) -> Any:
    """pydicom's decoder of a syntax that has a working plug-in."""
    try:
        with warnings.catch_warnings():  # of a UID that is none
            warnings.simplefilter("ignore")
            decoder = get_decoder(uid_of(syntax))
    except NotImplementedError as error:
        raise refusal("E-DCM-CODEC", f"no decoder is known for {name_of(syntax)}") from error
    if not decoder.is_available:
        package = package_for(syntax)
        how = f"pip install {package}" if package else "no package is known"
        raise refusal("E-DCM-CODEC", f"no decoder is installed for {name_of(syntax)}: {how}")
    return decoder


def _check_streams(content: bytes, pixels: Pixels) -> None:
    try:
        frames = list(generate_frames(content, number_of_frames=pixels.frames))
    except Exception as error:
        raise refusal("E-DCM-PIXELS", f"the fragments make no frames ({type(error).__name__})") from error
    for frame in frames:
        if fault := stream_fault(frame, pixels):
            raise refusal(*fault)
