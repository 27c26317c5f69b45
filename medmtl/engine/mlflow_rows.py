"""Rows for MLflow, sent in batches: what the server takes is gone, what it does not take comes back to the caller."""

import logging
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

import medmtl
from medmtl.engine.mlflow_store import models_of, output_models
from medmtl.engine.spool import Row

# isort: split
# after mlflow_store, which sets what mlflow reads from the environment when it is imported
import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException

log = logging.getLogger(__name__)
NO_ONE = {"mlflow.user": "medmtl", "mlflow.source.name": "medmtl", "mlflow.source.type": "LOCAL"}  # of every run's tags
_BATCH = {"metric": 1000, "param": 100, "tag": 100}


def deliver(client: mlflow.MlflowClient, rows: list[Row]) -> list[Row]:
    """Send rows in order and return those from the first that the server did not take; a repeat does no harm."""
    sent = 0
    for chunk in _chunks(rows):
        try:
            _apply(client, chunk)
        except Exception as error:  # whatever a tracking server does, it must not stop a training
            if not isinstance(error, MlflowException) or error.error_code != "INVALID_PARAMETER_VALUE":
                log.debug("MLflow did not take %d rows", len(chunk), exc_info=True)
                return rows[sent:]
            if len(chunk) == 1:
                log.warning("MLflow refuses %s %s: %s", chunk[0]["kind"], chunk[0].get("key", ""), error.message)
            else:  # one bad row must not take its neighbours with it
                left = [row for one in chunk for row in deliver(client, [one])]
                if left:
                    return [*left, *rows[sent + len(chunk) :]]
        sent += len(chunk)
    return []


def _chunks(rows: list[Row]) -> Iterator[list[Row]]:
    for (kind, _), group in groupby(rows, key=lambda row: (row["kind"], row["run"])):
        members, size = list(group), _BATCH.get(kind, 1)
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _apply(client: mlflow.MlflowClient, chunk: list[Row]) -> None:
    row, run = chunk[0], chunk[0]["run"]
    match row["kind"]:
        case "metric":
            client.log_batch(run, metrics=[Metric(r["key"], r["value"], r["timestamp"], r["step"]) for r in chunk])
        case "param":
            client.log_batch(run, params=[Param(r["key"], r["value"]) for r in chunk])
        case "tag":
            last = {r["key"]: r["value"] for r in chunk}
            client.log_batch(run, tags=[RunTag(key, value) for key, value in last.items()])
        case "dataset":
            tags = [InputTag("mlflow.data.context", row["context"]), InputTag("sha256", row["sha256"])]
            client.log_inputs(run, [DatasetInput(Dataset(**row["dataset"]), tags)])
        case "status":
            client.set_terminated(run, row["value"])
        case _ if not Path(row["path"]).exists():
            log.warning("%s has gone and was not stored in MLflow", Path(row["path"]).name)
        case "file":
            client.log_artifact(run, row["path"], row["folder"])
        case "folder":
            client.log_artifacts(run, row["path"], row["folder"])
        case "model":
            _log_model(client, row)


def _log_model(client: mlflow.MlflowClient, row: Row) -> None:
    """Log a bundle as a model of its run, unless that has it already; one that a kill cut short is marked FAILED."""
    run, identity = client.get_run(row["run"]), row.get("bundle_id")  # not in a spool of an earlier version
    record = None
    for known in models_of(client, run):
        if known.status == "PENDING":
            client.finalize_logged_model(known.model_id, "FAILED")
        elif known.status == "READY" and identity in (None, known.tags.get("bundle_id", identity)):
            record = known
    if record is None:
        tags = NO_ONE if identity is None else {**NO_ONE, "bundle_id": identity}
        record = _stored(client, run, Path(row["path"]), row["example"], tags)
    if record.model_id not in output_models(run):
        client.log_outputs(row["run"], [LoggedModelOutput(record.model_id, step=0)])


def _stored(
    client: mlflow.MlflowClient, run: Run, bundle: Path, example: str | None, tags: dict[str, str]
) -> LoggedModel:
    """A bundle as a model, by the client alone: ``mlflow.pyfunc.log_model`` would tag it with user and script."""
    run_id = run.info.run_id
    record = client.create_logged_model(
        run.info.experiment_id, name="bundle", source_run_id=run_id, tags=tags, model_type="medmtl bundle"
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            model = mlflow.models.Model(
                artifact_path=record.artifact_location,
                run_id=run_id,
                model_id=record.model_id,
                model_uuid=record.model_id,
            )
            mlflow.pyfunc.save_model(
                folder,
                mlflow_model=model,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"bundle": str(bundle)},
                pip_requirements=[f"medmtl=={medmtl.__version__}"],
                signature=False,  # one inferred from a uint8 example would refuse float images
                input_example=None if example is None else np.load(example, allow_pickle=False),
            )
            pyfunc = model.flavors["python_function"]
            pyfunc["artifacts"]["bundle"]["uri"] = "bundle"  # MLflow wrote where the bundle was: an absolute path
            pyfunc["model_code_path"] = "pyfunc_model.py"
            model.save(str(folder / "MLmodel"))
            client.log_model_artifacts(record.model_id, str(folder))
    except Exception:
        client.finalize_logged_model(record.model_id, "FAILED")
        raise
    return client.finalize_logged_model(record.model_id, "READY")
