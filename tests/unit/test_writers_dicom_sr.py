"""Structured reports: read back by highdicom and by hand, they say what the table says, and refer to what exists."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from highdicom.sr import CodedConcept, srread
from pydicom.sr.codedict import codes
from writers_made import NOTICE, TASKS, case_of, dense_of, phantom, stacks, tabled, with_tasks

from medmtl.data.synthetic.dicom import write_phantom
from medmtl.inference.writers import dicom_seg, dicom_sr
from medmtl.inference.writers.findings import Coding
from medmtl.io.deidentify.folder import deidentify_folder
from medmtl.io.dicom.header import read_header
from medmtl.io.dicom.series import Policy, plan

COLUMNS = {  # (group, name of the number) -> column of predictions.csv
    ("diagnosis", "Probability of benign"): "diagnosis.p.benign",
    ("diagnosis", "Probability of malignant"): "diagnosis.p.malignant",
    ("adas_cog", "adas_cog"): "adas_cog.value",
    ("grade", "grade"): "grade.level",
    ("grade", "Expected grade"): "grade.expected",
    **{("grade", f"Probability of {level}"): f"grade.p.{level}" for level in "0123"},
    ("cdr", "Expected cdr"): "cdr.expected",
    **{("stage", f"Probability of {level}"): f"stage.p.{level}" for level in ("I", "II", "III")},
    **{("cdr", f"Probability of {level}"): f"cdr.p.{level}" for level in ("0", "0.5", "1", "2")},
    ("seg.lesion", "Fraction of lesion"): "seg.fraction.lesion",
    ("seg.growth zone ü", "Fraction of growth zone ü"): "seg.fraction.growth zone ü",
}


def read(path):
    """{group: (numbers {name: (value, unit)}, answers {name: value})} by walking the content tree by hand."""
    found = {}
    (measurements,) = (item for item in pydicom.dcmread(path).ContentSequence if _named(item) == "Imaging Measurements")
    for group in measurements.ContentSequence:
        key, numbers, answers = "", {}, {}
        for item in group.ContentSequence:
            if item.ValueType == "NUM":
                value = item.MeasuredValueSequence[0]
                unit = value.MeasurementUnitsCodeSequence[0]
                assert unit.CodingSchemeDesignator == "UCUM"
                numbers[_named(item)] = float(value.NumericValue), unit.CodeValue
            elif item.ValueType == "CODE" and item.RelationshipType == "CONTAINS" and _named(item) != "Finding":
                answers[_named(item)] = item.ConceptCodeSequence[0].CodeMeaning
            elif _named(item) == "Tracking Identifier":
                key = item.TextValue
        found[key] = numbers, answers
    return found


def _named(item):
    return item.ConceptNameCodeSequence[0].CodeMeaning


@pytest.mark.parametrize("with_segments", [False, True])
def test_the_report_says_what_the_table_says(tmp_path, with_segments):
    case, _ = phantom(tmp_path / "scan", "double-oblique")
    made = dicom_seg.write(case, tmp_path) if with_segments else ()
    found = read(dicom_sr.write(case, tmp_path, segmentations=made)[0])
    for (group, name), column in COLUMNS.items():
        value, unit = found[group][0][name]
        assert float(tabled(case, column)) == value, column
        assert unit == ({"adas_cog.value": "{points}"}.get(column) or "1")
    assert found["diagnosis"][1] == {"diagnosis": tabled(case, "diagnosis.label")}
    assert found["stage"][1] == {"stage": tabled(case, "stage.level")}
    assert found["diagnosis"][0]["Threshold of malignant"] == (0.3, "1")
    numbers = {(group, name) for group, (numbers, _) in found.items() for name in numbers}
    own = {("diagnosis", "Threshold of malignant"), ("seg.lesion", "Volume"), ("seg.growth zone ü", "Volume")}
    assert numbers == set(COLUMNS) | own


def test_volumes_are_voxels_times_their_size(tmp_path):
    case, _ = phantom(tmp_path / "scan", "double-oblique")  # pixels of 0.6 x 1.1 x 3.3 mm
    found = read(dicom_sr.write(case, tmp_path)[0])
    for segment, label in enumerate(case.dense["seg"].classes[1:], start=1):
        count = np.count_nonzero(case.dense["seg"].labels == segment)
        value, unit = found[f"seg.{label}"][0]["Volume"]
        assert unit == "mm3" and np.isclose(value, count * 0.6 * 1.1 * 3.3, rtol=1e-6) and count > 10


def test_millilitres_and_spread_of_the_table_are_taken_over(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    more = {"seg.ml.lesion": 1.2345678, "seg.ml.growth zone ü": 0.5, "adas_cog.spread": 2.25, "diagnosis.spread": 0.125}
    tasks = {**case.tasks, "grade": case.tasks["grade"].model_copy(update={"unit": "points"})}
    case, more = replace(case, tasks=tasks), {**more, "grade.spread": 0.25}
    found = read(dicom_sr.write(replace(case, cells={**case.cells, **more}), tmp_path)[0])
    assert found["seg.lesion"][0]["Volume"] == (1.234568, "ml")
    assert found["adas_cog"][0]["Spread of adas_cog"] == (2.25, "{points}")
    assert found["diagnosis"][0]["Spread of diagnosis"] == (0.125, "1")
    assert found["grade"][0]["Spread of grade"] == (0.25, "1")  # of its probabilities
    assert found["grade"][0]["Expected grade"] == (1.875, "{points}")


def test_regions_refer_to_the_segments_of_the_file_beside(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    made = dicom_seg.write(case, tmp_path)
    segmentation, report = pydicom.dcmread(made[0]), srread(dicom_sr.write(case, tmp_path, segmentations=made)[0])
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 2
    for number, group in enumerate(groups, start=1):
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        assert reference.referenced_segment_numbers == [number]
        assert group.tracking_uid == segmentation.SegmentSequence[number - 1].TrackingUID
        series = reference.source_series_for_segmentation.value
        assert series == case.source.stack.first.series_uid
    assert groups[0].finding_type == codes.SCT.Lesion
    assert not srread(dicom_sr.write(case, tmp_path)[0]).content.get_volumetric_roi_measurement_groups()


@pytest.mark.parametrize("kind", ["binary", "fractional", "labelmap"])
def test_a_segmentation_of_one_segment_can_be_referred_to(tmp_path, kind):
    write_phantom(tmp_path / "scan", "axial")
    (stack,) = stacks(tmp_path / "scan")
    labels = np.zeros(stack.shape, np.uint8)
    labels[5:9, 7:9, 3:5] = 1
    case = with_tasks(case_of(stack, dense=dense_of(labels, ("background", "lesion"))), "seg")
    task = TASKS["seg"].model_copy(update={"classes": ("background", "lesion")})
    case = replace(case, tasks={"seg": task})
    made = dicom_seg.write(case, tmp_path, kind=kind)
    (group,) = srread(
        dicom_sr.write(case, tmp_path, segmentations=made)[0]
    ).content.get_volumetric_roi_measurement_groups()
    assert group.referenced_segment.referenced_segment_numbers == [1]


def test_a_class_that_was_not_found_has_numbers_and_no_region(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    labels = np.where(case.dense["seg"].labels == 1, 1, 0).astype(np.uint8)
    case = replace(case, dense={"seg": dense_of(labels)})
    (path,) = dicom_sr.write(case, tmp_path, segmentations=dicom_seg.write(case, tmp_path))
    (group,) = srread(path).content.get_volumetric_roi_measurement_groups()
    assert group.referenced_segment.referenced_segment_numbers == [1]
    assert read(path)["seg.growth zone ü"][0]["Volume"] == (0.0, "mm3")


@pytest.mark.parametrize("kind", ["axial", "enhanced-echoes", "mosaic", "radiograph"])
def test_every_reference_exists(tmp_path, kind):
    """SOP classes and instances of the source files and the segmentation; of a shared file, the frames used."""
    case, _ = phantom(tmp_path / "scan", kind, which=-1)
    made = dicom_seg.write(case, tmp_path)
    ds = pydicom.dcmread(dicom_sr.write(case, tmp_path, segmentations=made)[0])
    known = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, [*(tmp_path / "scan").glob("*.dcm"), *made])}
    named = set()
    for item in ds.iterall():
        if item.keyword == "ReferencedSOPSequence":
            for reference in item.value:
                other = known[reference.ReferencedSOPInstanceUID]
                assert reference.ReferencedSOPClassUID == other.SOPClassUID
                named.add(other.SOPInstanceUID)
                if "ReferencedFrameNumber" in reference and kind == "enhanced-echoes":
                    numbers = reference.ReferencedFrameNumber
                    frames = [other.PerFrameFunctionalGroupsSequence[n - 1] for n in numbers]
                    assert len(frames) == 12 and len({f.MREchoSequence[0].EffectiveEchoTime for f in frames}) == 1
    assert named == set(known)


@pytest.mark.parametrize("kind", ["axial", "enhanced-mr-shuffled", "tilt", "radiograph", "rgb"])
@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (Debian: dicom3tools) is not installed")
def test_the_validator_finds_no_error(tmp_path, kind):
    case, _ = phantom(tmp_path / "scan", kind, policy=Policy(tilt="resample"))
    for made in ((), dicom_seg.write(case, tmp_path)):
        (path,) = dicom_sr.write(case, tmp_path, segmentations=made)
        found = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False).stderr
        assert "ComprehensiveSR" in found and not [line for line in found.splitlines() if line.startswith("Error")]


def made_of_changed(folder, **changes):
    """Segmentation and report of a series whose headers were changed."""
    write_phantom(folder / "scan", "axial")
    for path in (folder / "scan").glob("*.dcm"):
        ds = pydicom.dcmread(path)
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        ds.save_as(path)
    case = case_of(stacks(folder / "scan")[0])
    segmentations = dicom_seg.write(case, folder)
    return [*segmentations, *dicom_sr.write(case, folder, segmentations=segmentations)]


PROFILE = CodedConcept("113100", "DCM", "Basic Application Confidentiality Profile")
METHODS = {  # of the source -> what a result says
    "none": ({}, "not stated by the source"),
    "empty": ({"DeidentificationMethod": ""}, "not stated by the source"),
    "text": ({"DeidentificationMethod": "by hand"}, "by hand"),
    "code": ({"DeidentificationMethodCodeSequence": [PROFILE]}, None),
}


@pytest.mark.parametrize("method", METHODS)
def test_removed_identity_has_a_method_and_none_is_made_up(tmp_path, method):
    given, wanted = METHODS[method]
    for path in made_of_changed(tmp_path, PatientIdentityRemoved="YES", **given):
        ds = pydicom.dcmread(path)
        assert (ds.PatientIdentityRemoved, ds.get("DeidentificationMethod")) == ("YES", wanted)
        assert ("DeidentificationMethodCodeSequence" in ds) == (method == "code")
        if shutil.which("dciodvfy"):
            found = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False).stderr
            assert not [line for line in found.splitlines() if line.startswith("Error")]


def test_equal_results_are_equal_bytes_and_others_another_report(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    paths = [dicom_sr.write(case, tmp_path / name)[0] for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    other = replace(case, cells={**case.cells, "adas_cog.value": 18.0})
    a, b = (pydicom.dcmread(path) for path in (paths[0], dicom_sr.write(other, tmp_path / "c")[0]))
    assert a.SeriesInstanceUID == b.SeriesInstanceUID and a.SOPInstanceUID != b.SOPInstanceUID
    assert a.ContentDate == "20190314" and "InstanceCreationDate" not in a


def test_it_says_who_says_so_and_that_it_is_for_research(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    (path,) = dicom_sr.write(case, tmp_path, coding={"malignant": Coding(value=86049000, meaning="Malignant neoplasm")})
    ds = pydicom.dcmread(path)
    texts = [item.value for item in ds.iterall() if item.keyword == "TextValue"]
    assert any(NOTICE in text for text in texts) and case.bundle in texts
    assert (ds.PreliminaryFlag, ds.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    source = pydicom.dcmread(case.source.files[0])
    assert (ds.PatientID, ds.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    assert read(path)["diagnosis"][1] == {"diagnosis": "Malignant neoplasm"}


def test_reports_of_a_deidentified_study_name_nobody(tmp_path):
    truth = write_phantom(tmp_path / "scan", "axial")
    assert deidentify_folder(tmp_path / "scan", tmp_path / "clean").exit_code == 0
    (stack,) = stacks(tmp_path / "clean")
    content = dicom_sr.write(case_of(stack), tmp_path / "out")[0].read_bytes()
    names = [text for text in truth.identifiers if not (text.isdigit() and len(text) < 9)]
    assert len(names) > 20 and not [text for text in names if text.encode() in content]


def test_a_case_without_results_has_no_report(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    assert dicom_sr.write(replace(with_tasks(case, "adas_cog"), cells={}), tmp_path / "out") == []


def test_our_own_report_is_no_image_to_the_reader(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    found = plan([read_header(dicom_sr.write(case, tmp_path)[0])])
    assert not found.volumes and [item.kind for item in found.ignored] == ["SR"]
