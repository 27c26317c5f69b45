"""The folds of a cross-validation as one evaluation: every case once, answered by the model that never saw it."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medmtl.bundle import ModelSpec
from medmtl.config import Config, flatten, load, to_yaml
from medmtl.data.split import FoldSplit
from medmtl.errors import UserError
from medmtl.evaluation.aggregate import aggregated_tasks
from medmtl.evaluation.cases import read_cases
from medmtl.evaluation.compare import Side
from medmtl.evaluation.folds import FOLD, folded
from medmtl.evaluation.skill import control_sides
from medmtl.files import write_atomic
from medmtl.prepared import prepare
from medmtl.results.comparison import compare_places
from medmtl.results.folder import CASES, CONTROLS, RESULT, SPEC, UNITS, Evaluation, Material, evaluate_cases, to_json
from medmtl.results.run import thumbnails
from medmtl.runs import RunFolder
from medmtl.study import Study
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import Classification

Say = Callable[[str], None]
FOLDS, PER = "folds.yaml", "per-{}"


class FoldSpecs(Config):
    """``folds.yaml`` of a pooled evaluation: what each fold's model is, with the thresholds that it froze."""

    folds: dict[int, ModelSpec]


@dataclass(frozen=True)
class Fold:
    """One fold's evaluated run."""

    number: int
    run: RunFolder
    study: Study
    spec: ModelSpec
    result: Mapping[str, Any]
    test: pd.DataFrame  # case table

    @classmethod
    def of(cls, run: RunFolder) -> "Fold":
        """Read a run; refused unless it is evaluated, as it is now, on a fold of its own."""
        if not evaluated(run):
            raise UserError(
                "E-POOL-RUN",
                "no evaluation of this run's bundle",
                f"run `medmtl evaluate {run.path}` first",
                where=str(run.path),
            )
        study = load(Study, run.study)
        number = fold_of(study).fold
        table = read_cases(run.evaluation / CASES)
        test = table[table["split"] == "test"].assign(**{FOLD: number})
        spec = load(ModelSpec, run.evaluation / SPEC)
        return cls(number, run, study, spec, _read_json(run.evaluation / RESULT), test)


def fold_of(study: Study) -> FoldSplit:
    """The study's split, if the test parts of its folds are the whole data set; refused otherwise."""
    split = study.data.split
    if isinstance(split, FoldSplit) and split.test == "fold":
        return split
    raise UserError(
        "E-POOL-SPLIT",
        "the folds of this study have no test part each",
        "train with data.split: {kind: kfold, folds: 5, fold: 0, test: fold}; where the test set is fixed, average the "
        "folds' models by `medmtl ensemble`",
        where="data.split",
    )


def evaluated(run: RunFolder) -> bool:
    """Whether the run's evaluation is that of the bundle that it has now."""
    if not (run.evaluation / RESULT).is_file() or not (run.evaluation / SPEC).is_file():
        return False
    return bool(_read_json(run.evaluation / RESULT)["provenance"]["bundle"] == run.read_facts().get("bundle_id"))


def pool_runs(runs: Sequence[RunFolder], out: Path, *, say: Say = print) -> Evaluation:
    """Evaluate the test parts of all folds as one case table; intervals resample groups over the whole of it.

    A binary case is decided by the threshold of its own fold, which that fold froze on its own validation part; the
    constant control is each fold's own. Where patients are aggregated, they are as each fold's run did it.
    """
    folds = sorted((Fold.of(run) for run in runs), key=lambda fold: fold.number)
    check_folds(folds)
    prepared = prepare(folds[0].study)
    table = pd.concat([fold.test for fold in folds], ignore_index=True)
    _check_cases(table, {case.case_id for case in prepared.manifest.cases})
    units = _units(out, folds)
    sides = _control_sides(folds)
    material = Material(
        f"{folds[0].study.name}, {len(folds)} folds", {"test": table}, folds[0].spec, folds[0].study.evaluation,
        _provenance(folds), tasks=pooled_tasks({fold.number: fold.spec for fold in folds}),
        controls={name: rows for name, (rows, _) in sides.items()}, sides=sides,
        thumbnail=thumbnails(prepared), notes=_notes(folds, table, units),
    )  # fmt: skip
    found = evaluate_cases(out, material, say=say)
    result = {**found.result, **({"units": units} if units else {})}
    write_atomic(out / RESULT, to_json(result))
    _seal(out, {fold.number: fold.spec for fold in folds})
    return Evaluation(out, result, found.table, found.tasks)


def _seal(out: Path, specs: Mapping[int, ModelSpec]) -> None:
    """``folds.yaml``, last, in the place of one model's ``tasks.yaml``: no single threshold is that of the table."""
    (out / SPEC).unlink()
    write_atomic(out / FOLDS, to_yaml(FoldSpecs(folds=dict(specs))))


def check_folds(folds: Sequence[Fold]) -> None:
    """Refuse folds of different studies, data or versions of them, one that is there twice, and one that is missing."""
    first = folds[0]
    for fold in folds[1:]:
        differ = _difference(first.study, fold.study)
        if differ is not None:
            raise UserError(
                "E-POOL-STUDY",
                f"{differ} differs from that of {first.run.path.name}",
                "pool runs of one study, which differ in data.split.fold alone",
                where=str(fold.run.path),
            )
        if fold.result["provenance"]["manifest"] != first.result["provenance"]["manifest"]:
            raise UserError(
                "E-POOL-DATA",
                f"the manifest is not that of {first.run.path.name}",
                "train every fold on one manifest",
                where=str(fold.run.path),
            )
    numbers, wanted = [fold.number for fold in folds], fold_of(first.study).folds
    twice = next((number for number in numbers if numbers.count(number) > 1), None)
    if twice is not None:
        raise UserError("E-POOL-TWICE", f"fold {twice} is given twice", "name each fold's run once", where="pool")
    missing = sorted(set(range(wanted)) - set(numbers))
    if missing:
        raise UserError(
            "E-POOL-MISSING",
            f"fold {', '.join(map(str, missing))} of {wanted} is missing",
            "train and evaluate it: a case must not be left out",
            where="pool",
        )


def _difference(a: Study, b: Study) -> str | None:
    """The first key in which two studies differ beside the fold, and what they are called."""
    left, right = flatten(a.tree()), flatten(b.tree())
    keys = (key for key in {**left, **right} if key not in ("data.split.fold", "name"))
    return next((key for key in keys if left.get(key) != right.get(key)), None)


def _check_cases(table: pd.DataFrame, cases: set[str]) -> None:
    """Every case of the manifest once for each task."""
    twice = table[table.duplicated(["case_id", "task"], keep=False)]
    if len(twice):
        case = twice.iloc[0]["case_id"]
        found = sorted(set(twice.loc[twice["case_id"] == case, FOLD]))
        raise UserError(
            "E-POOL-CASE",
            f"case {case} is in the test part of fold {' and '.join(map(str, found))}",
            "train all folds with one version of medmtl and its libraries, then evaluate them again",
            where="pool",
        )
    absent = sorted(cases - set(table["case_id"]))
    if absent:
        raise UserError(
            "E-POOL-CASE",
            f"{len(absent)} of {len(cases)} cases are in no test part, first {absent[0]}",
            "train all folds on this manifest, then evaluate them again",
            where="pool",
        )


def pooled_tasks(specs: Mapping[int, ModelSpec]) -> dict[str, Any]:
    """The tasks of the whole table, from those of each fold."""
    names = next(iter(specs.values())).tasks
    return {name: folded({fold: spec.tasks[name] for fold, spec in specs.items()}) for name in names}


def _control_sides(folds: Sequence[Fold]) -> dict[str, Side]:
    """The controls that every fold's evaluation has, each as it was fitted and decided on its own fold."""
    places = [fold.run.evaluation / CONTROLS for fold in folds]
    if not all(place.is_file() for place in places):  # evaluated without controls
        return {}
    each = []
    for fold, place in zip(folds, places, strict=True):
        tables = {str(name): rows for name, rows in read_cases(place).groupby("control", sort=False)}
        each.append(control_sides(tables, fold.spec.tasks))
    shared = [name for name in each[0] if all(name in sides for sides in each)]
    return {name: _joined({fold.number: sides[name] for fold, sides in zip(folds, each, strict=True)})
            for name in shared}  # fmt: skip


def _joined(sides: Mapping[int, Side]) -> Side:
    """The case tables of all folds as one, with the tasks that judge it."""
    tables = [table.assign(**{FOLD: fold}) for fold, (table, _) in sides.items()]
    names = next(iter(sides.values()))[1]
    tasks: dict[str, Any] = {name: folded({fold: of[name] for fold, (_, of) in sides.items()}) for name in names}
    return pd.concat(tables, ignore_index=True), tasks


def _units(out: Path, folds: Sequence[Fold]) -> dict[str, Any] | None:
    """The patients of all folds, each as its own fold's run aggregated and decided it: an evaluation of its own in
    ``per-<group>``; None where the runs have none."""
    if not all(fold.result.get("units", {}).get("tasks") for fold in folds):
        return None
    first, study, specs = folds[0].result["units"], folds[0].study, {}
    tables = []
    for fold in folds:
        thresholds = fold.result["units"]["thresholds"]
        own: dict[str, AnyTask] = {
            name: task.model_copy(update={"threshold": thresholds[name]}) if name in thresholds else task
            for name, task in aggregated_tasks(fold.spec.tasks).items()
        }
        specs[fold.number] = fold.spec.model_copy(update={"tasks": own})
        rows = read_cases(fold.run.evaluation / UNITS)
        tables.append(rows[rows["split"] == "test"].assign(**{FOLD: fold.number}))
    table = pd.concat(tables, ignore_index=True)
    images, noun = table.groupby("case_id")["images"].max(), str(first["by"]).removeprefix("meta.")
    folder = out / PER.format(noun)
    material = Material(
        f"{study.name}, {len(folds)} folds, per {noun}", {"test": table}, specs[folds[0].number],
        study.evaluation.model_copy(update={"aggregate": None, "failures": None, "by": ()}),
        _provenance(folds), tasks=pooled_tasks(specs),
        notes=[f"A row is a {noun}: {images.min()} to {images.max()} images (median {images.median():g}), combined by "
               f"{first['how']} and decided by the threshold of its own fold."],
    )  # fmt: skip
    result = evaluate_cases(folder, material, say=lambda text: None).result
    _seal(folder, specs)
    return {
        "by": first["by"],
        "how": first["how"],
        "images": {"least": int(images.min()), "median": float(images.median()), "most": int(images.max())},
        "thresholds": {name: [f.result["units"]["thresholds"][name] for f in folds] for name in first["thresholds"]},
        "tasks": result["tasks"],
        "bootstrap": result["bootstrap"],
    }


def _provenance(folds: Sequence[Fold]) -> dict[str, str]:
    """What one run's evaluation says of itself, of all folds."""
    each = [fold.result["provenance"] for fold in folds]
    shared = {key: value for key, value in each[0].items() if all(other.get(key) == value for other in each)}
    bundles = ", ".join(f"{fold.number}: {fold.result['provenance']['bundle']}" for fold in folds)
    return {"bundle": f"of fold {bundles}", **shared}


def _notes(folds: Sequence[Fold], table: pd.DataFrame, units: Mapping[str, Any] | None) -> list[str]:
    cases = table.drop_duplicates("case_id")
    notes = [
        f"{len(folds)} folds: each of {len(cases)} cases of {cases['group'].nunique()} groups once, predicted by the "
        "model of the fold that held it out. Intervals resample groups over all folds and are about the cases, not "
        "about training again. The constant control is each fold's own.",
    ]
    for name, task in folds[0].spec.tasks.items():
        if isinstance(task, Classification) and task.binary:
            own: Iterable[float | None] = (getattr(fold.spec.tasks[name], "threshold", None) for fold in folds)
            said = ", ".join("0.5" if value is None else f"{value:.3f}" for value in own)
            notes.append(f"{name}: thresholds, each chosen on its fold's validation part: {said}.")
    if units:
        noun = str(units["by"]).removeprefix("meta.")
        firsts = ((name, task, task["headline"][0]) for name, task in units["tasks"].items() if task["headline"])
        said = "; ".join(f"{name} {metric} {_cell(task['overall'][metric])}" for name, task, metric in firsts)
        notes.append(f"Per {noun} ({units['how']}): {said}. More in {PER.format(noun)}/report.html.")
    return notes


def _cell(cell: Mapping[str, Any]) -> str:
    if cell["value"] is None:
        return "-"
    return f"{cell['value']:.3f}" + ("" if cell["low"] is None else f" [{cell['low']:.3f}, {cell['high']:.3f}]")


def is_pooled(place: Path) -> bool:
    """Whether a folder, or its ``evaluation``, is a pooled evaluation."""
    return (place / FOLDS).is_file() or (place / "evaluation" / FOLDS).is_file()


def read_pooled(place: Path) -> Side:
    """Case table and tasks of a pooled evaluation."""
    if not is_pooled(place):
        raise UserError(
            "E-CMP-FOLDS",
            "one side is folds that were pooled, this is not",
            "compare pooled evaluations with each other (`medmtl pool`)",
            where=str(place),
        )
    folder = place if (place / FOLDS).is_file() else place / "evaluation"
    return read_cases(folder / CASES), pooled_tasks(load(FoldSpecs, folder / FOLDS).folds)


def compare_pooled(
    a: Sequence[Path],
    b: Sequence[Path],
    out: Path | None,
    *,
    resamples: int = 1000,
    where: Mapping[str, str] | None = None,
) -> tuple[Mapping[str, Any], str]:
    """As :func:`medmtl.results.compare_runs`, of pooled evaluations: each side's cases decided by their own folds."""
    return compare_places(read_pooled, a, b, out, resamples=resamples, where=where)


def _read_json(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree
