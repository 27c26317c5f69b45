"""``medmtl ingest`` at the command line: what each option of it does to a folder."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_made import change, ct, write
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items

from medmtl.cli import run
from medmtl.data.case import read_manifest
from medmtl.data.synthetic.dicom import write_phantom
from medmtl.data.synthetic.dicom_write import lax
from medmtl.io.nifti import write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Volume

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def _scan(path, seed=0, shape=(12, 11, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)
    return write_nifti(path, Volume(array, AFFINE))


def _mask(path, labels, shape=(12, 11, 10), affine=AFFINE, dtype=np.uint8):
    array = np.zeros(shape, dtype)
    array[2:5, 3:6, 1:4] = np.resize(np.array(labels, dtype), (3, 3, 3))
    return write_nifti(path, Volume(array, affine))


def _ingest(tmp_path, *options, source=None, out="out"):
    """Exit code, and the report by the path of the file (which only the private folder knows)."""
    target = tmp_path / out
    code = run(["ingest", os.fspath(source or tmp_path / "source"), os.fspath(target), "--jobs", "1", *options])
    table = tmp_path / f"{out}.private" / "files.csv"
    if not table.exists():
        return code, {}
    with table.open(newline="") as stream:
        return code, {row["path"]: row for row in csv.DictReader(stream)}


# masks


RULE = r"lesion=scan\.nii -> mask.nii"


def test_a_mask_with_the_declared_labels_is_taken(tmp_path):
    _scan(tmp_path / "source/sub-1/scan.nii.gz")
    _mask(tmp_path / "source/sub-1/mask.nii.gz", [0, 1, 2])
    for n, values in enumerate(("lesion=0,1,2", "lesion=0-2", "lesion= 0, 1 - 9")):
        code, rows = _ingest(tmp_path, "--mask", RULE, "--mask-values", values, out=f"out{n}")
        assert code == 0 and {row["status"] for row in rows.values()} == {"accepted"}


@pytest.mark.parametrize(
    ("written", "code", "words"),
    [
        ({"labels": [0, 1, 7, 9]}, "E-MASK-LABELS", "mask lesion: labels that nobody declared: 7 ("),
        ({"labels": [1], "shape": (12, 11, 9)}, "E-MASK-SHAPE", "mask lesion: the mask is [12, 11, 9]"),
        ({"labels": [1], "affine": np.diag([1, 1.5, 2.01, 1])}, "E-MASK-PLACE", "a corner of the mask lies 0.09 mm"),
        ({"labels": [0.5], "dtype": np.float32}, "E-MASK-VALUES", "hold no label, the first is 0.5"),
    ],
)
def test_a_mask_that_does_not_fit_refuses_its_case_alone(tmp_path, capsys, written, code, words):
    for name in ("sub-1", "sub-2"):
        _scan(tmp_path / f"source/{name}/scan.nii.gz")
        _mask(tmp_path / f"source/{name}/mask.nii.gz", [0, 1, 2])
    _mask(tmp_path / "source/sub-2/mask.nii.gz", **written)
    status, rows = _ingest(tmp_path, "--mask", RULE, "--mask-values", "lesion=0,1,2")
    assert status == 3 and f"refused: {code} 2" in capsys.readouterr().out
    bad = [row for path, row in rows.items() if path.startswith("sub-2")]
    assert {(row["status"], row["code"]) for row in bad} == {("refused", code)} and len(bad) == 2
    assert all(words in row["what"] and row["remedy"] for row in bad)
    assert {row["status"] for path, row in rows.items() if path.startswith("sub-1")} == {"accepted"}
    assert len(list((tmp_path / "out").glob("images/*.nii.gz"))) == 1


def test_the_mask_of_a_picture_holds_declared_labels_too(tmp_path):
    source = tmp_path / "source"
    for name, label in (("a", 1), ("b", 5)):
        (source / name).mkdir(parents=True)
        write_png(source / name / "scan.png", np.arange(80, dtype=np.uint8).reshape(8, 10))
        write_png(source / name / "mask.png", np.full((8, 10), label, np.uint8))
    rule = r"lesion=scan\.png -> mask.png"
    assert _ingest(tmp_path, "--mask", rule)[0] == 0
    code, rows = _ingest(tmp_path, "--mask", rule, "--mask-values", "lesion=0,1")
    assert code == 3 and rows["b/mask.png"]["code"] == "E-MASK-LABELS" and "5 (80 voxels)" in rows["b/scan.png"]["what"]
    assert rows["a/mask.png"]["status"] == "accepted"
    assert _ingest(tmp_path, "--mask", rule, "--mask-values", "lesion=0,1,5")[0] == 0


@pytest.mark.parametrize(
    "values", ["lesion", "lesion=", "lesion=a", "lesion=3-1", "=1", "other=0,1", "lesion=0-9999999"]
)
def test_a_declaration_that_cannot_be_meant_is_an_error(tmp_path, capsys, values):
    _scan(tmp_path / "source/sub-1/scan.nii.gz")
    code, _ = _ingest(tmp_path, "--mask", RULE, "--mask-values", values)
    assert code == 2 and "E-ING-" in capsys.readouterr().err and not (tmp_path / "out").exists()


# patients


def test_two_patients_in_the_folder_of_one_are_refused_where_the_rule_says_so(tmp_path):
    write_phantom(tmp_path / "source/ward/mixed", "two-patients")
    write_phantom(tmp_path / "source/ward/single", "axial")
    code, rows = _ingest(tmp_path)
    assert code == 0 and {row["code"] for row in rows.values()} == {"W-DCM-MIXED-PATIENTS", ""}
    code, rows = _ingest(tmp_path, "--one-patient", "{folder:2}")
    assert code == 3
    for path, row in rows.items():
        assert (row["status"], row["code"]) == (
            ("refused", "E-ING-PATIENTS") if path.startswith("ward/mixed") else ("accepted", "")
        )
    assert "images of 2 patients lie where {folder:2} says" in rows[min(rows)]["what"]
    assert len(read_manifest(tmp_path / "out/manifest.csv").cases) == 1
    assert _ingest(tmp_path, "--one-patient", "{StudyInstanceUID}")[0] == 0  # each has a study of their own
    assert _ingest(tmp_path, "--one-patient", "{fodler:2}")[0] == 2


# damaged and hostile trees


def _dicomdir(path, *names):
    ds = change(pydicom.Dataset(), SOPClassUID="1.2.840.10008.1.3.10", SOPInstanceUID="1.2.3", FileSetID="X")
    records = []
    for name in names:
        record = pydicom.Dataset()
        record.DirectoryRecordType = "IMAGE"
        record.add_new(0x00041500, "CS", name)
        records.append(record)
    ds.DirectoryRecordSequence = Items(records)
    ds.file_meta = FileMetaDataset()
    return write(path, ds)


def test_a_rule_of_one_patient_that_no_volume_answers_to_is_an_error(tmp_path, capsys):
    write_phantom(tmp_path / "source/a", "two-patients")
    arguments = ["ingest", str(tmp_path / "source"), str(tmp_path / "out"), "--jobs", "1", "--one-patient"]
    assert run([*arguments, "{folder:9}"]) == 2 and "E-ING-RULE" in capsys.readouterr().err
    assert run([*arguments, "{folder:1}"]) == 4  # both patients lie in one folder


@pytest.mark.parametrize("name", [["..", "..", "etc", "passwd"], ["IMAGES", "..", "..", "X"], ["", "etc"], ["C:", "X"],
                                  ["a/../../b"]])  # fmt: skip
def test_a_directory_that_leads_out_of_its_folder_is_a_row(tmp_path, name):
    source = tmp_path / "source"
    write_phantom(source / "disc", "axial")
    with lax():
        _dicomdir(source / "disc/DICOMDIR", ["IMAGES", "IM1"], name)
    code, rows = _ingest(tmp_path)
    row = rows["disc/DICOMDIR"]
    assert code == 3 and (row["status"], row["code"], row["kind"]) == ("refused", "E-SEC-PATH", "dicom directory")
    assert row["what"].startswith("1 of 2 files") and "passwd" not in row["what"] and "remove it" in row["remedy"]
    assert {row["status"] for path, row in rows.items() if "DICOMDIR" not in path} == {"accepted"}


def test_a_directory_of_its_own_folder_is_ignored(tmp_path):
    write_phantom(tmp_path / "source/disc", "axial")
    _dicomdir(tmp_path / "source/disc/DICOMDIR", ["IMAGES", "IM1"], "IM2")
    code, rows = _ingest(tmp_path)
    assert code == 0 and rows["disc/DICOMDIR"]["code"] == "I-DCM-KIND"


def test_a_gap_names_its_neighbours_and_nobody(tmp_path):
    source = tmp_path / "source"
    truth = write_phantom(source / "DOE^JANE", "gap-middle")
    code, _rows = _ingest(tmp_path)
    assert code == 4
    numbers = sorted(pydicom.dcmread(path).InstanceNumber for path in (source / "DOE^JANE").glob("*.dcm"))
    (before,) = (n for n in numbers[:-1] if n + 1 not in numbers)
    said = json.loads((tmp_path / "out/ingest_report.json").read_text())["files"][0]["what"]
    assert said.endswith(f"mm from the first: between instance numbers {before} and {before + 2}")
    page = (tmp_path / "out/ingest_report.html").read_text()
    assert f"between instance numbers {before} and {before + 2}" in page
    assert not [text for text in (*truth.identifiers, "DOE^JANE") if len(text) > 3 and text in page]


def test_uneven_slices_without_numbers_are_counted_along_the_stack(tmp_path):
    for n, z in enumerate((0, 2.5, 5, 9.1, 11.6)):
        ds = ct(number=n, ImagePositionPatient=[0, 0, z], InstanceNumber=1)
        write(tmp_path / f"source/{n}.dcm", ds)
    _, rows = _ingest(tmp_path)
    assert rows["0.dcm"]["what"] == (
        "the slices are uneven, 2.5, 2.5, 4.1, 2.5 mm apart: look between slices (counted along the stack, 5 in all) "
        "3 and 4"
    )


# 4-D NIfTI


@pytest.mark.parametrize(
    ("options", "codes", "meta"),
    [([], {"W-NII-TIME"}, "time"), (["--fourth-axis", "time"], {"W-NII-TIME"}, "time"),
     (["--fourth-axis", "channel"], set(), "channel"), (["--fourth-axis", "refuse"], {"E-NII-DIMENSIONS"}, None)],
)  # fmt: skip
def test_what_a_fourth_axis_is_can_be_said(tmp_path, options, codes, meta):
    path = tmp_path / "source/sub-1/scan.nii.gz"
    path.parent.mkdir(parents=True)
    array = np.random.default_rng(0).integers(0, 999, (6, 5, 4, 3)).astype(np.int16)
    image = nibabel.Nifti1Image(array, AFFINE)
    image.header["xyzt_units"], image.header["pixdim"][4] = 2, 7  # mm; of no unit of time
    nibabel.save(image, path)
    code, rows = _ingest(tmp_path, *options)
    assert {code for row in rows.values() for code in row["code"].split()} == codes
    if meta is None:
        assert code == 4 and "a fourth axis of 3" in rows["sub-1/scan.nii.gz"]["what"]
        return
    (case,) = read_manifest(tmp_path / "out/manifest.csv").cases
    assert code == 0 and case.meta["fourth_axis"] == meta
    stored = nibabel.load(tmp_path / "out" / case.image)
    np.testing.assert_array_equal(np.asarray(stored.dataobj), array)
    assert stored.header.get_xyzt_units()[1] == "unknown"


def test_a_fourth_axis_of_one_is_none(tmp_path):
    path = tmp_path / "source/sub-1/scan.nii.gz"
    path.parent.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(6, 5, 4, 1), AFFINE), path)
    assert _ingest(tmp_path, "--fourth-axis", "refuse")[0] == 0
    (case,) = read_manifest(tmp_path / "out/manifest.csv").cases
    assert "fourth_axis" not in case.meta


# how a job ends


@pytest.fixture
def failing(tmp_path):
    """Three images of one value, larger and hence earlier than two that are right."""
    for n in range(2):
        _scan(tmp_path / f"source/sub-{n}/scan.nii.gz", n)
    for n in range(3):
        path = tmp_path / f"source/sub-9{n}/flat.nii"
        path.parent.mkdir(parents=True)
        write_nifti(path, Volume(np.zeros((40, 40, 40 + n), np.int16), np.eye(4)))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "failed", "skipped", "status"),
    [([], 3, 0, 3), (["--fail-fast"], 1, 4, 4),
     (["--max-failures", "1"], 2, 3, 4), (["--max-failures", "20%"], 2, 3, 4),
     (["--max-failures", "3"], 3, 0, 3)],
)  # fmt: skip
def test_failures_stop_the_job_where_asked(failing, capsys, options, failed, skipped, status):
    code, rows = _ingest(failing, "--json", *options)
    tree = json.loads(capsys.readouterr().out)
    assert (code, tree["volumes"]["failed"], tree["volumes"]["skipped"]) == (status, failed, skipped)
    assert sum(row["code"] == "E-ING-SKIPPED" for row in rows.values()) == skipped
    if skipped:  # the next run without the option does the rest
        code, rows = _ingest(failing, "--json")
        again = json.loads(capsys.readouterr().out)
        assert code == 3 and again["volumes"] == {"ok": 2, "failed": 3, "skipped": 0}


@pytest.mark.parametrize("text", ["many", "-1", "5 %"])
def test_a_number_of_failures_that_is_none(failing, capsys, text):
    assert _ingest(failing, "--max-failures", text)[0] == 2


DRIVER = """
import sys, time
from medmtl.ingest import work

real = work.read_nifti
def slow(path, **options):
    time.sleep(600 if path.name.startswith("slow") else 0)
    return real(path, **options)
work.read_nifti = slow  # in the workers too: they are forked from a server that has imported this file

if __name__ == "__main__":
    from medmtl.cli import run
    sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_volume_that_takes_too_long_is_refused_and_the_rest_goes_on(tmp_path):
    _scan(tmp_path / "source/sub-1/slow.nii.gz")
    _scan(tmp_path / "source/sub-2/scan.nii.gz")
    (tmp_path / "driver.py").write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, tmp_path / "driver.py", "ingest", "source", "out", "--timeout", "1", "--jobs", "1"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 3 and "refused: E-ING-TIMEOUT 1" in done.stdout, done.stderr
    assert len(read_manifest(tmp_path / "out/manifest.csv").cases) == 1
    assert _ingest(tmp_path)[0] == 0  # it is tried again


# uncompressed


def test_uncompressed_volumes_hold_the_same_as_packed_ones(tmp_path):
    write_phantom(tmp_path / "source/ct", "axial")
    _scan(tmp_path / "source/sub-1/scan.nii.gz")
    _mask(tmp_path / "source/sub-1/mask.nii.gz", [1])
    assert _ingest(tmp_path, "--mask", RULE, "--key", os.fspath(tmp_path / "key"))[0] == 0
    raw = ("--mask", RULE, "--uncompressed", "--key", os.fspath(tmp_path / "key"))
    assert _ingest(tmp_path, *raw, out="raw")[0] == 0
    packed, plain = (read_manifest(tmp_path / name / "manifest.csv").cases for name in ("out", "raw"))
    assert len(packed) == 2
    for one, other in zip(packed, plain, strict=True):
        assert (one.image, other.image) == (f"images/{one.case_id}.nii.gz", f"images/{one.case_id}.nii")
        pairs = [(one.image, other.image), *zip(one.targets.values(), other.targets.values(), strict=True)]
        for first, second in pairs:
            a, b = nibabel.load(tmp_path / "out" / first), nibabel.load(tmp_path / "raw" / second)
            assert a.header == b.header and np.array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
    # the other way in the same folder: no image of the first one is left
    assert _ingest(tmp_path, *raw)[0] == 0
    assert not list((tmp_path / "out").rglob("*.nii.gz")) and len(list((tmp_path / "out/images").glob("*.nii"))) == 2


def test_a_file_is_opened_once_for_its_kind_and_its_header(tmp_path, monkeypatch):
    from medmtl.ingest import headers
    from medmtl.ingest.tasks import Headers
    from medmtl.ingest.walk import walk

    write_phantom(tmp_path / "ct", "axial")
    opened, real = [], os.open
    monkeypatch.setattr(
        os, "open", lambda path, *more, **how: opened.append(Path(path).name) or real(path, *more, **how)
    )
    found = walk(tmp_path / "ct").files
    lines = [headers.line_of(Headers(tmp_path / "ct", found, (), 2**32), file) for file in found]
    assert all('"kind": "dicom"' in line for line in lines)
    assert sorted(opened) == sorted(file.path for file in found)


def test_a_second_target_of_the_name_is_an_error(tmp_path, capsys):
    _scan(tmp_path / "source/sub-1/scan.nii.gz")
    _mask(tmp_path / "source/sub-1/mask.nii.gz", [1])
    (tmp_path / "labels.csv").write_text("id,lesion\nscan,3\n")
    options = ("--mask", RULE, "--labels", os.fspath(tmp_path / "labels.csv"), "--label-key", "id", "--match", "{stem}")
    assert _ingest(tmp_path, *options)[0] == 2
    assert "lesion is a column of labels and a mask" in capsys.readouterr().err
