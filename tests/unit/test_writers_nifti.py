"""NIfTI results: nibabel and SimpleITK find every blob where it is, for any orientation."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK
from writers_made import CLASSES, NOTICE, TASKS, blobs, centroid_mm, dense_of, phantom

from medmtl.inference.prediction import CasePrediction, DenseMap, Source
from medmtl.inference.writers import nifti
from medmtl.inference.writers.findings import Coding
from medmtl.io.dicom.series import Policy
from medmtl.io.nifti import read_nifti
from medmtl.io.nifti_write import write_nifti
from medmtl.io.volume import Volume

KINDS = ("axial", "head-down", "prone", "sagittal", "coronal", "oblique", "double-oblique", "names-reversed", "mosaic")


def by_itk(path, value):
    """World position (RAS mm) of the middle of the voxels of a value, as SimpleITK has it."""
    image = SimpleITK.ReadImage(str(path))
    points = np.argwhere(SimpleITK.GetArrayFromImage(image) == value)[:, ::-1]
    lps = np.mean([image.TransformIndexToPhysicalPoint([int(n) for n in point]) for point in points], axis=0)
    return lps * (-1, -1, 1)


def off_voxels(affine, got, want):
    return np.abs(np.linalg.inv(affine[:3, :3]) @ (got - want)).max()


@pytest.mark.parametrize("kind", [*KINDS, "tilt"])
def test_blobs_lie_where_they_were_found(tmp_path, kind):
    case, _ = phantom(tmp_path / "scan", kind, policy=Policy(tilt="resample"))
    labels, _ = nifti.write(case, tmp_path / "out")
    image = nibabel.load(labels)
    assert image.get_data_dtype() == np.uint8 and image.shape == case.image.array.shape
    np.testing.assert_allclose(image.affine, case.image.affine, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(image.dataobj), case.dense["seg"].labels)
    for segment in (1, 2):
        want = centroid_mm(case.image.affine, case.dense["seg"].labels == segment)
        assert off_voxels(image.affine, centroid_mm(image.affine, np.asarray(image.dataobj) == segment), want) < 0.01
        assert off_voxels(image.affine, by_itk(labels, segment), want) < 0.01


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, 1, -1)])
def test_a_nifti_input_gets_its_own_affine_back(tmp_path, signs):
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * np.array([0.7, 1.1, 2.9]) * signs, (12, -34, 56)
    path = write_nifti(tmp_path / "in.nii", Volume(np.arange(4320, dtype=np.float32).reshape(20, 24, 9), affine))
    case = case_over(read_nifti(path), path)
    (labels, _) = nifti.write(case, tmp_path / "out")
    np.testing.assert_allclose(nibabel.load(labels).affine, nibabel.load(path).affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(nibabel.load(labels).dataobj), case.dense["seg"].labels)
    for segment in (1, 2):
        want = centroid_mm(nibabel.load(path).affine, case.dense["seg"].labels == segment)
        assert off_voxels(affine, by_itk(labels, segment), want) < 0.01


def case_over(volume, path, *, dense=None):
    source = Source("nifti", "a/b.nii", (path,))
    dense = dense or dense_of(blobs(volume.array.shape[:3]))
    return CasePrediction(source, volume, {"seg": TASKS["seg"]}, {}, {"seg": dense}, "abc123def456")


def plain(shape=(20, 24, 9)):
    return Volume(np.zeros(shape, np.int16), np.diag([2.0, 2.0, 3.0, 1.0]), units="HU")


@pytest.mark.parametrize(("stored", "step"), [("float32", 0.0), ("uint8", 0.5 / 255 + 1e-6)])
def test_probabilities_are_those_of_every_class(tmp_path, stored, step):
    case = case_over(plain(), tmp_path / "x.nii")
    chances = np.random.default_rng(0).dirichlet((1, 1, 1), size=(20, 24, 9)).astype(np.float32)
    case = replace(case, dense={"seg": replace(case.dense["seg"], probabilities=np.moveaxis(chances, -1, 0))})
    _, path, sidecar = nifti.write(case, tmp_path / "out", probabilities=stored)
    image = nibabel.load(path)
    assert image.shape == (20, 24, 9, 3) and image.get_data_dtype() == np.dtype(stored)
    got = np.asarray(image.dataobj) / (255 if stored == "uint8" else 1)
    np.testing.assert_allclose(got, chances, atol=step)
    assert ("255" in json.loads(sidecar.read_text())["probabilities"]) == (stored == "uint8")


def test_more_than_256_classes_do_not_wrap_around(tmp_path):
    labels = np.zeros((20, 24, 9), np.int64)
    labels[3, 4, 5] = 299
    classes = tuple(f"c{n}" for n in range(300))
    dense = DenseMap(np.zeros((300, 20, 24, 9), np.float32), labels, np.ones(labels.shape, bool), classes)
    (path, _) = nifti.write(case_over(plain(), tmp_path / "x.nii", dense=dense), tmp_path / "out")
    assert np.asarray(nibabel.load(path).dataobj)[3, 4, 5] == 299


def test_the_sidecar_says_what_the_values_mean(tmp_path):
    case = case_over(plain(), tmp_path / "x.nii")
    inside = case.dense["seg"].inside.copy()
    inside[:, :, 0] = False
    case = replace(case, dense={"seg": replace(case.dense["seg"], inside=inside)}, warnings=("W-X y",), gate={"f": "g"})
    coding = {"lesion": Coding(value="108369006", meaning="Neoplasm")}
    paths = nifti.write(case, tmp_path / "out", coding=coding)
    tree = json.loads(paths[-1].read_text())
    assert NOTICE in tree["notice"] and tree["bundle"] == case.bundle and tree["source"] == "a/b.nii"
    assert [one["name"] for one in tree["classes"]] == list(CLASSES)
    assert tree["classes"][1]["code"] == {"value": "108369006", "scheme": "SCT", "meaning": "Neoplasm"}
    assert [one["voxels"] for one in tree["classes"]] == np.bincount(case.dense["seg"].labels.ravel()).tolist()
    assert tree["not_looked_at_voxels"] == 20 * 24 and tree["warnings"] == ["W-X y", "f: g"]
    assert [path.read_bytes() for path in paths] == [
        path.read_bytes() for path in nifti.write(case, tmp_path / "b", coding=coding)
    ]


def test_colour_and_time_are_the_images_not_the_maps(tmp_path):
    colour = Volume(np.zeros((20, 24, 9, 3), np.uint8), np.eye(4), colour=True)
    times = Volume(np.zeros((20, 24, 9, 4), np.int16), np.eye(4), time_step_s=2.0)
    for name, volume in (("c", colour), ("t", times)):
        (path, _) = nifti.write(case_over(volume, tmp_path / "x.nii"), tmp_path / name)
        assert nibabel.load(path).shape == (20, 24, 9)
