"""MLflow's store: a data base of this MLflow's schema, or a server that answers."""

import contextlib
import importlib.util
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from medmtl.doctor.line import Line

_SERVER_S = 5.0


def store(uri: str | None) -> Iterator[Line]:
    """MLflow's data base is there, whole and of this MLflow; or its server answers."""
    from medmtl.engine.callbacks import TrackingConfig, sqlite_file

    where, _ = TrackingConfig(uri=uri).places()
    database = sqlite_file(where)
    if database is not None:
        yield _database(database)
    elif where.startswith(("http://", "https://")):
        yield _server(where)
    else:
        yield Line("MLflow", "PASS", f"{where.partition('://')[0]}; not looked into, since it is no file of ours")


def _database(path: Path) -> Line:
    """``path`` holds a data base that this MLflow reads; it is opened for reading alone."""
    if not path.exists() or not path.stat().st_size:
        return Line("MLflow", "PASS", f"{path.name} is not there yet; the first training makes it")
    backup = "move it away or restore a backup; training makes a new one"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2)) as base:
            (sound,) = base.execute("PRAGMA quick_check(1)").fetchone()
            found = [row[0] for row in base.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return Line("MLflow", "WARN", f"{path.name} is locked by a program that writes to it", "wait for it")
        return Line("MLflow", "FAIL", f"{path.name} is no data base of MLflow ({error})", backup)
    except sqlite3.DatabaseError as error:
        return Line("MLflow", "FAIL", f"{path.name} is damaged ({error})", backup)
    if sound != "ok" or len(found) != 1:
        return Line("MLflow", "FAIL", f"{path.name} is damaged (quick_check: {sound}, {len(found)} versions)", backup)
    if not os.access(path, os.W_OK):
        return Line("MLflow", "FAIL", f"{path.name} may not be written to", "give yourself permission, or move it away")
    return _schema(path.name, found[0])


def _schema(name: str, found: str) -> Line:
    from medmtl.engine.mlflow_store import database_utils

    version, expected = metadata.version("mlflow"), database_utils._get_latest_schema_revision()
    if found == expected:
        return Line("MLflow", "PASS", f"{name} has the schema of MLflow {version}")
    spec = importlib.util.find_spec("mlflow.store.db_migrations")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if any(any(Path(folder, "versions").glob(f"{found}_*.py")) for folder in folders):
        what = f"{name} was written by an older MLflow (schema {found}, MLflow {version} has {expected})"
        return Line("MLflow", "WARN", what, "nothing: the next training upgrades it and keeps a copy beside it")
    what = f"{name} was written by a newer MLflow (schema {found} is unknown to {version})"
    return Line("MLflow", "FAIL", what, "install the MLflow that wrote it, or set another tracking.uri")


def _server(url: str) -> Line:
    """The server's health page answers. The URL may hold a password and is not shown."""
    remedy = "start it, correct MLFLOW_TRACKING_URI, or train with tracking.enabled=false"
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_SERVER_S) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError) as error:
        return Line("MLflow", "FAIL", f"the tracking server does not answer ({type(error).__name__})", remedy)
    if status != 200:
        return Line("MLflow", "FAIL", f"the tracking server answers with {status}", remedy)
    return Line("MLflow", "PASS", "the tracking server answers")
