"""The nouns of a plan: a volume to be loaded, what is refused, what is ignored; and what the user allows."""

from dataclasses import dataclass, field
from typing import Literal

from medmtl.errors import UserError
from medmtl.io.dicom.record import Frame, Header, Value
from medmtl.io.volume import Floats, Note

Choice = Literal["refuse", "resample"]


@dataclass(frozen=True)
class Policy:
    """Tolerances, and what the user allows to be repaired."""

    gap: Choice = "refuse"  # missing slices: interpolated between their neighbours
    irregular: Choice = "refuse"  # uneven spacing: interpolated at even positions
    tilt: Literal["refuse", "keep", "resample"] = "refuse"  # gantry tilt: sheared affine, or de-sheared voxels
    time: Literal["split", "stack"] = "split"  # a volume per time point (b-value, phase), or one 4-D image
    allow_incomplete: bool = False  # use what is left of a series of which some files are damaged
    spacing_relative: float = 0.01  # of the distance between slices
    spacing_mm: float = 0.05  # ... or this, whichever is larger
    max_bytes: int = 4 * 2**30  # of one volume


@dataclass(frozen=True)
class Slice:
    """A frame and the file that it is in."""

    header: Header
    frame: Frame


@dataclass(frozen=True)
class Regrid:
    """Where the slices of a volume are, when they do not lie on an even, upright grid: how to make one of them.

    Slice n lies ``offsets_mm[n]`` along the normal from slice 0, shifted by ``shifts_px[n]`` (columns, rows) in its
    plane against the grid; the grid has ``count`` slices, ``step_mm`` apart.
    """

    offsets_mm: tuple[float, ...]
    shifts_px: tuple[tuple[float, float], ...]
    step_mm: float
    count: int


@dataclass(frozen=True, eq=False)
class Stack:
    """The frames of one volume, sorted along the normal, then by time, and everything that was decided about them."""

    slices: tuple[Slice, ...]  # the first slice of all time points comes first in space, k runs faster than t
    key: str  # stable identity of the volume in its series; made of UIDs, so it is private
    affine: Floats | None  # RAS+; of the loaded array, resampling included
    shape: tuple[int, ...]  # of the loaded array: (I, J, K), (I, J, K, T) or (I, J, K, 3)
    colour: bool = False
    spacing: tuple[float, ...] | None = None  # mm along i, j, k
    times: int = 1
    time_step_s: float | None = None
    units: str = ""
    split: tuple[tuple[str, Value], ...] = ()  # how it differs from its siblings in the series: ("EchoTime", 30.0)
    regrid: Regrid | None = None
    notes: tuple[Note, ...] = ()

    @property
    def headers(self) -> tuple[Header, ...]:
        """The files of the volume, each once, in the order of their first slice."""
        return tuple({id(item.header): item.header for item in self.slices}.values())

    @property
    def first(self) -> Header:
        return self.slices[0].header


@dataclass(frozen=True)
class Refused:
    """Files that make no volume, and why; ``error.what`` holds neither names nor identifiers of the patient."""

    headers: tuple[Header, ...]
    error: UserError


@dataclass(frozen=True)
class Ignored:
    """A file that is DICOM but no image for a volume, or a second copy of one that was used."""

    header: Header
    kind: str  # "SR", "SEG", "RTSTRUCT", "DICOMDIR", "duplicate", ...


@dataclass(frozen=True)
class Plan:
    """What becomes of a set of headers: every frame of every header is in exactly one place."""

    volumes: tuple[Stack, ...] = ()
    refused: tuple[Refused, ...] = ()
    ignored: tuple[Ignored, ...] = field(default=())
