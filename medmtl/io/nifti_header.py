"""A NIfTI header, checked before a voxel is read: what the file claims to hold, and where that lies.

Fields carry their names in the standard, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and nifti2.h; their
places and types are nibabel's.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from nibabel.nifti1 import header_dtype as nifti1
from nibabel.nifti2 import header_dtype as nifti2

from medmtl.io.nifti_space import read_space
from medmtl.io.reasons import refusal
from medmtl.io.volume import Floats, Note

SHORTEST, LONGEST = nifti1.itemsize, nifti2.itemsize  # 348 and 540 bytes
MAX_EXTENSIONS = 2**26  # bytes between header and voxels: a DICOM header or some XML, never a volume
RGB_VECTOR = 2003  # intent_code: the fifth dimension is red, green, blue
_ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
_LAYOUTS = {348: nifti1, 540: nifti2}
_MAGIC = {348: (b"n+1", b"ni1"), 540: (b"n+2", b"ni2")}  # voxels in the same file, or beside it
_LINE_ENDS = (13, 10, 26, 10)  # NIfTI-2 shows by them that nothing "translated" the file
_NUMBERS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_CHANNELS = {128: 3, 2304: 4}  # RGB24 and RGBA32, interleaved
_REFUSED = {1: "one bit per voxel", 32: "complex", 1792: "complex", 2048: "complex", 1536: "128-bit floats"}
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}  # xyzt_units, bits 3 to 5


@dataclass(frozen=True)
class NiftiHeader:
    """What a file says about its voxels; lengths in mm, the affine to RAS+ as in :class:`Volume`."""

    version: int  # 1 or 2
    shape: tuple[int, ...]  # of the volume: [I, J, K], [I, J, K, T] or, in colour, [I, J, K, 3]
    colour: bool
    stored: np.dtype[np.generic]  # with its byte order
    stored_shape: tuple[int, ...]  # first index fastest; interleaved colours [3 or 4, I, J, K]
    interleaved: bool
    slope: float  # value = stored * slope + inter
    inter: float
    affine: Floats | None
    spacing: tuple[float, ...] | None
    time_step_s: float | None
    sform_code: int
    qform_code: int
    offset: int  # of the first voxel, in the file that holds them
    single: bool  # voxels in the same file, else in the .img beside it
    notes: tuple[Note, ...]

    @property
    def stored_bytes(self) -> int:
        """The size of the voxels in the file."""
        return math.prod(self.stored_shape) * self.stored.itemsize

    @property
    def loaded_bytes(self) -> int:
        """The most that the voxels take in memory as values."""
        return math.prod(self.stored_shape) * (self.kind if self.scaled else self.stored).itemsize

    @property
    def scaled(self) -> bool:
        """Whether stored numbers are not the values."""
        return (self.slope, self.inter) != (1.0, 0.0)

    @property
    def kind(self) -> np.dtype[np.generic]:
        """The floating type that scaled values need: float32 holds 16-bit integers exactly, wider ones need float64."""
        return np.dtype(np.result_type(self.stored.newbyteorder("="), np.float32))


@np.errstate(invalid="ignore")  # a signalling NaN warns when it is widened; it is refused as what it is
def parse_header(head: bytes, name: str) -> NiftiHeader:
    """The header at the beginning of a file (at least 348 or 540 bytes of it). ``name`` appears in errors.

    Raises ``E-NII-FORMAT`` (not NIfTI), ``-HEADER`` (fields that contradict each other), ``-DIMENSIONS``, ``-DTYPE``,
    ``-SCALE``, ``-PLACE`` and ``-SPACING``.
    """
    fields, size = _fields(head, name)
    magic = fields["magic"].item()
    if size == 540 and tuple(fields["eol_check"].tolist()) != _LINE_ENDS:
        raise refusal("E-NII-HEADER", "its line ends were translated: it was copied as text", where=name)
    single = magic == _MAGIC[size][0]
    notes: list[Note] = []
    stored, channels = _stored(fields, notes, name)
    spatial, times, planes = _dimensions(fields, name)
    if planes and (stored.kind, stored.itemsize, channels) != ("u", 1, 1):
        raise refusal("E-NII-DIMENSIONS", f"three planes of colour in {stored}, not in bytes", where=name)
    colour = planes or channels > 1
    if colour and times > 1:
        raise refusal("E-NII-DIMENSIONS", f"colour over {times} time points", where=name)
    shape = (*spatial, 3) if colour else (*spatial, times) if times > 1 else spatial
    slope, inter = (1.0, 0.0) if colour else _scale(fields, notes, name)
    space = read_space(fields, spatial, name)
    return NiftiHeader(
        version=1 if size == 348 else 2,
        shape=shape,
        colour=colour,
        stored=stored,
        stored_shape=(channels, *spatial) if channels > 1 else shape,
        interleaved=channels > 1,
        slope=slope,
        inter=inter,
        affine=space.affine,
        spacing=space.spacing,
        time_step_s=_time_step(fields, notes) if times > 1 else None,
        sform_code=space.sform_code,
        qform_code=space.qform_code,
        offset=_offset(fields, size + 4 if single else 0, name),
        single=single,
        notes=(*notes, *space.notes),
    )


def _fields(head: bytes, name: str) -> tuple[np.void, int]:
    """The header's fields in the byte order that makes its size right, and that size."""
    for order in _ORDERS:
        size = int(np.frombuffer(head[:4].ljust(4, b"\0"), f"{order}i4")[0])
        if size in _LAYOUTS:
            break
    else:
        raise refusal("E-NII-FORMAT", "it does not begin as a NIfTI header", where=name)
    if len(head) < size:
        raise refusal("E-NII-TRUNCATED", f"{len(head)} bytes where the header alone has {size}", where=name)
    fields = np.frombuffer(head[:size], _LAYOUTS[size].newbyteorder(order))[0]
    magic = fields["magic"].item()
    if magic not in _MAGIC[size]:
        raise refusal(
            "E-NII-FORMAT", f"magic {magic!r}: Analyze 7.5 (which does not tell left from right) or damaged", where=name
        )
    return fields, size


def _stored(fields: np.void, notes: list[Note], name: str) -> tuple[np.dtype[np.generic], int]:
    """The type of the stored numbers, and how many make one voxel."""
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    channels = _CHANNELS.get(code, 1)
    if code not in _NUMBERS and channels == 1:
        raise refusal("E-NII-DTYPE", f"data type {code} ({_REFUSED.get(code, 'unknown')})", where=name)
    order = ">" if fields.dtype["datatype"].byteorder == ">" else "<"
    stored = np.dtype(order + _NUMBERS.get(code, "u1"))
    if bits != 8 * stored.itemsize * channels:
        notes.append(Note("W-NII-BITPIX", f"bitpix = {bits}, data type {code} has {8 * stored.itemsize * channels}"))
    return stored, channels


def _dimensions(fields: np.void, name: str) -> tuple[tuple[int, int, int], int, bool]:
    """Size in space, number of time points, and whether the fifth dimension is red, green, blue."""
    count, *sizes = (int(size) for size in fields["dim"])
    if not 2 <= count <= 7 or min(sizes[:count]) < 1:
        raise refusal("E-NII-DIMENSIONS", f"dim = {[count, *sizes]}", where=name)
    i, j, k, times, vector, *more = (*sizes[:count], *[1] * (7 - count))
    planes = vector == 3 and int(fields["intent_code"]) == RGB_VECTOR
    if max(more) > 1 or (vector > 1 and not planes):
        found = f"dimensions {sizes[:count]} with intent {int(fields['intent_code'])}"
        raise refusal("E-NII-DIMENSIONS", found, where=name)
    return (i, j, k), times, planes


def _scale(fields: np.void, notes: list[Note], name: str) -> tuple[float, float]:
    """Slope and intercept: a slope of 0 (nifti1.h) or NaN (nibabel, SPM) means none."""
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or math.isnan(slope):
        if math.isfinite(inter) and inter != 0:
            notes.append(Note("W-NII-SCALE", f"scl_slope = {slope:g} switches scl_inter = {inter:g} off"))
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise refusal("E-NII-SCALE", f"scl_slope = {slope:g}, scl_inter = {inter:g}", where=name)
    return slope, inter


def _time_step(fields: np.void, notes: list[Note]) -> float | None:
    step, unit = float(fields["pixdim"][4]), int(fields["xyzt_units"]) & 0x38
    if unit in _SECONDS and math.isfinite(step) and step > 0:
        return step * _SECONDS[unit]
    notes.append(Note("W-NII-TIME", f"pixdim[4] = {step:g} in unit {unit} is no time step"))
    return None


def _offset(fields: np.void, least: int, name: str) -> int:
    """Where the voxels begin; readers disagree about a fraction or a place inside the header, so these are refused."""
    offset = float(fields["vox_offset"])
    if not (math.isfinite(offset) and offset.is_integer() and least <= offset <= MAX_EXTENSIONS):
        raise refusal("E-NII-HEADER", f"voxels at byte {offset:g}, expected {least} to {MAX_EXTENSIONS:,}", where=name)
    return int(offset)
