"""Laws of predicting a folder of anything: every file is accounted for, and a map lies where its volume lies."""

import csv
import io
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import dicom_made
import numpy as np
import pydicom
import pytest
import torch
from jobs_made import made_bundle
from rich.console import Console

from medmtl.bundle import ModelSpec, load_bundle, save_bundle
from medmtl.cli import run
from medmtl.data.case import Case
from medmtl.data.loader import CaseDataset
from medmtl.data.synthetic.dicom import write_phantom
from medmtl.errors import UserError
from medmtl.inference.batches import batches, cost_of
from medmtl.inference.inputs import Finder
from medmtl.inference.isolated import isolated, load_stack
from medmtl.inference.ledger import read_ledger
from medmtl.inference.pipeline import Job, Summary, look_ahead, predict
from medmtl.inference.reading import Reader
from medmtl.inference.writers import FORMATS, Output
from medmtl.ingest.job import Job as IngestJob
from medmtl.ingest.pipeline import ingest
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import Policy
from medmtl.io.nifti import read_nifti, write_nifti
from medmtl.io.raster import read_image, read_mask, write_png
from medmtl.io.volume import Volume
from medmtl.predictor import Predictor

QUIET = Console(file=io.StringIO())
PAGES, EVERYTHING = Output(formats=("nifti", "json", "html")), Output(formats=FORMATS)
TASKS: dict[str, Any] = {
    "age": {"kind": "regression", "low": -100, "high": 100, "unit": "years"},
    "organ": {"kind": "segmentation", "classes": ["background", "bright", "none"], "decoder": {"width": 16}},
}


def _bundle(folder: Path, preprocess: dict[str, Any], encoder: str = "slices", seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tree = {"preprocess": preprocess, "encoder": {"kind": encoder, "name": "test_efficientnet"}, "tasks": TASKS}
    spec = ModelSpec.model_validate(tree)
    save_bundle(folder, spec, spec.build(), provenance={}, card="{bundle_id}")
    return folder


VOLUME = {"channels": 1, "volume": {"intensity": {"kind": "range", "low": 0, "high": 1000}}}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _bundle(tmp_path_factory.mktemp("volumes"), VOLUME)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _bundle(tmp_path_factory.mktemp("pictures"), {"channels": 3}, encoder="timm")


def _run(bundle: Path, source: Path, out: Path, **more: Any) -> Summary:
    return predict(Job(bundle, source, out, **{"device": "cpu", "batch_size": 2, **more}), console=QUIET)


def _table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def _box(seed: int = 0, shape: tuple[int, int, int] = (11, 9, 7)) -> np.ndarray:
    """A bright box in dim noise."""
    array = np.random.default_rng(seed).integers(0, 200, shape).astype(np.int16)
    array[2:6, 1:5, 2:5] = 900
    return array


def _affine(*spacing: float) -> np.ndarray:
    return np.array([[0, spacing[1], 0, 5.0], [-spacing[0], 0, 0, 7], [0, 0, spacing[2], -3], [0, 0, 0, 1]])


def _nifti(path: Path, seed: int = 0, spacing: tuple[float, float, float] = (1.0, 1.5, 2.0)) -> Path:
    return write_nifti(path, Volume(_box(seed), _affine(*spacing)))


def _by_brightness(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Replace decoding: what is above half of the range is ``bright``. Returns the shapes that were asked for."""
    seen = []

    def decode(self: Predictor, image: torch.Tensor, *more: Any) -> dict[str, torch.Tensor]:
        seen.append(tuple(image.shape))
        bright = (image.mean(1) > 0.5).float()
        return {
            "age": torch.full((len(image),), 7.0),
            "organ": torch.stack([1 - bright, bright, torch.zeros_like(bright)], 1),
        }

    monkeypatch.setattr(Predictor, "decode", decode)
    return seen


# ---- everything in one folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DICOM, NIfTI and pictures, whole and damaged, below a folder with a patient's name."""
    root = tmp_path_factory.mktemp("mixed") / "in"
    patient = root / "DOE^JANE"
    write_phantom(patient / "ct", "axial")
    write_phantom(patient / "gap", "gap-middle", seed=1)
    write_phantom(patient / "photo", "rgb", seed=2)
    _nifti(root / "sub-01" / "t1.nii.gz")
    (root / "cut.nii.gz").write_bytes((root / "sub-01" / "t1.nii.gz").read_bytes()[:200])
    write_png(root / "photo.png", np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8))
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("no picture")
    (root / "notes.txt").write_text("x")
    (patient / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\4\0")
    return root


def _codes(out: Path) -> dict[str, str]:
    return {name.partition("_")[0]: row["code"] for name, row in _table(out / "errors.csv").items()}


def test_a_volume_bundle_takes_the_volumes_and_says_why_not_the_rest(
    volumes: Path, mixed: Path, tmp_path: Path
) -> None:
    summary = _run(volumes, mixed, tmp_path / "out")
    rows = _table(tmp_path / "out" / "predictions.csv")
    assert {name.partition("_")[0] for name, row in rows.items() if row["status"] == "ok"} == {"CT", "sub-01/t1.nii.gz"}
    assert _codes(tmp_path / "out") == {
        "CT": "E-DCM-GAP",
        "US": "E-PRE-KIND",
        "cut.nii.gz": "E-NII-TRUNCATED",
        "photo.png": "E-PRE-KIND",
        "empty.png": "E-FILE-EMPTY",
        "text.png": "E-FILE-CONTENT",
        "FILE": "E-DCM-HEADER",
    }
    assert (summary.ok, summary.exit_code) == (2, 3)
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    files = [path for path in mixed.rglob("*") if path.is_file()]
    assert told["files"]["seen"] == len(files)
    named = {row["file"] for row in _rows(tmp_path / "out" / "sources.private.csv")}
    assert len(named) + sum(told["files"]["ignored"].values()) == len(files)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_picture_bundle_takes_the_pictures_as_ingesting_would_write_them(
    pictures: Path, mixed: Path, tmp_path: Path
) -> None:
    summary = _run(pictures, mixed, tmp_path / "out")
    rows = _table(tmp_path / "out" / "predictions.csv")
    good = {name.partition("_")[0] for name, row in rows.items() if row["status"] == "ok"}
    assert good == {"US", "photo.png"}
    assert _codes(tmp_path / "out")["sub-01/t1.nii.gz"] == "E-PRE-KIND"
    assert summary.exit_code == 3
    ingest(IngestJob(mixed / "DOE^JANE" / "photo", tmp_path / "study", allow_burned_in=True), console=QUIET)
    (png,) = (tmp_path / "study" / "images").glob("*.png")
    (item,) = (item for item in _finder(pictures, mixed).find().inputs if item.id.startswith("US_"))
    shown = _reader(pictures, mixed).read(item).shown
    np.testing.assert_array_equal(shown, read_image(png, channels=3))
    mask = read_mask(tmp_path / "out" / next(row for name, row in rows.items() if name.startswith("US"))["organ.mask"])
    assert mask.shape == shown.shape[1:]


def _finder(bundle: Path, source: Path, **more: Any) -> Finder:
    return Finder(source, load_bundle(bundle).spec.preprocess, **more)


def _reader(bundle: Path, source: Path) -> Reader:
    return Reader(source, load_bundle(bundle).spec.preprocess, max_bytes=2**32)


def test_no_name_of_a_patient_in_what_may_be_passed_on(volumes: Path, mixed: Path, tmp_path: Path) -> None:
    truth = write_phantom(tmp_path / "again", "axial")
    _run(volumes, mixed, tmp_path / "out", output=PAGES)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    words = [b"DOE^JANE", *(name.encode() for name in truth.identifiers if len(name) > 3)]
    assert any(word in (tmp_path / "out" / "sources.private.csv").read_bytes() for word in words)  # there they may be
    for path in written:
        if path.name == "sources.private.csv":
            assert path.stat().st_mode & 0o777 == 0o600
            continue
        assert not [word for word in words if word in path.read_bytes() or word in str(path.name).encode()], path


def test_an_id_depends_on_the_series_not_on_its_files(volumes: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "a" / "x", "axial")
    write_phantom(tmp_path / "a" / "y", "axial", seed=3)
    for n, path in enumerate(sorted((tmp_path / "a" / "x").rglob("*"), reverse=True)):
        if path.is_file():
            target = tmp_path / "b" / f"{n}" / "file"
            target.parent.mkdir(parents=True)
            shutil.copy(path, target)
    first, second = (_finder(volumes, tmp_path / name).find().inputs for name in ("a", "b"))
    assert len({item.id for item in first}) == 2
    assert {item.id for item in second} < {item.id for item in first}
    everything = _finder(volumes, tmp_path).find()  # the series twice: identical copies are left aside
    assert {item.id for item in everything.inputs} == {item.id for item in first}
    assert everything.ignored == {"DICOM duplicate": len(second[0].files)}
    assert everything.accounted()


# ---- geometry


def test_masks_lie_on_the_native_grid(volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _nifti(tmp_path / "in" / "a.nii.gz", spacing=(1.0, 1.5, 2.0))
    shapes = _by_brightness(monkeypatch)
    _run(volumes, tmp_path / "in", tmp_path / "out")
    assert shapes == [(1, 1, 7, 11, 9)]  # slices, then rows and columns of the turned volume
    row = _table(tmp_path / "out" / "predictions.csv")["a.nii.gz"]
    image, mask = read_nifti(path), read_nifti(tmp_path / "out" / row["organ.mask"], labels=True)
    np.testing.assert_array_equal(mask.array, image.array > 500)
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    voxels = int((image.array > 500).sum())
    assert float(row["organ.ml.bright"]) == pytest.approx(voxels * 1.0 * 1.5 * 2.0 / 1000, rel=1e-6)
    assert float(row["organ.fraction.bright"]) == pytest.approx(voxels / image.array.size, rel=1e-5)
    assert (row["age.value"], row["age.unit"]) == ("7", "years")


def test_a_series_and_its_nifti_file_have_one_result(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = [dicom_made.ct(np.ascontiguousarray(_box()[..., k].T).astype(np.uint16), number=k) for k in range(7)]
    dicom_made.write_all(tmp_path / "in" / "dicom", [dicom_made.change(ds, RescaleIntercept=0) for ds in slices])
    ingest(IngestJob(tmp_path / "in" / "dicom", tmp_path / "study"), console=QUIET)
    (nifti,) = (tmp_path / "study" / "images").glob("*.nii.gz")
    shutil.copy(nifti, tmp_path / "in" / "same.nii.gz")
    _by_brightness(monkeypatch)
    assert _run(volumes, tmp_path / "in", tmp_path / "out").ok == 2
    rows = _table(tmp_path / "out" / "predictions.csv")
    masks = [read_nifti(tmp_path / "out" / row["organ.mask"], labels=True) for row in rows.values()]
    assert masks[0].array.sum() == 4 * 4 * 3
    np.testing.assert_array_equal(masks[0].array, masks[1].array)
    np.testing.assert_allclose(masks[0].affine, masks[1].affine, atol=1e-4)


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.5), (4.0, 2.0, 3.0), (1.0, 0.5, 0.7)])
def test_a_map_comes_back_from_another_spacing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spacing: tuple[float, float, float]
) -> None:
    """A box of 12 mm a side keeps its place and, to half a voxel of the coarser grid, its size."""
    array = np.zeros((24, 20, 16), np.int16)
    array[6:18, 6:14, 4:12] = 1000
    volume = Volume(array, _affine(1.0, 1.5, 1.5))
    source = write_nifti(tmp_path / "in" / "a.nii.gz", volume)
    preprocess = {"channels": 1, "volume": {**VOLUME["volume"], "spacing_mm": spacing}}
    bundle = _bundle(tmp_path / "bundle", preprocess)
    _by_brightness(monkeypatch)
    _run(bundle, source.parent, tmp_path / "out")
    mask = read_nifti(next((tmp_path / "out" / "cases").rglob("organ.nii.gz")), labels=True)
    assert mask.array.shape == array.shape
    np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-5)
    both, either = (mask.array == 1) & (array > 0), (mask.array == 1) | (array > 0)
    centre = [np.mean(np.nonzero(m), axis=1) for m in (mask.array, array)]
    assert np.abs(centre[0] - centre[1]).max() < 0.5
    assert both.sum() / either.sum() > (0.95 if max(spacing) <= 2 else 0.6)


def test_beside_the_window_is_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = _bundle(tmp_path / "bundle", {**VOLUME, "window": [5, 16, 6], "pad": True})
    _nifti(tmp_path / "in" / "a.nii.gz")
    image = read_nifti(tmp_path / "in" / "a.nii.gz")
    _by_brightness(monkeypatch)
    _run(bundle, tmp_path / "in", tmp_path / "out")
    row = _table(tmp_path / "out" / "predictions.csv")["a.nii.gz"]
    mask = read_nifti(tmp_path / "out" / row["organ.mask"], labels=True)
    seen = np.zeros(image.array.shape, bool)
    seen[:, 1:7, 1:6] = True  # 5 of 7 slices; 6 of the 9 voxels along j, which run from left to right
    np.testing.assert_array_equal(mask.array == 1, (image.array > 500) & seen)
    share = ((image.array > 500) & seen).sum() / seen.sum()
    assert float(row["organ.fraction.bright"]) == pytest.approx(share, rel=1e-5)
    assert row["warnings"] == "W-PRE-WINDOW the network saw the centre only, 48 % of the image"


def test_preprocessing_is_that_of_training(tmp_path: Path) -> None:
    preprocess = {**VOLUME, "window": [4, 8, 8], "normalise": {"kind": "image"}, "pad": True}
    preprocess["volume"] = {"spacing_mm": [2.0, 1.2, 1.2], "intensity": {"kind": "percentile"}}
    bundle = _bundle(tmp_path / "bundle", preprocess)
    _nifti(tmp_path / "in" / "a.nii.gz")
    spec = load_bundle(bundle).spec
    dataset = CaseDataset([Case("a", "g", "a.nii.gz")], tmp_path / "in", {}, (), spec.preprocess, cache="none")
    (item,) = _finder(bundle, tmp_path / "in").find().inputs
    loaded = _reader(bundle, tmp_path / "in").read(item)
    torch.testing.assert_close(loaded.image, dataset[0].image, rtol=0, atol=0)


# ---- resuming, memory, dry run


def _bytes(out: Path) -> dict[str, bytes]:
    timed = (".lock", "cases.jsonl", "manifest.json", "summary.md")
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in timed)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_a_job_over_volumes_that_stopped_ends_with_the_same_bytes(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        _nifti(tmp_path / "in" / f"{n}.nii.gz", n)
    write_phantom(tmp_path / "in" / "ct", "axial")
    _run(volumes, tmp_path / "in", tmp_path / "whole", output=PAGES)
    real, calls = Predictor.decode, []

    def failing(self: Predictor, image: torch.Tensor, *more: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("a bug")
        return real(self, image, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "decode", failing)
        with pytest.raises(KeyError):
            _run(volumes, tmp_path / "in", tmp_path / "out", output=PAGES)
    done = len(read_ledger(tmp_path / "out" / "cases.jsonl"))
    assert 0 < done < 6
    summary = _run(volumes, tmp_path / "in", tmp_path / "out", output=PAGES)
    assert (summary.ok, summary.resumed) == (6, done)
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "whole")


def test_every_writer_has_its_say(volumes: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "in" / "ct", "axial")
    _nifti(tmp_path / "in" / "a.nii.gz")
    _run(volumes, tmp_path / "in", tmp_path / "out", output=EVERYTHING)
    (series,) = (item.id for item in _finder(volumes, tmp_path / "in").find().inputs if item.kind == "dicom")
    found = {
        name: sorted(path.name for path in (tmp_path / "out" / "cases" / name).iterdir()) for name in (series, "a")
    }
    both = ["findings.json", "organ.json", "organ.nii.gz", "report.html"]
    assert found == {series: sorted([*both, "organ.seg.dcm", "measurements.sr.dcm"]), "a": both}
    assert series in (tmp_path / "out" / "index.html").read_text()


def test_batches_fit_the_memory_and_do_not_depend_on_what_is_done(volumes: Path, tmp_path: Path) -> None:
    for n in range(4):
        _nifti(tmp_path / "in" / f"{n}.nii.gz", n)
    spec = load_bundle(volumes).spec
    inputs = _finder(volumes, tmp_path / "in").find().inputs
    cost = cost_of(inputs[0], spec)
    voxels = 11 * 9 * 7
    assert cost >= 4 * voxels * (1 + 3)  # an image and the probabilities of three classes, in float32
    assert [len(batch.inputs) for batch in batches(inputs, spec, size=3, budget=100 * cost)] == [3, 1]
    assert [len(batch.inputs) for batch in batches(inputs, spec, size=4, budget=6 * cost)] == [2, 2]
    assert [len(batch.inputs) for batch in batches(inputs, spec, size=4, budget=1)] == [1] * 4
    _run(volumes, tmp_path / "in", tmp_path / "out", batch_size=1)
    _run(volumes, tmp_path / "in", tmp_path / "other", batch_size=4)
    first, second = (_table(tmp_path / name / "predictions.csv") for name in ("out", "other"))
    for name, row in first.items():
        assert float(second[name]["age.value"]) == pytest.approx(float(row["age.value"]), abs=1e-4)


def test_a_volume_beyond_the_memory_is_a_row(volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _nifti(tmp_path / "in" / "a.nii.gz")
    write_nifti(
        tmp_path / "in" / "large.nii.gz", Volume(np.arange(60**3, dtype=np.int32).reshape(60, 60, 60), np.eye(4))
    )
    assert _run(volumes, tmp_path / "in", tmp_path / "out", max_ram=2**20).exit_code == 3
    errors = _table(tmp_path / "out" / "errors.csv")
    assert {name: row["code"] for name, row in errors.items()} == {"large.nii.gz": "E-PRE-MEMORY"}
    assert "--max-ram" in errors["large.nii.gz"]["remedy"]
    needed, allowed = re.findall(r"([\d.]+) MiB", errors["large.nii.gz"]["message"])
    assert float(needed) > 60**3 * 4 / 2**20 and allowed == "1.0"  # 1 MiB is no 0.0 GiB


def test_a_nifti_file_over_time_is_a_row_that_says_what_to_do(volumes: Path, tmp_path: Path) -> None:
    series = np.random.default_rng(0).integers(0, 900, (9, 8, 7, 2)).astype(np.int16)
    write_nifti(tmp_path / "in" / "series.nii.gz", Volume(series, np.eye(4)))
    assert _run(volumes, tmp_path / "in", tmp_path / "out").exit_code == 4
    row = _table(tmp_path / "out" / "errors.csv")["series.nii.gz"]
    assert row["code"] == "E-VOL-DIMENSIONS" and "4 dimensions" in row["message"]
    assert "each grey volume or time point as a file of its own" in row["remedy"]


def test_a_dry_run_writes_nothing(volumes: Path, mixed: Path, tmp_path: Path) -> None:
    listing, planned = look_ahead(Job(volumes, mixed, tmp_path / "out", device="cpu"))
    assert not (tmp_path / "out").exists()
    usable = {item.id.partition("_")[0] for item in listing.inputs if item.refused is None}
    assert usable == {"CT", "sub-01/t1.nii.gz", "cut.nii.gz"}  # its header is whole
    assert sum(len(batch.inputs) for batch in planned) == len(listing.inputs)


def test_memory_that_does_not_suffice_halves_the_batch(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(8):
        _nifti(tmp_path / "in" / f"{n}.nii.gz", n)
    real, sizes = Predictor.decode, []

    def decode(self: Predictor, image: torch.Tensor, *more: Any) -> dict[str, torch.Tensor]:
        sizes.append(len(image))
        if len(image) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, image, *more)

    monkeypatch.setattr(Predictor, "decode", decode)
    text = io.StringIO()
    job = Job(volumes, tmp_path / "in", tmp_path / "out", device="cpu", batch_size=4)
    summary = predict(job, console=Console(file=text, width=200))
    assert summary.exit_code == 0
    assert sizes == [4, 2, 1, 1, 2, 1, 1, *[1] * 4]  # the second batch is not tried as a whole again
    assert "does not hold 4 images at once, going on with 2" in text.getvalue()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["batches_halved"] == 3


def test_pairs_and_links(volumes: Path, tmp_path: Path) -> None:
    import nibabel as nib

    (tmp_path / "in" / "c").mkdir(parents=True)
    pair = nib.Nifti1Pair(_box(), _affine(1, 1, 1))
    nib.save(pair, tmp_path / "in" / "pair.hdr")
    (tmp_path / "outside.nii.gz").write_bytes(_nifti(tmp_path / "o.nii.gz").read_bytes())
    (tmp_path / "in" / "link.nii.gz").symlink_to(tmp_path / "outside.nii.gz")
    summary = _run(volumes, tmp_path / "in", tmp_path / "out")
    assert _codes(tmp_path / "out") == {"link.nii.gz": "E-SEC-PATH"}
    assert (summary.ok, summary.ignored_kinds) == (1, {"second file of a NIfTI pair": 1})


def test_a_policy_is_a_setting_of_the_results(volumes: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "in", "gap-middle")
    assert _run(volumes, tmp_path / "in", tmp_path / "out").exit_code == 4
    with pytest.raises(UserError, match=r"E-PRE-OUT.*settings"):
        _run(volumes, tmp_path / "in", tmp_path / "out", policy=Policy(gap="resample"))
    summary = _run(volumes, tmp_path / "in", tmp_path / "filled", policy=Policy(gap="resample"))
    assert summary.exit_code == 0
    (row,) = _table(tmp_path / "filled" / "predictions.csv").values()
    assert "R-DCM-RESAMPLED" in row["warnings"]


def test_the_command_line(
    volumes: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    command = ["predict", str(volumes), str(mixed), str(tmp_path / "out"), "--device", "cpu", "--names", "path"]
    assert run([*command, "--dry-run"]) == 3
    told = capsys.readouterr().out
    assert "photo.png  raster  1 file(s)  refused: E-PRE-KIND a picture; the bundle takes volumes" in told
    assert "sub-01/t1.nii.gz  nifti  1 file(s)  11 x 9 x 7" in told
    assert "3 of 9 inputs would be tried" in told
    assert not (tmp_path / "out").exists()
    assert run([*command, "--write", "json,pdf"]) == 2
    assert "E-PRE-JOB" in capsys.readouterr().err
    assert run([*command, "--gate", "refuse"]) == 2  # the bundle has nothing to compare with
    assert "no fingerprint" in capsys.readouterr().err.replace("\n", " ")
    assert run([*command, "--write", "json", "--gate", "off", "--jobs", "2", "--max-ram", "1"]) == 3
    told = capsys.readouterr().out
    assert "2 of 9 inputs have a result" in told
    assert "7 have none, with reason and remedy" in told
    assert len(list((tmp_path / "out").rglob("findings.json"))) == 2
    assert run(["predict", str(volumes), str(tmp_path / "none"), str(tmp_path / "o"), "--device", "cpu"]) == 2


def test_what_ends_the_decoder_is_an_error() -> None:
    with pytest.raises(UserError, match=r"E-ING-WORKER.*exit status 3"):
        isolated(os._exit, 3)
    with pytest.raises(UserError, match=r"E-ING-WORKER.*ValueError"):
        isolated(math.sqrt, -1.0)
    assert isolated(math.sqrt, 4.0) == 2.0


def test_compressed_pictures_are_decoded_aside(pictures: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "in", "jpeg-baseline")
    assert _run(pictures, tmp_path / "in", tmp_path / "out").ok == 1
    (item,) = _finder(pictures, tmp_path / "in").find().inputs
    assert item.stack is not None
    np.testing.assert_array_equal(load_stack(item.stack).array, load(item.stack).array)
    (path,) = (path for path in (tmp_path / "in").rglob("*") if path.is_file())
    path.write_bytes(path.read_bytes()[:-400])  # a refusal keeps its code on the way
    (item,) = _finder(pictures, tmp_path / "in").find().inputs
    code = item.refused.code if item.refused else ""
    assert code.startswith("E-DCM-")


def test_what_libraries_say_of_a_source_is_not_repeated(tmp_path, caplog, recwarn):
    write_phantom(tmp_path / "in", "axial")
    bad = "1.2.8a3.4"
    for path in sorted((tmp_path / "in").glob("*.dcm")):
        ds = pydicom.dcmread(path)
        ds["SeriesInstanceUID"].value = bad
        ds.save_as(path)
    recwarn.clear()
    caplog.clear()
    volume = {"channels": 1, "volume": {}, "window": [8, 16, 16], "pad": True}
    tasks = {"gland": {"kind": "segmentation", "classes": ["background", "gland"], "decoder": {"width": 16}}}
    bundle = made_bundle(tmp_path / "bundle", tasks, volume, "slices")
    job = Job(bundle, tmp_path / "in", tmp_path / "out", device="cpu", output=Output(formats=("dicom-seg", "dicom-sr")))
    with caplog.at_level("DEBUG"):
        assert predict(job, console=Console(file=io.StringIO())).exit_code == 0
    assert "W-OUT-FORMAT" in (tmp_path / "out/predictions.csv").read_text()
    assert bad not in caplog.text
    assert not [warning for warning in recwarn if bad in str(warning.message)]
