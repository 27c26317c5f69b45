"""What a run leaves in MLflow is really there, is about nobody, and the server's troubles are not the training's."""

import contextlib
import getpass
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from laws import refuses
from matplotlib.figure import Figure
from sqlalchemy import event
from sqlalchemy.engine import Engine

import medmtl
from medmtl.bundle import ModelSpec, load_bundle, save_bundle
from medmtl.cli import run
from medmtl.config import validate
from medmtl.engine.mlflow import Tracker, TrackingConfig, mlflow, nest, sync_folder
from medmtl.engine.pyfunc_model import checked
from medmtl.engine.spool import SPOOL
from medmtl.errors import EnvironmentFailure, TrainingInterrupted, UserError
from medmtl.predictor import Predictor

SPEC = {
    "preprocess": {"window": [32, 32]},
    "encoder": {"kind": "timm", "name": "test_efficientnet"},
    "tasks": {"grade": {"kind": "classification", "classes": ["low", "high"]}},
}
ENV = {**os.environ, "PYTHONPATH": str(Path(medmtl.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
PARAMS = {
    "optim": {"epochs": 3, "lr": 1e-3},
    "data": {"manifest": "/home/somebody/study/manifest.csv"},
    "tasks": {f"task {i} <é>": "x" * 7000 for i in range(120)},
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A data base as the first run leaves it; made once, because its 100 migrations take a second."""
    folder = tmp_path_factory.mktemp("fresh")
    _open(TrackingConfig(uri=f"sqlite:///{folder}/m.db", system_metrics=False), folder / "run").finished("FINISHED")
    return folder / "m.db"


@pytest.fixture
def config(fresh, tmp_path):
    """A store in a folder whose name has a space and a letter beyond ASCII."""
    folder = tmp_path / "ü x"
    folder.mkdir()
    shutil.copy(fresh, folder / "m.db")
    return TrackingConfig(uri=f"sqlite:///{folder}/m.db", system_metrics=False, experiment="study")


def _open(config, folder, **changes):
    return Tracker.open(
        config, **{"run_name": "first", "folder": folder, "tags": {"config_hash": "c" * 64}, "params": {}, **changes}
    )


def _client(config):
    return mlflow.MlflowClient(config.places()[0])


def _series(config, run_id, name):
    return [(m.step, m.value) for m in _client(config).get_metric_history(run_id, name)]


def test_everything_is_really_there_and_nothing_says_who_or_where(config, tmp_path):
    folder = tmp_path / "run"
    with _open(config, folder, params=PARAMS, tags={"config_hash": "c" * 64, "split_hash": "s" * 64}) as tracker:
        tracker.started({"device": "cpu", "folder": tmp_path})
        for step in (1, 2):
            tracker.step(step, {"train/loss": 1 / step, "auc <5": 0.5, "auc >5": 0.75, "dice": float("nan")})
        tracker.epoch(0, 2, {"val/dice/lesion": 0.5})
        table = pd.DataFrame({"domain": ["a", "b"], "target.grade": [1, None]})
        tracker.log_dataset(table, name="manifest", digest="0123456789abcdef" * 4, context="training")
        (folder / "report").mkdir(parents=True)
        (folder / "report" / "r.html").write_text("<html>")
        tracker.log_file(folder / "report" / "r.html")
        tracker.log_folder(folder / "report", "report")
        tracker.log_figures({"roc curve": Figure()})
        run_id = tracker.run_id
    client = _client(config)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 123
    assert run.data.params["optim.epochs"] == "3"
    assert run.data.params["data.manifest"] == "…/manifest.csv"
    assert len(run.data.params["tasks.task 0 _é_"]) == 6000
    assert _series(config, run_id, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert {name: value for name, value in run.data.metrics.items() if name.startswith("auc _5")}.keys() >= {"auc _5"}
    assert sorted(value for name, value in run.data.metrics.items() if name.startswith("auc")) == [0.5, 0.75]
    assert run.data.metrics["val/dice/lesion"] == 0.5
    assert "dice" not in run.data.metrics
    assert run.data.tags["nonfinite_metrics_since_step"] == '{"dice": 1}'
    assert (run.data.tags["split_hash"], run.data.tags["fact.device"]) == ("s" * 64, "cpu")
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == "0123456789abcdef0123456789abcdef0123"
    assert {tag.key: tag.value for tag in data.tags} == {
        "mlflow.data.context": "training",
        "sha256": "0123456789abcdef" * 4,
    }
    assert '"target.grade": 1' in data.dataset.profile
    assert {file.path for file in client.list_artifacts(run_id)} == {"r.html", "report", "figures"}
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/roc_curve.png"]
    assert Path(tmp_path / "ü x" / "mlartifacts").is_dir()  # beside the data base, not in the current folder
    _assert_nobody(config)


def _assert_nobody(config):
    """No user, host or absolute path in any text of the data base but the places of artifacts."""
    forbidden = {socket.gethostname(), str(Path.home()), str(Path.cwd()), "/tmp", "somebody"}
    if os.sep in sys.argv[0]:  # of several processes it is "-c", which an id may hold
        forbidden.add(sys.argv[0])
    if getpass.getuser() != "root":
        forbidden.add(getpass.getuser())
    with sqlite3.connect(config.uri.removeprefix("sqlite:///")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            cursor = database.execute(f'SELECT * FROM "{table}"')
            names = [column[0] for column in cursor.description]
            for row in cursor:
                for name, value in zip(names, row, strict=True):
                    if isinstance(value, str) and name not in ("artifact_uri", "artifact_location"):
                        assert not [word for word in forbidden if word in value], (table, name, value)
        users = {user for (user,) in database.execute("SELECT user_id FROM runs")}
    assert users == {"medmtl"}


def test_a_resumed_run_is_the_same_run_without_a_step_twice(config, tmp_path):
    first = _open(config, tmp_path / "run", params={"a": {"b": 1}, "epochs": 3})
    for step in range(1, 6):
        first.step(step, {"loss": float(step)})
    first.epoch(0, 5, {"dice": 0.5})  # killed after this: the run stays RUNNING, the checkpoint was at step 3
    second = _open(
        config, tmp_path / "run", params={"a": {"b": 2}, "epochs": 3, "new": True}, resume_run_id=first.run_id
    )
    for step in range(4, 8):
        second.step(step, {"loss": float(step)})
    second.epoch(0, 5, {"dice": 0.5})
    second.finished("FINISHED")
    second.finished("FAILED")  # a second call does nothing
    run = _client(config).get_run(first.run_id)
    assert (second.run_id, run.info.status) == (first.run_id, "FINISHED")
    assert _series(config, run.info.run_id, "loss") == [(step, float(step)) for step in range(1, 8)]
    assert _series(config, run.info.run_id, "dice") == [(5, 0.5)]
    assert run.data.params == {"a.b": "1", "epochs": "3", "new": "true"}
    assert run.data.tags["resumed_with_changes"] == '{"a.b": ["1", "2"]}'
    assert run.data.tags["resumed"] == "1"
    third = _open(config, tmp_path / "run", resume_run_id="0" * 32)  # from another data base
    third.finished("FINISHED")
    assert third.run_id != first.run_id
    assert _client(config).get_run(third.run_id).data.tags["resumed_from"] == "0" * 32


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError(), "FAILED"),
        (TrainingInterrupted(15), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_the_run_ends_as_it_ended(config, tmp_path, error, status):
    expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with expected, _open(config, tmp_path / "run") as tracker:
        if error is not None:
            raise error
    assert _client(config).get_run(tracker.run_id).info.status == status
    assert mlflow.active_run() is None


def test_a_store_that_fails_midway_is_caught_up_later(config, tmp_path, caplog):
    database = Path(config.uri.removeprefix("sqlite:///"))
    tracker = _open(config, tmp_path / "run")
    tracker.epoch(0, 1, {"dice": 1.0})
    with sqlite3.connect(database) as lock:
        _break(lock)
        for step in range(2, 6):
            tracker.epoch(step - 1, step, {"dice": float(step)})
        figure = Figure()
        tracker.log_figure(figure, "late")
        assert tracker.sync() == 9  # dice and epoch four times, and a file
        _mend(lock)
    tracker._retry_at = 0.0
    tracker.epoch(5, 6, {"dice": 6.0})
    assert not (tmp_path / "run" / SPOOL).exists()
    assert _series(config, tracker.run_id, "dice") == [(step, float(step)) for step in range(1, 7)]
    assert [file.path for file in _client(config).list_artifacts(tracker.run_id)] == ["figures"]
    assert len([r for r in caplog.records if "cannot be reached" in r.message]) == 1

    with sqlite3.connect(database) as lock:  # and one that fails until the end
        _break(lock)
        tracker.step(7, {"dice": 7.0})
        tracker.finished("FINISHED")
        _mend(lock)
    assert _client(config).get_run(tracker.run_id).info.status == "RUNNING"
    assert sync_folder(tmp_path / "run", config) == 0
    assert sync_folder(tmp_path / "run", config) == 0
    assert _client(config).get_run(tracker.run_id).info.status == "FINISHED"
    assert _series(config, tracker.run_id, "dice")[-1] == (7, 7.0)


def test_what_is_spooled_is_sent_by_the_command_that_is_named(config, tmp_path, caplog):
    folder = tmp_path / "run"
    tracker = _open(config, folder)
    with sqlite3.connect(Path(config.uri.removeprefix("sqlite:///"))) as database:
        _break(database)
        tracker.finished("FINISHED")
        _mend(database)
    (said,) = [record.getMessage() for record in caplog.records if "send them with" in record.message]
    command = said.partition("`medmtl ")[2].partition("`")[0].split(" ", 1)
    tree = {"name": "study", "data": {"manifest": "manifest.csv"}, **SPEC, "tracking": config.model_dump()}
    (folder / "study.yaml").write_text(yaml.safe_dump(tree))
    assert run(command) == 0
    assert _client(config).get_run(tracker.run_id).info.status == "FINISHED"
    assert not (folder / SPOOL).exists()


def test_a_steps_loss_and_an_epochs_are_two_curves(config, tmp_path):
    tracker = _open(config, tmp_path / "run")
    each = {"loss": 1.0, "train.grade.loss": 2.0}
    for epoch in range(2):
        for step in (2 * epoch + 1, 2 * epoch + 2):
            tracker.step(step, {name: value * step for name, value in each.items()})
        mean = 2 * epoch + 1.5
        tracker.epoch(epoch, step, {name: value * mean for name, value in each.items()} | {"val.grade.auroc": 0.5})
    tracker.finished("FINISHED")
    for name, value in each.items():
        assert _series(config, tracker.run_id, name) == [(step, value * step) for step in (1, 2, 3, 4)]
        assert _series(config, tracker.run_id, f"epoch.{name}") == [(2, value * 1.5), (4, value * 3.5)]
    assert _series(config, tracker.run_id, "val.grade.auroc") == [(2, 0.5), (4, 0.5)]


def _break(database):
    for table in ("metrics", "runs"):
        database.execute(f"ALTER TABLE {table} RENAME TO gone_{table}")
    database.commit()


def _mend(database):
    for table in ("metrics", "runs"):
        database.execute(f"ALTER TABLE gone_{table} RENAME TO {table}")
    database.commit()


def test_a_row_that_mlflow_refuses_does_not_take_its_neighbours_with_it(config, tmp_path, caplog):
    tracker = _open(config, tmp_path / "run")
    tracker._send([{"kind": "metric", "key": key, "value": 1.0, "timestamp": 1, "step": 0} for key in ("a", "b<", "c")])
    tracker.finished("FINISHED")
    assert set(_client(config).get_run(tracker.run_id).data.metrics) == {"a", "c"}
    assert any("refuses metric b<" in record.message for record in caplog.records)
    assert not (tmp_path / "run" / SPOOL).exists()


_START = """
import os, sys
from pathlib import Path
from medmtl.engine.mlflow import Tracker, TrackingConfig
config = TrackingConfig(uri="sqlite:///m.db", system_metrics=False, experiment="study")
gate, hold = os.pipe()
children = []
for name in "0123":
    children.append(os.fork())
    if children[-1] == 0:
        os.close(hold)
        os.read(gate, 1)
        with Tracker.open(config, run_name=name, folder=Path(name), tags={}, params={"a": 1}) as tracker:
            tracker.step(1, {"loss": 1.0})
        sys.exit(0)
os.close(hold)  # now all of them at once
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_four_first_starts_at_once_all_succeed(tmp_path):
    ended = subprocess.run([sys.executable, "-c", _START], cwd=tmp_path, env=ENV, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/m.db")
    experiment = client.get_experiment_by_name("study")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["0", "1", "2", "3"]
    assert all(run.info.status == "FINISHED" and run.data.metrics == {"loss": 1.0} for run in runs)
    assert experiment.artifact_location == (tmp_path / "mlartifacts").as_uri()


def test_an_old_data_base_is_backed_up_and_upgraded(config, tmp_path):
    database = Path(config.uri.removeprefix("sqlite:///"))
    from alembic import command
    from mlflow.store.db import utils

    settings = utils._get_alembic_config(config.uri)
    engine = utils.create_sqlalchemy_engine(config.uri)
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.downgrade(settings, "-1")
    old = utils._get_schema_version(engine)
    engine.dispose()
    _open(config, tmp_path / "run").finished("FINISHED")
    assert [path.name for path in database.parent.glob("*backup*")] == [f"m.db.backup-{old}"]


def test_a_damaged_data_base_and_a_deleted_experiment_say_what_to_do(config, tmp_path):
    client = _client(config)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match="E-MLFLOW-EXPERIMENT gone"):
        _open(config, tmp_path / "run", experiment="gone")
    Path(config.uri.removeprefix("sqlite:///")).write_bytes(b"not a data base" * 1000)
    with pytest.raises(EnvironmentFailure, match=r"E-MLFLOW-DB.*restore a backup"):
        _open(config, tmp_path / "run")


@pytest.mark.parametrize("new", [False, True])
def test_a_full_disk_under_the_data_base_is_told_as_any_other(config, tmp_path, new):
    """By SQLite's own limit on pages, which is the same error; nothing is wrong with the data base."""
    database, pages = Path(config.uri.removeprefix("sqlite:///")), 20
    if new:
        database.unlink()
    else:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("VACUUM")
            (pages,) = connection.execute("PRAGMA page_count").fetchone()

    def limited(connection, record):
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(Engine, "connect", limited)
    try:
        refuses("E-DISK", lambda: _open(config, tmp_path / "run", run_name="x" * 20_000),
                kind=EnvironmentFailure, says="m.db: cannot write: the disk is full (")  # fmt: skip
    finally:
        event.remove(Engine, "connect", limited)
    assert database.exists() != new and not list(database.parent.glob(".*.tmp*"))
    _open(config, tmp_path / "run").finished("FINISHED")


def test_system_metrics_are_sampled_and_their_thread_ends(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    config = config.model_copy(update={"system_metrics": True})
    tracker = _open(config, tmp_path / "run")
    tracker._monitor._shutdown_event.wait(0.8)
    tracker.finished("FINISHED")
    metrics = _client(config).get_run(tracker.run_id).data.metrics
    assert "system/system_memory_usage_percentage" in metrics
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
    _assert_nobody(config)


def test_it_is_told_nothing_about_anyone_by_telemetry_or_pickle():
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.full((2, 4, 4, 3), 255, np.uint8), 255),
        (np.full((2, 4, 4, 3), 255), 255),
        (np.ones((2, 4, 4, 3)), 1),
        (np.full((2, 4, 4, 3), 255.0), None),
        (np.full((2, 4, 4, 3), -1), None),
        (np.full((4, 4, 3), 255, np.uint8), None),
        (np.full((2, 4, 4, 3), np.nan), None),
    ],
)
def test_images_are_bytes_or_fractions_or_refused(images, expected):
    if expected is None:
        with pytest.raises(UserError, match="E-MODEL-INPUT"):
            checked(images)
        return
    assert checked(images).dtype == (np.uint8 if expected == 255 else np.float32)
    assert (checked(images) == expected).all()


def test_a_bundle_comes_back_as_a_model_without_pickle(config, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = validate(ModelSpec, SPEC, where="test")
    save_bundle(tmp_path / "bundle", spec, spec.build(), provenance={}, card="card")
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    with _open(config, tmp_path / "run") as tracker:
        tracker.log_model(tmp_path / "bundle", images)
    assert not (tmp_path / "run" / SPOOL).exists()
    model_id = _client(config).get_run(tracker.run_id).outputs.model_outputs[0].model_id
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", config.places()[0])
    model = mlflow.pyfunc.load_model(f"models:/{model_id}")
    expected = Predictor.of(load_bundle(tmp_path / "bundle")).arrays(images)
    pd.testing.assert_frame_equal(model.predict(images), expected)
    pd.testing.assert_frame_equal(model.predict(images / np.float32(255)), expected, atol=1e-6)
    stored = [path for path in (tmp_path / "ü x" / "mlartifacts").rglob("*") if path.is_file()]
    assert not [path.name for path in stored if path.suffix in (".pkl", ".pt", ".pth")]
    assert {"weights.safetensors", "pyfunc_model.py", "MLmodel"} <= {path.name for path in stored}
    written = next(path for path in stored if path.name == "MLmodel").read_text().splitlines()
    assert not [line for line in written if "/tmp" in line and not line.startswith("artifact_path:")]
    _assert_nobody(config)


def test_a_run_is_nested_at_its_start_or_later_and_a_dead_store_stops_nothing(config, tmp_path, caplog):
    with _open(config, tmp_path / "parent") as parent, _open(config, tmp_path / "a", parent=parent.run_id) as child:
        pass
    with _open(config, tmp_path / "b") as later:
        pass
    nest(config, later.run_id, parent.run_id)
    tags = [_client(config).get_run(run.run_id).data.tags for run in (child, later, parent)]
    assert [of.get("mlflow.parentRunId") for of in tags] == [parent.run_id, parent.run_id, None]
    nest(config, "0" * 32, parent.run_id)
    assert "0" * 32 in caplog.text
