"""What tests of DICOM phantoms share: every kind written once, its files read as pydicom can, their digests."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from medmtl.data.synthetic.dicom import Truth, write_phantom
from medmtl.data.synthetic.dicom_write import lax

Folder = tuple[Path, Truth]
MAKER = Callable[[str], Folder]


def written(root: Path) -> MAKER:
    """Makes the folder and the truth of a kind below ``root``, each once."""
    known: dict[str, Folder] = {}

    def make(kind: str) -> Folder:
        if kind not in known:
            known[kind] = root / kind, write_phantom(root / kind, kind)
        return known[kind]

    return make


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read(folder: Path, *, force: bool = False) -> list[Dataset]:
    """What pydicom can read of a folder, pixels included."""

    def images() -> Iterator[Dataset]:
        for path in files(folder):
            try:
                yield pydicom.dcmread(path, force=force)
            except (pydicom.errors.InvalidDicomError, EOFError, RecursionError):
                continue

    with lax():
        return list(images())


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files(folder)}
