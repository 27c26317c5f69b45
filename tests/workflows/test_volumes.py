"""A study of volumes through the whole house: NIfTI files and masks, training, evaluation, the bundle, bad input."""

import json
import shutil

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from laws import refuses

from medmtl import cli
from medmtl.bundle import load_bundle
from medmtl.config import load
from medmtl.data.case import Case, write_manifest
from medmtl.data.loader import CaseDataset
from medmtl.data.preprocess import ForegroundNormalise, Preprocess
from medmtl.inference.explain import ExplainJob, explain
from medmtl.io.nifti import read_nifti, write_nifti
from medmtl.io.volume import Volume
from medmtl.predictor import Predictor
from medmtl.prepared import prepare
from medmtl.study import Study

SIZE = (26, 30, 24)
STUDY = {
    "name": "volumes",
    "preprocess": {
        "channels": 1,
        "volume": {"axes": "SAR", "spacing_mm": [3.0, 2.5, 2.5], "intensity": {"kind": "percentile"}},
        "window": [16, 24, 24],
        "pad": True,
        "normalise": {"kind": "foreground"},
    },
    "augment": {"geometry": {"flip": "last", "jitter_px": 1}, "colour": {"gain": 0.1}},
    "tasks": {
        "size": {"kind": "regression", "low": 0, "high": 1, "pool": {"over": "attention"}},
        "side": {"kind": "classification", "classes": ["small", "large"]},
        "ball": {"kind": "segmentation", "classes": ["outside", "ball"], "decoder": {"width": 8}},
    },
    "loader": {"batch_size": 6, "workers": 0},
    "optim": {"epochs": 24, "learning_rate": 5.0e-3, "ema": 0.9},
    "fit": {"monitor": "ball.dice.ball"},
    "views": "mirror",
}
ENCODERS = {
    "slices": {"kind": "slices", "name": "test_efficientnet"},
    "efficientnet_3d": {"kind": "efficientnet_3d", "name": "b0"},
    "vit_3d": {"kind": "vit_3d", "size": [16, 24, 24], "patch": 8, "width": 24, "depth": 1, "heads": 2},
}


def draw(rng, radius):
    """A bright ball of a radius (mm) in a dim body, on an oblique LAS grid of 2 x 2 x 3 mm; and its mask."""
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    affine[:3, :3] = np.array([[0.995, -0.0998, 0], [0.0998, 0.995, 0], [0, 0, 1]]) @ affine[:3, :3]
    index = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1)
    centre = np.array(SIZE) / 2 + rng.uniform(-2, 2, 3)
    away = np.linalg.norm((index - centre) * (2, 2, 3), axis=-1)
    inside = away < radius
    image = 300.0 * (away < 26) + 400 * inside + rng.normal(0, 25, SIZE) * (away < 26)
    return Volume(image.astype(np.float32), affine), Volume(inside.astype(np.int16), affine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """48 volumes of 24 patients, a third of the masks missing."""
    out, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    cases = []
    for n in range(48):
        radius = rng.uniform(6, 16)
        image, mask = draw(rng, radius)
        write_nifti(out / f"images/v{n}.nii.gz", image)
        write_nifti(out / f"masks/v{n}.nii.gz", mask)
        targets = {"size": f"{(radius - 6) / 10:.4f}", "side": "large" if radius > 11 else "small"}
        if n % 3:
            targets["ball"] = f"masks/v{n}.nii.gz"
        split = "train" if n < 30 else "val" if n < 38 else "test"
        cases.append(Case(f"v{n}", f"p{n // 2}", f"images/v{n}.nii.gz", "ab"[n % 2], split, targets))
    write_manifest(out / "manifest.csv", cases)
    return out


def study_file(folder, tmp_path, encoder, **changes):
    tree = {**STUDY, "data": {"manifest": str(folder / "manifest.csv")}, "encoder": ENCODERS[encoder], **changes}
    tree["tracking"] = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "artifacts": str(tmp_path / "artifacts")}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.slow
def test_a_study_of_volumes_from_files_to_a_report(folder, tmp_path, capsys):
    file = study_file(folder, tmp_path, "slices")
    assert cli.run(["train", str(file), "--runs", str(tmp_path / "runs"), "tracking.system_metrics=false"]) == 0
    run = next((tmp_path / "runs").iterdir())
    assert cli.run(["evaluate", str(run)]) == 0
    result = json.loads((run / "evaluation/evaluation.json").read_text())["tasks"]
    assert result["ball"]["overall"]["dice.ball"]["value"] > 0.6
    assert result["size"]["overall"]["mae"]["value"] < 0.9 * result["size"]["control"]["constant"]["mae"]
    assert "report.html" in {path.name for path in (run / "evaluation").iterdir()}

    bundle = load_bundle(run / "bundle")
    prepared = prepare(load(Study, run / "study.yaml"))
    predictor = Predictor.of(bundle, device=torch.device("cpu"), precision="fp32")
    again = predictor.table(prepared.dataset(prepared.split.test), batch_size=3)
    before = pd.read_csv(run / "evaluation/cases.csv", dtype={"split": str})
    before = before[before["split"] == "test"].reset_index(drop=True)
    np.testing.assert_allclose(again["prediction"].astype(float), before["prediction"], atol=1e-5)

    logged = next((tmp_path / "artifacts").rglob("MLmodel")).parent
    answer = mlflow.pyfunc.load_model(str(logged)).predict(np.zeros((2, 16, 24, 24, 1), np.uint8))
    assert len(answer) == 2 and "size.prediction" in answer

    scans = tmp_path / "scans"
    scans.mkdir()
    for case in prepared.split.test:
        shutil.copy(prepared.manifest.path(case.image), scans / f"{case.case_id}.nii.gz")
    given = ["predict", str(run / "bundle"), str(scans), str(tmp_path / "out"), "--device", "cpu", "--names", "path"]
    assert cli.run(given) == 0
    found = pd.read_csv(tmp_path / "out/predictions.csv").set_index("image")["size.value"]
    sizes = before[before["task"] == "size"].set_index("case_id")["prediction"]
    for case, value in sizes.items():  # what the study's own evaluation says of the same file
        assert found[f"{case}.nii.gz"] == pytest.approx(value, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["efficientnet_3d", "vit_3d"])
def test_other_encoders_train_and_evaluate(folder, tmp_path, encoder):
    file = study_file(folder, tmp_path, encoder)
    settings = ["tracking.enabled=false", "optim.epochs=1", "evaluation.resamples=100"]
    assert cli.run(["train", str(file), "--runs", str(tmp_path / "runs"), *settings]) == 0
    assert cli.run(["evaluate", str(next((tmp_path / "runs").iterdir()))]) == 0


@pytest.mark.slow
def test_patches_learn_a_mask_and_are_explained(folder, tmp_path):
    """A network that sees 12 x 16 x 16 voxels at a time, with artefacts of MR, finds the ball in whole volumes."""
    preprocess = {key: value for key, value in STUDY["preprocess"].items() if key not in ("window", "pad")}
    changes = {
        "preprocess": {**preprocess, "patches": {"size": [12, 16, 16], "foreground": 0.6}},
        "augment": {
            "geometry": {"flip": "last", "affine": {"probability": 0.3, "rotate_deg": 10}},
            "mri": {"bias_field": {"strength": 0.2, "probability": 0.5}, "rician": {"std": 0.03, "probability": 0.5}},
        },
        "tasks": {name: STUDY["tasks"][name] for name in ("size", "ball")},
        "optim": {**STUDY["optim"], "epochs": 16},
    }
    file = study_file(folder, tmp_path, "slices", **changes)
    settings = ["tracking.enabled=false", "evaluation.resamples=100", "evaluation.gallery=2"]
    assert cli.run(["train", str(file), "--runs", str(tmp_path / "runs"), *settings]) == 0
    run = next((tmp_path / "runs").iterdir())
    assert cli.run(["evaluate", str(run)]) == 0
    result = json.loads((run / "evaluation/evaluation.json").read_text())["tasks"]
    assert result["ball"]["overall"]["dice.ball"]["value"] > 0.5
    done = explain(ExplainJob(run / "bundle", (folder / "images/v47.nii.gz",), tmp_path / "out", tasks=("ball",)))
    assert done.exit_code == 0
    salient = read_nifti(tmp_path / "out/v47/ball.saliency.nii.gz").array
    ball = read_nifti(folder / "masks/v47.nii.gz", labels=True).array > 0
    assert salient.shape == ball.shape and salient[ball].mean() > 2 * salient[~ball].mean()


@pytest.mark.parametrize(
    ("image", "mask", "code"),
    [("i.nii.gz", "moved.nii.gz", "E-MASK-PLACE"), ("i.nii.gz", "many.nii.gz", "E-MASK-LABELS"),
     ("series.nii.gz", None, "E-VOL-DIMENSIONS")],
)  # fmt: skip
def test_bad_volumes_and_masks_are_named_with_their_row(tmp_path, image, mask, code):
    scan, ball = draw(np.random.default_rng(1), 9)
    write_nifti(tmp_path / "i.nii.gz", scan)
    write_nifti(tmp_path / "moved.nii.gz", Volume(ball.array, ball.affine + np.eye(4) * 0.2))
    write_nifti(tmp_path / "many.nii.gz", Volume(ball.array * 7, ball.affine))
    write_nifti(tmp_path / "series.nii.gz", Volume(np.stack([scan.array] * 2, -1), scan.affine, time_step_s=2.0))
    case = Case("c1", "p1", image, targets={"ball": mask} if mask else {}, row=5)
    study = load(Study, study_file(tmp_path, tmp_path, "slices"))
    dataset = CaseDataset((case,), tmp_path, {"ball": study.tasks["ball"].reader()}, (), study.preprocess)
    message = refuses(code, lambda: dataset.read(0))
    assert "case c1 (manifest row 5)" in message


def test_foreground_normalisation_does_not_depend_on_how_much_air_there_is():
    brain = torch.rand(1, 4, 5, 6).clamp_min(0.01)
    wide = torch.nn.functional.pad(brain, (7, 7, 7, 7, 7, 7))
    config = ForegroundNormalise()
    inner = config.apply(wide)[..., 7:-7, 7:-7, 7:-7]
    torch.testing.assert_close(inner, config.apply(brain))
    assert abs(float(inner.mean())) < 1e-5 and float(inner.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert not config.apply(torch.zeros(1, 2, 2, 2)).any()


@pytest.mark.parametrize("wrong", [{"channels": 3}, {"resize": [8, 8, 8]}, {"window": [8, 8]}])
def test_settings_that_do_not_fit_volumes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"volume|axes"):
        Preprocess.model_validate({"channels": 1, "volume": {}, **wrong})
