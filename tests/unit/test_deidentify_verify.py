"""Laws of verification: a clean output is clean; what is planted, wherever it hides, is found and never repeated."""

import functools
import gzip
import io
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import openpyxl
import phi
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from rich.console import Console

from medmtl.data.synthetic.dicom import write_phantom
from medmtl.errors import UserError
from medmtl.ingest.pipeline import Job, ingest
from medmtl.io.deidentify import verify as verify_module
from medmtl.io.deidentify.folder import deidentify_folder
from medmtl.io.deidentify.identifiers import Identifiers
from medmtl.io.deidentify.profile import Options
from medmtl.io.deidentify.pseudonyms import Pseudonyms
from medmtl.io.deidentify.search import SHORTEST, Finder
from medmtl.io.deidentify.verify import Findings, collect, verify

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``in``, ``out`` and ``out.private``, and an empty one for what a test plants."""
    root = tmp_path_factory.mktemp("verify")
    place = root / "in" / "QUACKENBUSH_T" / "Kellerregal 3"
    place.mkdir(parents=True)
    (root / "planted").mkdir()
    for number in range(3):
        phi.header(SOPInstanceUID=f"{phi.ROOT}77.{number}").save_as(place / f"IM{number}", enforce_file_format=True)
    phi.segmentation().save_as(place / "SEG", enforce_file_format=True)
    other = phi.header(
        PatientID="31415926", PatientName="Vandersloot^Ib", PatientBirthDate="19620704", PatientComments="",
        PatientTelephoneNumbers="+45 31 22 01 99", SOPInstanceUID=phi.ROOT + "88", StudyInstanceUID=phi.ROOT + "89",
    )  # fmt: skip
    other.save_as(root / "in" / "x.dcm", enforce_file_format=True)
    deidentify_folder(root / "in", root / "out")
    return root


@pytest.fixture(autouse=True)
def _collected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is the same for all tests here, so its identifiers are collected once."""
    monkeypatch.setattr(verify_module, "collect", _collect)


@functools.cache
def _cached(sources: tuple[Path, ...], pseudonyms: Pseudonyms, options: Options) -> tuple[Identifiers, int]:
    return collect(list(sources), pseudonyms, options)


def _collect(sources: list[Path], pseudonyms: Pseudonyms, options: Options) -> tuple[Identifiers, int]:
    return _cached(tuple(sources), pseudonyms, options)


def _verified(root: Path) -> Findings:
    return verify(root / "out", root / "in")


def _with(root: Path, name: str, write: Callable[[Path], object]) -> Findings:
    path = root / "planted" / name
    write(path)
    try:
        return verify(root / "planted", root / "in", private=root / "out.private")
    finally:
        path.unlink()


def test_a_clean_output_is_clean(made: Path) -> None:
    found = verify(made / "out")  # the source is known to the key
    assert found.clean and found.exit_code == 0 and not found.hits
    assert found.files == 7 and found.sources == 5 and found.identifiers > 100


def test_the_source_itself_is_not(made: Path, tmp_path: Path) -> None:
    found = verify(made / "in", made / "in", private=made / "out.private")
    kinds = {hit.kind for hit in found.hits}
    assert found.exit_code == 6
    for kind in ("PatientName", "PatientID", "AccessionNumber", "StudyInstanceUID", "ReferringPhysicianName", "date",
                 "InstitutionName", "InstitutionAddress", "PatientTelephoneNumbers", "DeviceSerialNumber", "PersonName",
                 "PatientComments", "private text", "OtherPatientIDs", "StationName", "SeriesDescription",
                 "CodeMeaning", "path", "OperatorsName", "SOPInstanceUID", "FrameOfReferenceUID"):  # fmt: skip
        assert kind in kinds, kind


TEXTS = {
    "name": "PatientName: MÜLLEROVÁ^ZDEŇKA",
    "name reversed": "scan of Zdenka Mullerova",
    "name joined": "zdenkamullerova.nii",
    "family name": "dear mrs müllerová,",
    "decomposed": "Mu\u0308llerova\u0301",
    "ideographic": "患者 山田 太郎",
    "ideographic joined": "山田太郎",
    "phonetic": "やまだ たろう",
    "physician": "reported by T. Quackenbush",
    "operator": "brzezinski",
    "patient id": "hrn-770211",
    "patient id joined": "HRN770211",
    "patient id in a path": "/data/HRN_770211/t1.nii",
    "digits": '{"id": "31415926"}',
    "digits in a table": "case,x\na,31415926\n",
    "accession": "acc99817",
    "study uid": phi.STUDY,
    "image uid": f"{phi.ROOT}77.1",
    "date": "on 1999-12-31",
    "date, digits": "19991231",
    "date and time": "19991231235959",
    "date, european": "31.12.1999",
    "date in a name": "T1_19991231.nii",
    "birth date": "19511124",
    "institution": "Sankt Elsewhere",
    "address": "12 nowhere lane",
    "phone": "555 867 5309",
    "phone joined": "5558675309",
    "long phone": "+45-31-22-01-99",
    "serial number": "SN-4471-X",
    "station": "scannerbay7",
    "comment": "gastroschisis",
    "description": "ermintrude",
    "location": "wardseven",
    "private": "privname",
    "private in a sequence": "wodehouse",
    "local code": "localcode77",
    "folder": "kellerregal",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_each_kind_of_identifier_is_found_in_text(made: Path, text: str) -> None:
    found = _with(made, "notes.txt", lambda path: path.write_text(f"an ordinary line\n{text}\nanother one\n"))
    assert {hit.file for hit in found.hits} == {"notes.txt"}
    shown = repr(found).lower()
    assert not any(value.lower() in shown for value in phi.PLANTED)


INNOCENT = (
    "t1 mprage sag head 1.0 mm, 4 x 4, 7 images, SIEMENS Prisma syngo MR E11, F, 048Y, 61.5 kg, 2.98 ms",
    '{"EchoTime": 2.98, "RepetitionTime": 2300, "ImageType": ["ORIGINAL", "PRIMARY"], "BodyPartExamined": "HEAD"}',
    "E-DEID-READ: export it again from the PACS, or leave it out",
    "0.31415926 3.1415926535 12.555 count 770211999",
    "2.25.219991231000031415926000000000000001",
    "Telford and Wardlaw quack",
    "REMOVED, 2001-02-03, 19000101",
)


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_text_is_clean(made: Path, text: str) -> None:
    assert not _with(made, "notes.txt", lambda path: path.write_text(text)).hits


def test_a_moved_date_is_no_leak_and_a_real_one_of_that_patient_is(made: Path) -> None:
    path = next(path for path in (made / "out").rglob("*.dcm"))
    before, ds = path.read_bytes(), pydicom.dcmread(path)
    assert not _with(
        made, "dates.csv", lambda table: table.write_text(f"id,date\n{ds.PatientID},{ds.StudyDate}\n")
    ).hits
    try:
        ds.StudyDate = "19991231"
        ds.save_as(path)
        hits = _verified(made).hits
        assert {(hit.kind, hit.where) for hit in hits if hit.kind == "date"} == {("date", "(0008,0020)")}
    finally:
        path.write_bytes(before)


def _gzip(path: Path, text: bytes) -> None:
    path.write_bytes(gzip.compress(b"x" * 100 + b"\n" + text))


def _zip(path: Path, text: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.csv", b"a,b\n" + text)


def _zip_of_gzip(path: Path, text: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.csv.gz", gzip.compress(text))


def _zip_name(path: Path, text: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{text.decode()}.txt", b"nothing")


def _xlsx(path: Path, text: bytes) -> None:
    book = openpyxl.Workbook()
    book.active.append(["id", text.decode()])
    book.save(path)


def _xlsx_author(path: Path, text: bytes) -> None:
    book = openpyxl.Workbook()
    book.properties.creator = text.decode()
    book.save(path)


def _png(path: Path, text: bytes, *, kind: str = "tEXt") -> None:
    info = PngImagePlugin.PngInfo()
    if kind == "iTXt":
        info.add_itxt("Comment", text.decode(), zip=True)
    else:
        info.add_text("Comment", text.decode(), zip=kind == "zTXt")
    Image.new("L", (8, 8)).save(path, pnginfo=info)


def _jpeg_exif(path: Path, text: bytes) -> None:
    exif = Image.Exif()
    exif[0x010E] = text.decode()
    Image.new("RGB", (8, 8)).save(path, exif=exif)


def _jpeg_comment(path: Path, text: bytes) -> None:
    Image.new("RGB", (8, 8)).save(path, comment=text)


def _tiff(path: Path, text: bytes) -> None:
    Image.new("L", (8, 8)).save(path, tiffinfo={270: text.decode()})


def _nifti(path: Path, text: bytes, *, field: str) -> None:
    image = nibabel.Nifti1Image(RNG.integers(0, 99, (9, 9, 9), dtype=np.int16), np.eye(4))
    if field == "extension":
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text))
    else:
        image.header[field] = text[:20]
    nibabel.save(image, path)


def _sqlite(path: Path, text: bytes) -> None:
    with sqlite3.connect(path) as base:
        base.execute("create table runs (tag text)")
        base.execute("insert into runs values (?)", (text.decode(),))
    base.close()


def _dicom(path: Path, text: bytes, *, keyword: str) -> None:
    ds = phi.header()
    for tag in list(ds.keys()):
        if tag.group not in (0x0028, 0x7FE0):
            del ds[tag]
    ds.SOPClassUID, ds.SOPInstanceUID, ds.file_meta.SourceApplicationEntityTitle = phi.MR, "2.25.1", ""
    ds.preamble = b"\0" * 128
    if keyword == "nested":
        item = pydicom.Dataset()
        item.add_new(0x0040A123, "PN", text.decode())
        ds.add_new(0x0040A730, "SQ", [item])
    elif keyword == "private":
        ds.private_block(0x0011, "X", create=True).add_new(1, "LO", text.decode())
    else:
        setattr(ds, keyword, text.decode())
    ds.save_as(path, enforce_file_format=True)


def _pixels(path: Path, text: bytes) -> None:
    path.write_bytes(b"\0\xff\x80" * 999 + text + RNG.bytes(999))


CARRIERS: dict[str, Callable[[Path, bytes], object]] = {
    "a.txt": lambda path, text: path.write_bytes(text),
    "a.json": lambda path, text: path.write_bytes(b'{"a": "' + text + b'"}'),
    "a.html": lambda path, text: path.write_bytes(b"<td title='" + text + b"'>1</td>"),
    "utf-16.txt": lambda path, text: path.write_bytes(text.decode().encode("utf-16")),
    "latin-1.txt": lambda path, text: path.write_bytes("né ".encode("latin-1") + text),
    "long.log": lambda path, text: path.write_bytes(b"nothing here\n" * 10_000 + text),
    "a.csv.gz": _gzip,
    "a.zip": _zip,
    "gz.zip": _zip_of_gzip,
    "named.zip": _zip_name,
    "a.xlsx": _xlsx,
    "author.xlsx": _xlsx_author,
    "text.png": _png,
    "ztxt.png": lambda path, text: _png(path, text, kind="zTXt"),
    "itxt.png": lambda path, text: _png(path, text, kind="iTXt"),
    "exif.jpg": _jpeg_exif,
    "comment.jpg": _jpeg_comment,
    "a.tif": _tiff,
    "descrip.nii": lambda path, text: _nifti(path, text, field="descrip"),
    "descrip.nii.gz": lambda path, text: _nifti(path, text, field="descrip"),
    "aux.nii.gz": lambda path, text: _nifti(path, text, field="aux_file"),
    "extension.nii.gz": lambda path, text: _nifti(path, text, field="extension"),
    "mlflow.db": _sqlite,
    "comment.dcm": lambda path, text: _dicom(path, text, keyword="ImageComments"),
    "short.dcm": lambda path, text: _dicom(path, text[:16], keyword="StationName"),
    "nested.dcm": lambda path, text: _dicom(path, text, keyword="nested"),
    "private.dcm": lambda path, text: _dicom(path, text, keyword="private"),
    "blob.bin": _pixels,
}


@pytest.mark.parametrize("text", ["Quackenbush", "HRN-770211"])
@pytest.mark.parametrize("name", CARRIERS)
def test_an_identifier_is_found_in_every_kind_of_file(made: Path, name: str, text: str) -> None:
    found = _with(made, name, lambda path: CARRIERS[name](path, text.encode()))
    assert {hit.file for hit in found.hits} == {name} and not found.unreadable
    assert not _with(made, name, lambda path: CARRIERS[name](path, b"Innocent")).hits


@pytest.mark.parametrize("name", ["Quackenbush.txt", "mullerova_zdenka.nii", "19991231.txt", f"{phi.IMAGE}.dcm"])
def test_an_identifier_in_a_file_name_is_found_and_masked(made: Path, name: str) -> None:
    found = _with(made, name, lambda path: path.write_text("nothing"))
    assert [hit.where for hit in found.hits] == ["name"]
    assert name.rsplit(".", 1)[0] not in repr(found)


def test_what_lies_across_two_chunks_is_found(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmtl.io.deidentify.verify._CHUNK", 5000)
    for offset in range(4990, 5003, 3):
        found = _with(
            made, "a.log", lambda path, offset=offset: path.write_bytes(b"-" * offset + b" Quackenbush " + b"-" * 999)
        )
        assert {hit.file for hit in found.hits} == {"a.log"}


def test_a_file_that_cannot_be_searched_is_not_clean(made: Path) -> None:
    found = _with(made, "a.gz", lambda path: path.write_bytes(gzip.compress(RNG.bytes(5000))[:-100]))
    assert found.unreadable == ("a.gz",) and not found.clean and found.exit_code == 6
    found = _with(made, "a.zip", lambda path: path.write_bytes(b"PK\3\4" + b"\0" * 50))
    assert found.unreadable == ("a.zip",)


def test_a_folder_called_as_our_reports_speak_is_no_leak_and_one_called_as_a_patient_is(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for kind in ("burned-in", "truncated-header", "irregular", "nothing-tells", "gap-middle", "no-preamble"):
        write_phantom(source / kind, kind)
    write_phantom(source / "Oddershede truncated", "one-again")
    ingest(Job(source, out, jobs=2), console=Console(quiet=True))
    found = verify(out)
    assert found.clean and found.files > 8, found
    for text in ("of Oddershede", "oddershede_truncated", "ODDERSHEDE"):
        (out / "notes.txt").write_text(f"{text}: truncated, irregular, nothing tells\n")
        assert {(hit.file, hit.kind) for hit in verify(out).hits} == {("notes.txt", "path")}, text


def test_words_of_our_own_excuse_paths_alone() -> None:
    found = Identifiers()
    found._text("path", "truncated irregular", strict=False)
    assert not found.phrases and not found.raw
    found._text("PatientComments", "truncated irregular", strict=False)
    assert found.found_in("Truncated, irregular") == {"PatientComments"}


def test_verification_that_would_prove_nothing_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^E-DEID-VERIFY"):
        verify(made / "out", tmp_path / "empty")
    with pytest.raises(UserError, match=r"^E-DEID-VERIFY"):
        verify(tmp_path / "empty")
    with pytest.raises(UserError, match=r"^E-DEID-SOURCE"):
        verify(made / "out", tmp_path / "nothing")


@given(
    st.lists(st.binary(min_size=1, max_size=20), max_size=30), st.lists(st.binary(max_size=60), max_size=8), st.data()
)
@settings(max_examples=60, deadline=None)
def test_the_finder_finds_what_a_plain_search_finds(
    needles: list[bytes], parts: list[bytes], data: st.DataObject
) -> None:
    for needle in needles[:3]:
        parts.insert(data.draw(st.integers(0, len(parts))), needle.swapcase())
    haystack = b"".join(parts)
    expected = {n.lower(): haystack.lower().find(n.lower()) for n in needles if len(n) >= SHORTEST}
    expected = {needle: position for needle, position in expected.items() if position >= 0}
    assert Finder(needles).find(haystack) == expected


def test_the_finder_finds_each_of_ten_thousand_at_every_alignment() -> None:
    needles = [b"1.2.840.99.%d.77" % number for number in range(10_000)]
    finder = Finder(needles)
    stream = io.BytesIO()
    for number in range(0, 10_000, 7):
        stream.write(RNG.bytes(number % 4 + 1) + needles[number] + b" ")
    found = finder.find(stream.getvalue())
    assert {needles[number] for number in range(0, 10_000, 7)} <= set(found)
    assert all(stream.getvalue()[position:].startswith(needle) for needle, position in found.items())
