"""A manifest is read as it is meant or refused with row and remedy; what is written reads back."""

from pathlib import Path

import pytest
import torch
from laws import refuses, write_png, written

from medmtl.data.case import Case, read_manifest, write_manifest
from medmtl.data.target import ClassTarget, MaskTarget, NumberTarget
from medmtl.errors import REFUSED, SafetyRefusal

HEADER = "case_id,group,domain,split,image,target.grade,meta.age"
GOOD = "a,g1,d1,train,a.png,low,61"


@pytest.fixture
def manifest(tmp_path):
    """Write lines (text, or bytes) beside two images and a link out; returns the path."""
    for name in ("a.png", "b.png"):
        write_png(tmp_path / "study" / name, 1)
    write_png(tmp_path / "outside.png", 2)
    (tmp_path / "study" / "out.png").symlink_to(tmp_path / "outside.png")

    def write(*lines, content=None):
        path = tmp_path / "study" / "manifest.csv"
        path.write_bytes(content if content is not None else "\n".join(lines).encode() + b"\n")
        return path

    return write


def test_a_row_becomes_a_case_and_an_empty_cell_a_missing_label(manifest):
    found = read_manifest(manifest(HEADER, GOOD, "b,g2,,,b.png,,"))
    assert found.cases[0] == Case("a", "g1", "a.png", "d1", "train", {"grade": "low"}, {"age": "61"}, 2)
    assert found.cases[1] == Case("b", "g2", "b.png", "", "", {}, {}, 3)
    assert found.targets == ("grade",) and found.domains == ("d1",)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a,g2,d,val,b.png,low,1", "row 3: case_id 'a' is also in row 2"),
        ("A,g2,d,val,b.png,low,1", "row 3: case_id 'A' is also in row 2"),
        ("b,g2,d,val,missing.png,low,1", "row 3: image 'missing.png' does not exist"),
        ("b,g2,d,valid,b.png,low,1", "row 3: split 'valid'"),
        (",g2,d,val,b.png,low,1", "row 3: case_id is empty"),
        ("b,,d,val,b.png,low,1", "row 3: group is empty"),
        ("b,g2,d,val,,low,1", "row 3: image is empty"),
        ("b/c,g2,d,val,b.png,low,1", "row 3: case_id 'b/c'"),
        ("..,g2,d,val,b.png,low,1", "row 3: case_id '..'"),
    ],
)
def test_a_bad_row_is_named(manifest, row, says):
    refuses("E-MAN-ROW", lambda: read_manifest(manifest(HEADER, GOOD, row)), says=says)


def test_ids_that_are_one_file_name_elsewhere_are_duplicates(manifest):
    rows = ["cafe\u0301,g1,d,val,a.png,low,1", "caf\u00e9,g2,d,val,b.png,low,1"]
    refuses("E-MAN-ROW", lambda: read_manifest(manifest(HEADER, *rows)), says="is also in row 2")


def test_all_bad_rows_are_told_and_many_are_counted(manifest):
    message = refuses("E-MAN-ROW", lambda: read_manifest(manifest(HEADER, *[f"c{i},g,d,x,a.png,," for i in range(20)])))
    assert "row 2" in message and "row 13" in message and "8 more" in message


@pytest.mark.parametrize(
    "image", ["../outside.png", "/etc/passwd", "out.png", "file:///etc/passwd", "x/../../outside.png"]
)
def test_a_path_that_leaves_the_folder_is_a_safety_refusal(manifest, image):
    path = manifest(HEADER, GOOD, f"b,g2,d,val,{image},low,1")
    refuses("E-SEC-PATH", lambda: read_manifest(path), kind=SafetyRefusal, says="manifest.csv row 3, image: ")
    assert SafetyRefusal.exit_code == REFUSED == 6


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        ("case_id,group,domain,split\na,g,d,train\n", "E-MAN-COLUMN", "no column image"),
        (f"{HEADER},grade\n", "E-MAN-COLUMN", "'target.grade'"),
        (f"{HEADER},domian\n", "E-MAN-COLUMN", "unknown column 'domian'"),
        (f"{HEADER},meta.age\n", "E-MAN-COLUMN", "occurs twice"),
        (f"{HEADER}\n{GOOD},extra\n", "E-MAN-WIDTH", "row 2"),
        (f"{HEADER}\n{GOOD}\nb,g2\n", "E-MAN-WIDTH", "row 3"),
        (f'{HEADER}\n"a,g1,d1,train,a.png,low,61\n', "E-MAN-CSV", "row"),
        (f"{HEADER}\n", "E-MAN-ROW", "no rows"),
        ("", "E-MAN-COLUMN", "no column case_id"),
        (f"{HEADER}\n{GOOD}\n".encode() + "b,é\n".encode("latin-1"), "E-MAN-TEXT", "row 3"),
    ],
)
def test_a_bad_file_is_refused(manifest, content, code, says):
    content = content if isinstance(content, bytes) else content.encode()
    refuses(code, lambda: read_manifest(manifest(content=content)), says=says)


def test_a_missing_manifest_is_refused(tmp_path):
    refuses("E-MAN-FILE", lambda: read_manifest(tmp_path / "manifest.csv"), says="no such manifest")
    (tmp_path / "file").touch()
    refuses("E-MAN-FILE", lambda: read_manifest(tmp_path / "file" / "manifest.csv"), says="no such manifest")


def test_a_folder_is_no_manifest(tmp_path):
    message = refuses("E-MAN-FILE", lambda: read_manifest(tmp_path), says=f"{tmp_path}: a folder")
    assert "name the file in data.manifest" in message


def test_a_manifest_that_may_not_be_read_is_refused(manifest, monkeypatch):
    def refuse(_):
        raise PermissionError("not yours")  # chmod would not keep root out

    path = manifest(HEADER, GOOD)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    refuses("E-MAN-FILE", lambda: read_manifest(path), says="cannot be opened")


@pytest.mark.parametrize(
    "change",
    [lambda t: "\ufeff" + t, lambda t: t.replace(",", ";"), lambda t: t.replace("\n", "\r\n"), lambda t: t + "\n"],
)
def test_byte_order_mark_semicolons_and_line_ends_make_no_difference(manifest, change):
    text = f"{HEADER}\n{GOOD}\nb,g2,,,b.png,,\n"
    plain = read_manifest(manifest(content=text.encode())).cases
    assert read_manifest(manifest(content=change(text).encode())).cases == plain


def test_what_is_written_reads_back_whatever_the_order(tmp_path):
    cases = [
        Case("b", "g, 2", "b.png", "", "val", {"grade": "-1.5"}, {"note": 'with "quotes", é'}, 3),
        Case("a", "g1", "a.png", "d1", "", {"size": "2"}, {}, 2),
    ]
    for name in ("a", "b"):
        write_png(tmp_path / f"{name}.png", 0)
    first = write_manifest(tmp_path / "1.csv", cases)
    second = write_manifest(tmp_path / "2.csv", cases[::-1])
    assert sorted(first.read_text().splitlines()[0].split(",")) == sorted(second.read_text().splitlines()[0].split(","))
    assert read_manifest(first).cases == read_manifest(second).cases == (cases[1], cases[0])


def test_the_bytes_depend_on_the_cases_alone(tmp_path):
    assert written(tmp_path / "a", _two()).sha256 == written(tmp_path / "b", _two()[::-1]).sha256


def _two():
    return [Case(f"c{i}", f"g{i}", f"c{i}.png", "", "", {"grade": "x"}) for i in range(2)]


@pytest.mark.parametrize("cell", ["=1+1", "@cmd", "\tx", "+cmd|' /C calc'!A0", "-2+3+cmd"])
def test_a_cell_that_a_spreadsheet_would_run_is_not_written(tmp_path, cell):
    case = Case("a", "g", "a.png", "", "", {"grade": cell})
    refuses("E-MAN-FORMULA", lambda: write_manifest(tmp_path / "m.csv", [case]), says="case a")
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.parametrize("cell", ["-1", "+2.5", "-1e-3"])
def test_a_signed_number_is_no_formula(tmp_path, cell):
    write_manifest(tmp_path / "m.csv", [Case("a", "g", "a.png", "", "", {"grade": cell})])


CASE = Case("a", "g", "a.png", row=17)


@pytest.mark.parametrize(
    ("target", "cell", "code"),
    [
        (ClassTarget(("low", "high")), "medium", "E-TGT-CLASS"),
        (ClassTarget(("low", "high")), "LOW", "E-TGT-CLASS"),
        (NumberTarget(0, 85), "93", "E-TGT-RANGE"),
        (NumberTarget(0, 85), "-0.1", "E-TGT-RANGE"),
        (NumberTarget(0, 85), "nan", "E-TGT-RANGE"),
        (NumberTarget(0, float("inf")), "inf", "E-TGT-RANGE"),
        (NumberTarget(0, 85), "1,5", "E-TGT-NUMBER"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_with_its_row(tmp_path, target, cell, code):
    refuses(code, lambda: target.read(CASE, cell, tmp_path), says="row 17")


def test_labels_become_tensors(tmp_path):
    torch.testing.assert_close(ClassTarget(("low", "high")).read(CASE, "high", tmp_path), torch.tensor(1))
    torch.testing.assert_close(NumberTarget(0, 85).read(CASE, "85", tmp_path), torch.tensor(85.0))


def test_a_mask_holds_class_indices_and_stays_inside(tmp_path):
    (tmp_path / "study").mkdir()
    write_png(tmp_path / "study" / "mask.png", 0, channels=1)
    target = MaskTarget(("background", "nucleus"))
    refuses("E-TGT-MASK", lambda: target.read(CASE, "mask.png", tmp_path / "study"), says="row 17")
    refuses("E-SEC-PATH", lambda: target.read(CASE, "../mask.png", tmp_path / "study"), kind=SafetyRefusal)
    whole = MaskTarget(tuple(map(str, range(256)))).read(CASE, "mask.png", tmp_path / "study")
    assert whole.shape == (12, 12) and whole.dtype == torch.int64
    assert target.placeholder((3, 4)).shape == (3, 4)
