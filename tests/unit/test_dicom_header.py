"""Headers: what is kept of a DICOM file, and that no damaged one passes for a whole one."""

import contextlib
import json
import os
import pickle
import struct
import tracemalloc
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from dicom_made import BIG_ENDIAN, DEFLATED, IMPLICIT, ct, item, write
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import compress
from pydicom.uid import RLELossless

from medmtl.errors import UserError
from medmtl.io.dicom.header import Limits, NotDicom, header_from_json, header_to_json, read_header
from medmtl.io.dicom.kinds import kind_of
from medmtl.io.dicom.load import load
from medmtl.io.dicom.mosaic import csa_values
from medmtl.io.dicom.series import plan


def _fails(path, code, **options):
    with pytest.raises(UserError) as error:
        read_header(path, **options)
    assert error.value.code == code
    return error.value


def _outcome(path):
    """A usable header, or the code that reading or planning the file ends with."""
    try:
        header = read_header(path)
    except UserError as error:
        return error.code
    return header.fault[0] if header.fault else header


@pytest.fixture
def slice_path(tmp_path):
    return write(tmp_path / "IM0001", ct())


def test_a_header_holds_what_the_file_says(slice_path):
    header = read_header(slice_path)
    assert (header.modality, header.kind, header.patient_id) == ("CT", "image", "ID-77")
    assert (header.size, header.mtime_ns) == (slice_path.stat().st_size, slice_path.stat().st_mtime_ns)
    (frame,) = header.frames
    assert frame.position == (-10, -20, 0) and frame.spacing == (0.8, 0.7)
    assert (frame.slope, frame.intercept, frame.units) == (1, -1024, "HU")
    assert header.pixels is not None and header.pixels.rows == 6 and header.pixels.columns == 5
    content = slice_path.read_bytes()
    assert content[header.pixels.offset :] == ct().PixelData
    assert header.facts["KVP"] == 120 and header.facts["SliceThickness"] == 2.5


@pytest.mark.parametrize("syntax", [IMPLICIT, BIG_ENDIAN, DEFLATED])
def test_every_encoding_of_a_header_says_the_same(tmp_path, slice_path, syntax):
    other = read_header(write(tmp_path / "other", ct(), syntax))
    header = read_header(slice_path)
    assert other.frames == header.frames and other.facts == header.facts and other.private == header.private


def test_facts_hold_nothing_of_the_patient(tmp_path):
    planted = {
        "PatientName": "PLANTED^A",
        "PatientID": "PLANTED-1",
        "AccessionNumber": "PLANTED2",
        "StudyID": "PLANTED3",
    }
    texts = {"SeriesDescription": "PLANTED 4", "InstitutionName": "PLANTED5", "StationName": "PLANTED6"}
    path = write(tmp_path / "PLANTED7", ct(**planted, **texts, StudyDate="19991231", PatientBirthDate="19500101"))
    header = read_header(path)
    assert header.private["SeriesDescription"] == "PLANTED 4" and header.private["StudyDate"] == "19991231"
    public = json.dumps({**header.facts, "notes": [note.what for note in header.notes]})
    for secret in ("PLANTED", "1999", "1950", header.study_uid):
        assert secret not in public
    assert "PLANTED" not in repr(header), "a header may end in a log"


def test_further_keywords_can_be_asked_for(tmp_path):
    path = write(tmp_path / "a", ct(ClinicalTrialSubjectID="S-12"))
    assert "ClinicalTrialSubjectID" not in read_header(path).private
    assert read_header(path, keywords=("ClinicalTrialSubjectID",)).private["ClinicalTrialSubjectID"] == "S-12"


@pytest.mark.parametrize("name", ["latin", "japanese", "unknown"])
def test_text_in_any_character_set(tmp_path, name):
    sets = {"latin": "ISO_IR 100", "japanese": ["", "ISO 2022 IR 87"], "unknown": "ISO_IR 100"}
    names = {"latin": "Müller^Åsa", "japanese": "Yamada^Tarou=山田^太郎", "unknown": "Müller^Åsa"}
    ds = ct(SpecificCharacterSet=sets[name], PatientName=names[name])
    path = write(tmp_path / "a", ds)
    if name == "unknown":
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 999"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name == "unknown" else "error")
        assert read_header(path).private["PatientName"] == names[name]


def test_headers_survive_json_and_pickle(tmp_path):
    rich = ct(PixelPaddingValue=5, ScanOptions=["A", "B"], PixelSpacing=None, ImagerPixelSpacing=[0.1, 0.2])
    for header in (read_header(write(tmp_path / "a", rich)), read_header(write(tmp_path / "b", ct(Rows=600)))):
        assert header_from_json(json.loads(json.dumps(header_to_json(header)))) == header
        assert pickle.loads(pickle.dumps(header)) == header


def test_decimal_strings_longer_than_the_standard_allows(tmp_path):
    path = write(tmp_path / "a", ct(ImagePositionPatient=[1, 2, 3]))
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", 0x20, 0x32))
    old = struct.unpack("<H", content[at + 6 : at + 8])[0]
    text = b"-103.12345678901234567\\1.5e1\\ 3.25 "
    path.write_bytes(content[: at + 6] + struct.pack("<H", len(text)) + text + content[at + 8 + old :])
    before = pydicom.config.settings.reading_validation_mode
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = read_header(path)
    assert header.frames[0].position == (-103.12345678901234567, 15, 3.25)
    assert pydicom.config.settings.reading_validation_mode == before


@pytest.mark.parametrize("text", [b"NaN\\1 ", b"1_0\\1 ", b"1,5\\1 ", b"inf\\1 ", b"0.5 "])
def test_numbers_that_are_none_are_broken_not_absent(tmp_path, text):
    path = write(tmp_path / "a", ct(PixelSpacing=[0.5, 0.5]))
    content = path.read_bytes().replace(b"\x08\x000.5\\0.5 ", struct.pack("<H", len(text)) + text)
    path.write_bytes(content)
    frame = read_header(path).frames[0]
    assert frame.spacing is None and frame.broken == ("PixelSpacing",)


def test_nothing_but_the_header_is_read(tmp_path):
    path = write(tmp_path / "a", ct(Rows=8192, Columns=8192))
    with path.open("r+b") as stream:
        start = path.stat().st_size - 60
        stream.truncate(start + 2 * 8192 * 8192)  # sparse: 128 MiB that nobody should touch
        stream.seek(start - 4)
        stream.write(struct.pack("<I", 2 * 8192 * 8192))
    tracemalloc.start()
    header = read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert header.fault is None and peak < 2**20


@pytest.mark.parametrize("drop", ["preamble", "preamble and meta header"])
def test_a_missing_preamble_is_noted(tmp_path, slice_path, drop):
    content = slice_path.read_bytes()[132:]
    meta = 12 + struct.unpack("<I", content[8:12])[0]
    path = tmp_path / "bare"
    path.write_bytes(content if drop == "preamble" else content[meta:])
    header = read_header(path)
    assert [note.code for note in header.notes] == ["W-DCM-PREAMBLE"]
    assert header.frames == read_header(slice_path).frames


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"This is a README, not a scan.\n" * 20,
        b"\x89PNG\r\n\x1a\n" + bytes(300),
        bytes(4096),
        bytes(128) + b"DICM",
        b"\x08\0\x05\0CS\x0a\0ISO_IR 100",  # begins like a data set, and is nothing else
    ],
)
def test_what_is_no_dicom_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "fake.dcm"
    path.write_bytes(content)
    with pytest.raises(NotDicom):
        read_header(path)


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    _fails(tmp_path / "empty", "E-FILE-EMPTY")
    _fails(tmp_path / "absent", "E-FILE-OPEN")
    _fails(tmp_path, "E-FILE-OPEN")
    os.mkfifo(tmp_path / "pipe")
    _fails(tmp_path / "pipe", "E-FILE-OPEN")  # and does not wait for a writer


def test_no_cut_file_passes_for_a_whole_one(tmp_path, slice_path):
    content = slice_path.read_bytes()
    path = tmp_path / "cut"
    found = set()
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        outcome = _outcome(path)
        assert isinstance(outcome, str), f"{length} of {len(content)} bytes were taken for a whole file"
        found.add(outcome)
    assert found == {"I-NOT-DICOM", "E-DCM-HEADER", "E-DCM-TRUNCATED"}


def test_no_cut_compressed_file_passes_for_a_whole_one(tmp_path):
    ds = ct(np.arange(1200, dtype=np.uint16).reshape(30, 40))
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    compress(ds, RLELossless, generate_instance_uid=False)
    path = write(tmp_path / "whole", ds, RLELossless)
    header = read_header(path)
    assert header.fault is None and header.pixels is not None
    content = path.read_bytes()
    for length in range(header.pixels.offset, len(content), 7):
        (tmp_path / "cut").write_bytes(content[:length])
        assert isinstance(_outcome(tmp_path / "cut"), str)


def test_a_cut_header_still_says_which_series_lost_a_file(tmp_path, slice_path):
    content = slice_path.read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(content[: content.index(b"MONOCHROME2")])
    header = read_header(path)
    assert header.series_uid == "1.2.3" and header.fault is not None and header.fault[0] == "E-DCM-HEADER"
    assert "byte" in header.fault[1]


def test_truncated_pixels_are_counted(tmp_path, slice_path):
    path = tmp_path / "cut"
    path.write_bytes(slice_path.read_bytes()[:-17])
    header = read_header(path)
    assert header.fault == ("E-DCM-TRUNCATED", "60 bytes of pixels were expected, 43 are there")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"Rows": 65535, "Columns": 65535, "NumberOfFrames": 10000}, "E-DCM-CLAIM"),
        ({"Rows": 65535, "Columns": 20}, "E-DCM-CLAIM"),  # 2.6 MB in 1 kB
        ({"Rows": 7}, "E-DCM-TRUNCATED"),
        ({"Rows": 3}, "E-DCM-PIXELS"),  # twice the pixels that it accounts for
        ({"Rows": 0}, "E-DCM-HEADER"),
        ({"Rows": None}, "E-DCM-HEADER"),
        ({"NumberOfFrames": -1}, "E-DCM-HEADER"),
        ({"BitsAllocated": 12}, "E-DCM-HEADER"),
        ({"BitsStored": 20}, "E-DCM-HEADER"),
        ({"HighBit": 3}, "E-DCM-HEADER"),
        ({"SamplesPerPixel": 2}, "E-DCM-HEADER"),
        ({"PhotometricInterpretation": "HSV"}, "E-DCM-HEADER"),
        ({"PixelData": None}, "E-DCM-TRUNCATED"),
    ],
)
def test_pixels_that_cannot_be_what_the_header_claims(tmp_path, changes, code):
    header = read_header(write(tmp_path / "a", ct(**changes)))
    assert header.fault is not None and header.fault[0] == code
    assert plan([header]).refused[0].error.code == code


def test_the_limit_on_size_is_the_users(slice_path):
    assert read_header(slice_path, limits=Limits(max_bytes=60)).fault is None
    fault = read_header(slice_path, limits=Limits(max_bytes=59)).fault
    assert fault is not None and fault[0] == "E-DCM-CLAIM"


def test_a_length_field_allocates_nothing(tmp_path, slice_path):
    content = slice_path.read_bytes()
    at = content.index(b"ACME") - 2
    for claim in (0xFFFF, 0x7FFF):
        path = tmp_path / "long"
        path.write_bytes(content[:at] + struct.pack("<H", claim) + content[at + 2 :])
        assert _outcome(path) == "E-DCM-HEADER"
    long = content[: at - 2] + b"UT\0\0" + struct.pack("<I", 0xFFFFFFF0) + content[at + 2 :]
    path.write_bytes(long)
    tracemalloc.start()
    assert _outcome(path) == "E-DCM-HEADER"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_deep_nesting_ends_in_a_code(tmp_path, slice_path):
    content = slice_path.read_bytes()
    at = content.index(struct.pack("<HH", 0x20, 0x32))
    deep = (struct.pack("<HH", 0x20, 0x30) + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 5000
    path = tmp_path / "deep"
    path.write_bytes(content[:at] + deep + content[at:])
    assert _outcome(path) == "E-DCM-HEADER"


def test_a_deflated_bomb_is_not_inflated(tmp_path):
    path = write(tmp_path / "bomb", ct(), DEFLATED)
    content = path.read_bytes()
    meta = 132 + 12 + struct.unpack("<I", content[140:144])[0]
    bomb = zlib.compressobj(wbits=-15)
    path.write_bytes(content[:meta] + bomb.compress(bytes(2**26)) + bomb.flush())
    tracemalloc.start()
    _fails(path, "E-DCM-CLAIM", limits=Limits(max_bytes=2**20, max_header=2**10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
    path.write_bytes(content[:-5])
    _fails(path, "E-DCM-TRUNCATED")


def test_a_byte_behind_the_pixels_is_noted(tmp_path, slice_path):
    content = slice_path.read_bytes()
    for behind, noted in (
        (b"\0", True),
        (bytes(512), True),
        (struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 2) + b"\0\0", False),
    ):
        (tmp_path / "more").write_bytes(content + behind)
        header = read_header(tmp_path / "more")
        assert header.fault is None
        assert [note.code for note in header.notes] == (["W-DCM-TRAILING"] if noted else [])


def test_fragments_are_counted(tmp_path):
    ds = ct(NumberOfFrames=3)
    ds.PixelData = encapsulate([b"ab", b"cd"])
    ds["PixelData"].is_undefined_length = True
    header = read_header(write(tmp_path / "a", ds, RLELossless))
    assert header.fault == ("E-DCM-PIXELS", "2 fragments for 3 frames")


@pytest.mark.parametrize(
    ("sop_class", "modality", "pixels", "kind"),
    [
        ("2", "CT", True, "image"),
        ("4.1", "MR", True, "image"),
        ("4.2", "MR", True, "MR spectroscopy"),
        ("30", "MR", True, "image"),
        ("11.1", "PR", False, "PR"),
        ("66.4", "SEG", True, "SEG"),
        ("88.33", "SR", False, "SR"),
        ("88.59", "KO", False, "KO"),
        ("104.1", "DOC", False, "PDF"),
        ("481.1", "RTIMAGE", True, "image"),
        ("481.2", "RTDOSE", True, "RTDOSE"),
        ("481.3", "RTSTRUCT", False, "RTSTRUCT"),
        ("9.1.1", "ECG", False, "waveform"),
        ("77.1.6", "SM", True, "whole-slide image"),
        ("77.1.5.1", "OP", True, "image"),
        ("77.1.1.1", "ES", True, "video"),
    ],
)
def test_kinds_by_sop_class(sop_class, modality, pixels, kind):
    assert kind_of(f"1.2.840.10008.5.1.4.1.1.{sop_class}", modality, has_pixels=pixels) == kind


def test_objects_that_are_no_images_are_ignored_by_kind(tmp_path):
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.Modality = (
        "1.2.840.10008.5.1.4.1.1.88.33",
        "1.7",
        "1.8",
        "SR",
    )
    directory = Dataset()
    directory.SOPClassUID = "1.2.840.10008.1.3.10"
    directory.DirectoryRecordSequence = item(ReferencedFileID=["A", "B", "ETC"])
    headers = [read_header(write(tmp_path / "sr", ds)), read_header(write(tmp_path / "DICOMDIR", directory))]
    found = plan(headers)
    assert sorted(ignored.kind for ignored in found.ignored) == ["DICOMDIR", "SR"]
    assert not found.volumes and not found.refused


def test_private_elements_are_found_in_any_block(tmp_path):
    ds = ct(Modality="MR")
    ds.add_new(0x00190010, "LO", "SOMEONE ELSE")
    ds.add_new(0x0019100C, "IS", "42")
    ds.add_new(0x00190013, "LO", "SIEMENS MR HEADER")
    ds.add_new(0x0019130C, "IS", "700")
    ds.add_new(0x20050010, "LO", "Philips MR Imaging DD 001")
    ds.add_new(0x2005100E, "FL", 0.25)
    header = read_header(write(tmp_path / "a", ds))
    assert header.frames[0].split["DiffusionBValue"] == 700
    assert header.private_scale == 0.25


def _csa(entries, *, new):
    """A CSA header with (name, texts) entries, as Siemens lays it out."""
    out = (b"SV10\4\3\2\1" if new else b"") + struct.pack("<II", len(entries), 77)
    for name, texts in entries:
        out += struct.pack("<64si4siii", name.encode(), len(texts), b"FD", 4, len(texts), 77)
        for text in texts:
            size = len(text)
            out += struct.pack("<4i", *((77, size, 77, 0) if new else (size + len(entries[0][1]), size, 77, 0)))
            out += text.encode().ljust(-(-size // 4) * 4, b"\0")
    return out


@pytest.mark.parametrize("new", [True, False])
def test_csa_headers(new):
    content = _csa([("NumberOfImagesInMosaic", ["35"]), ("SliceNormalVector", ["0.0", "-0.5", "0.8660"])], new=new)
    assert csa_values(content, "NumberOfImagesInMosaic") == (35,)
    assert csa_values(content, "SliceNormalVector") == (0, -0.5, 0.866)
    assert csa_values(content, "Absent") == ()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400))
def test_a_damaged_csa_header_is_none(junk, at):
    content = bytearray(_csa([("A", ["1"]), ("SliceNormalVector", ["0", "0", "1"])], new=True))
    content[at : at + len(junk)] = junk
    assert isinstance(csa_values(bytes(content), "SliceNormalVector"), tuple)


_EDITS = st.lists(
    st.tuples(
        st.integers(0, 1200),
        st.one_of(
            st.binary(min_size=1, max_size=6),
            st.sampled_from(
                [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"]
            ),
            st.sampled_from([b"SQ\0\0", b"UN\0\0", b"OB", b"FD", b"1e999", b"nan "]),
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(edits=_EDITS, cut=st.integers(0, 1300), source=st.integers(0, 3))
def test_damaged_bytes_end_in_a_header_or_a_code(tmp_path_factory, edits, cut, source):
    content = bytearray(_sources(tmp_path_factory)[source])
    for at, junk, insert in edits:
        at = min(at, len(content))
        content[at : at if insert else at + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: len(content) - cut // 4 if cut % 4 == 0 else None])
    try:
        header = read_header(path)
    except UserError:
        return
    assert header_from_json(json.loads(json.dumps(header_to_json(header)))) == _without_nan(header)
    found = plan([header])
    assert len(found.volumes) + len(found.refused) + len(found.ignored) >= 1
    for stack in found.volumes:
        with contextlib.suppress(UserError):
            assert load(stack).array.shape == stack.shape


def _without_nan(header):
    """NaN is not equal to itself; the comparison is of everything else."""
    again = header_from_json(json.loads(json.dumps(header_to_json(header))))
    same = [mine == mine for mine in header.frames]
    return replace(
        header, frames=tuple(m if s else a for m, a, s in zip(header.frames, again.frames, same, strict=True))
    )


_CACHE: list[bytes] = []


def _sources(factory):
    if not _CACHE:
        folder = factory.mktemp("sources")
        enhanced = ct(
            NumberOfFrames=2,
            SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1",
            SharedFunctionalGroupsSequence=item(
                PixelMeasuresSequence=item(PixelSpacing=[1, 1]),
                PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
            ),
            PixelData=bytes(120),
        )
        groups = [item(PlanePositionSequence=item(ImagePositionPatient=[0, 0, z]))[0] for z in (0, 2)]
        enhanced.PerFrameFunctionalGroupsSequence = groups
        rle = ct(np.arange(1200, dtype=np.uint16).reshape(30, 40))
        rle.file_meta = pydicom.dataset.FileMetaDataset()
        rle.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        compress(rle, RLELossless, generate_instance_uid=False)
        _CACHE.append(write(folder / "0", ct()).read_bytes())
        _CACHE.append(write(folder / "1", ct(), IMPLICIT).read_bytes())
        _CACHE.append(write(folder / "2", enhanced).read_bytes())
        _CACHE.append(write(folder / "3", rle, RLELossless).read_bytes())
    return _CACHE
