"""A DICOMDIR (PS3.10 8.6): never followed, but looked at for names that lead out of its folder."""

from medmtl.io.dicom.elements import Elements
from medmtl.io.dicom.extent import Fault


def directory_fault(elements: Elements) -> Fault | None:
    """``E-SEC-PATH`` where a DICOMDIR names files outside its own folder (PS3.10 8.5: a file id is below it)."""
    records = elements.items("DirectoryRecordSequence")
    names = [parts for record in records if (parts := record.texts("ReferencedFileID"))]
    leaving = sum(_leaves(parts) for parts in names)
    what = f"{leaving} of {len(names)} files that the directory names lie outside its folder; none was opened"
    return ("E-SEC-PATH", what) if leaving else None


def _leaves(parts: tuple[str, ...]) -> bool:
    """Whether the folders of a file id lead up, to a root or to a drive; ``/`` is no separator there, but is to us."""
    folders = [folder for part in parts for folder in part.split("/")]
    return not folders[0] or ".." in folders or any(":" in folder or "\0" in folder for folder in folders)
