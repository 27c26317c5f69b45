"""The main job, end to end, on a synthetic study with known truth."""

import shutil
from collections.abc import Callable
from pathlib import Path

from medmtl.config import load
from medmtl.data.case import read_manifest
from medmtl.data.synthetic.mitosis import write_mitosis_study
from medmtl.experiment import train
from medmtl.inference.pipeline import Job, predict
from medmtl.results import evaluate_run
from medmtl.study import Study


def run_demo(out: Path, file: Path, cases: int, *, say: Callable[[str], None] = print) -> int:
    """Write the study, train it, evaluate it, predict its test images; returns the exit code of the prediction."""
    say(f"1/4 writing a synthetic study of {cases} patches from three scanners to {out / 'study'}")
    manifest_path = write_mitosis_study(out / "study", cases=cases)
    study = load(Study, file, [f"data.manifest={manifest_path}"])
    say(f"2/4 training {file}")
    run = train(study, runs=out / "runs", say=say)
    say("3/4 evaluating on the test slides")
    evaluation = evaluate_run(run, say=say)
    say("4/4 predicting a folder of images")
    manifest = read_manifest(manifest_path)
    scans = out / "scans"
    scans.mkdir(exist_ok=True)
    for case in manifest.cases:
        if case.split == "test":
            shutil.copyfile(manifest.path(case.image), scans / f"{case.case_id}.png")
    summary = predict(Job(bundle=run.bundle, source=scans, out=out / "predictions"))
    say(
        f"\nreport:      {evaluation.report}\npredictions: {out / 'predictions' / 'predictions.csv'}\n"
        "runs:        make ui"
    )
    return summary.exit_code
