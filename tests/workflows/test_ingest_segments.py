"""``medmtl ingest --segments``: what was drawn on a series becomes masks of its volume, at the command line."""

import csv
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_made import change, ct, item, write
from pydicom.uid import KeyObjectSelectionDocumentStorage
from segments_made import (
    contour,
    described,
    inside,
    marked,
    outline,
    sources_of,
    voxel_centres,
    write_rtstruct,
    write_seg,
)

from medmtl.cli import run
from medmtl.data.case import read_manifest
from medmtl.data.synthetic.dicom import write_phantom
from medmtl.io.deidentify.dataset import deidentify_dataset
from medmtl.io.deidentify.folder import deidentify_folder
from medmtl.io.deidentify.key import remember_source
from medmtl.io.deidentify.pseudonyms import Pseudonyms
from medmtl.io.deidentify.verify import verify

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "dicom" / "pydicom-misc"
NAME = "Quackenbush liver"  # what a person typed: half of it is nobody's business


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A doubly oblique series with a segmentation and a structure set, another one with none, and strays."""
    root = tmp_path_factory.mktemp("drawn") / "source"
    write_phantom(root / "ct", "double-oblique")
    write_phantom(root / "other", "axial", seed=3)
    sources = sources_of(root / "ct")
    write_seg(root / "drawn/seg.dcm", sources, marked(sources), descriptions=[described(1, label=NAME), described(2)])
    normal = np.cross(*np.split(np.array(sources[0].ImageOrientationPatient, float), 2))
    sources.sort(key=lambda one: np.array(one.ImagePositionPatient, float) @ normal)
    square = [(10.5, 10.5), (30.5, 10.5), (30.5, 25.5), (10.5, 25.5)]
    contours = [contour(outline(one, square)) for one in sources[4:7]]
    write_rtstruct(root / "drawn/rt.dcm", sources, {5: contours, 6: [contour(square_of(sources[0]), "POINT")]},
                   names=("GTV", "isocentre"))  # fmt: skip
    return root


def square_of(one):
    return outline(one, [(10.5, 10.5)])


def _ingest(source, out, *options):
    code = run(["ingest", os.fspath(source), os.fspath(out), "--jobs", "1", *options])
    with (out.parent / f"{out.name}.private" / "files.csv").open(newline="") as stream:
        return code, {row["path"]: row for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def study(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    return out, *_ingest(source, out, "--segments")


def test_what_was_drawn_is_a_target_of_the_volume_it_was_drawn_on(study):
    out, code, rows = study
    assert code == 0 and {row["status"] for row in rows.values()} == {"accepted"}
    manifest = read_manifest(out / "manifest.csv")
    assert set(manifest.targets) == {"liver", "spleen", "gtv"} and len(manifest.cases) == 2
    (drawn,) = (case for case in manifest.cases if case.targets)
    assert set(drawn.targets) == {"liver", "spleen", "gtv"}  # the isocentre encloses nothing
    assert rows["drawn/seg.dcm"]["case"] == rows["drawn/rt.dcm"]["case"] == drawn.case_id
    image = nibabel.load(out / drawn.image)
    points = voxel_centres(image.affine, image.shape)
    for target, number in (("liver", 1), ("spleen", 2)):
        mask = nibabel.load(out / drawn.targets[target])
        np.testing.assert_array_equal(mask.affine, image.affine)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), inside(points, number).astype(np.uint8))
    gtv = np.asarray(nibabel.load(out / drawn.targets["gtv"]).dataobj)
    assert gtv.sum() == 20 * 15 * 3 and gtv[11:31, 48 - 26 : 48 - 11, 4:7].all()
    notes = json.loads((out / "images" / f"{drawn.case_id}.json").read_text())["Notes"]
    assert [note["code"] for note in notes] == ["W-SEG-LEFT-OUT"] and notes[0]["what"].startswith("mask roi_6: 1 point")


def test_nobody_is_named_by_it(study):
    out, _, _ = study
    words = ("quackenbush", "isocentre", "drawn/", "1.2.826.0.1")
    for path in out.rglob("*"):
        content = path.read_bytes().lower() if path.is_file() else b""
        assert not [word for word in words if word.encode() in content or word in path.name.lower()], path
    assert verify(out).clean


def test_a_second_run_makes_nothing_and_a_changed_drawing_its_volume_alone(source, study, tmp_path, capsys):
    copy, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(source, copy)
    assert _ingest(copy, out, "--segments", "--json")[0] == 0
    capsys.readouterr()
    assert _ingest(copy, out, "--segments", "--json")[0] == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["read"], tree["resumed"]) == (0, 2)
    sources = sources_of(copy / "ct")
    write_seg(copy / "drawn/seg.dcm", sources, marked(sources) & np.uint8([0, 1]), omit_empty_frames=False)
    assert _ingest(copy, out, "--segments", "--json")[0] == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["read"], tree["resumed"]) == (1, 1) and "W-MASK-EMPTY" in tree["codes"]
    code, rows = _ingest(copy, out)  # without the option
    assert code == 0 and rows["drawn/seg.dcm"]["code"] == "I-DCM-KIND"
    assert not read_manifest(out / "manifest.csv").targets and not list((out / "masks").rglob("*.nii.gz"))


def test_what_fits_no_image_is_refused_with_its_reason(source, tmp_path):
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    shutil.rmtree(copy / "ct")
    ds = pydicom.dcmread(copy / "drawn/seg.dcm")
    ds.SegmentationType, ds.SOPInstanceUID = "FRACTIONAL", "1.2.3"
    ds.save_as(copy / "drawn/fractional.dcm")
    content = (copy / "drawn/seg.dcm").read_bytes()
    (copy / "drawn/cut.dcm").write_bytes(content[:-2000])
    code, rows = _ingest(copy, tmp_path / "out", "--segments")
    assert code == 3
    assert {path: row["code"] for path, row in rows.items() if path.startswith("drawn")} == {
        "drawn/seg.dcm": "E-SEG-REFERENCE",
        "drawn/rt.dcm": "E-SEG-REFERENCE",
        "drawn/fractional.dcm": "E-SEG-KIND",
        "drawn/cut.dcm": "E-DCM-TRUNCATED",
    }
    assert all(row["remedy"] for path, row in rows.items() if path.startswith("drawn"))


def test_a_second_copy_of_a_drawing_is_left_out_and_another_version_refused(source, tmp_path):
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    shutil.copy(copy / "drawn/seg.dcm", copy / "drawn/seg again.dcm")
    code, rows = _ingest(copy, tmp_path / "out", "--segments")
    found = {path: (row["status"], row["code"]) for path, row in rows.items() if path.startswith("drawn/seg")}
    assert code == 0 and sorted(found.values()) == [("accepted", "W-SEG-LEFT-OUT"), ("ignored", "I-DCM-DUPLICATE")]
    ds = pydicom.dcmread(copy / "drawn/seg.dcm")
    ds.SeriesDescription = "another"
    ds.save_as(copy / "drawn/seg again.dcm")
    code, rows = _ingest(copy, tmp_path / "out", "--segments")
    assert code == 3 and {row["code"] for path, row in rows.items() if "seg" in path} == {"E-DCM-DUPLICATE"}
    assert rows["drawn/rt.dcm"]["status"] == "accepted"


def test_a_drawing_on_other_voxels_refuses_its_volume(source, tmp_path):
    copy = tmp_path / "source"
    shutil.copytree(source / "ct", copy / "ct")
    shutil.copytree(source / "other", copy / "other")
    ds = pydicom.dcmread(source / "drawn/seg.dcm")
    for frame in ds.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [f"{position[0] + 0.4:.6f}", position[1], position[2]]
    (copy / "drawn").mkdir()
    ds.save_as(copy / "drawn/seg.dcm")
    code, rows = _ingest(copy, tmp_path / "out", "--segments")
    assert code == 3 and rows["drawn/seg.dcm"]["code"] == "E-SEG-PLACE"
    assert rows["drawn/seg.dcm"]["what"].startswith("mask liver, spleen: frame 1 lies up to 0.37")
    assert {row["code"] for path, row in rows.items() if path.startswith("ct")} == {"E-SEG-PLACE"}
    assert {row["code"] for path, row in rows.items() if path.startswith("other")} == {""}


def test_a_resampled_volume_takes_no_drawing(tmp_path):
    write_phantom(tmp_path / "source/ct", "gap-middle")
    sources = sources_of(tmp_path / "source/ct")
    write_seg(tmp_path / "source/seg.dcm", sources, marked(sources))
    code, rows = _ingest(tmp_path / "source", tmp_path / "out", "--segments", "--gap", "resample")
    assert code == 4 and rows["seg.dcm"]["code"] == "E-SEG-PLACE" and "was resampled" in rows["seg.dcm"]["what"]
    assert _ingest(tmp_path / "source", tmp_path / "out", "--gap", "resample")[0] == 0
    code, rows = _ingest(tmp_path / "source", tmp_path / "out", "--segments")  # its volume is refused: a gap
    assert code == 4 and rows["seg.dcm"]["code"] == "E-SEG-REFERENCE"


def test_a_tilted_volume_that_is_kept_takes_its_drawing(tmp_path):
    write_phantom(tmp_path / "source/ct", "tilt")
    sources = sources_of(tmp_path / "source/ct")
    write_seg(tmp_path / "source/seg.dcm", sources, marked(sources))
    assert _ingest(tmp_path / "source", tmp_path / "out", "--segments", "--tilt", "keep")[0] == 0
    (case,) = read_manifest(tmp_path / "out/manifest.csv").cases
    image = nibabel.load(tmp_path / "out" / case.image)
    mask = np.asarray(nibabel.load(tmp_path / "out" / case.targets["liver"]).dataobj)
    np.testing.assert_array_equal(mask, inside(voxel_centres(image.affine, image.shape), 1))


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data/dicom is not here")
def test_a_real_segmentation_lands_on_its_series(tmp_path):
    """liver.dcm of pydicom-data (three frames of 512 x 512) with images made for the places that it references."""
    seg = pydicom.dcmread(DATA / "liver.dcm")
    frames = {}
    for n, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        frames[source.ReferencedSOPInstanceUID] = (group.PlanePositionSequence[0].ImagePositionPatient, n)
    shared = seg.SharedFunctionalGroupsSequence[0]
    measures = (
        shared if "PixelMeasuresSequence" in shared else seg.PerFrameFunctionalGroupsSequence[0]
    ).PixelMeasuresSequence[0]
    for uid, (position, n) in frames.items():
        pixels = np.random.default_rng(n).integers(0, 4096, (512, 512)).astype(np.uint16)
        ds = ct(pixels, number=n, series=seg.ReferencedSeriesSequence[0].SeriesInstanceUID, SOPInstanceUID=uid,
                ImagePositionPatient=position, PixelSpacing=measures.PixelSpacing, SliceThickness=1,
                FrameOfReferenceUID=seg.FrameOfReferenceUID, PatientID=seg.PatientID, InstanceNumber=n + 1)  # fmt: skip
        write(tmp_path / f"source/ct/{n}.dcm", ds)
    shutil.copy(DATA / "liver.dcm", tmp_path / "source")
    code, rows = _ingest(tmp_path / "source", tmp_path / "out", "--segments")
    assert code == 0, rows
    (case,) = read_manifest(tmp_path / "out/manifest.csv").cases
    mask = np.asarray(nibabel.load(tmp_path / "out" / case.targets["liver"]).dataobj)
    height = np.argsort([float(position[2]) for position, _ in frames.values()])
    want = np.stack([seg.pixel_array[list(frames.values())[n][1]][::-1].T for n in height], -1)
    assert want.sum() > 1000
    np.testing.assert_array_equal(mask, want)


# after de-identification


def test_a_segmentation_finds_its_images_over_two_trees_under_one_key(source, tmp_path):
    """Images and drawings, de-identified apart with the same key: every reference still leads to its image."""
    first = deidentify_folder(source / "ct", tmp_path / "images", private=tmp_path / "p1")
    (tmp_path / "p2").mkdir(mode=0o700)
    shutil.copy2(tmp_path / "p1/key.json", tmp_path / "p2/key.json")
    second = deidentify_folder(source / "drawn", tmp_path / "drawings", private=tmp_path / "p2")
    assert first.ok == 10 and second.ok == 2 and not first.refused and not second.refused
    images = {(ds := pydicom.dcmread(path)).SOPInstanceUID: ds for path in (tmp_path / "images").rglob("*.dcm")}
    before = {(ds := pydicom.dcmread(path)).SOPInstanceUID: ds for path in (source / "ct").glob("*.dcm")}
    assert not set(images) & set(before)
    drawn = {(ds := pydicom.dcmread(path)).Modality: ds for path in (tmp_path / "drawings").rglob("*.dcm")}
    seg, original = drawn["SEG"], pydicom.dcmread(source / "drawn/seg.dcm")
    for old, new in zip(original.PerFrameFunctionalGroupsSequence, seg.PerFrameFunctionalGroupsSequence, strict=True):
        (was,), (now,) = (group.DerivationImageSequence[0].SourceImageSequence for group in (old, new))
        image = images[now.ReferencedSOPInstanceUID]
        assert image.PixelData == before[was.ReferencedSOPInstanceUID].PixelData  # the same image, not just one
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == next(iter(images.values())).SeriesInstanceUID
    assert {one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence} <= set(images)
    assert seg.PatientID == next(iter(images.values())).PatientID
    assert seg.FrameOfReferenceUID == next(iter(images.values())).FrameOfReferenceUID
    (reference,) = drawn["RTSTRUCT"].ReferencedFrameOfReferenceSequence
    named = reference.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].ContourImageSequence
    assert {one.ReferencedSOPInstanceUID for one in named} == set(images)
    # and a program that follows them arrives: the two trees together make the masks that the originals make
    shutil.copytree(tmp_path / "images", tmp_path / "both/a")
    shutil.copytree(tmp_path / "drawings", tmp_path / "both/b")
    assert _ingest(tmp_path / "both", tmp_path / "out", "--segments")[0] == 0
    (case,) = read_manifest(tmp_path / "out/manifest.csv").cases
    image = nibabel.load(tmp_path / "out" / case.image)
    mask = np.asarray(nibabel.load(tmp_path / "out" / case.targets["liver"]).dataobj)
    np.testing.assert_array_equal(mask, inside(voxel_centres(image.affine, image.shape), 1))


def test_a_key_object_names_the_same_images_afterwards(source, tmp_path):
    """Key objects are no images and are not written (E-DEID-KIND); the rules for their references hold all the same."""
    deidentify_folder(source / "ct", tmp_path / "images")
    pseudonyms = Pseudonyms(remember_source(tmp_path / "images.private/key.json", source / "ct"))
    images = {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "images").rglob("*.dcm")}
    sources = sources_of(source / "ct")
    listed = [
        item(ReferencedSOPClassUID=one.SOPClassUID, ReferencedSOPInstanceUID=one.SOPInstanceUID)[0] for one in sources
    ]
    series = item(SeriesInstanceUID=sources[0].SeriesInstanceUID, ReferencedSOPSequence=listed)
    evidence = item(StudyInstanceUID=sources[0].StudyInstanceUID, ReferencedSeriesSequence=series)
    content = item(RelationshipType="CONTAINS", ValueType="IMAGE", ReferencedSOPSequence=[listed[3]])
    key_object = change(
        ct(), SOPClassUID=KeyObjectSelectionDocumentStorage, Modality="KO", SOPInstanceUID="1.2.3.9", PixelData=None,
        PatientID=sources[0].PatientID, CurrentRequestedProcedureEvidenceSequence=evidence, ContentSequence=content,
        ValueType="CONTAINER",
    )  # fmt: skip
    path = write(tmp_path / "ko.dcm", key_object)
    found = deidentify_dataset(pydicom.dcmread(path), pseudonyms)
    (study,) = found.CurrentRequestedProcedureEvidenceSequence
    named = [one.ReferencedSOPInstanceUID for one in study.ReferencedSeriesSequence[0].ReferencedSOPSequence]
    assert set(named) == images and len(named) == 10
    assert not found.ContentSequence  # PS3.15 E.1-1: what a document says goes, the list of its evidence stays
    assert study.StudyInstanceUID in {path.name for path in (tmp_path / "images").glob("*/*")}
