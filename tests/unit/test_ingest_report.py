"""What a study says of its images and of the files it came from."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmtl.errors import UserError
from medmtl.ingest.cases import CasePlan, Fate, PlannedCase
from medmtl.ingest.command import label_rule, mask_rules, told
from medmtl.ingest.job import Job, LabelRule, Summary
from medmtl.ingest.ledger import Entry
from medmtl.ingest.naming import Namer
from medmtl.ingest.report import rows_of, write_reports
from medmtl.ingest.rules import Subject
from medmtl.ingest.sidecar import sidecar
from medmtl.ingest.study import age_years, manifest_case, warnings_of
from medmtl.ingest.tasks import Task
from medmtl.ingest.thumbnail import SIDE, thumbnail
from medmtl.ingest.walk import Aside, Found, walk
from medmtl.ingest.work import make_case, orientation
from medmtl.io.deidentify.key import Key
from medmtl.io.deidentify.pseudonyms import Pseudonyms
from medmtl.io.dicom.record import Header
from medmtl.io.dicom.stack import Stack
from medmtl.io.nifti import write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Note, Volume

NAMER = Namer(Pseudonyms(Key(bytes(range(32)))), False, None, None)


def _header(**changes):
    values = {
        "patient_id": "MRN42", "modality": "MR",
        "facts": {
            "RepetitionTime": 2300.0, "EchoTime": 2.98, "FlipAngle": 9.0, "MagneticFieldStrength": 3.0,
            "Manufacturer": "ACME", "ManufacturerModelName": "=X", "ImageType": ("ORIGINAL", "PRIMARY"),
        },
        "private": {"PatientAge": "045Y", "PatientSex": "F", "StudyDate": "20200131", "SeriesNumber": "7"},
    }  # fmt: skip
    return Header(
        path=Path("f"), size=1, mtime_ns=1, sop_instance_uid="1.1", sop_class_uid="2", kind="image", series_uid="1.2.3",
        study_uid="1.2", **{**values, **changes},
    )  # fmt: skip


def _case(name="P1_MR_A", *, path="DOE/1.dcm", header=None, **changes):
    header = header or _header()
    stack = Stack((), "k", np.eye(4), (2, 2, 2), split=(("EchoTime", 2.98),))
    object.__setattr__(stack, "slices", (type("S", (), {"header": header})(),))
    values = {"files": (Found(path, 1, 1, 1),), "subject": Subject(path, header), "stack": stack, "domain": "ACME"}
    return PlannedCase(name, name, "dicom", group="P1", **{**values, **changes})


def _entry(name="P1_MR_A", **changes):
    facts = {"shape": [4, 5, 6], "spacing_mm": [1.0, 1.0, 2.5], "orientation": "LAS", "units": ""}
    return Entry(name, "s", "ok", **{"image": f"images/{name}.nii.gz", "facts": facts, **changes})


def test_a_sidecar_has_the_names_and_units_of_bids():
    volume = Volume(np.zeros((2, 2, 2)), np.eye(4), spacing=(1, 1, 2.5), units="HU", time_step_s=2.0)
    tree = sidecar(kind="dicom", volume=volume, header=_header(), split={"EchoTime": 30.0}, notes=(("R-X", "what"),))
    assert tree["RepetitionTime"] == 2.3 and tree["EchoTime"] == 0.03 and tree["FlipAngle"] == 9
    assert tree["Manufacturer"] == "ACME" and tree["ManufacturersModelName"] == "'=X" and tree["Units"] == "HU"
    assert tree["TimeStep"] == 2.0 and tree["Notes"] == [{"code": "R-X", "what": "what"}]
    text = json.dumps(tree)
    assert not any(secret in text for secret in ("MRN42", "2020", "045Y", "1.2.3"))


def test_the_row_of_a_case():
    row = manifest_case(_case(), _entry(notes=(("R-X", "a"), ("W-Y", "b"), ("R-X", "c"))), {"grade": "1"}, NAMER)
    assert (row.case_id, row.group, row.domain, row.targets) == ("P1_MR_A", "P1", "ACME", {"grade": "1"})
    shift = NAMER.pseudonyms.date("MRN42", "20200131")
    assert row.meta == {
        "source": "dicom", "modality": "MR", "manufacturer": "ACME", "model": "'=X", "field_strength_t": "3",
        "series_number": "7", "sex": "F", "age_years": "45", "study_date": f"{shift[:4]}-{shift[4:6]}-{shift[6:]}",
        "split.EchoTime": "2.98", "spacing_mm": "1 x 1 x 2.5", "shape": "4 x 5 x 6", "orientation": "LAS",
        "notes": "R-X W-Y",
    }  # fmt: skip
    assert row.meta["study_date"] != "2020-01-31"
    kept = manifest_case(_case(), _entry(), {}, Namer(NAMER.pseudonyms, True, None, None))
    assert kept.meta["study_date"] == "2020-01-31"


@pytest.mark.parametrize(
    ("age", "years"),
    [("045Y", "45"), ("089Y", "89"), ("090Y", "90"), ("104Y", "90"), ("018M", "1.5"), ("", ""), ("x", "")],
)
def test_ages_above_89_are_one(age, years):
    assert age_years(_header(private={"PatientAge": age})) == years


def test_warnings_count_and_name_nobody():
    cases = [_case(f"c{n}", header=_header(patient_id="" if n else "MRN42"), domain=f"d{n}") for n in range(30)]
    assert [text.split()[:2] for text in warnings_of(cases)] == [["W-DEID-NO-PATIENT-ID", "29"], ["W-ING-DOMAIN", "30"]]
    assert warnings_of(cases[:1]) == []


@pytest.mark.parametrize(
    ("columns", "codes"),
    [
        (np.eye(3), "RAS"),
        (np.diag([-1, 1, 1]), "LAS"),
        (np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]]), "AIL"),
        (np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 3]]), "RAS"),
    ],
)
def test_orientation_is_where_axes_run_to(columns, codes):
    affine = np.eye(4)
    affine[:3, :3] = columns
    assert orientation(affine) == codes


def test_a_thumbnail_is_upright_and_square_in_millimetres():
    array = np.zeros((20, 10, 3), np.int16)
    array[:, 5:, 1] = 1000  # the last rows of the second axis are on top
    picture = np.asarray(Image.open(io.BytesIO(thumbnail(Volume(array, np.eye(4), spacing=(1.0, 4.0, 1.0))))))
    assert picture.shape == (SIDE, SIDE // 2) and picture[5, 5] == 255 and picture[-5, 5] == 0
    colour = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    assert np.asarray(Image.open(io.BytesIO(thumbnail(colour)))).shape == (SIDE, round(SIDE * 2 / 3), 3)
    assert thumbnail(np.full((9, 9), 3, np.uint16))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.png"])
def test_a_file_that_changed_since_the_scan_is_refused(tmp_path, name):
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / name
    array = np.random.default_rng(0).integers(0, 99, (6, 5, 4)).astype(np.uint8)
    write_png(path, array[..., 0]) if name.endswith("png") else write_nifti(path, Volume(array, np.eye(4)))
    (found,) = walk(tmp_path / "source").files
    kind = "raster" if name.endswith("png") else "nifti"
    case = PlannedCase("a", "a", kind, (found,), Subject(name), "g", "")
    task = Task(case, tmp_path / "source", tmp_path / "out", False, False, 2**30)
    assert make_case(task).entry.status == "ok"
    os.utime(path, ns=(1, 1))
    entry = make_case(replace(task, out=tmp_path / "again")).entry
    assert (entry.status, entry.code) == ("failed", "E-FILE-CHANGED") and not (tmp_path / "again").exists()


def _plan():
    two = Found("DOE/2.dcm", 1, 1, 2)
    cases = (
        _case("a", files=(Found("DOE/1.dcm", 1, 1, 1), two)),
        _case("b", files=(two,)),
        _case("c", path="DOE/3.dcm", refused=("E-DEID-BURNED", "YES")),
        _case("d", path="DOE/4.dcm"),
    )
    return CasePlan(cases, (Fate("DOE/x", "no suffix", "I-FILE-OTHER", "no image", "nothing"),), ())


def test_a_file_of_two_volumes_is_as_bad_as_the_worse_of_them():
    entries = {"a": _entry("a"), "b": Entry("b", "s", "failed", "E-ING-EMPTY", "0", "look")}
    rows = rows_of(_plan(), [Aside("l", "link", "E-SEC-PATH", "out")], entries, planned=False)
    assert [(row.path, row.status, row.code, row.case) for row in rows] == [
        ("DOE/1.dcm", "accepted", "", "a"),
        ("DOE/2.dcm", "refused", "E-ING-EMPTY", "a"),
        ("DOE/3.dcm", "refused", "E-DEID-BURNED", ""),
        ("DOE/4.dcm", "refused", "E-ING-SKIPPED", ""),
        ("DOE/x", "ignored", "I-FILE-OTHER", ""),
        ("l", "refused", "E-SEC-PATH", ""),
    ]


def test_a_plan_counts_what_could_be_made():
    plan = _plan()
    object.__setattr__(plan.cases[0].stack, "notes", (Note("R-DCM-INVERTED", "once"),))
    rows = rows_of(plan, [], {}, planned=True)
    assert [row.status for row in rows] == ["repaired", "repaired", "refused", "accepted", "ignored"]


def test_reports_hold_ids_and_the_private_table_paths(tmp_path):
    plan, entries = _plan(), {"a": _entry("a"), "b": _entry("b"), "d": _entry("d", notes=(("W-X", "<script>"),))}
    settings = {"dry_run": False, "keep_names": False}
    rows = rows_of(plan, [], entries, planned=False)
    tree = write_reports(
        tmp_path / "out",
        tmp_path / "private",
        rows,
        plan,
        entries,
        namer=NAMER,
        warnings=["W-Z <b>"],
        settings=settings,
    )
    assert tree["counts"] == {"accepted": 3, "repaired": 0, "refused": 1, "ignored": 1}
    assert tree["volumes"] == {"ok": 3, "failed": 1, "skipped": 0} and tree["domains"] == {"ACME": 3}
    for path in (tmp_path / "out").iterdir():
        text = path.read_text()
        assert "DOE" not in text
        assert NAMER.file_id("DOE/3.dcm") in text
    page = (tmp_path / "out" / "ingest_report.html").read_text()
    assert "<script>" not in page and "W-Z &lt;b&gt;" in page and "<b>" not in page.split("W-Z", 1)[1][:20]
    assert "DOE/1.dcm" in (tmp_path / "private" / "files.csv").read_text()


def test_options_of_the_command_line(tmp_path):
    assert label_rule(None, "", "{PatientID}", "") is None
    assert label_rule(tmp_path, "id", "{stem}", " a, b,") == LabelRule(tmp_path, "id", "{stem}", ("a", "b"))
    for table, key, targets in ((None, "id", ""), (None, "", "a"), (tmp_path, "", "")):
        with pytest.raises(UserError, match="E-ING-JOB"):
            label_rule(table, key, "{stem}", targets)
    assert mask_rules([r"a=x(.) -> y\1"]) == {"a": r"x(.) -> y\1"}
    for wrong in (["a"], ["a=x"], ["a/b=x->y"], ["=x->y"], ["a=(->y"], ["a=x->y", "a=z->y"]):
        with pytest.raises(UserError, match="E-ING-RULE"):
            mask_rules(wrong)


@pytest.mark.parametrize("options", [{"jobs": -1}, {"jobs": 1000}, {"max_failures": "many"}, {"timeout_s": 0}])
def test_a_job_that_cannot_be_meant_is_refused(options):
    with pytest.raises(UserError, match="E-ING-JOB"):
        Job(Path("a"), Path("b"), **options)


def test_failures_allowed():
    job = {"source": Path("a"), "out": Path("b")}
    assert Job(**job).failures_allowed(10) == float("inf") and Job(**job, fail_fast=True).failures_allowed(10) == 0
    assert Job(**job, max_failures="3").failures_allowed(10) == 3
    assert Job(**job, max_failures="5%").failures_allowed(200) == 10


def test_what_is_said_at_the_end():
    paths = {name: Path(name) for name in ("page", "manifest", "private")}
    summary = Summary(
        {"accepted": 2, "repaired": 0, "refused": 3, "ignored": 0}, {"ok": 2, "failed": 1, "skipped": 0}, 5, 1,
        {"E-A": 1, "E-B": 2, "R-C": 9}, {}, {}, 3, paths, warnings=("W-X 1",),
    )  # fmt: skip
    lines = list(told(summary, as_json=False))
    assert lines[0] == "5 files: 2 accepted, 0 repaired, 3 refused, 0 ignored; 2 images (1 of an earlier run)"
    assert lines[1:3] == ["W-X 1", "refused: E-B 2, E-A 1"]
    (text,) = told(summary, as_json=True)
    assert json.loads(text)["volumes"]["ok"] == 2
