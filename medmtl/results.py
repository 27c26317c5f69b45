"""A trained run on its test cases: case table, metrics, report; and what two or more runs say together."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medmtl.bars import bar
from medmtl.bundle import Bundle, ModelSpec, load_bundle
from medmtl.config import load, to_yaml
from medmtl.data.loader import CaseDataset
from medmtl.engine.callbacks import read_history
from medmtl.errors import SafetyRefusal, UserError
from medmtl.evaluation import plots
from medmtl.evaluation.aggregate import decided
from medmtl.evaluation.compare import compare_repeats, format_comparison
from medmtl.evaluation.failure_report import failure_facts, failure_figures, failure_section, write_failures
from medmtl.evaluation.failures import failure_analysis
from medmtl.evaluation.figures import galleries, history_figures, task_figures, worst_cases
from medmtl.evaluation.plots import Figure
from medmtl.evaluation.report import write_report
from medmtl.evaluation.summary import evaluate_table
from medmtl.evaluation.units import evaluate_units, units_metrics, units_section
from medmtl.experiment import freeze_thresholds
from medmtl.files import write_atomic
from medmtl.inference.evidence import evidence
from medmtl.predictor import Predictor
from medmtl.process import device_named
from medmtl.runs import RunFolder
from medmtl.study import Prepared, Study, prepare
from medmtl.tasks import AnyTask
from medmtl.tasks.annotators import Annotators
from medmtl.tasks.classification import ClassificationBase
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.segmentation import Segmentation

Say = Callable[[str], None]
CASES, RESULT, REPORT, FAILURES = "cases.csv", "evaluation.json", "report.html", "failures.csv"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation wrote, and its numbers."""

    folder: Path
    result: Mapping[str, Any]
    table: pd.DataFrame
    tasks: Mapping[str, AnyTask]

    @property
    def report(self) -> Path:
        return self.folder / REPORT


def evaluate_run(run: RunFolder, *, say: Say = print) -> Evaluation:
    """Evaluate a run's bundle on the test part of its own study; validation is predicted too, for comparisons.

    Refuses (exit 6) when manifest or split are not those of training. Every reading of the test set is counted in
    ``run.json`` and stated in the report.
    """
    if not run.study.is_file():
        raise UserError(
            "E-EVAL-RUN", "no study.yaml", "give the folder of a run (runs/...), or train first", where=str(run.path)
        )
    study = load(Study, run.study)
    bundle = load_bundle(run.bundle)
    prepared = prepare(study)
    _same_data(prepared, bundle)
    predictor = Predictor.of(bundle, device=device_named(study.fit.device), precision=study.fit.precision)
    learned = study.evaluation.aggregate is not None and study.evaluation.aggregate.how == "attention"
    parts = [part for part in ("train", "val", "test") if part != "train" or learned]
    data = {part: prepared.dataset(prepared.split.parts()[part]) for part in parts}
    tables = {}
    for part, dataset in data.items():
        with bar(f"predicting {part}", len(dataset)) as tick:
            size = study.loader.evaluation_batch_size
            tables[part] = predictor.table(dataset, batch_size=size, tick=tick)
    readings = int(run.read_facts().get("test_evaluations", 0)) + 1
    run.add_facts({"test_evaluations": readings})
    provenance = {**_provenance(bundle, prepared), "test set read": f"{readings} time(s) by this run"}
    evaluation = _write(
        run.evaluation,
        study,
        bundle.spec,
        tables,
        prepared,
        provenance,
        {**_evidence(predictor, data["test"], tables["test"], study), **history_figures(read_history(run.history))},
        _write_confusions(run.evaluation, bundle),
        say,
    )
    with _reopened(study, run) as tracker:
        if tracker is not None:
            tracker.log_metrics(dict(_flat(evaluation.result)))
            tracker.log_folder(run.evaluation, "evaluation")
    return evaluation


def evaluate_ensemble(runs: Sequence[RunFolder], out: Path, *, say: Say = print) -> Evaluation:
    """Average the predictions of evaluated runs of one study on the test cases they share; thresholds are chosen again.

    Thresholds come from the validation tables: a case is averaged over the runs that validated on it (for folds: the
    one model that did not train on it).
    """
    if len(runs) < 2:
        raise UserError("E-ENS-RUNS", "an ensemble needs two runs or more", "name them", where="ensemble")
    tables = [read_cases(run.evaluation / CASES) for run in runs]
    first = load_bundle(runs[0].bundle)
    study = load(Study, runs[0].study)
    prepared = prepare(study)
    averaged = average_tables(tables, first.spec)
    val, test = (averaged[averaged["split"] == part] for part in ("val", "test"))
    tested = [set(table.loc[table["split"] == "test", "case_id"]) for table in tables]
    if any(cases != tested[0] for cases in tested):
        raise UserError(
            "E-ENS-TEST", "the runs have different test cases", "combine runs of one test set", where="ensemble"
        )
    spec = freeze_thresholds(first.spec, val)
    ids = ", ".join(load_bundle(run.bundle).id for run in runs)
    parts = {"val": val, "test": decide(test, spec)}
    provenance = {**_provenance(first, prepared), "bundle": f"mean of {len(runs)}: {ids}"}
    return _write(out, study, spec, parts, prepared, provenance, {}, [], say)


def average_tables(tables: Sequence[pd.DataFrame], spec: ModelSpec) -> pd.DataFrame:
    """One row per case and task: numbers of the prediction are means over the tables that hold the case in that part.

    Dense tasks are left out: their scores belong to one model's masks and cannot be averaged.
    """
    flat = [name for name, task in spec.tasks.items() if not isinstance(task, Segmentation)]
    together = pd.concat([table[table["task"].isin(flat)] for table in tables], ignore_index=True)
    numbers = [c for c in together.columns if c == "prediction" or c.startswith("p.")]
    keys = ["task", "split", "case_id"]
    groups = together.groupby(keys, sort=False, dropna=False)
    result = groups.first().drop(columns=numbers).join(groups[numbers].mean()).reset_index()
    if (groups["target"].nunique() > 1).any():
        raise UserError(
            "E-ENS-TARGET", "the runs disagree about a label", "combine runs of one manifest", where="ensemble"
        )
    return decide(result, spec)


def decide(table: pd.DataFrame, spec: ModelSpec) -> pd.DataFrame:
    """The table with each class and level taken from its probabilities and the specification's thresholds."""
    result = table.copy()
    for name, task in spec.tasks.items():
        mine = result["task"] == name
        if isinstance(task, ClassificationBase | Ordinal) and mine.any():
            rows = pd.DataFrame([decided(task, p) for p in task.probabilities(result[mine])], index=result.index[mine])
            said = [column for column in ("prediction", "predicted_label", "expected") if column in rows]
            result.loc[mine, said] = rows[said]
    return result


def compare_runs(
    a: Sequence[Path], b: Sequence[Path], out: Path | None, *, resamples: int = 1000
) -> tuple[Mapping[str, Any], str]:
    """The paired difference b - a, with intervals, on the test cases that evaluated runs or folders share.

    Several runs on a side (seeds) count as the mean of their metrics.
    """
    sides = [[_evaluated(place) for place in places] for places in (a, b)]
    shared = [name for name in sides[0][0][1] if all(name in tasks for side in sides for _, tasks in side)]
    if not shared:
        raise UserError("E-CMP-TASKS", "the runs share no task", "compare runs of one study", where="compare")
    left, right = (
        [(table[table["split"] == "test"], {name: tasks[name] for name in shared}) for table, tasks in side]
        for side in sides
    )
    comparison = compare_repeats(left, right, resamples=resamples)
    labels = (a[0].name, b[0].name) if len(a) == len(b) == 1 and a[0].name != b[0].name else ("A", "B")
    text = format_comparison(comparison, labels=labels)
    if out is not None:
        names = {"a": [place.name for place in a], "b": [place.name for place in b]}
        write_atomic(out / "comparison.json", _json({**names, **comparison}))
        write_atomic(out / "comparison.txt", text)
        plots.save(plots.comparison_figure(comparison, labels=labels), out, "comparison")
    return comparison, text


def _evaluated(place: Path) -> tuple[pd.DataFrame, Mapping[str, AnyTask]]:
    """Case table and tasks of a run folder or an evaluation folder."""
    folder = place if (place / CASES).is_file() else place / "evaluation"
    if not (folder / CASES).is_file() or not (folder / "tasks.yaml").is_file():
        raise UserError("E-CMP-CASES", f"no {CASES}", "run `medmtl evaluate` on it first", where=str(place))
    return read_cases(folder / CASES), load(ModelSpec, folder / "tasks.yaml").tasks


def read_cases(path: Path) -> pd.DataFrame:
    """A case table that was written as CSV; ids and labels stay text, an empty domain stays empty."""
    if not path.is_file():
        raise UserError("E-EVAL-CASES", "no such case table", "run `medmtl evaluate` first", where=str(path))
    names = pd.read_csv(path, nrows=0).columns
    text = {"case_id", "group", "domain", "split", "task", *(name for name in names if name.startswith("meta."))}
    return pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=True, float_precision="round_trip").fillna(
        {"domain": "", "split": ""}
    )


def _same_data(prepared: Prepared, bundle: Bundle) -> None:
    found = {"manifest_sha256": prepared.manifest.sha256, "split_sha256": prepared.split.sha256}
    changed = [key for key, value in found.items() if bundle.provenance.get(key) != value]
    if changed:
        raise SafetyRefusal(
            "E-EVAL-DATA",
            f"{' and '.join(changed)} are not those of training: test cases may have been trained on",
            "restore the manifest, or train again",
            where=prepared.manifest.name,
        )


def _provenance(bundle: Bundle, prepared: Prepared) -> dict[str, str]:
    p = bundle.provenance
    return {
        "bundle": bundle.id,
        "study": prepared.study.name,
        "seed": str(prepared.study.seed),
        "manifest": str(p.get("manifest_sha256", ""))[:16],
        "split": str(p.get("split_sha256", ""))[:16],
        "configuration": str(p.get("config_sha256", ""))[:16],
        "medmtl": str(p.get("medmtl", "")),
        "torch": str(p.get("torch", "")),
    }


def _write(
    folder: Path,
    study: Study,
    spec: ModelSpec,
    tables: Mapping[str, pd.DataFrame],
    prepared: Prepared,
    provenance: Mapping[str, str],
    more: Mapping[str, Figure],
    remarks: Sequence[str],
    say: Say,
) -> Evaluation:
    """``cases.csv``, ``evaluation.json``, ``tasks.yaml``, figures and ``report.html`` of the test table.

    Where the study asks for it, ``aggregated.csv`` has a row per patient and ``failures.csv`` one per stratum.
    """
    test = tables["test"]
    e = study.evaluation
    result = {"provenance": dict(provenance), **evaluate_table(test, spec.tasks, resamples=e.resamples, level=e.level)}
    sections = []
    if e.aggregate is not None and (e.aggregate.how != "attention" or "train" in tables):  # an ensemble has none
        units = evaluate_units(tables, spec.tasks, e.aggregate, resamples=e.resamples, level=e.level)
        result["units"] = units.result
        sections.append(units_section(units.result, result))
        write_atomic(folder / "aggregated.csv", units.table.to_csv(index=False, lineterminator="\n"))
    strata: dict[str, Figure] = {}
    if e.failures is not None and any(column.startswith("meta.") for column in test):
        failures = failure_analysis(test, spec.tasks, e.failures, level=e.level)
        result["failures"], strata = failure_facts(failures), failure_figures(failures)
        sections.append(failure_section(failures))
        write_failures(folder / FAILURES, failures)
    both = pd.concat([tables["val"], test], ignore_index=True)
    write_atomic(folder / CASES, both.to_csv(index=False, lineterminator="\n"))
    write_atomic(folder / RESULT, _json(result))
    write_atomic(folder / "tasks.yaml", to_yaml(spec))
    images = {case.case_id: case.image for case in prepared.split.test}
    worst = galleries(test, spec.tasks, lambda case: _thumbnail(prepared, images[case]), e.gallery)
    figures = {**task_figures(test, spec.tasks, result), **worst, **strata, **more}
    for name, figure in figures.items():
        plots.save(figure, folder / "figures", name.replace("/", "-"))
    notes = [
        f"{len(prepared.split.train)} training, {len(prepared.split.val)} validation and "
        f"{test['case_id'].nunique()} test cases; no group is in two of them. Thresholds were chosen on validation. "
        f"Predictions are averaged over the views '{spec.views}'.",
        *remarks,
    ]
    write_report(
        folder / REPORT,
        title=study.name,
        evaluation=result,
        table=test,
        figures=figures,
        provenance=provenance,
        notes=notes,
        sections=sections,
    )
    say(format_result(result))
    return Evaluation(folder, result, test, spec.tasks)


def _write_confusions(folder: Path, bundle: Bundle) -> list[str]:
    """``confusions-<task>.csv`` of every task that learned its annotators' errors, and what they say in words."""
    said = []
    for name, task in bundle.spec.tasks.items():
        if isinstance(task, Annotators):
            head = bundle.model.heads[name]
            table = task.confusions(head).to_csv(index=False, lineterminator="\n")
            write_atomic(folder / f"confusions-{name}.csv", table)
            said += [f"{name}: {line}." for line in task.skills(head)]
    return said


def format_result(result: Mapping[str, Any]) -> str:
    """The headline of every task as a plain table: value, interval, constant control, worst domain."""
    lines = [
        (
            "task",
            "metric",
            "value",
            "95 % interval" if result["bootstrap"]["level"] == 0.95 else "interval",
            "constant",
            "worst domain",
        )
    ]
    for name, task in result["tasks"].items():
        for metric in task["headline"]:
            cell, worst = task["overall"].get(metric), task["worst_domain"].get(metric)
            if cell is None:
                continue
            interval = "" if cell["low"] is None else f"{cell['low']:.3f} to {cell['high']:.3f}"
            control = task["control"]["constant"].get(metric)
            lines.append(
                (
                    name,
                    metric,
                    _number(cell["value"]),
                    interval,
                    _number(control),
                    f"{_number(worst['value'])} ({worst['domain']})" if worst else "",
                )
            )
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as columns of equal width."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _thumbnail(prepared: Prepared, image: str) -> npt.NDArray[np.uint8]:
    """An image of the study as uint8 [H, W, 3]; of a volume the middle slice, its rows from the top down."""
    tensor, volume = prepared.spec.preprocess.read(prepared.manifest.path(image))
    array = tensor.numpy() if volume is None else tensor.numpy()[:, tensor.shape[1] // 2, ::-1]
    colour = np.repeat(array[:1], 3, 0) if array.shape[0] != 3 else array
    return np.round(np.moveaxis(colour, 0, -1) * 255).astype(np.uint8)


def _evidence(predictor: Predictor, dataset: CaseDataset, table: pd.DataFrame, study: Study) -> dict[str, Figure]:
    """``<task>/failures``: the worst cases of each task with masks and saliency; images in two dimensions only."""
    config, figures = study.evaluation.failures, {}
    index = {case.case_id: i for i, case in enumerate(dataset.cases)}
    if config is None or not config.gallery or not index or dataset[0].image.ndim != 3:
        return {}
    for name, task in predictor.spec.tasks.items():
        if not task.auxiliary:
            worst = worst_cases(table[table["task"] == name], task, config.gallery)
            items = [
                plots.Evidence(caption, *evidence(predictor, dataset, index[case], name)) for case, caption in worst
            ]
            figures[f"{name}/failures"] = plots.failure_gallery(items, title="Largest errors: masks and saliency")
    return figures


def _flat(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
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
            worst = task["worst_domain"].get(metric)
            if worst and worst["value"] is not None:
                yield f"test.{name}.{metric}.worst_domain", worst["value"]
    if "units" in result:
        yield from units_metrics(result["units"]).items()
    if "failures" in result:
        yield "test.failures.worse", float(len(result["failures"]["worse"]))


@contextmanager
def _reopened(study: Study, run: RunFolder) -> Iterator[Any]:
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


def _json(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
