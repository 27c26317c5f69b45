"""What was found out about a file."""

from dataclasses import dataclass

from medmtl.ingest.walk import Found
from medmtl.io.dicom.record import Header


@dataclass(frozen=True)
class Scanned:
    """A file and what is in it."""

    found: Found
    kind: str  # "dicom", "nifti", "raster", or what an ignored file seems to be
    header: Header | None = None
    code: str = ""  # refused or ignored
    what: str = ""
    remedy: str = ""
    pages: int = 1  # of a TIFF
