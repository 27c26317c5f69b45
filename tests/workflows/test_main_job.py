"""The main job through the command line, as a user runs it: config, train, evaluate, compare, ensemble, predict."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from medmtl import cli
from medmtl.config import read_yaml
from medmtl.data.case import read_manifest
from medmtl.data.synthetic.mitosis import PHASES, write_mitosis_study

SMOKE = Path(__file__).parents[2] / "configs" / "smoke" / "atypical_mitosis.yaml"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small synthetic study and two trained and evaluated runs of it (seeds 0 and 1)."""
    folder = tmp_path_factory.mktemp("job")
    write_mitosis_study(folder / "study", cases=120, groups=24, size=48)
    tree = read_yaml(SMOKE)
    tree["data"]["manifest"] = str(folder / "study" / "manifest.csv")
    tree["preprocess"]["window"] = [32, 32]
    tree["loader"] = {"batch_size": 16, "workers": 0}
    tree["optim"]["epochs"] = 2
    tree["fit"] |= {"observe_every": 3, "threads": 1}
    tree["evaluation"] = {"resamples": 100, "gallery": 4}
    tree["tracking"] = {"uri": f"sqlite:///{folder / 'mlflow.db'}", "system_metrics": False}
    (folder / "study.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    for seed in (0, 1):
        assert cli.run(["train", str(folder / "study.yaml"), f"seed={seed}", "--runs", str(folder / "runs")]) == 0
        assert cli.run(["evaluate", str(folder / "study.yaml"), f"seed={seed}", "--runs", str(folder / "runs")]) == 0
    return folder


def runs(place: Path) -> list[Path]:
    return sorted(path for path in (place / "runs").iterdir() if "-only-" not in path.name)


def test_the_smoke_study_names_the_phases_that_the_generator_writes() -> None:
    assert tuple(read_yaml(SMOKE)["tasks"]["phase_1"]["classes"]) == tuple(PHASES)


def test_a_run_holds_what_the_readme_promises(place: Path) -> None:
    run = runs(place)[0]
    for name in ("study.yaml", "history.jsonl", "bundle/spec.yaml", "bundle/weights.safetensors", "bundle/README.md",
                 "evaluation/cases.csv", "evaluation/evaluation.json", "evaluation/report.html"):  # fmt: skip
        assert (run / name).is_file(), name
    result = json.loads((run / "evaluation" / "evaluation.json").read_text())
    atypical = result["tasks"]["atypical"]
    assert {"balanced_accuracy", "auroc", "auprc", "sensitivity", "specificity", "f1", "brier", "ece"} <= set(
        atypical["overall"]
    )
    assert {"mae", "rmse", "r2", "pearson", "spearman"} <= set(result["tasks"]["vote_fraction"]["overall"])
    assert {"dice.nucleus", "iou.nucleus", "hd95.nucleus"} <= set(result["tasks"]["nucleus"]["overall"])
    assert atypical["control"]["constant"]["balanced_accuracy"] == 0.5
    assert atypical["n_missing"] > 0, "the study has missing labels, which must be counted"
    report = (run / "evaluation" / "report.html").read_text()
    assert "data:image/png;base64," in report
    assert "http://" not in report
    assert "https://" not in report
    spec = yaml.safe_load((run / "bundle" / "spec.yaml").read_text())
    assert 0 <= spec["model"]["tasks"]["atypical"]["threshold"] <= 1


def test_test_cases_were_never_trained_on(place: Path) -> None:
    table = pd.read_csv(runs(place)[0] / "evaluation" / "cases.csv", dtype=str)
    manifest = {case.case_id: case for case in read_manifest(place / "study" / "manifest.csv").cases}
    assert {manifest[case].split for case in table.loc[table["split"] == "test", "case_id"]} == {"test"}
    trained = {case.group for case in manifest.values() if case.split == "train"}
    assert not trained & set(table["group"])


def test_everything_is_in_mlflow_and_evaluation_went_into_the_same_run(place: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "demo_atypical_mitosis"]
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 2
    facts = {json.loads((run / "run.json").read_text())["mlflow_run_id"] for run in runs(place)}
    assert {run.info.run_id for run in found} == facts
    run = found[0]
    assert run.info.status == "FINISHED"
    metrics = run.data.metrics
    for name in ("loss", "learning_rate", "train.atypical.loss", "val.atypical.auroc", "test.atypical.auroc",
                 "test.atypical.auroc.low", "epoch.images_per_second", "epoch.data_wait_share"):  # fmt: skip
        assert name in metrics, name
    assert any(name.startswith("cosine.") for name in metrics)
    assert any(name.startswith("test.atypical.auroc.") and "worst" in name for name in metrics)
    assert {"config_sha256", "split_sha256", "manifest_sha256"} <= set(run.data.tags)
    assert run.data.params["optim.epochs"] == "2"
    assert "resumed" not in run.data.tags, "an evaluation adds to a run, it does not resume its training"
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"bundle", "evaluation"} <= artifacts
    assert run.inputs.dataset_inputs


def test_the_logged_model_loads_and_agrees_with_the_bundle(place: Path) -> None:
    import mlflow
    import numpy as np

    from medmtl.bundle import load_bundle
    from medmtl.predictor import Predictor

    client = mlflow.MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo_atypical_mitosis")
    facts = json.loads((runs(place)[0] / "run.json").read_text())
    (model,) = [
        m for m in client.search_logged_models([experiment.experiment_id]) if m.source_run_id == facts["mlflow_run_id"]
    ]
    mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
    images = np.random.default_rng(0).integers(0, 255, (3, 48, 48, 3), dtype=np.uint8)
    answer = pd.DataFrame(mlflow.pyfunc.load_model(model.model_uri).predict(images))
    direct = Predictor.of(load_bundle(runs(place)[0] / "bundle")).arrays(images)
    np.testing.assert_allclose(answer["atypical.p.atypical"].astype(float), direct["atypical.p.atypical"], rtol=1e-5)


def test_a_finished_run_is_recognised_and_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs(place)[0].rglob("*") if path.is_file()}
    seed = read_yaml(runs(place)[0] / "study.yaml")["seed"]
    assert cli.run(["train", str(place / "study.yaml"), f"seed={seed}", "--runs", str(place / "runs")]) == 0
    assert "finished" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in runs(place)[0].rglob("*") if path.is_file()}
    assert {p: t for p, t in after.items() if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }


def test_a_bundle_says_what_its_views_gain(place: Path) -> None:
    for run in runs(place):
        selected = read_yaml(run / "bundle" / "spec.yaml")["provenance"]["selected"]
        table = pd.read_csv(run / "evaluation" / "cases.csv")
        rows = table[(table["task"] == "atypical") & (table["split"] == "val")].dropna(subset="target")
        assert selected["monitor"] == "atypical.auroc"
        assert selected["value_with_views"] == pytest.approx(
            roc_auc_score(rows["target"], rows["p.atypical"]), abs=1e-6
        )


def test_compare_and_ensemble(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs(place)
    assert cli.run(["compare", str(a), str(b), "--out", str(place / "comparison"), "--resamples", "100"]) == 0
    assert "atypical" in capsys.readouterr().out
    cell = json.loads((place / "comparison" / "comparison.json").read_text())["tasks"]["atypical"]["overall"]["auroc"]
    assert cell["difference"] == pytest.approx(cell["b"] - cell["a"])
    assert cli.run(["compare", str(a), str(a), "--resamples", "100"]) == 0
    assert cli.run(["ensemble", str(a), str(b), "--out", str(place / "ensemble")]) == 0
    tables = [pd.read_csv(folder / "cases.csv") for folder in (a / "evaluation", b / "evaluation", place / "ensemble")]
    p = [t[(t["task"] == "atypical") & (t["split"] == "test")].set_index("case_id")["p.atypical"] for t in tables]
    assert (p[2] - (p[0] + p[1]) / 2).abs().max() < 1e-9


def test_an_ensemble_decides_every_part_by_the_threshold_that_it_states(place: Path) -> None:
    shifted, out = [place / "shifted" / run.name for run in runs(place)], place / "stated"
    for run, copy in zip(runs(place), shifted, strict=True):  # good probabilities that no bundle's threshold fits
        shutil.copytree(run, copy)
        table = pd.read_csv(copy / "evaluation" / "cases.csv")
        mine = table["task"] == "atypical"
        noise = np.random.default_rng(len(table)).uniform(0, 0.1, len(table))
        table.loc[mine, "p.atypical"] = 0.1 + 0.08 * table["target"].fillna(0) + noise
        table.loc[mine, "p.normal"] = 1 - table.loc[mine, "p.atypical"]
        table.to_csv(copy / "evaluation" / "cases.csv", index=False)
    assert cli.run(["ensemble", *map(str, shifted), "--out", str(out)]) == 0
    entry = json.loads((out / "evaluation.json").read_text())["tasks"]["atypical"]
    rows = pd.read_csv(out / "cases.csv").query("task == 'atypical'")
    assert entry["positive"] == "atypical" and set(rows["split"]) == {"val", "test"}
    assert 0.1 < entry["threshold"] < 0.3, "its own, not the first model's"
    called = (rows["p.atypical"] >= entry["threshold"]).map({True: "atypical", False: "normal"})
    assert (rows["predicted_label"] == called).all()
    assert f"called atypical from a probability of {entry['threshold']:.3f} on" in (out / "report.html").read_text()


def test_compare_only_the_cases_with_a_value(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs(place)
    table = pd.read_csv(a / "evaluation" / "cases.csv")
    rows = table[(table["task"] == "atypical") & (table["split"] == "test") & table["target"].notna()]
    domain, count = rows["domain"].value_counts().index[0], int(rows["domain"].value_counts().iloc[0])
    given = ["compare", str(a), str(b), "--out", str(place / "one"), "--resamples", "100", "--where"]
    assert cli.run([*given, f"domain={domain}"]) == 0
    comparison = json.loads((place / "one" / "comparison.json").read_text())
    assert comparison["where"] == {"domain": domain}
    assert comparison["tasks"]["atypical"]["overall"]["auroc"]["n"] == count < len(rows)
    capsys.readouterr()
    for wrong in ("domain=nowhere", "colour=red", "domain"):
        assert cli.run([*given, wrong]) == 2
        assert "E-CMP-WHERE" in capsys.readouterr().err


def test_compare_takes_case_tables(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (run / "evaluation" / "cases.csv" for run in runs(place))
    kept = tmp_path / "b"
    kept.mkdir()
    shutil.copy(b, kept / "model_b.csv")
    given = ["compare", str(a), str(kept / "model_b.csv"), "--out", str(tmp_path / "tables"), "--resamples", "100"]
    assert cli.run(given) == 2
    message = capsys.readouterr().err
    assert "E-CMP-CASES" in message and "a case table without tasks.yaml" in message
    shutil.copy(b.with_name("tasks.yaml"), kept)
    assert cli.run(given) == 0
    folders = ["compare", *map(str, runs(place)), "--out", str(tmp_path / "folders"), "--resamples", "100"]
    assert cli.run(folders) == 0
    tables, folders = (
        json.loads((tmp_path / name / "comparison.json").read_text())["tasks"] for name in ("tables", "folders")
    )
    for name in folders:  # controls apart: their table was not copied
        assert tables[name]["overall"] == folders[name]["overall"], name
    (kept / "model_b.csv").write_text("image,label\n1,2\n")
    assert cli.run(given) == 2
    assert "no column task, split, case_id, target" in capsys.readouterr().err


def test_compare_one_task_where_another_is_labelled_differently(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = runs(place)
    shutil.copytree(b / "evaluation", tmp_path / "other")
    table = pd.read_csv(tmp_path / "other" / "cases.csv", dtype=str, keep_default_na=False)
    votes = (table["task"] == "vote_fraction") & (table["split"] == "test") & (table["target"] != "")
    table.loc[votes, "target"] = "0.123"
    table.to_csv(tmp_path / "other" / "cases.csv", index=False)
    given = ["compare", str(a), str(tmp_path / "other"), "--out", str(tmp_path / "out"), "--resamples", "100"]
    assert cli.run(given) == 2
    message = capsys.readouterr().err
    assert "E-EVAL-TARGET" in message
    assert "vote_fraction" in message
    assert "`--task`" in message
    assert cli.run([*given, "--task", "domain", "--task", "atypical"]) == 0
    tasks = json.loads((tmp_path / "out" / "comparison.json").read_text())["tasks"]
    assert list(tasks) == [name for name in read_yaml(a / "study.yaml")["tasks"] if name in ("atypical", "domain")]
    assert "vote_fraction" not in capsys.readouterr().out
    assert cli.run([*given, "--task", "other"]) == 2
    assert "E-CMP-TASKS" in capsys.readouterr().err


def test_single_task_is_the_same_network_on_one_task(place: Path) -> None:
    arguments = [str(place / "study.yaml"), "--single-task", "atypical", "--runs", str(place / "runs")]
    assert cli.run(["train", *arguments]) == 0
    (run,) = (place / "runs").glob("*-only-atypical-*")
    study, full = read_yaml(run / "study.yaml"), read_yaml(runs(place)[0] / "study.yaml")
    assert list(study["tasks"]) == ["atypical"]
    assert study["encoder"] == full["encoder"]
    assert study["optim"] == full["optim"]
    assert (
        json.loads((run / "run.json").read_text())["split_sha256"]
        == json.loads((runs(place)[0] / "run.json").read_text())["split_sha256"]
    )


def test_evaluating_on_a_changed_manifest_is_refused(place: Path) -> None:
    manifest = place / "study" / "manifest.csv"
    content = manifest.read_text()
    try:
        manifest.write_text(content.replace(",atypical,", ",normal,", 1))
        assert cli.run(["evaluate", str(runs(place)[0])]) == 6
    finally:
        manifest.write_text(content)


def test_prediction_of_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = runs(place)[0] / "bundle"
    scans = place / "scans"
    scans.mkdir(exist_ok=True)
    for path in sorted((place / "study" / "images").glob("*.png"))[:5]:
        (scans / path.name).write_bytes(path.read_bytes())
    given = ["predict", str(bundle), str(scans), str(place / "out"), "--names", "path"]
    assert cli.run(given) == 0
    table = pd.read_csv(place / "out" / "predictions.csv")
    assert len(table) == 5
    assert table["atypical.p.atypical"].between(0, 1).all()
    assert set(table["gate"]) <= {"in_range", "warn"}, "training left a fingerprint in the bundle"
    (scans / "broken.png").write_bytes(b"")
    assert cli.run(given) == 3
    assert "5 of 6 inputs" in capsys.readouterr().out
    assert "broken" in (place / "out" / "errors.csv").read_text()


def test_mistakes_are_one_line_and_an_exit_code(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, words in (
        (["train", str(place / "study.yaml"), "optim.epoch=3"], 2, "did you mean"),
        (["train", str(place / "nothing.yaml")], 2, "no such file"),
        (["train", str(place / "study.yaml"), "tasks.atypical.classes=[normal, odd]"], 2, "none of the task's classes"),
        (["train", str(place / "study.yaml"), "--single-task", "typo"], 2, "no task"),
        (["evaluate", str(place / "nowhere")], 2, "study.yaml"),
        (["predict", str(place / "nowhere"), str(place), str(place / "x")], 2, "spec.yaml"),
        (["train"], 2, ""),
    ):
        assert cli.run(arguments) == code, arguments
        captured = capsys.readouterr()
        assert words in captured.err, (arguments, captured.err)
        assert "Traceback" not in captured.err + captured.out
