"""Where MLflow keeps runs, made ready: the data base created or upgraded, the experiment found or created.

Also what MLflow reads from the environment when it is imported; whoever imports mlflow imports this module first.
"""

import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from medmtl.engine.callbacks import TrackingConfig, sqlite_file
from medmtl.errors import EnvironmentFailure, UserError
from medmtl.files import atomic_path, disk_errors

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_UV_AUTO_DETECT": "false",  # it would copy uv.lock of the current folder into the model
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # 7 with back-off is minutes of a training step; we spool and retry
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402 - it reads the environment when it is imported
from mlflow.entities import LoggedModel, Run  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.store.db import utils as database_utils  # noqa: E402
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: E402

log = logging.getLogger(__name__)


@contextlib.contextmanager
def store_failures(uri: str) -> Iterator[None]:
    """Name the store, and what to do, when a run cannot even be started."""
    database = sqlite_file(uri)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if database is not None and _full(error):
            with disk_errors(database):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if database is None:  # the URI may hold a password
            raise EnvironmentFailure(
                "E-MLFLOW-SERVER",
                f"the tracking server cannot be used ({reason})",
                "start it, correct tracking.uri, or set tracking.enabled=false",
            ) from error
        raise EnvironmentFailure(
            "E-MLFLOW-DB",
            f"the data base cannot be used ({reason})",
            "move it away or restore a backup, then run the same command again",
            where=str(database),
        ) from error


def _full(error: BaseException) -> bool:
    """Whether SQLite had no room: its own error, or MLflow's or Alembic's, which hold it as text."""
    chain: BaseException | None = error
    while chain is not None:
        if "database or disk is full" in str(chain):  # SQLITE_FULL
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def prepare_store(uri: str, artifacts: str | None) -> None:
    """Create or upgrade an SQLite store, one process at a time: four first starts at once corrupt the schema.

    It is there when it is whole: what a full disk or a kill left of a new one would be refused ever after.
    """
    database = sqlite_file(uri)
    if database is None:
        return
    with _locked(uri):
        if database.exists() and database.stat().st_size:
            _check(database)
            _upgrade(uri, database)
        else:
            with atomic_path(database) as temporary:
                _create(temporary)
        SqlAlchemyStore(uri, artifacts).engine.dispose()


def experiment_id(client: MlflowClient, name: str, uri: str, artifacts: str | None) -> str:
    """The experiment's id; created with its own artifact location: the default depends on the current folder."""
    with _locked(uri):
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return client.create_experiment(name, artifact_location=artifacts)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise UserError(
            "E-MLFLOW-EXPERIMENT",
            "the experiment was deleted in MLflow",
            "restore it (mlflow experiments restore) or choose another name",
            where=name,
        )
    return found.experiment_id


def active_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run, or None when the store does not have it (another data base, or it was deleted)."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def models_of(client: MlflowClient, run: Run) -> list[LoggedModel]:
    """The logged models that a run made, whole or not."""
    query = f"source_run_id = '{run.info.run_id}'"
    return list(client.search_logged_models([run.info.experiment_id], query))


def output_models(run: Run) -> set[str]:
    """The ids of the models that MLflow shows as a run's outputs."""
    return set() if run.outputs is None else {output.model_id for output in run.outputs.model_outputs}


def concluded(config: TrackingConfig, run_id: str) -> bool | None:
    """Whether a run is FINISHED with a model that can be loaded; None where the store lacks the run or cannot be asked.

    Asking creates and upgrades nothing.
    """
    uri, _ = config.places()
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        return None
    try:
        if database is not None:
            _check(database)
        client = MlflowClient(uri)
        run = active_run(client, run_id)
        if run is None:
            return None
        whole = {model.model_id for model in models_of(client, run) if model.status == "READY"}
    except Exception as error:  # the training is over, and its bundle is there
        log.warning("MLflow was not asked whether run %s is whole: %s", run_id, type(error).__name__)
        return None
    return run.info.status == "FINISHED" and not whole.isdisjoint(output_models(run))


@contextlib.contextmanager
def _locked(uri: str) -> Iterator[None]:
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    with disk_errors(database):
        database.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{database}.lock", timeout=300)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check(database: Path) -> None:
    """Fail at once on a file that is no data base; MLflow would try again for minutes."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not os.access(database, os.W_OK):
        raise PermissionError(f"{database.name} is read-only")


def _create(database: Path) -> None:
    engine = database_utils.create_sqlalchemy_engine(f"sqlite:///{database}")
    try:
        database_utils._initialize_tables(engine)
    finally:
        engine.dispose()


def _upgrade(uri: str, database: Path) -> None:
    engine = database_utils.create_sqlalchemy_engine(uri)
    try:
        found, expected = database_utils._get_schema_version(engine), database_utils._get_latest_schema_revision()
        if found in (expected, None):
            return
        backup = database.with_name(f"{database.name}.backup-{found}")
        with contextlib.closing(sqlite3.connect(database)) as old, contextlib.closing(sqlite3.connect(backup)) as new:
            old.backup(new)
        log.warning(
            "%s was written by another MLflow; it is upgraded, the old one is kept as %s", database.name, backup.name
        )
        database_utils._upgrade_db(engine)
    finally:
        engine.dispose()
