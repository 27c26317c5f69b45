"""NIfTI files as volumes: read once to the end and checked, or refused.

What other readers do in silence (half an image of zeros from a cut file, a wrong voxel behind a flipped bit, a voxel
size of 0 that becomes 1) is refused here, or noted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from medmtl.io.gzipped import Source, opened
from medmtl.io.nifti_header import LONGEST, SHORTEST, NiftiHeader, parse_header
from medmtl.io.nifti_write import write_nifti
from medmtl.io.reasons import refusal
from medmtl.io.volume import Note, Volume

__all__ = ["MAX_BYTES", "files_of", "read_header", "read_nifti", "write_nifti"]

MAX_BYTES = 2**32  # of one image in memory
MAX_FILLED = 1e-3  # of the voxels may be filled on request
_PARTNER = {".hdr": ".img", ".img": ".hdr"}
_SAFE = 2**31  # slopes and intercepts below it cannot leave int64 with 32-bit voxels
Array = npt.NDArray[np.generic]


def read_header(path: Path, *, max_bytes: int = MAX_BYTES) -> NiftiHeader:
    """The checked header of a ``.nii``, ``.nii.gz``, or ``.hdr``/``.img`` file; no voxel is read.

    Refused by arithmetic, before anything is allocated: an image of more than ``max_bytes`` in memory (``E-NII-SIZE``),
    and one that a file of this size cannot hold (``E-NII-TRUNCATED``).
    """
    with _begun(path, max_bytes) as (header, _):
        return header


def read_nifti(
    path: Path,
    *,
    max_bytes: int = MAX_BYTES,
    nan: Literal["refuse", "fill"] = "refuse",
    labels: bool = False,
    fourth: Literal["time", "channel", "refuse"] = "time",
) -> Volume:
    """The volume in a NIfTI-1 or NIfTI-2 file, gzip or not by what it holds, in either byte order.

    Stored integers stay integers where slope and intercept are whole and the values fit; else values are float32, or
    float64 where float32 cannot hold the stored type. Orientation and affine are the file's. Dimensions of size 1
    behind the third are dropped; ``fourth`` says what a fourth one is, since no header does. RGB24, opaque RGBA32 and
    three planes of bytes with intent 2003 are colour.

    Voxels that are NaN or infinite are refused; with ``nan="fill"`` up to 0.1 % of them get the lowest finite value. An
    image of one value is refused unless it holds ``labels``. The file is read to its end, so that its checksum counts.

    Raises UserError with the codes ``E-NII-...`` and ``E-FILE-...`` of :mod:`medmtl.io.reasons`.
    """
    assert not (labels and nan == "fill"), "a label is never invented"
    with _begun(path, max_bytes) as (header, source):
        header = _with_fourth(header, fourth, path.name)
        raw = np.empty(header.stored_bytes, np.uint8)
        found = source.fill(raw.data)
        if found < raw.size:
            claim = f"the header claims {raw.size:,} bytes of voxels, there are {found:,}"
            raise refusal("E-NII-TRUNCATED", claim, where=path.name)
        trailing = source.finish()
    notes = list(header.notes)
    if trailing or source.foreign:
        size = f"{trailing:,} bytes" if trailing else "bytes that are no gzip stream"
        notes.append(Note("W-NII-TRAILING", f"{size} follow the voxels"))
    array = _values(raw, header, path.name)
    _check_finite(array, nan, notes, path.name)
    if not labels and array.min() == array.max():
        raise refusal("E-NII-CONSTANT", f"all {array.size:,} voxels are {array.flat[0]}", where=path.name)
    return Volume(
        array=array,
        affine=header.affine,
        colour=header.colour,
        spacing=header.spacing,
        time_step_s=header.time_step_s,
        notes=tuple(notes),
    )


def _with_fourth(header: NiftiHeader, fourth: str, name: str) -> NiftiHeader:
    """The header of an image whose fourth axis is what the user says."""
    if header.colour or len(header.stored_shape) < 4 or fourth == "time":
        return header
    if fourth == "refuse":
        raise refusal("E-NII-DIMENSIONS", f"a fourth axis of {header.stored_shape[3]}", where=name)
    notes = tuple(note for note in header.notes if note.code != "W-NII-TIME")
    return replace(header, time_step_s=None, notes=notes)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that reading ``path`` opens, the header's first: one, or a ``.hdr`` and the ``.img`` beside it.

    The other file of a pair must be a file in the same folder and not a link, which could lead anywhere
    (``E-NII-PAIR``).
    """
    packed = ".gz" if path.name.lower().endswith(".gz") else ""
    bare = path.with_suffix("") if packed else path
    other = _PARTNER.get(bare.suffix.lower())
    if other is None:
        return (path,)
    names = (bare.with_suffix(other), bare.with_name(f"{bare.stem}{other}.gz"))
    partner = next((name for name in names if name.is_file() and not name.is_symlink()), None)
    if partner is None:
        raise refusal("E-NII-PAIR", f"no file {names[0].suffix} of the same name", where=path.name)
    return (path, partner) if other == ".img" else (partner, path)


@contextmanager
def _begun(path: Path, max_bytes: int) -> Iterator[tuple[NiftiHeader, Source]]:
    """The header, its claims checked against the file, and the file's bytes from the first voxel on."""
    first, *second = files_of(path)
    with opened(first) as source:
        header, position = _header(source, path)
        if header.single:
            _check_claims(header, source, max_bytes)
            source.skip(header.offset - position)
            yield header, source
            return
        source.finish()
    if not second:
        raise refusal("E-NII-PAIR", "the header says that the voxels are in another file", where=path.name)
    with opened(second[0]) as source:
        _check_claims(header, source, max_bytes)
        source.skip(header.offset)
        yield header, source


def _header(source: Source, path: Path) -> tuple[NiftiHeader, int]:
    """The header with a note on the file's name, and how many bytes it took."""
    head = source.take(SHORTEST)
    if LONGEST in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")):
        head += source.take(LONGEST - SHORTEST)
    header = parse_header(head, path.name)
    if source.gzipped != path.name.lower().endswith(".gz") and header.single:
        held = "gzip" if source.gzipped else "no gzip"
        note = Note("W-NII-NAME", f"the file holds {held}, its name says otherwise")
        header = replace(header, notes=(note, *header.notes))
    return header, len(head)


def _check_claims(header: NiftiHeader, source: Source, max_bytes: int) -> None:
    shape = " x ".join(map(str, header.stored_shape))
    if header.loaded_bytes > max_bytes:
        size = f"{shape} voxels need {header.loaded_bytes:,} bytes, the limit is {max_bytes:,}"
        raise refusal("E-NII-SIZE", size, where=source.name)
    if header.offset + header.stored_bytes > source.capacity:
        held = (
            f"a file of {source.size:,} bytes {'of gzip ' if source.gzipped else ''}holds {source.capacity:,} at most"
        )
        claim = f"{shape} voxels end at byte {header.offset + header.stored_bytes:,}; {held}"
        raise refusal("E-NII-TRUNCATED", claim, where=source.name)


def _values(raw: npt.NDArray[np.uint8], header: NiftiHeader, name: str) -> Array:
    """The bytes of a file as values in the machine's byte order; copied only where they must be scaled."""
    stored: Array = raw.view(header.stored).reshape(header.stored_shape, order="F")
    if not stored.dtype.isnative:
        stored = stored.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))
    if header.interleaved:
        if len(stored) == 4 and int(stored[3].min()) < 255:  # type: ignore[call-overload]
            raise refusal("E-NII-DTYPE", "colours (RGBA32) that are partly transparent", where=name)
        return np.moveaxis(stored[:3], 0, -1)
    if header.scaled:
        stored = _scaled(stored, header)
    if stored.dtype == np.uint64:
        if (top := int(stored.max())) > np.iinfo(np.int64).max:  # type: ignore[call-overload]
            raise refusal(
                "E-NII-DTYPE", f"unsigned 64-bit values up to {top} do not fit 64 bits with a sign", where=name
            )
        stored = stored.view(np.int64)
    return stored


def _scaled(stored: Array, header: NiftiHeader) -> Array:
    """``stored * slope + inter``, computed in int64 or float64 slab by slab."""
    kind = _whole_kind(stored, header.slope, header.inter)
    slope, inter = (int(header.slope), int(header.inter)) if kind else (header.slope, header.inter)
    values = np.empty(stored.shape, kind or header.kind, order="F")
    for index in range(stored.shape[-1]):
        wide = stored[..., index].astype(np.int64 if kind else np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and refused as such
            values[..., index] = wide * slope + inter
    return values


def _whole_kind(stored: Array, slope: float, inter: float) -> np.dtype[np.generic] | None:
    """The integer type that holds all scaled values: the stored one, or the smallest of 16, 32 and 64 bits with a sign.

    None where slope or intercept are not whole, or the stored numbers are not integers of up to 32 bits.
    """
    whole = slope.is_integer() and inter.is_integer() and max(abs(slope), abs(inter)) < _SAFE
    if not (whole and stored.dtype.kind in "iu" and stored.dtype.itemsize <= 4):
        return None
    ends = [int(end) * int(slope) + int(inter) for end in (stored.min(), stored.max())]  # type: ignore[call-overload]
    return next(np.dtype(kind) for kind in (stored.dtype.name, "int16", "int32", "int64") if _fits(kind, ends))


def _fits(kind: str, ends: list[int]) -> bool:
    limits = np.iinfo(kind)
    return limits.min <= min(ends) and max(ends) <= limits.max


@np.errstate(invalid="ignore")
def _check_finite(array: Array, nan: str, notes: list[Note], name: str) -> None:
    """Refuse voxels that are no number, or fill them in place; NaN and infinities show in the extremes."""
    if array.dtype.kind != "f" or (np.isfinite(array.min()) and np.isfinite(array.max())):
        return
    finite = np.isfinite(array)  # type: ignore[call-overload]
    bad = array.size - int(np.count_nonzero(finite))
    found = f"{bad:,} of {array.size:,} voxels ({100 * bad / array.size:.3g} %) are NaN or infinite"
    if nan != "fill" or bad > MAX_FILLED * array.size:
        raise refusal("E-NII-NAN", found, where=name)
    lowest = array.min(where=finite, initial=np.inf)
    array[~finite] = lowest
    notes.append(Note("R-NII-NAN", f"{found}; they hold the lowest finite value, {lowest:g}"))
