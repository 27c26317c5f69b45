"""Several runs that belong together: trained one after the other, finished ones left alone, under one run in MLflow."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmtl.errors import UserError
from medmtl.experiment import train
from medmtl.files import write_atomic
from medmtl.runs import RunFolder
from medmtl.study import Study

Say = Callable[[str], None]


@dataclass
class Family:
    """The parent of several runs: a folder beside theirs, and its run in MLflow where there is one."""

    study: Study
    folder: RunFolder
    runs: Path
    count: int  # of all runs
    tracker: Any = None
    done: int = 0

    def train(self, study: Study, label: str, say: Say) -> RunFolder:
        """Train one, or confirm it; shown under the parent."""
        self.done += 1
        say(f"[{self.done}/{self.count}] {label}")
        parent = None if self.tracker is None else self.tracker.run_id
        run = train(study, runs=self.runs, say=say, parent=parent)
        known = run.read_facts().get("mlflow_run_id")
        if parent is not None and known is not None:  # one that was finished before has not been told
            from medmtl.engine.mlflow import nest  # mlflow takes seconds to import

            nest(study.tracking, known, parent)
        return run

    def write(self, name: str, tree: Mapping[str, Any]) -> Path:
        """A JSON file of the parent."""
        content = json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return write_atomic(self.folder.path / name, content)


@contextmanager
def family(study: Study, runs: Path, name: str, *, count: int, params: Mapping[str, Any]) -> Iterator[Family]:
    """The parent ``runs/<name>``; its run in MLflow is continued by the same command and told how the block ended."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "E-RUN-WORLD",
            "several runs are trained by one process",
            "train them one by one with torchrun (`medmtl train`), then give this command without it",
            where=name,
        )
    folder = RunFolder(runs / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    made = Family(study, folder, runs, count)
    if not study.tracking.enabled:
        yield made
        return
    from medmtl.engine.mlflow import Tracker  # mlflow takes seconds to import

    with Tracker.open(
        study.tracking.model_copy(update={"system_metrics": False}),
        experiment=study.tracking.experiment or study.name,
        run_name=name,
        folder=folder.path,
        tags={"study": study.name},
        params=params,
        resume_run_id=folder.read_facts().get("mlflow_run_id"),
    ) as made.tracker:
        folder.add_facts({"mlflow_run_id": made.tracker.run_id})
        yield made
        made.tracker.log_folder(folder.path, "results")
