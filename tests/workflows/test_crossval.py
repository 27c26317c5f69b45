"""All folds of a study as one evaluation, tasks alone beside it, and sweeps: through the commands, end to end."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from figures_made import undrawn
from mlflow import MlflowClient
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from medmtl import cli
from medmtl.config import load, read_yaml, validate
from medmtl.data.case import read_manifest
from medmtl.data.synthetic.colposcopy import write_colposcopy_study
from medmtl.prepared import prepare
from medmtl.runs import RunFolder
from medmtl.study import Study

SMOKE = Path(__file__).parents[2] / "configs" / "smoke" / "cervical_screening.yaml"
FOLDS = 2
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _one_picture_for_all() -> Iterator[None]:
    with undrawn():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a drawn study, cross-validated with each task alone; three tasks, to be quick."""
    folder = tmp_path_factory.mktemp("crossval")
    write_colposcopy_study(folder / "study", cases=90, groups=45, size=48)
    tree = read_yaml(SMOKE)
    tree["data"] = {
        "manifest": str(folder / "study" / "manifest.csv"),
        "split": {"kind": "kfold", "folds": FOLDS, "test": "fold"},
    }
    tree["preprocess"]["window"] = [32, 32]
    tree["tasks"] = {name: tree["tasks"][name] for name in ("suspicious", "swede", "lesion")}
    tree["loader"] = {"batch_size": 16, "workers": 0}
    tree["optim"] = {"epochs": 2, "learning_rate": 0.003}
    tree["fit"] = {"threads": 1}
    tree["views"] = "identity"
    tree["evaluation"] = {
        "resamples": 100,
        "gallery": 2,
        "failures": {"columns": ["comorbidity"], "resamples": 100, "gallery": 0},
        "aggregate": {"how": "max"},
    }
    tree["tracking"] = {"uri": f"sqlite:///{folder / 'mlflow.db'}", "system_metrics": False}
    (folder / "study.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    assert cli.run(["crossval", str(folder / "study.yaml"), "--single-tasks", "--runs", str(folder / "runs")]) == 0
    return folder


def _parent(place: Path) -> Path:
    (folder,) = (place / "runs").glob("crossval-*")
    return folder


def _facts(place: Path) -> dict:
    return json.loads((_parent(place) / "crossval.json").read_text())


def _runs(place: Path, variant: str = "all tasks") -> list[Path]:
    return [place / "runs" / name for name in _facts(place)["runs"][variant]]


def _test_rows(run: Path, task: str) -> pd.DataFrame:
    table = pd.read_csv(run / "evaluation" / "cases.csv")
    return table[(table["split"] == "test") & (table["task"] == task)]


def test_every_case_is_in_the_pooled_table_once_as_its_fold_said(place: Path) -> None:
    table = pd.read_csv(_parent(place) / "evaluation" / "cases.csv")
    manifest = read_manifest(place / "study" / "manifest.csv")
    for task in ("suspicious", "swede"):
        rows = table[table["task"] == task]
        assert sorted(rows["case_id"]) == sorted(case.case_id for case in manifest.cases)
        folds = pd.concat([_test_rows(run, task).assign(fold=k) for k, run in enumerate(_runs(place))])
        columns = ["case_id", "fold", "target", "prediction"]
        left, right = (t[columns].sort_values("case_id", ignore_index=True) for t in (rows, folds))
        pd.testing.assert_frame_equal(left, right)
    assert set(table["split"]) == {"test"}


def test_thresholds_and_constants_are_each_folds_own(place: Path) -> None:
    folder = _parent(place) / "evaluation"
    result = json.loads((folder / "evaluation.json").read_text())["tasks"]
    rows = pd.read_csv(folder / "cases.csv")
    rows = rows[(rows["task"] == "suspicious") & rows["target"].notna()]
    overall = result["suspicious"]["overall"]
    decided = balanced_accuracy_score(rows["target"], rows["prediction"])
    assert overall["balanced_accuracy"]["value"] == pytest.approx(decided)
    assert overall["auroc"]["value"] == pytest.approx(roc_auc_score(rows["target"], rows["p.suspicious"]))
    specs = [read_yaml(run / "bundle" / "spec.yaml")["model"]["tasks"] for run in _runs(place)]
    thresholds = [spec["suspicious"]["threshold"] for spec in specs]
    assert len(set(thresholds)) == FOLDS, "the folds chose alike, so this test shows nothing"
    called = rows["p.suspicious"] >= rows["fold"].map(dict(enumerate(thresholds)))
    np.testing.assert_array_equal(called, rows["predicted_label"] == "suspicious")
    priors = [spec["suspicious"]["prior"][1] for spec in specs]
    assert len(set(priors)) > 1, "the folds have one prior, so this test shows nothing"
    brier = ((rows["fold"].map(dict(enumerate(priors))) - rows["target"]) ** 2).mean()
    assert result["suspicious"]["control"]["constant"]["brier"] == pytest.approx(brier)


def test_patients_are_as_their_folds_aggregated_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _parent(place) / "evaluation"
    units = json.loads((folder / "evaluation.json").read_text())["units"]
    table = pd.read_csv(folder / "per-group" / "cases.csv")
    groups = {case.group for case in read_manifest(place / "study" / "manifest.csv").cases}
    rows = table[(table["task"] == "suspicious") & table["target"].notna()]
    assert set(table["case_id"]) == groups and units["how"] == "max"
    value = units["tasks"]["suspicious"]["overall"]["balanced_accuracy"]["value"]
    assert value == pytest.approx(balanced_accuracy_score(rows["target"], rows["prediction"]))
    own = [json.loads((run / "evaluation" / "evaluation.json").read_text())["units"] for run in _runs(place)]
    assert units["thresholds"]["suspicious"] == [of["thresholds"]["suspicious"] for of in own]
    sides = [str(_parent(place) / name / "per-group") for name in ("evaluation-only-suspicious", "evaluation")]
    assert cli.run(["compare", *sides, "--resamples", "100"]) == 0
    assert "suspicious" in capsys.readouterr().out


def test_controls_are_each_folds_own(place: Path) -> None:
    """The mean of the training part differs from fold to fold; so the control that says it does."""
    folder = _parent(place) / "evaluation"
    swede = json.loads((folder / "evaluation.json").read_text())["tasks"]["swede"]
    assert {"training_mean", "training_median"} <= set(swede["controls"])
    own = pd.concat([pd.read_csv(run / "evaluation" / "controls.csv") for run in _runs(place)])
    own = own[(own["split"] == "test") & (own["task"] == "swede") & own["target"].notna()]
    for control in ("training_mean", "training_median"):
        rows = own[own["control"] == control]
        error = (rows["prediction"] - rows["target"]).abs().mean()
        assert swede["controls"][control]["metrics"]["mae"]["control"] == pytest.approx(error)


def test_the_report_is_that_of_an_evaluation(place: Path) -> None:
    report = (_parent(place) / "evaluation" / "report.html").read_text()
    for words in (
        "2 folds: each of 90 cases",
        "Per group (max)",
        "Where it fails",
        "suspicious: thresholds",
        "constant",
    ):
        assert words in report, words
    assert (_parent(place) / "evaluation" / "failures.csv").is_file()
    assert (_parent(place) / "evaluation" / "figures" / "suspicious-roc.png").is_file()


def test_the_table_sets_all_tasks_against_each_alone(place: Path) -> None:
    comparison = _facts(place)["comparison"]
    folder = _parent(place)
    for task in ("suspicious", "swede"):
        values = [
            json.loads((folder / name / "evaluation.json").read_text())["tasks"][task]["overall"]
            for name in (f"evaluation-only-{task}", "evaluation")
        ]
        for metric in comparison[task]["headline"]:
            cell = comparison[task]["overall"][metric]
            assert [cell["a"], cell["b"]] == pytest.approx([value[metric]["value"] for value in values]), metric
            assert cell["low"] <= cell["high"]
    text = (folder / "crossval.txt").read_text()
    assert "all tasks" in text and "alone" in text and text.count("suspicious") == 3
    control = json.loads((folder / "evaluation" / "evaluation.json").read_text())["tasks"]["swede"]["controls"]
    for name in ("training_mean", "training_median"):
        error = f"{control[name]['metrics']['mae']['control']:.3f}"
        (line,) = (line for line in text.splitlines() if f"mae of the {name.replace('_', ' ')}" in line)
        assert line.split()[-2:] == [error, error], "the same folds have the same constants"
    alone = {task: folder / f"evaluation-only-{task}" for task in comparison}
    assert list(alone) == ["suspicious", "swede", "lesion"]
    assert [task for task in alone if (alone[task] / "per-group").is_dir()] == ["suspicious", "swede"]  # no masks


def test_compare_takes_two_pooled_evaluations(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, together = _parent(place) / "evaluation-only-suspicious", _parent(place) / "evaluation"
    out = place / "comparison"
    assert cli.run(["compare", str(alone), str(together), "--out", str(out), "--resamples", "100"]) == 0
    assert "evaluation-only-suspicious" in capsys.readouterr().out
    cell = json.loads((out / "comparison.json").read_text())["tasks"]["suspicious"]["overall"]["balanced_accuracy"]
    assert cell == _facts(place)["comparison"]["suspicious"]["overall"]["balanced_accuracy"]
    assert cli.run(["compare", str(_runs(place)[0]), str(together)]) == 2
    assert "E-CMP-FOLDS" in capsys.readouterr().err


def test_the_runs_are_shown_under_one_parent(place: Path) -> None:
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    (parent,) = parents
    assert len(found) == 1 + 4 * FOLDS and parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in found if run is not parent} == {parent.info.run_id}
    for name in ("pooled.suspicious.auroc", "pooled.only.swede.mae", "together_less_alone.suspicious.auroc"):
        assert name in parent.data.metrics, name
    assert "results" in {item.path for item in client.list_artifacts(parent.info.run_id)}


def test_the_same_command_does_nothing_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for run in _runs(place) for path in run.rglob("bundle/*")}
    assert cli.run(["crossval", str(place / "study.yaml"), "--folds", "1", "--runs", str(place / "runs")]) == 0
    said = capsys.readouterr().out
    assert said.count("this run is finished") == 1 and "nothing is pooled" in said
    assert "[1/1] fold 1 of 0 to 1" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert all(RunFolder(run).read_facts()["test_evaluations"] == 1 for run in _runs(place)), "read once"


def test_pool_by_hand_is_what_crossval_wrote(place: Path) -> None:
    runs = [str(run) for run in reversed(_runs(place))]
    assert cli.run(["pool", *runs, "--out", str(place / "pooled")]) == 0
    for name in ("cases.csv", "evaluation.json", "per-group/cases.csv", "failures.csv", "controls.csv"):
        assert (place / "pooled" / name).read_bytes() == (_parent(place) / "evaluation" / name).read_bytes(), name


@pytest.fixture
def copies(place: Path, tmp_path: Path) -> list[Path]:
    """The folds' runs, to be spoilt."""
    return [Path(shutil.copytree(run, tmp_path / f"fold{k}")) for k, run in enumerate(_runs(place))]


def _pool(runs: list[Path], out: Path) -> int:
    return cli.run(["pool", *map(str, runs), "--out", str(out)])


def test_folds_may_be_called_differently(copies: list[Path], tmp_path: Path) -> None:
    file = RunFolder(copies[1]).study
    file.write_text(re.sub(r"(?m)^name: ", "name: another_", file.read_text(encoding="utf-8")), encoding="utf-8")
    assert load(Study, file).name.startswith("another_")
    assert _pool(copies, tmp_path / "out") == 0


def test_what_is_not_every_fold_once_is_refused_by_name(
    place: Path, copies: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(runs: list[Path], *words: str) -> None:
        assert _pool(runs, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert all(word in error for word in words), error
        assert not (tmp_path / "out").exists()

    refused(copies[:1], "E-POOL-MISSING", "fold 1 of 2")
    refused([*copies, copies[1]], "E-POOL-TWICE", "fold 1")
    refused([copies[0], _runs(place, "suspicious")[1]], "E-POOL-STUDY", "differs from that of")
    refused([copies[0], tmp_path / "nowhere"], "E-POOL-RUN", "nowhere")
    cases = copies[1] / "evaluation" / "cases.csv"
    table = pd.read_csv(cases, dtype=str)
    other = _test_rows(copies[0], "swede")["case_id"].iloc[0]
    case = _test_rows(copies[1], "swede")["case_id"].iloc[0]
    table.assign(case_id=table["case_id"].replace(case, other)).to_csv(cases, index=False)
    refused(copies, "E-POOL-CASE", str(other), "fold 0 and 1")
    table[table["case_id"] != case].to_csv(cases, index=False)
    refused(copies, "E-POOL-CASE", str(case), "no test part")
    facts = copies[1] / "run.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "bundle_id": "another"}))
    refused(copies, "E-POOL-RUN", "fold1")


def test_folds_without_a_test_part_each_are_sent_to_the_ensemble(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = [str(place / "study.yaml"), "--runs", str(place / "runs")]
    for split, words in (("{kind: kfold, folds: 2}", "medmtl ensemble"), ("{kind: group}", "kfold")):
        assert cli.run(["crossval", study[0], f"data.split={split}", *study[1:]]) == 2
        error = capsys.readouterr().err
        assert "E-POOL-SPLIT" in error and words in error
    for folds, code in (("2", "E-SPLIT-FOLD"), ("a", "numbers")):
        assert cli.run(["crossval", study[0], "--folds", folds, *study[1:]]) == 2
        assert code in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- sweeps


def _sweep(place: Path, *entries: dict, name: str = "weights") -> Path:
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"study": str(place / "study.yaml"), "set": list(entries)}, sort_keys=False))
    return path


ALPHA = (
    {"name": "little", "tasks.suspicious.weight": 0.2, "tasks.swede.weight": 0.8},
    {"tasks.suspicious.weight": 0.8},
)


def test_a_sweep_compares_on_validation_and_reads_the_test_part_when_told(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", str(_sweep(place, *ALPHA)), "optim.epochs=1", "--runs", str(place / "runs")]
    assert cli.run(arguments) == 0
    said = capsys.readouterr().out
    (folder,) = (place / "runs").glob("sweep-weights-*")
    tree = json.loads((folder / "sweep.json").read_text())
    assert [row["name"] for row in tree["entries"]] == ["little", "suspicious.weight=0.8"]
    assert "best suspicious.auroc on validation" in said and "[2/2]" in said
    for row in tree["entries"]:
        run = place / "runs" / row["run"]
        assert set(row["metrics"]) == {"val"}
        assert not (run / "evaluation").exists() and "test_evaluations" not in RunFolder(run).read_facts()
        study = read_yaml(run / "study.yaml")
        assert study["optim"]["epochs"] == 1 and study["tasks"]["suspicious"]["weight"] == (
            0.2 if row["name"] == "little" else 0.8
        )
        kept = json.loads((run / "validation.json").read_text())
        assert row["metrics"]["val"]["swede"]["mae"] == kept["tasks"]["swede"]["overall"]["mae"]
        for name, error in _constants_on_validation(study, "swede").items():
            assert row["trivial"]["val"]["swede"][name]["mae"] == pytest.approx(error)
    assert (folder / "sweep.png").is_file()
    assert cli.run([*arguments, "--test"]) == 0
    said = capsys.readouterr().out
    assert said.count("this run is finished") == 2
    for row in json.loads((folder / "sweep.json").read_text())["entries"]:
        evaluation = json.loads((place / "runs" / row["run"] / "evaluation" / "evaluation.json").read_text())
        assert row["metrics"]["test"]["swede"]["mae"] == evaluation["tasks"]["swede"]["overall"]["mae"]
        known = evaluation["tasks"]["swede"]["controls"]["training_mean"]["metrics"]["mae"]["control"]
        assert row["trivial"]["test"]["swede"]["training_mean"]["mae"] == known
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    (parent,) = [
        run
        for run in client.search_runs([e.experiment_id for e in client.search_experiments()])
        if run.info.run_name == folder.name
    ]
    assert parent.data.tags["resumed"] == "1"
    assert "little.val.suspicious.auroc" in parent.data.metrics


def _constants_on_validation(tree: dict, task: str) -> dict[str, float]:
    """The errors on validation of the mean and the nearest level to the median of the training labels."""
    split = prepare(validate(Study, tree, where="test")).split
    labels = [[int(case.targets[task]) for case in part if task in case.targets] for part in (split.train, split.val)]
    return {f"training_{name}": float(np.abs(np.array(labels[1]) - of(labels[0])).mean())
            for name, of in (("mean", np.mean), ("median", np.median))}  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (({"optim.epochs": 1}, {"tasks.suspicious.wieght": 1}), ("set[1]", "did you mean 'weight'")),
        (({"optim.epochs": 1}, {"optim.epochs": 1, "name": "b"}), ("E-SWEEP-TWICE", "settings")),
        (({"optim.epochs": 1, "name": "b"}, {"optim.epochs": 2, "name": "b"}), ("E-SWEEP-TWICE", "name")),
        (({"name": "nothing"},), ("E-SWEEP-EMPTY", "set[0]")),
        ((), ("set", "at least 1")),
    ],
)
def test_a_mistake_in_a_sweep_is_told_before_anything_trains(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: tuple, words: tuple
) -> None:
    path = _sweep(place, *entries, name="bad")
    assert cli.run(["sweep", str(path), "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not (tmp_path / "runs").exists()
