"""An evaluation in the run's own MLflow entry."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from medmtl.evaluation.units import units_metrics
from medmtl.runs import RunFolder
from medmtl.study import Study


def flat_metrics(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Metrics for MLflow: ``test.<task>.<metric>``, its interval, each domain and the worst one."""
    for name, task in result["tasks"].items():
        for metric, cell in task["overall"].items():
            for key, suffix in (("value", ""), ("low", ".low"), ("high", ".high")):
                if cell[key] is not None:
                    yield f"test.{name}.{metric}{suffix}", cell[key]
        for metric in task["headline"]:
            for domain, cells in task["domains"].items():
                if metric in cells and cells[metric]["value"] is not None:
                    yield f"test.{name}.{metric}.{domain}", cells[metric]["value"]
            for control, found in task.get("controls", {}).items():
                cell = found["metrics"].get(metric, {})
                for key, suffix in (("difference", ""), ("low", ".low"), ("high", ".high")):
                    if cell.get(key) is not None:
                        yield f"test.{name}.{metric}.less_{control}{suffix}", cell[key]
            worst = task["worst_domain"].get(metric)
            for key, suffix in (("value", ""), ("low", ".low"), ("high", ".high")):
                if worst and worst[key] is not None:
                    yield f"test.{name}.{metric}.worst_domain{suffix}", worst[key]
    if "units" in result:
        yield from units_metrics(result["units"]).items()
    if "failures" in result:
        yield "test.failures.worse", float(len(result["failures"]["worse"]))


@contextmanager
def reopened(study: Study, run: RunFolder) -> Iterator[Any]:
    """The run in MLflow once more, or None where it was not tracked."""
    run_id = run.read_facts().get("mlflow_run_id")
    if not study.tracking.enabled or run_id is None:
        yield None
        return
    from medmtl.engine.mlflow import Tracker  # mlflow takes seconds to import

    config = study.tracking.model_copy(update={"system_metrics": False})
    with Tracker.open(
        config, run_name=run.path.name, folder=run.path, tags={}, params={}, resume_run_id=run_id, training=False
    ) as tracker:
        yield tracker
