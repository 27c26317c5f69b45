"""DICOM segmentations: every voxel where it is in the patient, as told by readers that are not ours."""

import shutil
import subprocess
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.seg import Segmentation
from writers_made import CELLS, blobs, case_of, centroid_mm, dense_of, phantom, stacks

from medmtl.data.synthetic.dicom import write_phantom
from medmtl.errors import UserError
from medmtl.inference import writers
from medmtl.inference.writers import dicom_seg
from medmtl.inference.writers.findings import Coding
from medmtl.io.deidentify.folder import deidentify_folder
from medmtl.io.dicom.header import read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import Policy, plan

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RESAMPLED = Policy(tilt="resample", gap="resample", irregular="resample")
ALIGNED = (
    "axial", "head-down", "prone", "sagittal", "coronal", "oblique", "double-oblique", "uneven-slightly",
    "names-reversed", "instances-shuffled", "enhanced-ct", "enhanced-mr-shuffled", "enhanced-echoes", "enhanced-times",
    "mosaic", "mosaic-against",
)  # fmt: skip
SCANS = [
    *((kind, Policy()) for kind in ALIGNED),
    *((kind, RESAMPLED) for kind in ("tilt", "gap-middle", "enhanced-gap")),
]
MODALITY = {"axial": -1024.0, "double-oblique": 0.0, "enhanced-mr-shuffled": 0.0, "enhanced-echoes": 0.0}  # intercept


def by_hand(ds, segment):
    """RAS mm [N, 3] of the pixels of a segment, from the standard's equation C.7.6.2.1-1 and nothing else."""
    shared = ds.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    down, across = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = ds.pixel_array if ds.NumberOfFrames > 1 else ds.pixel_array[None]
    points = []
    for group, frame in zip(ds.PerFrameFunctionalGroupsSequence, frames, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber != segment:
            continue
        rows, columns = np.nonzero(frame)
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        points.append(corner + np.outer(columns * across, cosines[:3]) + np.outer(rows * down, cosines[3:]))
    return np.concatenate(points) @ LPS[:3, :3]


def off_voxels(affine, got, want):
    """How far apart two world positions are, in voxels along i, j, k."""
    return np.abs(np.linalg.inv(affine[:3, :3]) @ (np.asarray(got) - want)).max()


@pytest.mark.parametrize(("kind", "policy"), SCANS, ids=[kind for kind, _ in SCANS])
def test_segments_lie_where_they_were_found(tmp_path, kind, policy):
    case, _ = phantom(tmp_path / "scan", kind, which=-1, policy=policy)
    (path,) = dicom_seg.write(case, tmp_path / "out")
    ds, labels, affine = pydicom.dcmread(path), case.dense["seg"].labels, case.image.affine
    volume = Segmentation.from_dataset(ds).get_volume(combine_segments=True)
    for segment in (1, 2):
        want = centroid_mm(affine, labels == segment)
        points = by_hand(ds, segment)
        assert len(points) == np.count_nonzero(labels == segment)
        assert off_voxels(affine, points.mean(0), want) < 0.02
        mirrored = centroid_mm(affine, labels[::-1] == segment), centroid_mm(affine, labels[:, ::-1] == segment)
        assert min(off_voxels(affine, points.mean(0), other) for other in mirrored) > 2
        assert off_voxels(affine, centroid_mm(LPS @ volume.affine, volume.array == segment), want) < 0.02


def test_a_tilt_that_was_kept_is_kept(tmp_path):
    """The stack is no box, which highdicom's volumes are; each frame still says where it is."""
    case, _ = phantom(tmp_path / "scan", "tilt", policy=Policy(tilt="keep"))
    ds = pydicom.dcmread(dicom_seg.write(case, tmp_path / "out")[0])
    for segment in (1, 2):
        want = centroid_mm(case.image.affine, case.dense["seg"].labels == segment)
        assert off_voxels(case.image.affine, by_hand(ds, segment).mean(0), want) < 0.02


@pytest.mark.parametrize("kind", sorted(MODALITY))
def test_frames_lie_on_the_very_pixels_that_they_refer_to(tmp_path, kind):
    """What is bright is segmented; then each frame of the result is compared with the source's own pixels."""
    write_phantom(tmp_path / "scan", kind)
    stack = stacks(tmp_path / "scan")[-1]
    array = load(stack).array
    bright = (array > np.percentile(array, 90)).astype(np.uint8)
    case = case_of(stack, dense=dense_of(bright, ("background", "bright")))
    ds = pydicom.dcmread(dicom_seg.write(case, tmp_path / "out")[0])
    sources = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, sorted((tmp_path / "scan").glob("*.dcm")))}
    assert ds.NumberOfFrames == np.count_nonzero(bright.any(axis=(0, 1)))
    for group, mask in zip(ds.PerFrameFunctionalGroupsSequence, ds.pixel_array, strict=True):
        item = group.DerivationImageSequence[0].SourceImageSequence[0]
        source = sources[item.ReferencedSOPInstanceUID]
        assert item.ReferencedSOPClassUID == source.SOPClassUID and item.SpatialLocationsPreserved == "YES"
        several = "NumberOfFrames" in source
        assert ("ReferencedFrameNumber" in item) == several
        pixels = source.pixel_array[item.ReferencedFrameNumber - 1] if several else source.pixel_array
        np.testing.assert_array_equal(mask, pixels + MODALITY[kind] > np.percentile(array, 90))


def test_a_radiograph_without_a_place_has_its_pixels(tmp_path):
    write_phantom(tmp_path / "scan", "radiograph")
    (stack,) = stacks(tmp_path / "scan")
    bright = (load(stack).array > 1500).astype(np.uint8)
    ds = pydicom.dcmread(
        dicom_seg.write(case_of(stack, dense=dense_of(bright, ("background", "bright"))), tmp_path / "out")[0]
    )
    (source,) = map(pydicom.dcmread, (tmp_path / "scan").glob("*.dcm"))
    np.testing.assert_array_equal(ds.pixel_array, source.pixel_array > 1500)
    assert "FrameOfReferenceUID" not in ds and 0 < bright.mean() < 1
    item = ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (source.SOPClassUID, source.SOPInstanceUID)


@pytest.mark.parametrize(("kind", "policy"), [("gap-middle", RESAMPLED), ("tilt", RESAMPLED), ("mosaic", Policy())])
def test_what_is_no_frame_of_the_source_does_not_claim_to_be_one(tmp_path, kind, policy):
    """Interpolated planes refer to the series, tiles of a mosaic to their file without its geometry."""
    case, _ = phantom(tmp_path / "scan", kind, policy=policy)
    ds = pydicom.dcmread(dicom_seg.write(case, tmp_path / "out")[0])
    sources = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, (tmp_path / "scan").glob("*.dcm"))}
    (series,) = ds.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == next(iter(sources.values())).SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == set(sources)
    derived = [group.DerivationImageSequence for group in ds.PerFrameFunctionalGroupsSequence]
    if kind == "mosaic":
        items = [found[0].SourceImageSequence[0] for found in derived]
        assert {item.SpatialLocationsPreserved for item in items} == {"NO"}
        assert not any("ReferencedFrameNumber" in item for item in items)
    else:
        assert not any(derived)


def test_only_the_frames_of_the_volume_are_referred_to(tmp_path):
    """Two echoes share places in one file of shuffled frames."""
    write_phantom(tmp_path / "scan", "enhanced-echoes")
    (source,) = map(pydicom.dcmread, (tmp_path / "scan").glob("*.dcm"))
    used = []
    for stack in stacks(tmp_path / "scan"):
        ds = pydicom.dcmread(dicom_seg.write(case_of(stack), tmp_path / stack.key)[0])
        items = [g.DerivationImageSequence[0].SourceImageSequence for g in ds.PerFrameFunctionalGroupsSequence]
        assert all(len(item) == 1 for item in items)
        numbers = {item[0].ReferencedFrameNumber for item in items}
        echoes = {source.PerFrameFunctionalGroupsSequence[n - 1].MREchoSequence[0].EffectiveEchoTime for n in numbers}
        assert len(echoes) == 1
        used.append(echoes.pop())
    assert sorted(used) == [30, 80]


def test_probabilities_are_kept_in_steps_of_a_255th(tmp_path):
    case, _ = phantom(tmp_path / "scan", "double-oblique")
    ds = pydicom.dcmread(dicom_seg.write(case, tmp_path / "out", kind="fractional")[0])
    assert (ds.SegmentationType, ds.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    volume = Segmentation.from_dataset(ds).get_volume(rescale_fractional=True)
    chances = case.dense["seg"].probabilities
    assert volume.array.shape == (10, 48, 56, 2)
    to_index = np.linalg.inv(case.image.affine) @ LPS @ volume.affine
    i, j, k = np.round(np.tensordot(to_index[:3, :3], np.indices((10, 48, 56)), 1) + to_index[:3, 3, None, None, None])
    got = np.moveaxis(chances, 0, -1)[i.astype(int), j.astype(int), k.astype(int), 1:]
    np.testing.assert_allclose(volume.array, got, atol=0.5 / 255 + 1e-6)


def test_a_label_map_holds_the_labels(tmp_path):
    case, _ = phantom(tmp_path / "scan", "oblique")
    ds = pydicom.dcmread(dicom_seg.write(case, tmp_path / "out", kind="labelmap")[0])
    volume = Segmentation.from_dataset(ds).get_volume(combine_segments=True)
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    for segment in (1, 2):
        want = centroid_mm(case.image.affine, case.dense["seg"].labels == segment)
        got = centroid_mm(LPS @ volume.affine, volume.array == segment)
        assert off_voxels(case.image.affine, got, want) < 0.02


def test_another_toolkit_decodes_the_same_bits(tmp_path):
    """GDCM unpacks 1-bit pixels by its own code (of SEG it reads no spacing, so only the pixels are compared)."""
    case, _ = phantom(tmp_path / "scan", "axial")
    (path,) = dicom_seg.write(case, tmp_path / "out")
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    labels = case.dense["seg"].labels
    want = [(labels == segment)[:, ::-1, k].T for segment in (1, 2) for k in range(labels.shape[2])]
    np.testing.assert_array_equal(frames > 0, [frame for frame in want if frame.any()])


@pytest.mark.parametrize("kind", ["axial", "enhanced-mr-shuffled", "tilt", "mosaic", "radiograph", "rgb"])
@pytest.mark.parametrize("form", ["binary", "fractional"])
@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (Debian: dicom3tools) is not installed")
def test_the_validator_finds_no_error(tmp_path, kind, form):
    case, _ = phantom(tmp_path / "scan", kind, policy=RESAMPLED)
    (path,) = dicom_seg.write(case, tmp_path / "out", kind=form)
    found = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in found and not [line for line in found.splitlines() if line.startswith("Error")]


def test_equal_results_are_equal_bytes_whatever_the_clock_says(tmp_path, monkeypatch):
    case, _ = phantom(tmp_path / "scan", "axial")
    (first,) = dicom_seg.write(case, tmp_path / "a")
    later = time.time() + 86_400 * 40
    monkeypatch.setattr(time, "time", lambda: later)
    (second,) = dicom_seg.write(case, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    ds = pydicom.dcmread(first)
    assert (ds.ContentDate, ds.ContentTime) == ("20190314", "101115")  # the source's
    today = time.strftime("%Y%m%d")
    dates = {str(e.value)[:8] for e in ds.iterall() if e.VR in ("DA", "DT") and e.value}
    assert dates == {"20190314", "19310217"} and today not in dates


def test_another_result_is_another_object_in_the_same_series(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    changed = case.dense["seg"].labels.copy()
    changed[0, 0, 0] = 1
    other = replace(case, dense={"seg": replace(case.dense["seg"], labels=changed)})
    (one,), (two,) = dicom_seg.write(case, tmp_path / "a"), dicom_seg.write(other, tmp_path / "b")
    (three,) = dicom_seg.write(replace(case, bundle="000000000000"), tmp_path / "c")
    a, b, c = map(pydicom.dcmread, (one, two, three))
    assert a.SeriesInstanceUID == b.SeriesInstanceUID != c.SeriesInstanceUID
    assert len({ds.SOPInstanceUID for ds in (a, b, c)}) == 3
    random = Counter(e.value for ds in (a, b) for e in ds.iterall() if e.keyword == "DimensionOrganizationUID")
    assert len(random) == 2 and all(uid.startswith("2.25.") for uid in random)


def test_segments_say_what_they_are_and_what_found_them(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    coding = {"seg.growth zone ü": Coding(value=86049000, meaning="Malignant neoplasm, primary")}
    ds = pydicom.dcmread(dicom_seg.write(case, tmp_path / "a", coding=coding)[0])
    lesion, growth = ds.SegmentSequence
    code = lesion.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == ("52988006", "SCT", "Lesion")
    assert lesion.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert growth.SegmentLabel == "growth zone ü"
    assert growth.SegmentedPropertyTypeCodeSequence[0].CodeValue == "86049000"
    algorithm = lesion.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmVersion == case.bundle
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert "Research use only" in ds.ContentDescription and "research use only" in ds.SeriesDescription
    plain = pydicom.dcmread(dicom_seg.write(case, tmp_path / "b")[0])
    unknown = plain.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0]
    assert unknown.CodingSchemeDesignator == "99MEDMTL" and unknown.CodeMeaning == "growth zone ü"
    assert plain.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99MEDMTL"


def test_nothing_found_is_a_file_too(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    empty = dense_of(np.zeros_like(case.dense["seg"].labels))
    ds = pydicom.dcmread(dicom_seg.write(replace(case, dense={"seg": empty}), tmp_path / "out")[0])
    assert not ds.pixel_array.any() and len(ds.SegmentSequence) == 2


def test_the_patient_is_the_sources(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    (path,) = dicom_seg.write(case, tmp_path / "out")
    ds, source = pydicom.dcmread(path), pydicom.dcmread(case.source.files[0])
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        assert ds[keyword].value == source[keyword].value
    assert ds.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert not [element for element in ds if element.tag.is_private]
    assert path.name == "seg.seg.dcm"


def test_results_of_a_deidentified_study_name_nobody(tmp_path):
    truth = write_phantom(tmp_path / "scan", "axial")
    assert deidentify_folder(tmp_path / "scan", tmp_path / "clean").exit_code == 0
    (stack,) = stacks(tmp_path / "clean")
    (path,) = dicom_seg.write(case_of(stack), tmp_path / "out")
    content = path.read_bytes()
    # the number of an examination day may also be part of a number
    names = [text for text in truth.identifiers if not (text.isdigit() and len(text) < 9)]
    assert len(names) > 20 and not [text for text in names if text.encode() in content]


@pytest.mark.parametrize(
    ("keyword", "value", "written"),
    [
        ("PatientSex", "X", None),
        ("PatientBirthDate", "unknown", None),
        ("StudyDate", "2019-03", None),
        ("StudyTime", "noon", None),
        ("PatientName", "Müller^Jürgen", "Müller^Jürgen"),
    ],
)
def test_malformed_headers_do_not_stop_a_result(tmp_path, keyword, value, written):
    write_phantom(tmp_path / "scan", "axial")
    for path in (tmp_path / "scan").glob("*.dcm"):
        ds = pydicom.dcmread(path)
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.ImageComments = ds.PatientComments = ds.ReferringPhysicianName = "none"
        ds.add_new(keyword, ds[keyword].VR, value) if value.isascii() else setattr(ds, keyword, value)
        ds.save_as(path)
    (stack,) = stacks(tmp_path / "scan")
    ds = pydicom.dcmread(dicom_seg.write(case_of(stack), tmp_path / "out")[0])
    assert (ds[keyword].value or None) == written


def test_empty_attributes_of_the_source_are_not_copied(tmp_path):
    """Empty sequences, as exports have them, are errors in a Segmentation."""
    write_phantom(tmp_path / "scan", "axial")
    for path in (tmp_path / "scan").glob("*.dcm"):
        ds = pydicom.dcmread(path)
        ds.ProcedureCodeSequence, ds.DeidentificationMethod, ds.StudyID = [], "", ""
        ds.save_as(path)
    (stack,) = stacks(tmp_path / "scan")
    ds = pydicom.dcmread(dicom_seg.write(case_of(stack), tmp_path / "out")[0])
    assert "ProcedureCodeSequence" not in ds and "DeidentificationMethod" not in ds and "StudyID" in ds


def test_a_source_without_frame_of_reference_gets_one_that_stays_the_same(tmp_path):
    write_phantom(tmp_path / "scan", "axial")
    for path in (tmp_path / "scan").glob("*.dcm"):
        ds = pydicom.dcmread(path)
        del ds.FrameOfReferenceUID, ds.StudyID, ds.PatientSex
        ds.save_as(path)
    (stack,) = stacks(tmp_path / "scan")
    read = [pydicom.dcmread(dicom_seg.write(case_of(stack), tmp_path / name)[0]) for name in "ab"]
    assert read[0].FrameOfReferenceUID == read[1].FrameOfReferenceUID and len(read[0].FrameOfReferenceUID) > 20


@pytest.mark.parametrize(
    ("keyword", "bad"),
    [
        ("SOPInstanceUID", "1.2.8a3.4"),
        ("SeriesInstanceUID", "1.2." + "3" * 61),
        ("StudyInstanceUID", "1.2.03.4"),
        ("FrameOfReferenceUID", "1.2..3"),
        ("ReferencedStudySequence", "1.2.b"),  # which highdicom copies
    ],
)
def test_a_source_whose_uids_are_none_has_a_warning_and_no_dicom_result(tmp_path, keyword, bad):
    write_phantom(tmp_path / "scan", "axial")
    for number, path in enumerate(sorted((tmp_path / "scan").glob("*.dcm"))):
        ds = pydicom.dcmread(path)
        if keyword == "ReferencedStudySequence":
            item = pydicom.Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", bad
            ds.ReferencedStudySequence = [item]
        else:
            ds[keyword].value = f"{bad}.{number}" if keyword == "SOPInstanceUID" else bad
        ds.save_as(path)
    (stack,) = stacks(tmp_path / "scan")
    formats = ("nifti", "dicom-seg", "dicom-sr", "json")
    written = writers.write_case(case_of(stack), tmp_path / "out", writers.Output(formats=formats))
    without = ["dicom-seg"] if keyword == "FrameOfReferenceUID" else ["dicom-seg", "dicom-sr"]  # a report has none
    assert [warning.partition(":")[0] for warning in written.warnings] == [
        f"W-OUT-FORMAT no {name}" for name in without
    ]
    assert all("is no valid UID" in warning and bad not in warning for warning in written.warnings)
    suffixes = {".gz", ".json"} | ({".dcm"} if len(without) == 1 else set())
    assert {path.suffix for path in written.paths} == {path.suffix for path in (tmp_path / "out").iterdir()} == suffixes


def test_a_source_that_changed_or_went_is_no_source(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    first = case.source.stack.first.path
    content = first.read_bytes()
    first.write_bytes(content + b"\0\0")
    with pytest.raises(UserError, match="E-FILE-CHANGED"):
        dicom_seg.write(case, tmp_path / "out")
    first.unlink()
    with pytest.raises(UserError, match="E-OUT-SOURCE") as caught:
        dicom_seg.write(case, tmp_path / "out")
    assert "Quenbythorpe" not in str(caught.value)
    assert not list((tmp_path).glob("out/*"))


def test_our_own_segmentation_is_no_image_to_the_reader(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    for kind in ("binary", "labelmap"):
        (path,) = dicom_seg.write(case, tmp_path / kind, kind=kind)
        found = plan([read_header(path)])
        assert not found.volumes and [item.kind for item in found.ignored] == ["SEG"]


def test_the_made_case_would_show_a_mirror_image():
    """The two boxes have no symmetry, or the tests above could not fail."""
    labels = blobs((56, 48, 12))
    for axes in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)):
        assert not (labels == np.flip(labels, axes))[labels > 0].all()
    assert set(np.unique(labels)) == {0, 1, 2} and "seg.fraction.lesion" in CELLS
