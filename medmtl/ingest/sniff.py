"""What a file is, by its first bytes. Its name decides only what a file that is nothing known should have been."""

import os
import stat
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from medmtl.io.reasons import refusal

Kind = Literal["dicom", "maybe-dicom", "nifti", "raster", "tiff", "other"]
_HEAD = 4096
_RASTER = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders
_NIFTI1 = (b"n+1\0", b"ni1\0")
_NIFTI2 = (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")
# Names of formats that hold images, or files that hold files: worth a word, because somebody may miss them.
_UNREAD = (
    "7z avi bmp bz2 dcm30 gif gipl h5 hdf5 heic img jp2 mat mgh mgz mha mhd mov mp4 mrxs ndpi npy npz nrrd nhdr par "
    "rar rec scn svs tar tgz webp xz zip zst zarr"
)
_COMMON = (
    "bak bat bval bvec cfg csv db dcm dicom dll doc docx exe htm html ima inf ini jar jpeg jpg js json log lnk md nii "
    "pdf pickle pkl png ppt pptx py pyc rtf sh sqlite tif tiff tmp toml tsv txt xls xlsx xml yaml yml"
)
# A kind never repeats a name of the source, not even a harmless one: verification would find it in the report.
_KNOWN_NAMES = dict.fromkeys((".ds_store", "thumbs.db", "desktop.ini"), "desktop file")
_KNOWN_STARTS = {"readme": "read-me", "licence": "terms", "license": "terms", "dicomdir": "DICOM directory"}
_IMAGE_SUFFIXES = (".dcm", ".ima", ".dicom", ".nii", ".nii.gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff")


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, opened without ever waiting; OSError or ``E-FILE-OPEN`` otherwise."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refusal("E-FILE-OPEN", "not a regular file any more")
    return descriptor


def head_of(stream: BinaryIO) -> bytes:
    """The first bytes of an open file: as many as tell its kind."""
    head = stream.read(_HEAD)
    if not head:
        raise refusal("E-FILE-EMPTY", "0 bytes")
    return head


def kind_of(head: bytes) -> Kind:
    """The kind that the first bytes of a file (some 4 KiB) say; ``maybe-dicom`` begins like DICOM without preamble."""
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(_RASTER):
        return "raster"
    if head.startswith(_TIFF):
        return "tiff"
    if head[:2] == b"\x1f\x8b":
        inner = _inflated(head)
        return "nifti" if _is_nifti(inner) else "other"
    if _is_nifti(head):
        return "nifti"
    return "maybe-dicom" if _begins_with_group(head) else "other"


def ignored_kind(path: str) -> str:
    """A name for what a file that is no image seems to be; nothing of the file's own name but a common suffix."""
    name = PurePosixPath(path).name.lower().removesuffix(".gz")
    if name in _KNOWN_NAMES:
        return _KNOWN_NAMES[name]
    for start, kind in _KNOWN_STARTS.items():
        if name.startswith(start):
            return kind
    if name.startswith("."):
        return "hidden"
    suffix = name.rpartition(".")[2] if "." in name else ""
    return f".{suffix}" if suffix in f"{_COMMON} {_UNREAD}".split() else "other suffix" if suffix else "no suffix"


def unknown(path: str) -> tuple[str, str]:
    """Code and words for a file whose content is nothing known: refused if its name promises an image."""
    name = PurePosixPath(path).name.lower()
    if not name.startswith(".") and name.endswith(_IMAGE_SUFFIXES):
        suffix = ".nii.gz" if name.endswith(".nii.gz") else "." + name.rpartition(".")[2]
        return "E-FILE-CONTENT", f"the name ends in {suffix}, the content is something else"
    if name.rpartition(".")[2] in _UNREAD.split():
        return "I-FILE-FORMAT", "an image format or an archive that is not read"
    return "I-FILE-OTHER", "no image"


def empty(path: str) -> str:
    """The code of a file of 0 bytes: refused, unless its name says that it is no image (``.gitkeep``, ``log.txt``)."""
    image = PurePosixPath(path).name.lower().endswith(_IMAGE_SUFFIXES)
    return "E-FILE-EMPTY" if image or ignored_kind(path) in ("no suffix", "other suffix") else "I-FILE-OTHER"


def _inflated(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(head, _HEAD)
    except zlib.error:
        return b""


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in _NIFTI1 or head[4:12] in _NIFTI2


def _begins_with_group(head: bytes) -> bool:
    """Whether the file begins with an element of group 0002 or 0008, in either byte order."""
    if len(head) < 8:
        return False
    return head[:4] in _FIRST_OF_0002 or (head[:2] in (b"\x08\0", b"\0\x08") and head[2:4] in _FIRST_OF_0008)


_FIRST_OF_0002 = (b"\x02\0\0\0", b"\x02\0\x01\0", b"\x02\0\x02\0", b"\x02\0\x10\0")
# (0008,0000) group length, 0001, 0005 character set, 0006, 0008 image type, 0012, 0014, 0016 SOP class, in both orders
_FIRST_OF_0008 = tuple(
    number.to_bytes(2, order)
    for number in (0x00, 0x01, 0x05, 0x06, 0x08, 0x12, 0x14, 0x16, 0x18)
    for order in ("little", "big")
)
