"""Commands about studies: check, train, evaluate, compare, and MLflow."""

import json
from pathlib import Path
from typing import Annotated

import typer

from medmtl.cli.app import app, say

ConfigFile = Annotated[Path, typer.Argument(help="A study's YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Keys to change, as optim.epochs=30.")]
Runs = Annotated[Path, typer.Option(help="Folder that holds the runs.")]


@app.command()
def config(
    file: ConfigFile,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option(help="Print the JSON schema for editors instead.")] = False,
) -> None:
    """Check a study's file and print the whole resolved tree."""
    from medmtl.config import load, to_yaml
    from medmtl.study import Study

    typer.echo(
        json.dumps(Study.model_json_schema(), indent=2) if schema else to_yaml(load(Study, file, overrides or ())),
        nl=schema,
    )


@app.command()
def train(
    file: ConfigFile,
    overrides: Overrides = None,
    single_task: Annotated[str | None, typer.Option(help="Train this task alone, everything else equal.")] = None,
    runs: Runs = Path("runs"),
    fresh: Annotated[bool, typer.Option(help="Start over instead of continuing the run with these settings.")] = False,
) -> None:
    """Train a study. The same command continues an interrupted run, and says so of a finished one."""
    from medmtl.config import load
    from medmtl.experiment import train as train_study
    from medmtl.study import Study

    study = load(Study, file, overrides or ())
    folder = train_study(study.alone(single_task) if single_task else study, runs=runs, fresh=fresh, say=say)
    say(f"next: medmtl evaluate {folder.path}")


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(help="A run's folder, or the study's YAML file.")],
    overrides: Overrides = None,
    single_task: Annotated[str | None, typer.Option(help="With a YAML file: the single-task run.")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Evaluate a run on its test cases: case table, metrics with intervals by domain, report."""
    from medmtl.results import evaluate_run

    result = evaluate_run(_run_of(target, overrides or [], single_task, runs), say=say)
    say(f"report: {result.report}")


def _run_of(target: Path, overrides: list[str], single_task: str | None, runs: Path):  # type: ignore[no-untyped-def]
    from medmtl.config import load
    from medmtl.runs import RunFolder
    from medmtl.study import Study

    if target.suffix not in (".yaml", ".yml"):
        return RunFolder(target)
    study = load(Study, target, overrides)
    return RunFolder.of(study.alone(single_task) if single_task else study, runs)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="An evaluated run, or an evaluation folder.")],
    b: Annotated[Path, typer.Argument(help="The one whose difference to A is shown.")],
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.json, .txt, .png.")] = None,
    also_a: Annotated[list[Path] | None, typer.Option(help="More runs like A (seeds): A is their mean.")] = None,
    also_b: Annotated[list[Path] | None, typer.Option(help="More runs like B.")] = None,
    resamples: Annotated[int, typer.Option(min=100)] = 1000,
) -> None:
    """The difference of two runs on the cases they share, with paired intervals clustered by group."""
    from medmtl.results import compare_runs

    typer.echo(compare_runs([a, *(also_a or [])], [b, *(also_b or [])], out, resamples=resamples)[1], nl=False)


@app.command()
def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated runs of one study (folds or seeds).")],
    out: Annotated[Path, typer.Option(help="Folder for the ensemble's evaluation.")],
) -> None:
    """Evaluate the mean prediction of several runs."""
    from medmtl.results import evaluate_ensemble
    from medmtl.runs import RunFolder

    result = evaluate_ensemble([RunFolder(path) for path in runs], out, say=say)
    say(f"report: {result.report}")


@app.command()
def ui(
    port: int = 5000, uri: Annotated[str | None, typer.Option(help="MLflow store; default: as in training.")] = None
) -> None:
    """Open MLflow on this machine (127.0.0.1)."""
    from medmtl.engine.callbacks import TrackingConfig
    from medmtl.ui import serve

    store, artifacts = TrackingConfig(uri=uri).places()
    serve(store, artifacts=artifacts, port=port)


@app.command()
def sync(run_folder: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Send to MLflow what a run could not send while the server was away."""
    from medmtl.config import load
    from medmtl.engine.mlflow import sync_folder
    from medmtl.study import Study

    waiting = sync_folder(run_folder, load(Study, run_folder / "study.yaml").tracking)
    say(f"{waiting} records still wait" if waiting else "everything was sent")


@app.command()
def demo(
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(help="One of the studies by its name; default: all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the synthetic studies, runs and predictions.")] = Path("demo"),
    configs: Annotated[Path, typer.Option(help="Folder with <study>.yaml.")] = Path("configs/smoke"),
    cases: Annotated[int | None, typer.Option(min=60, help="Images of each synthetic study.")] = None,
) -> int:
    """The main job on data that medmtl makes itself: draw, train, evaluate, predict, and one table of all studies."""
    from medmtl.demo import run_demo

    return run_demo(out, configs, only=only, cases=cases, overrides=overrides or (), say=say)
