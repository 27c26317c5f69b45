"""Runs that are trained: what may still be said about their evaluation, and their worst cases when they are pooled."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from figures_made import undrawn
from laws import cases, written

from medmtl import cli
from medmtl.bundle import load_bundle
from medmtl.config import load
from medmtl.experiment import freeze_thresholds, train
from medmtl.pooling import evaluated, pool_runs
from medmtl.predictor import Predictor
from medmtl.prepared import prepare
from medmtl.results import evaluate_run, gallery
from medmtl.runs import RunFolder
from medmtl.study import Study

FOLDS = 2


@pytest.fixture(scope="module", autouse=True)
def _one_picture_for_all() -> Iterator[None]:
    with undrawn():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two folds of a tiny study, trained and evaluated."""
    folder = tmp_path_factory.mktemp("evaluated")
    found = [
        replace(
            case,
            targets={"grade": "ab"[i // 2 % 2], "size": str(i // 2 % 7)},
            meta={"site": "rare" if i // 2 % 4 == 0 else "s0", "was": "3"},
        )
        for i, case in enumerate(cases(16, 2, 2))
    ]
    written(folder, found)
    tree = {
        "name": "tiny",
        "data": {"manifest": str(folder / "manifest.csv"),
                 "split": {"kind": "kfold", "folds": FOLDS, "test": "fold", "validation": 0.4}},
        "preprocess": {"window": [12, 12]},
        "encoder": {"name": "test_efficientnet"},
        "tasks": {"grade": {"kind": "classification", "classes": ["a", "b"]},
                  "size": {"kind": "regression", "low": 0, "high": 10}},
        "loader": {"batch_size": 4, "workers": 0},
        "optim": {"epochs": 1},
        "fit": {"threads": 1},
        "evaluation": {"resamples": 100, "gallery": 0, "failures": {"columns": [], "resamples": 100, "gallery": 3},
                       "aggregate": {"how": "mean"}},
        "tracking": {"enabled": False},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(tree))
    for fold in range(FOLDS):
        study = load(Study, folder / "study.yaml", [f"data.split.fold={fold}", f"name=fold{fold}"])
        evaluate_run(train(study, runs=folder / "runs", say=lambda text: None), say=lambda text: None)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> list[Path]:
    """Copies of the folds' runs, to be changed."""
    found = sorted((trained / "runs").iterdir())
    return [Path(shutil.copytree(run, tmp_path / f"fold{k}")) for k, run in enumerate(found)]


def _result(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_an_override_of_the_evaluation_reaches_a_runs_folder(runs: list[Path]) -> None:
    before = _result(runs[0] / "evaluation")
    assert before["tasks"]["size"]["by"] == {} and before["bootstrap"]["resamples"] == 100
    carried = "evaluation.controls=[{kind: carry_forward, columns: {size: was}}]"
    settings = ["evaluation.by=[site]", "evaluation.resamples=120", carried, "evaluation.aggregate=null"]
    assert cli.run(["evaluate", str(runs[0]), *settings]) == 0
    after = _result(runs[0] / "evaluation")
    assert set(after["tasks"]["size"]["by"]["site"]) == {"s0", "other values"}
    assert after["bootstrap"]["resamples"] == 120 and "units" in before and "units" not in after
    controls = [tree["tasks"]["size"]["controls"] for tree in (before, after)]
    assert "carry_forward" not in controls[0] and "carry_forward" in controls[1]
    for metric, cell in before["tasks"]["size"]["overall"].items():
        assert after["tasks"]["size"]["overall"][metric]["value"] == cell["value"], "the model is the same"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optim.epochs=3"], ("E-EVAL-KEY", "optim.epochs", "evaluation")),
        (["evaluation.by=[site]", "data.split.fold=1"], ("E-EVAL-KEY", "data.split.fold")),
        (["tasks.size.high=20"], ("E-EVAL-KEY", "tasks.size.high")),
        (["data.split={kind: group}"], ("E-EVAL-KEY", "data.split.kind")),
        (["evaluation.bye=[site]"], ("E-CFG", "evaluation.bye: unknown key, did you mean 'by'?")),
        (["evaluation.resamples=many"], ("E-CFG", "evaluation.resamples")),
        (["--single-task", "size"], ("E-EVAL-TASK", "YAML")),
    ],
)
def test_what_would_be_another_run_is_refused(
    runs: list[Path], capsys: pytest.CaptureFixture[str], arguments: list[str], words: tuple[str, ...]
) -> None:
    before = (runs[0] / "evaluation" / "evaluation.json").read_bytes()
    assert cli.run(["evaluate", str(runs[0]), *arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert (runs[0] / "evaluation" / "evaluation.json").read_bytes() == before
    assert RunFolder(runs[0]).read_facts()["test_evaluations"] == 1, "the test part was not read"


def test_a_manifest_at_another_place_must_hold_the_same(trained: Path, runs: list[Path], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(trained / "images", tmp_path / "moved" / "images")).parent
    shutil.copyfile(trained / "manifest.csv", moved / "manifest.csv")
    command = ["evaluate", str(runs[0]), f"data.manifest={moved / 'manifest.csv'}"]
    assert cli.run(command) == 0
    text = (moved / "manifest.csv").read_text()
    (moved / "manifest.csv").write_text(text.replace("\nc000,", "\nc999,"))
    assert cli.run(command) == 6


def test_other_views_are_averaged_and_choose_their_own_thresholds(runs: list[Path]) -> None:
    run = RunFolder(runs[0])
    bundle, prepared = load_bundle(run.bundle), prepare(load(Study, run.study))
    assert evaluated(run) and cli.run(["evaluate", str(run.path), "views=flips"]) == 0
    flips = Predictor.of(bundle, views="flips")
    val, test = (
        flips.table(prepared.dataset(part), batch_size=4) for part in (prepared.split.val, prepared.split.test)
    )
    table = pd.read_csv(run.evaluation / "cases.csv", dtype={"group": str})
    for column in ("size", "grade"):
        ours = table[(table["split"] == "test") & (table["task"] == column)].set_index("case_id")
        expected = test[test["task"] == column].set_index("case_id")
        name = "prediction" if column == "size" else "p.b"
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-6)
        assert not np.allclose(ours[name], _plain(bundle, prepared, column)[name], rtol=1e-6), "flips change nothing"
    tasks = yaml.safe_load((run.evaluation / "tasks.yaml").read_text())
    expected_threshold = freeze_thresholds(bundle.spec, val).tasks["grade"].threshold
    assert tasks["views"] == "flips" and tasks["tasks"]["grade"]["threshold"] == pytest.approx(expected_threshold)
    assert "flips" in _result(run.evaluation)["provenance"]["views"]
    assert not evaluated(run), "it is not what the bundle itself says"
    assert cli.run(["evaluate", str(run.path)]) == 0 and evaluated(run)


def _plain(bundle, prepared, task: str) -> pd.DataFrame:  # type: ignore[no-untyped-def]
    table = Predictor.of(bundle).table(prepared.dataset(prepared.split.test), batch_size=4)
    return table[table["task"] == task].set_index("case_id")


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, torch.Tensor]]:
    """(task, case, a parameter of the model) of every look at a case."""
    found: list[tuple[str, str, torch.Tensor]] = []
    original = gallery.evidence

    def recorded(predictor, dataset, index, task):  # type: ignore[no-untyped-def]
        found.append((task, dataset.cases[index].case_id, _parameter(predictor.model)))
        return original(predictor, dataset, index, task)

    monkeypatch.setattr(gallery, "evidence", recorded)
    return found


def _parameter(model: torch.nn.Module) -> torch.Tensor:
    return next(iter(model.parameters())).detach().clone()


def test_pooled_worst_cases_are_seen_by_the_model_of_their_fold(
    runs: list[Path], tmp_path: Path, looked: list[tuple[str, str, torch.Tensor]]
) -> None:
    out = tmp_path / "pooled"
    pool_runs([RunFolder(run) for run in runs], out, say=lambda text: None)
    assert all((out / "figures" / f"{task}-failures.png").is_file() for task in ("grade", "size"))
    table = pd.read_csv(out / "cases.csv")
    fold = dict(zip(table["case_id"], table["fold"], strict=True))
    own = [_parameter(load_bundle(run / "bundle").model) for run in runs]
    assert not torch.equal(*own), "the folds are one model, so this test shows nothing"
    assert [task for task, _, _ in looked].count("size") == 3 and len(looked) == 6, "bounded"
    assert all(torch.equal(parameter, own[fold[case]]) for _, case, parameter in looked)
    assert {fold[case] for _, case, _ in looked} == {0, 1}, "one fold only, so this test shows nothing"
    size = table[table["task"] == "size"].assign(error=lambda t: (t["prediction"] - t["target"]).abs())
    worst = size.sort_values("error", ascending=False).drop_duplicates("group")["case_id"].head(3)
    assert {case for task, case, _ in looked if task == "size"} == set(worst)


@pytest.mark.parametrize("how", ["gone", "of another training"])
def test_a_fold_without_its_bundle_is_left_out_of_the_gallery_by_name(
    runs: list[Path], tmp_path: Path, looked: list[tuple[str, str, torch.Tensor]], how: str
) -> None:
    shutil.rmtree(runs[1] / "bundle")
    if how != "gone":
        shutil.copytree(runs[0] / "bundle", runs[1] / "bundle")
    out = tmp_path / "pooled"
    pool_runs([RunFolder(run) for run in runs], out, say=lambda text: None)
    assert "leave out the cases of fold 1: its bundle is gone" in (out / "report.html").read_text()
    table = pd.read_csv(out / "cases.csv")
    first = set(table.loc[table["fold"] == 0, "case_id"])
    assert len(looked) == 6 and {case for _, case, _ in looked} <= first


def test_pooled_errors_stand_beside_the_training_mean_and_median(runs: list[Path], tmp_path: Path) -> None:
    """Of images and of patients: each fold's own mean of its training labels, on the cases that the fold held out."""
    out = tmp_path / "pooled"
    pool_runs([RunFolder(run) for run in runs], out, say=lambda text: None)
    units = _result(out)["units"]["tasks"]["size"]["controls"]
    table = pd.read_csv(out / "per-group" / "cases.csv", dtype={"case_id": str})
    table = table[(table["task"] == "size") & table["target"].notna()]
    for control, of in (("training_mean", np.mean), ("training_median", np.median)):
        said = []
        for run in runs:
            prepared = prepare(load(Study, run / "study.yaml"))
            said.append(of([float(case.targets["size"]) for case in prepared.split.train]))
        assert said[0] != said[1], "the folds have one constant, so this test shows nothing"
        error = (table["fold"].map(dict(enumerate(said))) - table["target"]).abs().mean()
        assert units[control]["metrics"]["mae"]["control"] == pytest.approx(error)
        assert f"training {control.partition('_')[2]} {error:.3f}" in (out / "report.html").read_text()
