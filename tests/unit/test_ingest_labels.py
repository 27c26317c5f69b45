"""Label tables of every make are read as they are meant, and joined without showing what they are joined on."""

import datetime
from pathlib import Path

import openpyxl
import pytest

from medmtl.errors import SafetyRefusal, UserError
from medmtl.ingest.job import LabelRule
from medmtl.ingest.labels import LabelTable
from medmtl.ingest.rules import Rule, Subject
from medmtl.ingest.tables import read_table
from medmtl.io.dicom.header import Header


def _header(**private):
    values = {"patient_id": "MRN-0042", "series_uid": "1.2.3", "study_uid": "1.2", "modality": "CT"}
    return Header(
        path=Path("f"), size=1, mtime_ns=1, sop_instance_uid="1", sop_class_uid="2", kind="image",
        facts={"Manufacturer": "ACME", "KVP": 120.0, "ImageType": ("ORIGINAL", "PRIMARY")},
        private={"PatientName": "DOE^JANE", "AccessionNumber": "ACC77", "StudyDate": "20200131", **private}, **values,
    )  # fmt: skip


def _join(tmp_path, text, *, match="{PatientID}", key="id", targets=(), cases=None, **options):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    cases = cases or {"c1": Subject("a/b/scan.dcm", _header())}
    return LabelTable.read(LabelRule(path, key, match, targets)).join(cases, **options)


@pytest.mark.parametrize(
    "content",
    [
        b"id,grade\nMRN-0042,2\n",
        b"\xef\xbb\xbfid,grade\r\nMRN-0042,2\r\n",
        b"id;grade\r\nMRN-0042;2\r\n;\r\n",
        b"id\tgrade\nMRN-0042\t2\n",
        "id,grade\nMRN-0042,2\n".encode("utf-16"),
        b'"id" , grade\n"MRN-0042" , 2\n'.replace(b" ,", b",").replace(b", ", b","),
        b"id,grade,,\nMRN-0042,2,,\n",
    ],
)
def test_a_csv_file_of_any_make(tmp_path, content):
    labels = _join(tmp_path, content)
    assert labels.targets == {"c1": {"grade": "2"}} and labels.warnings == () and labels.matched_rows == 1


def test_latin_1_is_read_with_a_warning_that_names_the_line(tmp_path):
    labels = _join(tmp_path, "id,grade\nx,1\nMRN-0042,schön\n".encode("latin-1"))
    assert labels.targets == {"c1": {"grade": "schön"}}
    assert labels.warnings[0] == "W-ING-LABEL-TEXT line 3 is not UTF-8; the table was read as Windows-1252"


@pytest.mark.parametrize(
    ("content", "code", "where"),
    [
        (b"id,grade\nx,1\ny,1,2\n", "E-ING-LABEL-WIDTH", "labels.csv line 3"),
        (b"id,grade,note\nx,1\n", "E-ING-LABEL-WIDTH", "labels.csv line 2"),
        (b"id,grade,grade\nx,1,2\n", "E-ING-LABEL-COLUMN", "labels.csv"),
        (b"id,,grade\nx,1,2\n", "E-ING-LABEL-COLUMN", "labels.csv"),
        (b'id,grade\nx,"1\n', "E-ING-LABEL-FILE", "labels.csv line 2"),
        (b"", "E-ING-LABEL-FILE", "labels.csv"),
        (b"\xd0\xcf\x11\xe0old", "E-ING-LABEL-FILE", "labels.csv"),
        (b"id,grade\nx\x81\0,1\n", "E-ING-LABEL-FILE", "labels.csv line 2"),
        (b"id,grade\nx,=1+1\n", "E-ING-LABEL-FORMULA", "labels.csv line 2, column 'grade'"),
        (b"id,grade\nx,@cmd\n", "E-ING-LABEL-FORMULA", "labels.csv line 2, column 'grade'"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_with_its_line(tmp_path, content, code, where):
    with pytest.raises(UserError) as caught:
        _join(tmp_path, content)
    assert (caught.value.code, caught.value.where) == (code, where)


def test_a_signed_number_is_no_formula(tmp_path):
    assert _join(tmp_path, "id,z\nMRN-0042,-1.5e-3\n").targets == {"c1": {"z": "-1.5e-3"}}


def _workbook(path, rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def test_cells_of_a_spreadsheet_keep_their_meaning(tmp_path):
    rows = [
        ["id", "n", "x", "flag", "day", "time", "text"],
        [42.0, 7, 0.1, True, datetime.datetime(2020, 1, 31), datetime.datetime(2020, 1, 31, 8, 30), " a "],
        [None] * 7,
    ]
    table = read_table(_workbook(tmp_path / "t.xlsx", rows))
    assert table.rows[0].cells == {
        "id": "42", "n": "7", "x": "0.1", "flag": "1", "day": "2020-01-31", "time": "2020-01-31 08:30:00", "text": "a",
    }  # fmt: skip
    assert len(table.rows) == 1 and table.rows[0].line == 2


@pytest.mark.parametrize("cell", ["=1+1", "#N/A"])
def test_a_formula_without_its_value_and_an_error_cell_are_refused(tmp_path, cell):
    with pytest.raises(UserError, match=r"E-ING-LABEL-FORMULA t.xlsx line 3, column 2"):
        read_table(_workbook(tmp_path / "t.xlsx", [["id", "n"], ["a", 1], ["b", cell]]))


def test_a_damaged_spreadsheet_is_an_error_with_a_remedy(tmp_path):
    path = _workbook(tmp_path / "t.xlsx", [["id", "n"], ["a", 1]])
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match="E-ING-LABEL-FILE"):
        read_table(path)


@pytest.mark.parametrize(
    ("match", "key"),
    [
        ("{PatientID}", "MRN-0042"),
        ("{AccessionNumber}", "ACC77"),
        ("{PatientID}/{StudyDate}", "MRN-0042/20200131"),
        ("{StudyDate}", "2020-01-31"),
        ("{folder:2}", "b"),
        ("{stem}", "scan"),
        (r"^(?P<site>[a-z]+)/", "a"),
        ("{KVP}", "120"),
    ],
)
def test_keys_are_values_of_the_header_or_of_the_path(tmp_path, match, key):
    labels = _join(tmp_path, f"id,grade\n{key},1\n", match=match)
    assert labels.targets == {"c1": {"grade": "1"}}


def test_one_row_labels_every_case_of_its_key(tmp_path):
    cases = {"c1": Subject("a.dcm", _header()), "c2": Subject("b.dcm", _header())}
    assert set(_join(tmp_path, "id,grade\nMRN-0042,1\n", cases=cases).targets) == {"c1", "c2"}


def test_what_does_not_fit_is_counted_and_never_named(tmp_path):
    text = "id,grade\nMRN-0042,1\nMRN-0042,1\nP7,1\nP7,2\n,3\nP9,\n"
    cases = {"c1": Subject("a.dcm", _header()), "c2": Subject("b/x.nii")}
    labels = _join(tmp_path, text, cases=cases)
    assert labels.targets == {"c1": {"grade": "1"}}
    assert labels.warnings == (
        "W-ING-LABEL-KEY 1 rows have no key: lines 6",
        "W-ING-LABEL-TWICE 1 rows repeat another one: lines 3",
        "W-ING-LABEL-CONFLICT 2 rows share a key and contradict each other, none of them is used: lines 4, 5",
        "W-ING-LABEL-MISSING 1 of 2 cases have no row in the table",
        "W-ING-LABEL-UNUSED 1 rows match no case: lines 7",
    )
    assert not any(secret in " ".join(labels.warnings) for secret in ("MRN", "P7", "P9"))


@pytest.mark.parametrize(("column", "cell"), [("name", "Jane Doe"), ("mrn", "mrn-0042"), ("acc", "ACC77")])
def test_a_column_of_identifiers_is_refused(tmp_path, column, cell):
    text = f"id,grade,{column}\nMRN-0042,1,{cell}\n"
    with pytest.raises(SafetyRefusal, match="E-ING-LABEL-ID") as caught:
        _join(tmp_path, text)
    assert cell not in str(caught.value)
    assert _join(tmp_path, text, targets=("grade",)).targets == {"c1": {"grade": "1"}}
    assert _join(tmp_path, text, identifying=True).targets == {"c1": {"grade": "1", column: cell}}


def test_a_label_that_equals_a_harmless_value_is_no_identifier(tmp_path):
    cases = {"c1": Subject("a.dcm", _header(BodyPartExamined="CHEST", PatientSex="F", StudyDescription="CHEST CT"))}
    assert _join(tmp_path, "id,region\nMRN-0042,CHEST CT\n", cases=cases).targets


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "Id"}, "did you mean 'id'"),
        ({"targets": ("grades",)}, "did you mean 'grade'"),
        ({"match": "{PatientId}"}, r"did you mean \{PatientID\}"),
        ({"match": "{folder}"}, "folder without its number"),
        ({"match": "word"}, "same for every case"),
        ({"match": "(?P<a>x)(?P<b>y)"}, "2 named groups"),
        ({"match": "(?P<a>x"}, "no regular expression"),
        ({"match": "{PatientID"}, "no template"),
        ({"match": "{PatientID.__class__}"}, "is no field"),
        ({"match": "{PatientID!r}"}, "is no field"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_with_what_was(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        _join(tmp_path, "id,grade\nx,1\n", **options)


def test_rules():
    subject = Subject("site A/sub-01/scan.nii.gz")
    assert Rule("{folder:1}", "--domain").value(subject) == "site A"
    assert Rule("{folder:3}", "--domain").value(subject) == ""
    assert Rule("x{stem}{suffix}", "--domain").value(subject) == "xscan.nii.gz"
    assert Rule("Leeds", "--domain").value(subject) == "Leeds" and Rule("Leeds", "--domain").is_constant
    assert Rule("{Manufacturer} {KVP}", "--domain").value(Subject("f", _header())) == "ACME 120"
    assert Rule("{Manufacturer} {KVP}", "--domain").value(subject) == ""
    assert Rule("{Manufacturer} {KVP} {stem}", "--domain").keywords == ("KVP", "Manufacturer")
