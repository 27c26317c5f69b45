"""A run and its entry in MLflow are one, whatever came between them."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from laws import cases, written

from medmtl.config import validate
from medmtl.engine import checkpoint, mlflow_rows
from medmtl.engine.callbacks import read_history
from medmtl.engine.fit import Trainer
from medmtl.engine.mlflow import Tracker, mlflow
from medmtl.errors import TrainingInterrupted
from medmtl.experiment import train
from medmtl.results.tracking import reopened
from medmtl.runs import RunFolder
from medmtl.study import Study

PARTS = ("train", "train", "val", "test")
EPOCHS, STEPS = 2, 3  # steps of each epoch


class Killed(BaseException):
    """Stands for SIGKILL, where the run's end is kept from MLflow as well."""


def _study(folder: Path) -> Study:
    tree = {
        "name": "tiny",
        "data": {"manifest": str(folder / "manifest.csv")},
        "preprocess": {"window": [12, 12]},
        "encoder": {"name": "test_efficientnet"},
        "tasks": {"size": {"kind": "regression", "low": 0, "high": 10, "pool": {"hidden": 4}}},
        "loader": {"batch_size": 4, "workers": 0},
        "optim": {"epochs": EPOCHS},
        "fit": {"device": "cpu"},
        "tracking": {"system_metrics": False},
    }
    return validate(Study, tree, where="test")


def _train(study: Study, runs: Path, *, fresh: bool = False) -> list[str]:
    said: list[str] = []
    train(study, runs=runs, fresh=fresh, say=said.append)
    return said


def _dies(patch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool = False, when: Any = None) -> None:
    """The process dies in this function of ``owner``, at its start or its end, at the call that ``when`` accepts."""
    whole = getattr(owner, name)

    def dying(*given: Any, **named: Any) -> Any:
        if when is not None and not when(*given):
            return whole(*given, **named)
        if after:
            whole(*given, **named)
        patch.setattr(Tracker, "finished", lambda self, status: None)
        raise Killed

    patch.setattr(owner, name, dying)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose run was killed between its bundle and its logged model."""
    folder = tmp_path_factory.mktemp("killed")
    written(folder, [replace(case, split=PARTS[i // 2 % 4], domain="d", targets={"size": str(i % 10)})
                     for i, case in enumerate(cases(12, 2, 1))])  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/m.db")
        _dies(patch, Tracker, "log_model")
        with pytest.raises(Killed):
            _train(_study(folder), folder / "runs")
    assert _entry(_study(folder), folder) == ("RUNNING", 0)
    return folder


@pytest.fixture
def study(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """It, with a copy of its run in ``runs`` and of its entry in ``m.db``."""
    shutil.copytree(killed / "runs", tmp_path / "runs")
    shutil.copy(killed / "m.db", tmp_path / "m.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
    return _study(killed)


def _found(study: Study, folder: Path) -> Any:
    run_id = RunFolder.of(study, folder / "runs").read_facts()["mlflow_run_id"]
    return mlflow.MlflowClient(f"sqlite:///{folder}/m.db").get_run(run_id)


def _entry(study: Study, folder: Path) -> tuple[str, int]:
    """The status of the run's entry, and how many models it has that are whole and are its outputs."""
    run, client = _found(study, folder), mlflow.MlflowClient(f"sqlite:///{folder}/m.db")
    query = f"source_run_id = '{run.info.run_id}'"
    models = {model.model_id: model.status for model in client.search_logged_models([run.info.experiment_id], query)}
    assert "PENDING" not in models.values()
    ready = {model for model, status in models.items() if status == "READY"}
    assert ready == {output.model_id for output in run.outputs.model_outputs}
    return run.info.status, len(ready)


WHOLE = ("FINISHED", 1)


def _is_made_good_once(study: Study, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command makes the entry whole, and leaves it alone from then on."""
    run = RunFolder.of(study, folder / "runs")
    before = {path: path.read_bytes() for path in run.bundle.iterdir()}
    assert "this run is finished" in _train(study, folder / "runs")[-1]
    assert _entry(study, folder) == WHOLE
    assert "resumed" not in _found(study, folder).data.tags, "nothing was trained"
    assert {path: path.read_bytes() for path in run.bundle.iterdir()} == before
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "open", lambda *given, **named: pytest.fail("it was whole"))
        patch.setattr("medmtl.engine.mlflow.concluded", lambda *given: pytest.fail("it was known to be whole"))
        _train(study, folder / "runs")


def test_a_kill_before_the_model_is_made_good(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _is_made_good_once(study, tmp_path, monkeypatch)


def test_so_it_is_after_an_evaluation_has_ended_the_entry(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reopened(study, RunFolder.of(study, tmp_path / "runs")) as tracker:
        tracker.log_metrics({"test.size.mae": 1.0})
    assert _entry(study, tmp_path) == ("FINISHED", 0)
    _is_made_good_once(study, tmp_path, monkeypatch)
    assert _found(study, tmp_path).data.metrics["test.size.mae"] == 1.0


@pytest.mark.parametrize(
    ("owner", "name", "after", "left"),
    [
        (mlflow.MlflowClient, "create_logged_model", True, None),  # a model that is for ever pending
        (mlflow.MlflowClient, "finalize_logged_model", True, None),  # whole, but no output of the run
        (mlflow_rows, "_log_model", True, ("RUNNING", 1)),
        (mlflow.MlflowClient, "set_terminated", True, ("FINISHED", 1)),  # all but the fact
    ],
)
def test_a_kill_at_any_later_point_leaves_one_model(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool, left: Any
) -> None:
    with monkeypatch.context() as patch:
        _dies(patch, owner, name, after=after)
        with pytest.raises(Killed):
            _train(study, tmp_path / "runs")
    if left is not None:
        assert _entry(study, tmp_path) == left
    _is_made_good_once(study, tmp_path, monkeypatch)


def test_a_model_that_could_not_be_logged_is_logged_by_the_same_command(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first training on, which an error ends as FAILED."""
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log_model", _fails)
        with pytest.raises(OSError, match="no more"):
            _train(study, tmp_path / "runs", fresh=True)
    assert _entry(study, tmp_path) == ("FAILED", 0)
    _is_made_good_once(study, tmp_path, monkeypatch)


def _fails(*given: object) -> None:
    raise OSError("no more")


def test_what_a_fresh_run_lacks_is_not_what_the_one_before_it_had(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have the same bundle, but each its own entry."""
    _train(study, tmp_path / "runs")
    before = _found(study, tmp_path).info.run_id
    with monkeypatch.context() as patch:
        _dies(patch, Tracker, "log_model")
        with pytest.raises(Killed):
            _train(study, tmp_path / "runs", fresh=True)
    assert _found(study, tmp_path).info.run_id != before
    assert _entry(study, tmp_path) == ("RUNNING", 0)
    _is_made_good_once(study, tmp_path, monkeypatch)


def test_a_run_that_was_finished_before_there_was_the_fact_is_asked_for_and_not_opened(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.of(study, tmp_path / "runs")
    _train(study, tmp_path / "runs")
    whole, ended = run.facts.read_text(), _found(study, tmp_path).info.end_time
    facts = run.read_facts()
    run.facts.unlink()
    run.add_facts({key: value for key, value in facts.items() if key != "logged"})
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "open", lambda *given, **named: pytest.fail("it was whole"))
        _train(study, tmp_path / "runs")
    assert _entry(study, tmp_path) == WHOLE and _found(study, tmp_path).info.end_time == ended
    assert run.facts.read_text() == whole


def test_a_kill_before_the_facts_is_made_good(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.of(study, tmp_path / "runs")
    expected = run.read_facts()
    with monkeypatch.context() as patch:
        _dies(patch, RunFolder, "add_facts", when=lambda run, facts: "bundle_id" in facts)
        run.facts.unlink()
        with pytest.raises(Killed):
            _train(study, tmp_path / "runs", fresh=True)
    assert "bundle_id" not in run.read_facts() and (run.bundle / "spec.yaml").is_file()
    _is_made_good_once(study, tmp_path, monkeypatch)
    assert {key: run.read_facts()[key] for key in ("bundle_id", "selected")} == {
        key: expected[key] for key in ("bundle_id", "selected")
    }


@pytest.mark.parametrize("how", ["gone", "another", "damaged"])
def test_a_store_that_cannot_be_asked_changes_nothing(
    study: Study, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, database = RunFolder.of(study, tmp_path / "runs"), tmp_path / "m.db"
    if how == "gone":
        database.unlink()
    elif how == "another":
        run.add_facts({"mlflow_run_id": "0" * 32})
    else:
        database.write_bytes(b"not a data base" * 1000)
    before = run.facts.read_bytes(), database.exists() and database.read_bytes()
    assert "this run is finished" in _train(study, tmp_path / "runs")[-1]
    assert (run.facts.read_bytes(), database.exists() and database.read_bytes()) == before
    assert ("was not asked" in caplog.text) == (how == "damaged")


# a training that is interrupted


def _stops(patch: pytest.MonkeyPatch, at: int, act: Callable[[], None]) -> None:
    """``act`` comes within the step of this number, before anybody is told of it."""
    step = Trainer.step

    def stepped(self: Trainer, group: list[Any]) -> Any:
        losses = step(self, group)
        if self.progress.step == at:
            act()
        return losses

    patch.setattr(Trainer, "step", stepped)


@pytest.mark.parametrize("at", [STEPS + 1, 2 * STEPS])
def test_a_resumed_training_goes_on_in_its_own_entry(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    runs, client = tmp_path / "others", mlflow.MlflowClient(f"sqlite:///{tmp_path}/m.db")
    (experiment,) = (e.experiment_id for e in client.search_experiments() if e.name == study.name)
    before = {run.info.run_id for run in client.search_runs([experiment])}
    with monkeypatch.context() as patch:
        _stops(patch, at, lambda: os.kill(os.getpid(), SIGTERM))
        with pytest.raises(TrainingInterrupted):
            _train(study, runs)
    (entry,) = {run.info.run_id for run in client.search_runs([experiment])} - before
    assert client.get_run(entry).info.status == "KILLED"
    assert any(f"step {at}" in line for line in _train(study, runs) if "resuming" in line)
    assert {run.info.run_id for run in client.search_runs([experiment])} - before == {entry}
    run = client.get_run(entry)
    assert (run.info.status, run.data.tags["resumed"], len(run.outputs.model_outputs)) == ("FINISHED", "1", 1)
    curves = {name: [m.step for m in client.get_metric_history(entry, name)] for name in run.data.metrics}
    for name in ("loss", "train.size.loss", "learning_rate"):
        assert curves[name] == list(range(1, EPOCHS * STEPS + 1)), name
    for name in ("epoch", "epoch.loss", "epoch.seconds", "val.size.mae"):
        assert curves[name] == [STEPS, 2 * STEPS], name


def _renamed(folder: Path, *, back: bool = False) -> None:
    """Break the store, or mend it."""
    with sqlite3.connect(folder / "m.db") as database:
        for table in ("metrics", "runs"):
            names = (f"gone_{table}", table) if back else (table, f"gone_{table}")
            database.execute("ALTER TABLE {} RENAME TO {}".format(*names))


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("saving", [False, True])
def test_a_kill_leaves_no_hole_in_a_curve_and_no_step_twice(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saving: bool, down: bool
) -> None:
    """It comes within a step after a checkpoint in the middle of an epoch, or while the next one is written; the store
    may have been down since the step before. What was queued then is seconds away from being sent."""
    fit = study.fit.model_copy(update={"checkpoint_minutes": 1e-9})
    often, runs, at = study.model_copy(update={"fit": fit}), tmp_path / "others", STEPS + 2
    with monkeypatch.context() as patch:
        monkeypatch.setattr("medmtl.engine.mlflow._FLUSH_S", 1e9)
        if down:
            _stops(patch, STEPS + 1, lambda: _renamed(tmp_path))
        if saving:
            _dies(patch, checkpoint, "save", when=lambda folder, state: state["progress"]["step"] == at)
        else:
            _dies(patch, Trainer, "_account", when=lambda trainer, *given: trainer.progress.step == at)
        with pytest.raises(Killed):
            _train(often, runs)
    if down:
        _renamed(tmp_path, back=True)
    said = _train(often, runs)
    assert any(f"step {at - 1}" in line for line in said if "resuming" in line)
    entry = RunFolder.of(often, runs).read_facts()["mlflow_run_id"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/m.db")
    assert client.get_run(entry).info.status == "FINISHED"
    rows = read_history(RunFolder.of(often, runs).history)
    for name in ("loss", "train.size.loss", "learning_rate"):
        expected = {row["step"]: row["value"] for row in rows[::-1] if row["name"] == name}  # not the epoch's mean
        found = [(m.step, m.value) for m in client.get_metric_history(entry, name)]
        assert sorted(step for step, _ in found) == list(range(1, EPOCHS * STEPS + 1)), name
        assert dict(found) == expected
