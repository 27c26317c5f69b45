"""What watches a training run on rank 0: the protocol, a fan-out, a progress bar and a history file."""

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID

from medmtl.config import Config
from medmtl.errors import UserError
from medmtl.files import disk_errors, write_atomic
from medmtl.progress import bars

log = logging.getLogger(__name__)


class TrackingConfig(Config):
    """Where runs are recorded. It lives here, not beside the tracker, so that reading a config does not import MLflow.

    ``uri`` None: ``$MLFLOW_TRACKING_URI``, else ``sqlite:///mlflow.db`` in the current folder. ``artifacts`` None:
    ``mlartifacts`` beside that data base; for a server the server decides. ``experiment`` None: the study's name.
    """

    enabled: bool = True
    uri: str | None = None
    artifacts: str | None = None
    experiment: str | None = None
    system_metrics: bool = True

    def places(self) -> tuple[str, str | None]:
        """``(tracking URI, artifact location or None)``, both absolute, so that a change of folder changes nothing."""
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        if "://" not in uri or uri.startswith("file:"):
            raise UserError(
                "E-MLFLOW-URI",
                "MLflow's file store is switched off in MLflow 3",
                "write sqlite:///mlflow.db or the URL of a server",
                where="tracking.uri",
            )
        database = sqlite_file(uri)
        artifacts = self.artifacts
        if database is not None:
            uri = f"sqlite:///{database}"
            artifacts = artifacts or str(database.parent / "mlartifacts")
        if artifacts is not None and "://" not in artifacts:
            artifacts = Path(artifacts).expanduser().absolute().as_uri()
        return uri, artifacts


def sqlite_file(uri: str) -> Path | None:
    """The absolute file of a ``sqlite:///`` URI, None for any other."""
    if not uri.startswith("sqlite:///") or uri in ("sqlite:///", "sqlite:///:memory:"):
        return None
    return Path(uri.removeprefix("sqlite:///")).absolute()


class Callback(Protocol):
    """Told what happens, in order, on rank 0 only. Subclass it and write the methods that are needed.

    ``started`` gets the facts of the run; those known here, all optional: ``epochs``, ``steps_per_epoch``,
    ``images_per_step``, ``monitor`` (the validation metric that selects), and where it starts or resumes: ``epoch``
    (0 at first) and ``step`` (steps already done).
    ``step`` is counted from 1 over the whole run. ``finished`` gets FINISHED, FAILED or KILLED.
    """

    def started(self, facts: Mapping[str, Any]) -> None:
        """Training is about to begin or to resume."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """One optimizer step was done."""

    def epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """One epoch, and its validation, was done."""

    def saving(self) -> None:
        """A checkpoint is about to be written: a run that resumes from it does not repeat what was told until now."""
        return  # most have nothing to keep

    def finished(self, status: str) -> None:
        """Training is over; called once, whatever happened."""


class Callbacks(Callback):
    """Several callbacks as one, in order. ``finished`` reaches every one even if one before it raises."""

    def __init__(self, members: Iterable[Callback] = ()) -> None:
        self.members = list(members)

    def started(self, facts: Mapping[str, Any]) -> None:
        for member in self.members:
            member.started(facts)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        for member in self.members:
            member.step(step, metrics)

    def epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        for member in self.members:
            member.epoch(epoch, step, metrics)

    def saving(self) -> None:
        for member in self.members:
            member.saving()

    def finished(self, status: str) -> None:
        failures: list[Exception] = []
        for member in self.members:
            try:
                member.finished(status)
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]


class Progress(Callback):
    """A bar per epoch with images per second, loss and the time left; on anything but a terminal one line per epoch.

    The loss is the metric ``loss``, else the first whose name ends in ``loss``.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.facts: Mapping[str, Any] = {}
        self.bars: Bars | None = None
        self.bar: TaskID | None = None
        self._epoch, self._done, self._began = 0, 0, 0.0

    def started(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts
        steps, done = int(facts.get("steps_per_epoch", 0)), int(facts.get("step", 0))
        self._begin(int(facts.get("epoch", 0)), done % steps if steps else 0)
        if self.console.is_terminal:
            self.bars = bars(self.console)
            self.bars.start()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._done += 1
        if self.bars is None:
            return
        if self.bar is None:
            total = int(self.facts.get("steps_per_epoch", 0)) or None
            self.bar = self.bars.add_task(self._title(), total=total, completed=self._already, note="")
        self.bars.update(self.bar, advance=1, note=self._note(metrics))

    def epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        if self.bars is None or self.bar is None:
            self.console.print(f"{self._title()}  step {step}  {self._note(metrics)}", highlight=False, markup=False)
        else:
            self.bars.update(self.bar, note=self._note(metrics))
            self.bars.stop_task(self.bar)
        self.bar = None
        self._begin(epoch + 1, 0)

    def finished(self, status: str) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = self.bar = None
        if status != "FINISHED":
            self.console.print(f"training ended: {status}", highlight=False)

    def _begin(self, epoch: int, already: int) -> None:
        self._epoch, self._already, self._done, self._began = epoch, already, 0, time.monotonic()

    def _title(self) -> str:
        epochs = self.facts.get("epochs")
        return f"epoch {self._epoch + 1}" + (f"/{epochs}" if epochs else "")

    def _note(self, metrics: Mapping[str, float]) -> str:
        name = "loss" if "loss" in metrics else next((key for key in metrics if key.endswith("loss")), None)
        notes = [] if name is None else [f"{name} {metrics[name]:.4g}"]
        monitor = f"val.{self.facts.get('monitor')}"
        notes += [f"{monitor} {metrics[monitor]:.4f}"] if monitor in metrics else []
        seconds = time.monotonic() - self._began
        if "images_per_step" in self.facts and self._done and seconds > 0:
            notes.insert(0, f"{self._done * int(self.facts['images_per_step']) / seconds:.1f} images/s")
        return "  ".join(notes)


class History(Callback):
    """Every metric as a row ``{"epoch", "step", "name", "value"}`` of a JSON-lines file.

    A value that is not finite is null. On resume, rows after the resumed step and a row cut short by a kill are
    removed, so that a run that was interrupted has the same history as one that was not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._epoch = 0
        self._stream: IO[str] | None = None

    def started(self, facts: Mapping[str, Any]) -> None:
        self._epoch, done = int(facts.get("epoch", 0)), int(facts.get("step", 0))
        kept = [row for row in read_history(self.path) if row["step"] <= done] if done else []
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._stream = self.path.open("a", encoding="utf-8")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._append(self._epoch, step, metrics)

    def epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        self._append(epoch, step, metrics)
        self._epoch = epoch + 1
        if self._stream is not None:
            os.fsync(self._stream.fileno())  # once per epoch: a sync per step would cost more than the step

    def finished(self, status: str) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            with disk_errors(self.path):
                stream.close()

    def _append(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        assert self._stream is not None, "History.started comes first"
        rows = (
            {"epoch": epoch, "step": step, "name": name, "value": float(value) if math.isfinite(value) else None}
            for name, value in metrics.items()
        )
        with disk_errors(self.path):
            self._stream.write("".join(json.dumps(row) + "\n" for row in rows))
            self._stream.flush()


def read_history(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a history file, none if it is absent; a row that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            log.warning("%s: a row that was cut short is left out", path.name)
            continue
        rows.append(row)
    return rows
