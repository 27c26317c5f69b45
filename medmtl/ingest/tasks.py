"""What workers are given and hand back. Their own modules are imported where they work.

pydicom, gdcm and nibabel take longer to import than a small folder takes to ingest, and the main process does without.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medmtl.errors import EnvironmentFailure
from medmtl.ingest.cases import PlannedCase
from medmtl.ingest.job import FourthAxis
from medmtl.ingest.ledger import Entry
from medmtl.ingest.walk import Found


@dataclass(frozen=True)
class Headers:
    """Files below ``root`` whose headers are to be read; ``keywords`` are kept of each (to join tables on)."""

    root: Path
    files: tuple[Found, ...]
    keywords: tuple[str, ...]
    max_bytes: int


@dataclass(frozen=True)
class Task:
    """A case to be made, and what its image depends on beside its files."""

    case: PlannedCase
    source: Path
    out: Path
    keep_names: bool
    fill_nan: bool
    max_bytes: int
    mask_values: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fourth_axis: FourthAxis = "time"
    uncompressed: bool = False


@dataclass(frozen=True)
class Made:
    """What a worker hands back: a line of the ledger, or that the machine (not the data) failed."""

    entry: Entry | None
    failure: EnvironmentFailure | None = None


def read_headers(headers: Headers) -> list[str]:
    """Lines of the index, one per file."""
    from medmtl.ingest.headers import line_of

    return [line_of(headers, found) for found in headers.files]


def make(task: Task) -> Made:
    """Make one case."""
    from medmtl.ingest.work import make_case

    return make_case(task)
