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
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Keys to change, as evaluation.by=[age]; of a run's folder those that it leaves open."),
    ] = None,
    single_task: Annotated[str | None, typer.Option(help="With a YAML file: the single-task run.")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Evaluate a run on its test cases: case table, metrics with intervals by domain, report."""
    from medmtl.config import load
    from medmtl.errors import UserError
    from medmtl.results import evaluate_run, study_of
    from medmtl.runs import RunFolder
    from medmtl.study import Study

    if target.suffix in (".yaml", ".yml"):
        study = load(Study, target, overrides or ())
        study = study.alone(single_task) if single_task else study
        run = RunFolder.of(study, runs)
    elif single_task is not None:
        raise UserError(
            "E-EVAL-TASK",
            "--single-task goes with a study's YAML file, this is a run's folder",
            "give the folder of the single-task run, or the YAML file",
            where=str(target),
        )
    else:
        run = RunFolder(target)
        study = study_of(run, overrides or ())
    result = evaluate_run(run, study=study, say=say)
    say(f"report: {result.report}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="An evaluated run, an evaluation folder, or its cases.csv.")],
    b: Annotated[Path, typer.Argument(help="The one whose difference to A is shown.")],
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.json, .txt, .png.")] = None,
    also_a: Annotated[list[Path] | None, typer.Option(help="More runs like A (seeds): A is their mean.")] = None,
    also_b: Annotated[list[Path] | None, typer.Option(help="More runs like B.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only cases with this value: diagnosis=MCI (meta.diagnosis), domain=B."),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task (may be given again).")] = None,
    resamples: Annotated[int, typer.Option(min=100)] = 1000,
) -> None:
    """The difference of two runs on the cases they share, with paired intervals clustered by group."""
    from medmtl.errors import UserError
    from medmtl.results import compare_runs
    from medmtl.results.pooled import compare_pooled, is_pooled

    sides = [a, *(also_a or [])], [b, *(also_b or [])]
    compared = compare_pooled if any(is_pooled(place) for side in sides for place in side) else compare_runs
    for item in where or ():
        if "=" not in item:
            raise UserError("E-CMP-WHERE", f"{item!r} is no COLUMN=VALUE", "give as diagnosis=MCI", where="--where")
    wanted = dict(item.split("=", 1) for item in where or ())
    typer.echo(compared(*sides, out, resamples=resamples, where=wanted, tasks=task or None)[1], nl=False)


@app.command()
def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated runs of one study (folds or seeds).")],
    out: Annotated[Path, typer.Option(help="Folder for the ensemble's evaluation.")],
) -> None:
    """Evaluate the mean prediction of several runs."""
    from medmtl.results import evaluate_ensemble
    from medmtl.runs import RunFolder

    result = evaluate_ensemble([RunFolder(path) for path in runs], out, say=say)
    if "units" not in result.result and any((path / "evaluation" / "aggregated.csv").is_file() for path in runs):
        say("no numbers per patient: attention is learned by each run, see their own reports")
    say(f"report: {result.report}")


@app.command()
def pool(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated runs of one study, one for every fold.")],
    out: Annotated[Path, typer.Option(help="Folder for the pooled evaluation.")],
) -> None:
    """Evaluate all folds together: every case once, by the model that never saw it."""
    from medmtl.pooling import pool_runs
    from medmtl.runs import RunFolder

    result = pool_runs([RunFolder(path) for path in runs], out, say=say)
    say(f"report: {result.report}")


@app.command()
def crossval(
    file: ConfigFile,
    overrides: Overrides = None,
    folds: Annotated[str | None, typer.Option(help="Only these folds, as 0,1; default: all.")] = None,
    single_task: Annotated[str | None, typer.Option(help="This task alone, everything else equal.")] = None,
    single_tasks: Annotated[bool, typer.Option("--single-tasks", help="Each task alone as well, and a table.")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train and evaluate every fold and pool them. The same command continues; finished runs are left alone."""
    from medmtl.config import load
    from medmtl.crossval import crossval as cross_validate
    from medmtl.study import Study

    study = load(Study, file, overrides or ())
    cross_validate(study, runs=runs, folds=_numbers(folds), single_task=single_task, single_tasks=single_tasks, say=say)


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter("write numbers with commas between them, as 0,1,2", param_hint="--folds")
    return [int(part) for part in parts]


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep's YAML file: study, and a list of the keys to set.")],
    overrides: Overrides = None,
    test: Annotated[bool, typer.Option("--test", help="Read the test part, too: when the choice is made.")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train one study with several settings and compare them on validation; finished runs are left alone."""
    from medmtl.sweep import sweep as train_sweep

    train_sweep(file, overrides or (), runs=runs, test=test, say=say)


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
