"""A run in MLflow, told on rank 0: whatever happens to the server, training goes on and nothing personal is written."""

import json
import logging
import math
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd

from medmtl.bundle import SPEC, bundle_id, read_spec
from medmtl.config import digest, flatten
from medmtl.engine.callbacks import Callback, TrackingConfig
from medmtl.engine.mlflow_rows import NO_ONE, deliver
from medmtl.engine.mlflow_store import active_run, concluded, experiment_id, prepare_store, store_failures
from medmtl.engine.spool import KEY_LIMIT, PARAM_LIMIT, SPOOL, Row, Spool, as_text, clean_name, tag_row
from medmtl.errors import TrainingInterrupted
from medmtl.files import atomic_path

# isort: split
# after mlflow_store, which sets what mlflow reads from the environment when it is imported
import mlflow
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

__all__ = ["Tracker", "TrackingConfig", "concluded", "nest", "sync_folder"]

logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it announces every start and stop

log = logging.getLogger(__name__)
_DIGEST = 36  # MLflow's limit, in characters
_FLUSH_S, _FLUSH_ROWS = 5.0, 1000


class Tracker(Callback):
    """One run in MLflow. Metrics are sent in batches; what cannot be sent is spooled in the run's folder and replayed.

    Only clients are used, never MLflow's global active run, so there is no state that could outlive the tracker.
    As a context manager it ends the run as FINISHED, KILLED (interrupt) or FAILED (any other exception).
    """

    def __init__(self, uri: str, run_id: str, folder: Path, *, latest: Mapping[str, int]) -> None:
        self.run_id, self.folder = run_id, folder
        self._client, self._spool = mlflow.MlflowClient(uri), Spool(folder / SPOOL)
        self._latest = dict(latest)  # the last step of each metric that an earlier life of this run has sent or spooled
        for row in self._spool.rows():
            if row["kind"] == "metric" and row["run"] == run_id:
                self._latest[row["key"]] = max(row["step"], self._latest.get(row["key"], -1))
        self._names: dict[str, str] = {}
        self._nonfinite: dict[str, int] = {}
        self._waiting: list[Row] = []
        self._sent_at, self._retry_at, self._pause_s, self._warned = time.monotonic(), 0.0, 30.0, False
        self._monitor: SystemMetricsMonitor | None = None
        self._open = True

    @classmethod
    def open(
        cls,
        config: TrackingConfig,
        *,
        experiment: str | None = None,
        run_name: str,
        folder: Path,
        tags: Mapping[str, Any],
        params: Mapping[str, Any],
        resume_run_id: str | None = None,
        training: bool = True,
        parent: str | None = None,
    ) -> "Tracker":
        """Start a run, or continue ``resume_run_id``; ``params`` may be nested, ``tags`` hold the hashes.

        ``parent`` is the run that MLflow's pages show this one under.

        ``training`` False adds results to a run that has ended: the commit it was trained at stays, and it does not
        count as resumed.

        A data base that is missing is created and an old one upgraded (after a backup), one process at a time.
        """
        uri, artifacts = config.places()
        with store_failures(uri):
            prepare_store(uri, artifacts)
            client = mlflow.MlflowClient(uri)
            run = None if resume_run_id is None else active_run(client, resume_run_id)
            nested = {} if parent is None else {"mlflow.parentRunId": parent}
            labels = {**(_git() if training else {}), **tags, **nested, **NO_ONE}
            if run is not None:
                client.update_run(run.info.run_id, status="RUNNING")
                if training:
                    labels["resumed"] = int(run.data.tags.get("resumed", 0)) + 1
            else:
                if resume_run_id is not None:
                    log.warning("run %s is not in this MLflow store; a new run is started", resume_run_id)
                    labels["resumed_from"] = resume_run_id
                place = experiment_id(client, experiment or config.experiment or "medmtl", uri, artifacts)
                run = client.create_run(place, run_name=run_name, tags=NO_ONE)
        latest = {metric.key: metric.step for metric in run.data._metric_objs} if resume_run_id else {}
        tracker = cls(uri, run.info.run_id, folder, latest=latest)
        tracker._describe(labels, params, run.data.params)
        if config.system_metrics:
            tracker._monitor = SystemMetricsMonitor(run.info.run_id, 10, resume_logging=True, tracking_uri=uri)
            tracker._monitor.start()
        return tracker

    def started(self, facts: Mapping[str, Any]) -> None:
        """Record the facts of the run (device, world size, threads, ...) as tags ``fact.<name>``."""
        self._send([tag_row(f"fact.{name}", value) for name, value in facts.items()])

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue a step's metrics; a step that an earlier life of this run has already sent is left out."""
        self._queue(step, {name: value for name, value in metrics.items() if not self._known(name, step)})
        if len(self._waiting) >= _FLUSH_ROWS or time.monotonic() - self._sent_at > _FLUSH_S:
            self._flush()

    def epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Send an epoch's metrics, and everything queued before them.

        The epoch's mean losses go by ``epoch.loss`` and ``epoch.train.<task>.loss``: ``loss`` and
        ``train.<task>.loss`` are each step's, and one curve of both would be a saw.
        """
        named = {"epoch": epoch, **{_of_epoch(name): value for name, value in metrics.items()}}
        new = {name: value for name, value in named.items() if not self._known(name, step)}
        self._queue(step, new)
        self._flush()

    def saving(self) -> None:
        """Send or spool everything queued: a resumed run begins after it, and a kill would leave a hole."""
        self._flush()

    def finished(self, status: str) -> None:
        """Send what is left and end the run as ``status``; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        try:
            if self._monitor is not None:
                self._monitor.finish()
        finally:
            self._monitor, self._retry_at = None, 0.0  # one last attempt, however recent the last failure
            waiting, self._waiting = self._waiting, []
            self._send([*waiting, {"kind": "status", "value": status}])
            if len(self._spool):
                log.warning(
                    "%d rows for MLflow are kept in %s; send them with `medmtl sync %s`",
                    len(self._spool),
                    self._spool.path,
                    self.folder,
                )

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Send metrics at once, whatever was sent before: for results of an evaluation."""
        self._queue(step, metrics)
        self._flush()

    def log_dataset(self, table: pd.DataFrame, *, name: str, digest: str, context: str) -> None:
        """Record the data a run used by its SHA-256 ``digest`` and counts; no cell of ``table`` is stored.

        MLflow keeps 36 characters of a digest; all 64 are in the input's tag ``sha256``.
        """
        profile = {
            "num_rows": len(table),
            "num_elements": int(table.size),
            "filled": {str(column): int(table[column].notna().sum()) for column in table},
        }
        columns = [{"name": str(column), "type": str(table[column].dtype)} for column in table]
        source = {"tags": {"mlflow.source.name": "medmtl", "sha256": digest}}
        self._send(
            [
                {
                    "kind": "dataset",
                    "context": context,
                    "sha256": digest,
                    "dataset": {
                        "name": name,
                        "digest": digest[:_DIGEST],
                        "source_type": "code",
                        "source": json.dumps(source),
                        "schema": json.dumps({"columns": columns}),
                        "profile": json.dumps(profile),
                    },
                }
            ]
        )

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a file as an artifact in ``folder`` (None: at the top)."""
        assert path.is_file(), f"no file {path}"
        self._send([{"kind": "file", "path": str(path.absolute()), "folder": folder}])

    def log_folder(self, path: Path, folder: str | None = None) -> None:
        """Store everything in a folder as artifacts."""
        assert path.is_dir(), f"no folder {path}"
        self._send([{"kind": "folder", "path": str(path.absolute()), "folder": folder}])

    def log_figures(self, figures: Mapping[str, Any]) -> None:
        """Store matplotlib figures as ``figures/<name>.png``, in the run's folder and as artifacts."""
        for name, figure in figures.items():
            self.log_figure(figure, name)

    def log_figure(self, figure: Any, name: str) -> None:
        """Store one matplotlib figure; see :meth:`log_figures`."""
        path = self.folder / "figures" / (re.sub(r"[^\w.-]", "_", name) + ".png")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, metadata={"Software": None})
        self.log_file(path, "figures")

    def log_model(self, bundle: Path, input_example: np.ndarray | None = None) -> None:
        """Store a bundle as an MLflow model that loads without pickle; ``input_example`` is uint8 ``[B, H, W, C]``.

        A bundle that the run has already is not stored twice.
        """
        example, identity = None, bundle_id(read_spec(bundle / SPEC))
        if input_example is not None:
            example = self.folder / "input_example.npy"
            with atomic_path(example) as temporary:
                np.save(temporary, input_example, allow_pickle=False)
        row = {"kind": "model", "path": str(bundle.absolute()), "example": example and str(example.absolute())}
        self._send([{**row, "bundle_id": identity}])

    def sync(self) -> int:
        """Try to send what was spooled, now; returns how many rows are still waiting."""
        self._retry_at = 0.0
        self._send([])
        return len(self._spool)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        killed = isinstance(error, KeyboardInterrupt | SystemExit | TrainingInterrupted)
        self.finished("FINISHED" if error is None else "KILLED" if killed else "FAILED")

    def _describe(self, tags: Mapping[str, Any], params: Mapping[str, Any], present: Mapping[str, str]) -> None:
        flat = {clean_name(key): as_text(value, PARAM_LIMIT) for key, value in flatten(params).items()}
        changed = {key: [present[key], value] for key, value in flat.items() if present.get(key, value) != value}
        rows = [tag_row(key, value) for key, value in tags.items()]
        if changed:
            rows.append(tag_row("resumed_with_changes", changed))
        new = [{"kind": "param", "key": key, "value": value} for key, value in flat.items() if key not in present]
        self._send([*rows, *new])

    def _known(self, name: str, step: int) -> bool:
        return step <= self._latest.get(self._name(name), -1)

    def _queue(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            if math.isfinite(value):
                self._waiting.append(
                    {
                        "kind": "metric",
                        "key": self._name(name),
                        "value": float(value),
                        "timestamp": now,
                        "step": int(step),
                    }
                )
            elif name not in self._nonfinite:
                self._nonfinite[name] = int(step)
                self._waiting.append(tag_row("nonfinite_metrics_since_step", self._nonfinite))

    def _name(self, name: str) -> str:
        """``name`` in MLflow's alphabet; two names that would become one are kept apart by a digest."""
        if name not in self._names:
            clean = clean_name(name)
            if clean in self._names.values():
                clean = f"{clean[: KEY_LIMIT - 7]}_{digest(name)[:6]}"
            self._names[name] = clean
        return self._names[name]

    def _flush(self) -> None:
        waiting, self._waiting, self._sent_at = self._waiting, [], time.monotonic()
        if waiting or len(self._spool):
            self._send(waiting)

    def _send(self, rows: list[Row]) -> None:
        """Send ``rows`` after what was spooled, or spool them too; never raises because of the server."""
        rows = [{"run": self.run_id, **row} for row in rows]
        if time.monotonic() < self._retry_at:
            self._spool.add(rows)
            return
        if len(self._spool):
            rows = [*self._spool.rows(), *rows]
        unsent = deliver(self._client, rows)
        if unsent or len(self._spool):
            self._spool.replace(unsent)
        if unsent:
            self._retry_at, self._pause_s = time.monotonic() + self._pause_s, min(2 * self._pause_s, 600.0)
            if not self._warned:
                log.warning("MLflow cannot be reached; training goes on and its records wait in %s", self._spool.path)
                self._warned = True
        else:
            self._pause_s = 30.0


def _of_epoch(name: str) -> str:
    """The name of an epoch's mean where a step's value has one like it."""
    return f"epoch.{name}" if name == "loss" or name.startswith("train.") else name


def sync_folder(folder: Path, config: TrackingConfig) -> int:
    """Send what a run left in its folder's spool; returns how many rows are still waiting."""
    uri, artifacts = config.places()
    with store_failures(uri):
        prepare_store(uri, artifacts)
    spool = Spool(folder / SPOOL)
    if len(spool):
        spool.replace(deliver(mlflow.MlflowClient(uri), spool.rows()))
    return len(spool)


def nest(config: TrackingConfig, run_id: str, parent: str) -> None:
    """Show a run that there is already under ``parent``; where the store does not answer, it stays where it was."""
    uri, _ = config.places()
    try:
        mlflow.MlflowClient(uri).set_tag(run_id, "mlflow.parentRunId", parent)
    except Exception as error:  # only where a page shows a run: no reason to stop
        log.warning("MLflow does not show run %s under its parent: %s", run_id, type(error).__name__)


def _git() -> dict[str, str]:
    """Commit and state of the repository that holds this file; nothing when it is installed without one."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not just some repository around site-packages
        return {
            "mlflow.source.git.commit": git("rev-parse", "HEAD"),
            "git.dirty": str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower(),
        }
    except (OSError, subprocess.SubprocessError):
        return {}
