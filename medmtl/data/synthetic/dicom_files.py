"""Kinds of phantom folders: files that are damaged, hostile, misnamed, hidden, or no image at all."""

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from medmtl.data.synthetic.dicom_geometry import make
from medmtl.data.synthetic.dicom_header import Series, made_uid
from medmtl.data.synthetic.dicom_truth import Kind, Truth
from medmtl.data.synthetic.dicom_write import cut, lax, save, save_all

Damage = Callable[[Path], object]
PIXELS = b"\xe0\x7f\x10\x00OW\0\0"  # (7FE0,0010) in explicit little endian


def _truth(series: Series, **more: object) -> Truth:
    whole = {"volumes": (series.expected(),), "phantom": series.phantom, "identifiers": series.identifiers()}
    return Truth(**whole | more)  # type: ignore[arg-type]


def _damaged(damage: Damage, k: int, codes: tuple[str, ...], kind: str, out: Path, seed: int) -> Truth:
    """A plain series with one damaged file: what is left must not be stacked as if nothing were missing."""
    series = make(kind, seed)
    damage(save_all(out, series.frames())[k])
    return _truth(series, volumes=(), codes=codes)


def _deep(kind: str, out: Path, seed: int) -> Truth:
    """A sequence within a sequence, 3000 times, in one header; that file may be refused or read."""
    series = make(kind, seed)
    path = save_all(out, series.frames())[5]
    opened = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    head, pixels, tail = path.read_bytes().partition(PIXELS)
    path.write_bytes(head + opened * 3000 + closed * 3000 + pixels + tail)
    return _truth(series, codes=("E-DCM-HEADER", "E-DCM-GAP", "E-DCM-INCOMPLETE"), either=True)


def _long_element(path: Path) -> None:
    """PatientComments claims 65534 bytes, more than the file has, and so swallows the pixels."""
    content = path.read_bytes()
    at = content.index(b"\x10\x00\x00\x40LT") + 6
    path.write_bytes(content[:at] + struct.pack("<H", 0xFFFE) + content[at + 2 :])


def _absurd(kind: str, out: Path, seed: int) -> Truth:
    """A header of 65535 x 65535 x 10000 pixels over a hundred bytes: reading it must not allocate them."""
    series = make(kind, seed)
    ds = series.frame(0)
    ds.Rows = ds.Columns = 65535
    ds.NumberOfFrames, ds.PixelData = "10000", bytes(100)
    save(out / "IM0001.dcm", ds)
    return _truth(series, volumes=(), codes=("E-DCM-CLAIM", "E-DCM-TRUNCATED", "E-DCM-SIZE"))


def _junk(kind: str, out: Path, seed: int) -> Truth:
    """What lies about in real folders; none of it is an image and none of it harms."""
    series = make(kind, seed)
    save_all(out, series.frames())
    (out / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(200))
    (out / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    (out / "README.txt").write_text("Head scans for the Tuesday meeting.\n")
    (out / "fake.dcm").write_text("This is no DICOM file, whatever its name says.\n" * 20)
    (out / "preamble.dcm").write_bytes(bytes(128) + b"DICM")
    _dicomdir(out / "DICOMDIR")
    return _truth(series)


def _dicomdir(path: Path) -> None:
    """A media directory whose only entry leads out of the folder."""
    record = Dataset()
    record.OffsetOfTheNextDirectoryRecord = record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
    record.RecordInUseFlag, record.DirectoryRecordType = 0xFFFF, "IMAGE"
    with lax():
        record.ReferencedFileID = ["..", "..", "..", "etc", "passwd"]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.SOPClassUID, ds.SOPInstanceUID = uid.MediaStorageDirectoryStorage, made_uid("directory")
    ds.FileSetID = "PHANTOM"
    ds.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
    ds.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = ds.FileSetConsistencyFlag = 0
    ds.DirectoryRecordSequence = Sequence([record])
    with lax():
        save(path, ds)


def _not_images(kind: str, out: Path, seed: int) -> Truth:
    """A report, a PDF and a presentation state of the same study, between the slices."""
    series = make(kind, seed)
    save_all(out, series.frames())
    classes = {
        "SR": uid.BasicTextSRStorage,
        "DOC": uid.EncapsulatedPDFStorage,
        "PR": uid.GrayscaleSoftcopyPresentationStateStorage,
    }
    for number, (modality, sop_class) in enumerate(classes.items(), 50):
        ds = replace(series, first=number).header()
        ds.SOPClassUID, ds.Modality, ds.SeriesNumber = sop_class, modality, number
        ds.SeriesInstanceUID = made_uid(kind, seed, modality)
        if modality == "DOC":
            ds.EncapsulatedDocument, ds.MIMETypeOfEncapsulatedDocument = b"%PDF-1.4 nothing", "application/pdf"
        save(out / f"IM0005{modality}.dcm", ds)
    return _truth(series)


def _no_preamble(kind: str, out: Path, seed: int) -> Truth:
    """The bare data set in implicit little endian: no preamble, no group 2."""
    series = make(kind, seed)
    for path in save_all(out, series.frames(), "implicit"):
        content = path.read_bytes()
        (length,) = struct.unpack("<I", content[140:144])  # of group 2, behind (0002,0000) UL
        path.write_bytes(content[144 + length :])
    return _truth(series, notes=("W-DCM-PREAMBLE",))


def _trailing(kind: str, out: Path, seed: int) -> Truth:
    """Zeros behind the pixels, as from media that are written in blocks."""
    series = make(kind, seed)
    for path in save_all(out, series.frames()):
        path.write_bytes(path.read_bytes() + bytes(512))
    return _truth(series, notes=("W-DCM-TRAILING",))


def _odd_names(kind: str, out: Path, seed: int) -> Truth:
    """Names with spaces, accents, a line break, a quote, no suffix, and a patient's name."""
    series = make(kind, seed)
    names = (
        "plain",
        "with space",
        "Schädel ü",
        "line\nbreak",
        "quo'te\"s",
        "-dash",
        "semi;colon",
        "per%cent",
        "Ω",
        "a.b.c",
        "$HOME",
        "IM",
    )
    for name, ds in zip(names, series.frames(), strict=True):
        save(out / f"Quenbythorpe, Wilhelmina (née Ö)/{name}", ds)
    return _truth(series)


def _nested(kind: str, out: Path, seed: int) -> Truth:
    series = make(kind, seed)
    save_all(out.joinpath(*["d"] * 100), series.frames())
    return _truth(series)


_DAMAGES: dict[str, tuple[str, Damage, int, tuple[str, ...]]] = {
    "truncated-pixels": (
        "one file ends in the middle of its pixels",
        partial(cut, keep=0.6),
        5,
        ("E-DCM-TRUNCATED", "E-DCM-INCOMPLETE"),
    ),
    "truncated-last": (
        "the last slice's file ends in its pixels",
        partial(cut, keep=0.6),
        11,
        ("E-DCM-TRUNCATED", "E-DCM-INCOMPLETE"),
    ),
    "truncated-header": (
        "one file ends in its header",
        partial(cut, keep=600),
        5,
        ("E-DCM-HEADER", "E-DCM-GAP", "E-DCM-INCOMPLETE"),
    ),
    "zero-byte": ("one file is empty", partial(cut, keep=0), 5, ("E-FILE-EMPTY", "E-DCM-GAP", "E-DCM-INCOMPLETE")),
    "long-element": (
        "one header's text claims more bytes than it has",
        _long_element,
        5,
        ("E-DCM-HEADER", "E-DCM-GAP", "E-DCM-INCOMPLETE"),
    ),
}

KINDS: dict[str, Kind] = {
    **{
        name: Kind(what, partial(_damaged, damage, k, codes, name))
        for name, (what, damage, k, codes) in _DAMAGES.items()
    },
    "deep-sequence": Kind("3000 nested sequences in one header", partial(_deep, "deep-sequence")),
    "absurd-size": Kind("a header of 65535 x 65535 x 10000 pixels", partial(_absurd, "absurd-size")),
    "junk": Kind("files beside the slices that are no DICOM", partial(_junk, "junk")),
    "not-images": Kind("DICOM files beside the slices that are no images", partial(_not_images, "not-images")),
    "no-preamble": Kind("no preamble and no meta header", partial(_no_preamble, "no-preamble")),
    "trailing-zeros": Kind("512 zeros behind the pixels", partial(_trailing, "trailing-zeros")),
    "names-odd": Kind("names with spaces, accents, a line break", partial(_odd_names, "names-odd")),
    "nested": Kind("in 100 nested folders", partial(_nested, "nested")),
}
