"""Ordered levels, several images per patient and the analysis of failures, at work together through the commands."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from medmtl import cli
from medmtl.data.case import Case, read_manifest, write_manifest
from medmtl.io.raster import write_png

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 48 patients with 3 images each, and two trained and evaluated runs of it; patients' brightness is
    their score, and images of patients with a comorbidity are noise."""
    folder = tmp_path_factory.mktemp("patients")
    rng = np.random.default_rng(0)
    found = []
    for group in range(48):
        score, ill = int(rng.integers(0, 6)), group % 4 == 0
        for k in range(3):
            name = f"p{group:02d}_{k}"
            level = 40 + 35 * (int(rng.integers(0, 6)) if ill else score)
            pixels = np.clip(level + rng.normal(0, 8, (40, 40, 3)), 0, 255).astype(np.uint8)
            write_png(folder / f"images/{name}.png", pixels)
            targets = {"suspicious": "yes" if score >= 3 else "no", "score": str(score)}
            if k == 0:
                mask = np.zeros((40, 40), np.uint8)
                mask[10:30, 10:30] = score >= 3
                write_png(folder / f"masks/{name}.png", mask)
                targets["lesion"] = f"masks/{name}.png"
            part = "train" if group < 16 else "val" if group < 24 else "test"
            meta = {"comorbidity": "yes" if ill else "no", "visit": str(k // 2), "age": str(20 + group // 2)}
            found.append(Case(name, f"p{group:02d}", f"images/{name}.png", "site", part, targets, meta))
    write_manifest(folder / "manifest.csv", found)
    tree = {
        "name": "patients",
        "data": {"manifest": str(folder / "manifest.csv")},
        "preprocess": {"window": [32, 32], "highlights": {}},
        "augment": {"highlights": {"count": 2}},
        "encoder": {"kind": "timm", "name": "test_efficientnet"},
        "tasks": {
            "score": {"kind": "ordinal", "low": 0, "high": 5, "importance": "counts"},
            "suspicious": {"kind": "classification", "classes": ["no", "yes"]},
            "lesion": {"kind": "segmentation", "classes": ["background", "lesion"], "decoder": {"width": 8}},
        },
        "loader": {"batch_size": 12, "workers": 0},
        "optim": {"epochs": 2, "learning_rate": 0.003},
        "fit": {"threads": 1},
        "evaluation": {"resamples": 100, "gallery": 2, "failures": {"resamples": 100, "gallery": 2},
                       "aggregate": {"how": "attention"}},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}", "system_metrics": False},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    for seed in (0, 1):
        for command in ("train", "evaluate"):
            assert cli.run([command, str(folder / "study.yaml"), f"seed={seed}", "--runs", str(folder / "runs")]) == 0
    return folder


def runs(place: Path) -> list[Path]:
    return sorted((place / "runs").iterdir())


def test_an_evaluation_has_numbers_per_image_and_per_patient(place: Path) -> None:
    folder = runs(place)[0] / "evaluation"
    result = json.loads((folder / "evaluation.json").read_text())
    assert result["tasks"]["score"]["n"] == 72 and result["units"]["tasks"]["score"]["n"] == 24
    assert set(result["units"]["tasks"]) == {"score", "suspicious"}, "masks stay per image"
    assert {"quadratic_kappa", "mae", "accuracy_within_1", "spearman"} <= set(result["tasks"]["score"]["overall"])
    assert result["tasks"]["score"]["control"]["constant"]["quadratic_kappa"] == pytest.approx(0)
    assert 0 <= result["units"]["thresholds"]["suspicious"] <= 1 and result["units"]["how"] == "attention"
    table = pd.read_csv(folder / "aggregated.csv")
    assert set(table["images"]) == {3} and set(table["split"]) == {"val", "test"}, (
        "training cases are only learned from"
    )
    assert "train" not in set(pd.read_csv(folder / "cases.csv")["split"])
    report = (folder / "report.html").read_text()
    assert "Per group" in report and "Where it fails" in report and "comorbidity: yes" in report


def test_failures_are_written_with_their_figures(place: Path) -> None:
    folder = runs(place)[0] / "evaluation"
    rows = pd.read_csv(folder / "failures.csv")
    assert set(rows["column"]) == {"meta.age", "meta.comorbidity", "meta.visit"} and set(rows["task"]) == {
        "score", "suspicious", "lesion"
    }  # fmt: skip
    tested = rows[rows["p"].notna()]
    assert (tested["effect"].diff().dropna() <= 0).all(), "the largest effect first"
    figures = {path.name for path in (folder / "figures").glob("*.png")}
    assert {f"failures-{task}.png" for task in ("score", "suspicious", "lesion")} <= figures
    assert {f"{task}-failures.png" for task in ("score", "suspicious", "lesion")} <= figures
    assert {"score-confusion.png", "score-level_errors.png"} <= figures


def test_tracking_has_both_and_the_count_of_failures(place: Path) -> None:
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "patients"]
    metrics = client.search_runs([experiment.experiment_id])[0].data.metrics
    for name in ("test.score.quadratic_kappa", "test.score.quadratic_kappa.per_group",
                 "test.suspicious.auroc.per_group.low", "test.failures.worse"):  # fmt: skip
        assert name in metrics, name


def test_an_ensemble_decides_levels_from_averaged_probabilities(place: Path) -> None:
    arguments = [str(run) for run in runs(place)]
    assert cli.run(["ensemble", *arguments, "--out", str(place / "ensemble")]) == 0
    tables = [
        pd.read_csv(folder / "cases.csv")
        for folder in (*(run / "evaluation" for run in runs(place)), place / "ensemble")
    ]
    score = [table[table["task"] == "score"].set_index("case_id").sort_index() for table in tables]
    levels = [f"p.{k}" for k in range(6)]
    mean = (score[0][levels] + score[1][levels]) / 2
    np.testing.assert_allclose(score[2][levels], mean, rtol=1e-9)
    np.testing.assert_allclose(score[2]["expected"], mean @ np.arange(6), rtol=1e-5)
    median = (mean.cumsum(axis=1).to_numpy() < 0.5).sum(axis=1)
    np.testing.assert_array_equal(score[2]["prediction"], median)
    result = json.loads((place / "ensemble" / "evaluation.json").read_text())
    assert "units" not in result, "attention belongs to a run"
    assert result["failures"]["tested"] > 0


def test_a_score_of_eleven_stops_the_training_with_its_row(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = list(read_manifest(place / "manifest.csv").cases)
    cases[7] = replace(cases[7], targets={**cases[7].targets, "score": "11"})
    write_manifest(place / "wrong.csv", cases)
    code = cli.run(
        ["train", str(place / "study.yaml"), f"data.manifest={place / 'wrong.csv'}", "--runs", str(place / "x")]
    )
    assert code == 2
    error = capsys.readouterr().err
    assert "E-TGT-RANGE" in error and "row 9" in error and "0 to 5" in error
