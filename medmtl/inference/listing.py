"""The inputs of a job, and what of a folder is none."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from medmtl.errors import UserError
from medmtl.ingest import earlier
from medmtl.ingest.walk import Found
from medmtl.io.dicom.series import Stack

Kind = Literal["raster", "nifti", "dicom", "file"]  # file: refused before it was clear what it is


@dataclass(frozen=True)
class Input:
    """One image, or something that should have been one and is ``refused``.

    ``id`` is its key in the tables: of a picture or NIfTI file its path, or a hash of it (``hashed``), with ``#`` and
    the page where it has several. A DICOM volume's is modality and a hash of its study and series, since folders and
    file names may name a patient. In a drop folder the hash is also of what the volume lies in there: the same series
    may come twice.
    """

    id: str
    kind: Kind
    files: tuple[Found, ...]  # below the source folder
    name: str = ""  # of what is written for it
    page: int = 0
    pages: int = 1  # each an input
    frames: int = 1  # of a picture of one page: those of an animated PNG, or JPEGs one behind the other
    stack: Stack | None = None
    shape: tuple[int, ...] = ()  # of the decoded image as its header says; empty where unknown
    voxel_mm3: float | None = None
    refused: UserError | None = None
    hashed: bool = False  # nothing that is written or told may say what its files are called

    @property
    def path(self) -> str:
        """The path for tables that are passed on: none of a DICOM file, nor where paths are not to be told."""
        return self.files[0].path if self.kind in ("raster", "nifti") and not self.hashed else ""


@dataclass(frozen=True)
class Listing:
    """The inputs, sorted by id, and what was left aside: files by kind."""

    inputs: tuple[Input, ...]
    ignored: Mapping[str, int]
    files: int  # everything that the walk met

    def accounted(self) -> bool:
        """Whether every file is part of an input or was left aside."""
        used = {found.path for item in self.inputs for found in item.files}
        return len(used) + sum(self.ignored.values()) == self.files

    @property
    def told(self) -> str:
        """What a user should hear of who expects more inputs; empty where nothing is."""
        return earlier.told(self.ignored.get(earlier.KIND, 0))

    @classmethod
    def joined(cls, parts: Iterable["Listing"]) -> "Listing":
        """Listings of folders that share no file as one."""
        parts = tuple(parts)
        ignored: Counter[str] = Counter()
        for part in parts:
            ignored.update(part.ignored)
        inputs = sorted((item for part in parts for item in part.inputs), key=lambda item: item.id)
        return cls(tuple(inputs), dict(sorted(ignored.items())), sum(part.files for part in parts))
