"""Laws of a job's files beside its tables: each setting changes what is written, and no kill changes a byte of it."""

import csv
import io
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from jobs_made import made_bundle
from PIL import Image
from rich.console import Console

from medmtl.cli import run
from medmtl.data.synthetic.dicom import write_phantom
from medmtl.errors import UserError
from medmtl.inference import outputs
from medmtl.inference.ledger import read_ledger
from medmtl.inference.pipeline import Job, Summary, predict
from medmtl.inference.writers import FORMATS, Output
from medmtl.io.nifti import write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Volume
from medmtl.predictor import Predictor

QUIET = Console(file=io.StringIO())
TASKS: dict[str, Any] = {
    "grade": {"kind": "classification", "classes": ["low", "high"]},
    "organ": {"kind": "segmentation", "classes": ["background", "bright", "dark"], "decoder": {"width": 16}},
}
CODES = """
bright: {value: 10200004, meaning: Liver, category: {value: 91723000, meaning: Anatomical Structure}}
grade.high: {value: "75540009", meaning: High}
"""


def _bundle(folder: Path, preprocess: dict[str, Any], encoder: str) -> Path:
    return made_bundle(folder, TASKS, preprocess, encoder)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    preprocess = {"channels": 1, "volume": {"intensity": {"kind": "range", "low": 0, "high": 1000}}}
    return _bundle(tmp_path_factory.mktemp("volumes"), preprocess, "slices")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT series and a NIfTI file."""
    root = tmp_path_factory.mktemp("scans")
    write_phantom(root / "ct", "axial")
    array = np.random.default_rng(0).integers(0, 900, (11, 9, 7)).astype(np.int16)
    write_nifti(root / "a.nii.gz", Volume(array, np.diag([1.0, 1.5, 2.0, 1.0])))
    return root


def _run(bundle: Path, source: Path, out: Path, **more: Any) -> Summary:
    return predict(Job(bundle, source, out, **{"device": "cpu", "batch_size": 1, **more}), console=QUIET)


def _rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        return {row["image"].partition("_")[0]: row for row in csv.DictReader(stream)}


def _only(out: Path, name: str) -> Path:
    (found,) = out.rglob(name)
    return found


def test_every_option_of_the_command_line_changes_what_is_written(
    volumes: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "codes.yaml").write_text(CODES, encoding="utf-8")
    command = ["predict", str(volumes), str(scans), "OUT", "--device", "cpu"]

    def go(name: str, *options: str) -> Path:
        out = tmp_path / name
        assert run([str(out) if part == "OUT" else part for part in command] + list(options)) == 0
        return out

    default = go("default")
    assert sorted(path.name for path in (default / "cases").rglob("*.*")) == ["organ.json"] * 2 + ["organ.nii.gz"] * 2
    out = go(
        "all", "--write", "dicom-seg,dicom-sr,nifti,json", "--probabilities", "uint8", "--segmentation", "fractional",
        "--coding", str(tmp_path / "codes.yaml"),
    )  # fmt: skip
    maps = [nibabel.load(path) for path in out.rglob("organ.probabilities.nii.gz")]
    assert [image.get_data_dtype() for image in maps] == [np.uint8, np.uint8]
    segments = pydicom.dcmread(_only(out, "organ.seg.dcm"))
    assert segments.SegmentationType == "FRACTIONAL"
    bright, dark = (item.SegmentedPropertyTypeCodeSequence[0] for item in segments.SegmentSequence)
    assert (bright.CodeValue, bright.CodingSchemeDesignator) == ("10200004", "SCT")
    assert dark.CodingSchemeDesignator == "99MEDMTL"
    assert all("10200004" in path.read_text() for path in out.rglob("findings.json"))
    capsys.readouterr()
    for options in (["--segmentation", "labelmap"], ["--probabilities", "float32", "--write", "json"]):
        assert run([*command[:3], str(tmp_path / "refused"), *options]) == 2  # a format that is not written
        assert "E-PRE-JOB" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"formats": ("nifti", "json")},
        {"formats": ("nifti", "dicom-seg"), "probabilities": "uint8"},
        {"formats": ("nifti", "dicom-seg"), "segmentation": "fractional"},
        {"formats": ("nifti", "dicom-seg"), "coding": {"organ": {"value": "1", "meaning": "Organ"}}},
    ],
)
def test_other_settings_of_the_files_are_another_job(
    volumes: Path, scans: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    source = tmp_path / "in"
    write_png(source / "a.png", np.zeros((8, 8, 3), np.uint8))  # a row without a result suffices
    _run(volumes, source, tmp_path / "out", output=Output(formats=("nifti", "dicom-seg")))
    with pytest.raises(UserError, match=r"E-PRE-OUT.*settings"):
        _run(volumes, source, tmp_path / "out", output=Output.model_validate(changed))


def test_a_code_for_what_the_bundle_has_not_is_an_error(volumes: Path, scans: Path, tmp_path: Path) -> None:
    for name in ("liver", "grade.bright", "background", "organ.background"):
        output = Output.model_validate({"formats": ["json"], "coding": {name: {"value": "1", "meaning": "x"}}})
        with pytest.raises(UserError, match=rf"E-PRE-CODING.*'{name}'.*organ\.bright"):
            _run(volumes, scans, tmp_path / "out", output=output)
    (tmp_path / "codes.yaml").write_text("bright: {value: '1'}\n", encoding="utf-8")
    command = ["predict", str(volumes), str(scans), str(tmp_path / "out"), "--coding", str(tmp_path / "codes.yaml")]
    assert run([*command, "--write", "json"]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "channels"), [("radiograph", 1), ("rgb", 3)])
@pytest.mark.parametrize("form", ["binary", "fractional", "labelmap"])
def test_a_dicom_picture_comes_back_in_every_format_on_its_own_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, channels: int, form: str
) -> None:
    """Marked is what is brighter than the picture's median, so the source's own pixels are the truth."""

    def decode(self: Predictor, image: torch.Tensor, covariates: object = None) -> dict[str, torch.Tensor]:
        grey = image[:, 0]  # of a colour picture, red
        bright = (grey > grey.flatten(1).median(1).values[:, None, None]).float()
        organ = torch.stack([1 - bright, bright, torch.zeros_like(bright)], 1)
        return {"grade": torch.tensor([[0.25, 0.75]]), "organ": organ}

    write_phantom(tmp_path / "in", kind)
    (path,) = (tmp_path / "in").rglob("*.dcm")
    source = pydicom.dcmread(path)
    pixels = source.pixel_array.astype(np.float32)
    if source.PhotometricInterpretation == "MONOCHROME1":
        pixels = -pixels
    grey = pixels[..., 0] if channels == 3 else pixels
    truth = grey > np.quantile(grey, 0.5, method="lower")
    rows, columns = truth.shape
    assert rows != columns and not np.array_equal(truth, truth[::-1]) and not np.array_equal(truth, truth[:, ::-1])
    monkeypatch.setattr(Predictor, "decode", decode)
    output = Output.model_validate({"formats": [name for name in FORMATS if name != "nifti"], "segmentation": form})
    bundle = _bundle(tmp_path / "bundle", {"channels": channels}, "timm")
    assert _run(bundle, tmp_path / "in", tmp_path / "out", output=output).exit_code == 0
    np.testing.assert_array_equal(np.asarray(Image.open(_only(tmp_path / "out" / "masks", "*.png"))) == 1, truth)
    segments = pydicom.dcmread(_only(tmp_path / "out", "organ.seg.dcm"))
    np.testing.assert_array_equal(segments.pixel_array.reshape(-1, rows, columns)[0] > 0, truth)
    report = pydicom.dcmread(_only(tmp_path / "out", "*.sr.dcm"))
    assert report.PatientID == segments.PatientID == source.PatientID
    assert _only(tmp_path / "out", "findings.json") and _only(tmp_path / "out", "report.html")


def test_what_an_input_cannot_have_is_a_warning_in_its_row(volumes: Path, scans: Path, tmp_path: Path) -> None:
    _run(volumes, scans, tmp_path / "out", output=Output(formats=("dicom-seg", "dicom-sr")))
    rows = _rows(tmp_path / "out")
    assert "W-OUT-FORMAT no dicom-seg: the input is no DICOM" in rows["a.nii.gz"]["warnings"]
    assert "W-OUT-FORMAT" not in rows["CT"]["warnings"]
    assert rows["CT"]["organ.mask"].endswith("/organ.seg.dcm")
    assert rows["a.nii.gz"]["organ.mask"] == ""
    pictures = _bundle(tmp_path / "pictures", {"channels": 3}, "timm")
    write_png(tmp_path / "in" / "a.png", np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8))
    _run(pictures, tmp_path / "in", tmp_path / "png")
    assert _rows(tmp_path / "png")["a.png"]["warnings"] == ""  # NIfTI is the default, and a PNG mask is there
    assert _rows(tmp_path / "png")["a.png"]["organ.mask"] == "masks/organ/a.png.png"


def test_a_job_that_was_killed_while_it_wrote_dicom_ends_with_the_same_bytes(
    volumes: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    for n in range(3):
        write_phantom(source / str(n), "axial", seed=n)
    output = Output(formats=FORMATS, probabilities="float32")
    _run(volumes, source, tmp_path / "whole", output=output)
    real, out = outputs.writers.write_case, tmp_path / "out"

    def killed(case: Any, folder: Path, wanted: Output) -> Any:
        """Ends the process when the second case has its segmentation but nothing after it."""
        if any(out.rglob("report.html")):
            real(case, folder, wanted.model_copy(update={"formats": ("nifti", "dicom-seg")}))
            os.kill(os.getpid(), signal.SIGKILL)
        return real(case, folder, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(outputs.writers, "write_case", killed)
        child = multiprocessing.get_context("fork").Process(target=_run, args=(volumes, source, out),
                                                            kwargs={"output": output})  # fmt: skip
        child.start()
        child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(list(out.rglob("*.seg.dcm"))) == 2
    assert not (out / "predictions.csv").exists()
    done = len(read_ledger(out / "cases.jsonl"))
    summary = _run(volumes, source, out, output=output)
    assert (summary.ok, summary.resumed) == (3, done)
    assert done < 2
    assert _bytes(out) == _bytes(tmp_path / "whole")
    assert len([name for name in _bytes(out) if name.endswith(("organ.seg.dcm", "measurements.sr.dcm"))]) == 6


def _bytes(out: Path) -> dict[str, bytes]:
    timed = (".lock", "cases.jsonl", "manifest.json", "summary.md")
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in timed)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}
