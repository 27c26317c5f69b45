"""The main job, end to end, on synthetic studies with known truth: draw, train, evaluate, predict, and one table."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medmtl.config import load
from medmtl.data.case import Manifest, read_manifest
from medmtl.data.synthetic.brain import write_brain_study
from medmtl.data.synthetic.colposcopy import write_colposcopy_study
from medmtl.data.synthetic.dermoscopy import write_dermoscopy_study
from medmtl.data.synthetic.mitosis import write_mitosis_study
from medmtl.errors import UserError
from medmtl.evaluation.trivial import TRIVIAL, beside, of_controls
from medmtl.experiment import train
from medmtl.inference.folder import PREDICTIONS
from medmtl.inference.pipeline import Job, predict
from medmtl.results import Evaluation, aligned, evaluate_run
from medmtl.study import Study

Say = Callable[[str], None]


class Writer(Protocol):
    """Draws a study into a folder, ``manifest.csv`` last; the same arguments give the same bytes."""

    def __call__(self, out: Path, *, cases: int, groups: int) -> Path: ...


_FEWEST_GROUPS = 9  # three of each scanner: training, validation, test


@dataclass(frozen=True)
class DemoStudy:
    """A drawn study and the file that trains it, ``<name>.yaml`` in the folder of the small configurations."""

    name: str
    write: Writer
    cases: int
    groups: int  # patients or slides; in proportion where other numbers of cases are asked for

    def draw(self, out: Path, cases: int) -> Path:
        """The manifest of the study in ``out``, which is drawn unless it is there."""
        path = out / "manifest.csv"
        groups = max(_FEWEST_GROUPS, round(self.groups * cases / self.cases))
        return path if path.is_file() else self.write(out, cases=cases, groups=groups)


DEMOS = (
    DemoStudy("atypical_mitosis", write_mitosis_study, cases=480, groups=48),
    DemoStudy("cervical_screening", write_colposcopy_study, cases=720, groups=320),
    DemoStudy("skin_lesions", write_dermoscopy_study, cases=400, groups=320),
    DemoStudy("adas_cog", write_brain_study, cases=200, groups=110),
)


@dataclass(frozen=True)
class Outcome:
    """What one study came to."""

    name: str
    evaluation: Evaluation
    predictions: Path
    exit_code: int  # of the prediction
    seconds: Mapping[str, float]  # phase -> wall time


def run_demo(
    out: Path,
    configs: Path,
    *,
    only: str | None = None,
    cases: int | None = None,
    overrides: Sequence[str] = (),
    say: Say = print,
) -> int:
    """Every study, or ``only`` one: write, train, evaluate, predict. Ends with one table; returns the exit code.

    A study that is drawn, a run that is trained and an image that is predicted are not done again. ``cases`` None: as
    many as each study was made for.
    """
    chosen = [demo for demo in DEMOS if only in (None, demo.name)]
    if not chosen:
        raise UserError(
            "E-DEMO-NAME", f"no demo study {only!r}", f"choose {', '.join(demo.name for demo in DEMOS)}", where="--only"
        )
    outcomes = [_run(demo, out / demo.name, configs, cases or demo.cases, overrides, say) for demo in chosen]
    say("\n" + format_outcomes(outcomes))
    return max(outcome.exit_code for outcome in outcomes)


def _run(demo: DemoStudy, out: Path, configs: Path, cases: int, overrides: Sequence[str], say: Say) -> Outcome:
    began: list[tuple[str, float]] = []

    def phase(name: str, text: str) -> None:
        began.append((name, time.monotonic()))
        say(f"{demo.name} {len(began)}/4: {text}")

    size = "" if cases == demo.cases else f"-{cases}"  # another number of images is another study
    folder, file = out / f"study{size}", configs / f"{demo.name}.yaml"
    say("")
    phase("draw", f"a synthetic study of {cases} images in {folder}")
    manifest = demo.draw(folder, cases)
    study = load(Study, file, [f"data.manifest={manifest}", *overrides])
    phase("train", f"training {file}")
    run = train(study, runs=out / "runs", say=say)
    phase("evaluate", "evaluating on the test cases")
    evaluation = evaluate_run(run, say=say)
    phase("predict", "predicting a folder of images")
    scans = _scans(read_manifest(manifest), out / f"scans{size}")
    summary = predict(Job(bundle=run.bundle, source=scans, out=out / "predictions" / run.path.name))
    ends = [*(start for _, start in began[1:]), time.monotonic()]
    seconds = {name: end - start for (name, start), end in zip(began, ends, strict=True)}
    return Outcome(demo.name, evaluation, out / "predictions" / run.path.name / PREDICTIONS, summary.exit_code, seconds)


def _scans(manifest: Manifest, folder: Path) -> Path:
    """The test images alone, in a folder without labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in manifest.cases:
        if case.split == "test":
            suffix = ".nii.gz" if case.image.endswith(".nii.gz") else Path(case.image).suffix
            shutil.copyfile(manifest.path(case.image), folder / f"{case.case_id}{suffix}")
    return folder


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """The first headline of every task, where each study fails most, and where everything is."""
    heads = ("study", "task", "metric", "value", "interval", "constant", "training mean", "training median")
    rows = [row for outcome in outcomes for row in _rows(outcome.name, outcome.evaluation.result)]
    failures = [line for outcome in outcomes for line in _failure(outcome.name, outcome.evaluation.result)]
    places: list[tuple[str, str, str]] = []
    for outcome in outcomes:
        spent = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in outcome.seconds.items())
        places.append((outcome.name, "report", str(outcome.evaluation.report)))
        places += [("", "predictions", str(outcome.predictions)), ("", "time", spent)]
    return "\n".join((aligned([heads, *rows]), "", *failures, "", aligned(places), "", "runs: make ui"))


def _rows(name: str, result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for task, entry in result["tasks"].items():
        metric = entry["headline"][0]
        cell, control = entry["overall"][metric], entry["control"]["constant"].get(metric)
        value, low, high = (
            "-" if number is None else f"{number:.3f}" for number in (cell["value"], cell["low"], cell["high"])
        )
        trivial = beside(of_controls(entry), metric)
        constants = (control, *(trivial.get(each) for each in TRIVIAL))
        yield name, task, metric, value, f"{low} to {high}", *("-" if c is None else f"{c:.3f}" for c in constants)


def _failure(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """The stratum of the largest effect, where a task is worse beyond chance."""
    for row in result.get("failures", {}).get("worse", [])[:1]:
        column = row["column"].removeprefix("meta.")
        yield (
            f"{name} fails most where {column} is {row['stratum']}: {row['task']} {row['metric']} {row['value']:.3f}, "
            f"{row['rest']:.3f} elsewhere ({row['n']} cases)"
        )
