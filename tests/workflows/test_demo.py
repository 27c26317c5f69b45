"""The demo, every study in small, through the command line; and that it picks up what is there."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from laws import refuses

from medmtl import cli
from medmtl.config import read_yaml
from medmtl.demo import DEMOS, run_demo
from medmtl.evaluation.trivial import TRIVIAL

SMOKE = Path(__file__).parents[2] / "configs" / "smoke"
TINY = ("optim.epochs=1", "loader.workers=0", "fit.threads=1", "views=identity", "evaluation.resamples=100",
        "evaluation.gallery=1", "evaluation.failures.gallery=1", "evaluation.failures.resamples=100",
        "evaluation.failures.minimum=5",
        "tracking.system_metrics=false")  # fmt: skip


def test_every_small_configuration_is_a_demo_study_and_reads_what_is_drawn() -> None:
    assert {demo.name for demo in DEMOS} == {path.stem for path in SMOKE.glob("*.yaml")}
    for demo in DEMOS:
        tree = read_yaml(SMOKE / f"{demo.name}.yaml")
        assert tree["data"]["manifest"] == f"demo/{demo.name}/study/manifest.csv"
        assert tree["name"] == f"demo_{demo.name}", "the experiment's name in MLflow"


def test_an_unknown_study_is_refused_by_name(tmp_path: Path) -> None:
    refuses("E-DEMO-NAME", lambda: run_demo(tmp_path, SMOKE, only="mitosis"), says="atypical_mitosis, cervical")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a small demo of every study, and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, _run(folder)


def _run(folder: Path, *arguments: str) -> str:
    capture = pytest.MonkeyPatch()
    said: list[str] = []
    capture.setattr("medmtl.cli.studies.say", said.append)
    uri = f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"
    common = ["--out", str(folder / "demo"), "--configs", str(SMOKE), "--cases", "90"]
    try:
        assert cli.run(["demo", *TINY, uri, *common, *arguments]) == 0
    finally:
        capture.undo()
    return "\n".join(said)


@pytest.mark.slow
def test_each_study_leaves_its_tables(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    runs = {name: next((folder / "demo" / name / "runs").iterdir()) / "evaluation" for name in (d.name for d in DEMOS)}
    for name, evaluation in runs.items():
        assert len(pd.read_csv(evaluation / "failures.csv")) > 0, name
        assert (evaluation / "report.html").is_file(), name
    patients = pd.read_csv(runs["cervical_screening"] / "aggregated.csv")
    assert (patients["images"] > 1).any()
    confusions = pd.read_csv(runs["skin_lesions"] / "confusions-lesion.csv")
    assert set(confusions["annotator"]) == {"A1", "A2", "A3", "A4", "A5"}
    for name in runs:
        (table,) = (folder / "demo" / name / "predictions").glob("*/predictions.csv")
        assert len(pd.read_csv(table)) == len(list((folder / "demo" / name / "scans-90").iterdir())) > 0


@pytest.mark.slow
def test_the_table_at_the_end_has_every_task_of_every_study(demo: tuple[Path, str]) -> None:
    folder, said = demo
    table = said[said.rindex("study  ") :].splitlines()
    rows = [tuple(re.split(r"\s{2,}", line)) for line in table[1 : table.index("")]]
    for study in DEMOS:
        (run,) = (folder / "demo" / study.name / "runs").iterdir()
        tasks = json.loads((run / "evaluation" / "evaluation.json").read_text())["tasks"]
        mine = {row[1]: row for row in rows if row[0] == study.name}
        assert set(mine) == set(tasks) == set(read_yaml(SMOKE / f"{study.name}.yaml")["tasks"])
        for task, row in mine.items():
            metric = tasks[task]["headline"][0]
            cell = tasks[task]["overall"][metric]
            shown = "-" if cell["value"] is None else f"{cell['value']:.3f}"
            assert row[2:4] == (metric, shown)
            if metric == "mae":  # an error says nothing without those of the two trivial predictors
                trivial = [tasks[task]["controls"][name]["metrics"]["mae"]["control"] for name in TRIVIAL]
                assert row[6:] == tuple(f"{error:.3f}" for error in trivial)
        assert str(run / "evaluation" / "report.html") in said
    assert said.endswith("runs: make ui")


@pytest.mark.slow
def test_what_is_there_is_not_done_again(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    name = "atypical_mitosis"
    (run,) = (folder / "demo" / name / "runs").iterdir()
    kept = [folder / "demo" / name / "study-90" / "manifest.csv", run / "bundle" / "weights.safetensors"]
    before = [path.stat().st_mtime_ns for path in kept]
    said = _run(folder, "--only", name)
    assert "this run is finished" in said
    assert "cervical_screening" not in said
    assert [path.stat().st_mtime_ns for path in kept] == before


@pytest.mark.slow
def test_mlflow_has_an_experiment_of_each_study(demo: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{demo[0] / 'mlflow.db'}")
    for study in DEMOS:
        (run,) = client.search_runs([client.get_experiment_by_name(f"demo_{study.name}").experiment_id])
        assert run.info.run_name.startswith(f"demo_{study.name}-") and run.info.status == "FINISHED"
        assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"bundle", "evaluation"}


@pytest.mark.slow
def test_the_failure_analysis_ranks_the_drawn_comorbidity_first(tmp_path: Path) -> None:
    """At the demo's own size and budget; what is left out (galleries, MLflow) the analysis does not read."""
    overrides = ("fit.threads=1", "tracking.enabled=false", "evaluation.gallery=0", "evaluation.failures.gallery=0",
                 "loader.workers=0", "evaluation.resamples=100")  # fmt: skip
    said: list[str] = []
    assert run_demo(tmp_path, SMOKE, only="cervical_screening", overrides=overrides, say=said.append) == 0
    (folder,) = (tmp_path / "cervical_screening" / "runs").iterdir()
    rows = pd.read_csv(folder / "evaluation" / "failures.csv")
    for found in (rows, rows[rows["verdict"] == "worse"]):  # by effect, and beyond chance
        assert tuple(found.iloc[0][["column", "stratum"]]) == ("meta.comorbidity", "inflammation")
    assert "cervical_screening fails most where comorbidity is inflammation: " in said[-1]
