"""The folds of a cross-validation as one evaluation: every case once, answered by the model that never saw it."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from medmtl.bundle import Bundle, ModelSpec, load_bundle
from medmtl.config import flatten, load, to_yaml
from medmtl.data.split import FoldSplit
from medmtl.errors import UserError
from medmtl.evaluation.aggregate import aggregated_tasks
from medmtl.evaluation.cases import read_cases
from medmtl.evaluation.compare import Side
from medmtl.evaluation.folds import FOLD, folded
from medmtl.evaluation.plots import Figure
from medmtl.evaluation.skill import control_label, control_sides
from medmtl.evaluation.trivial import TRIVIAL, beside, of_controls, per_unit
from medmtl.files import write_atomic
from medmtl.prepared import Prepared, prepare
from medmtl.results.folder import CASES, CONTROLS, RESULT, SPEC, UNITS, Evaluation, Material, evaluate_cases, to_json
from medmtl.results.gallery import Views, failure_galleries, looked_at, to_show
from medmtl.results.pooled import FOLDS, FoldSpecs, pooled_tasks
from medmtl.results.run import VIEWS, predictor_of, thumbnails
from medmtl.runs import RunFolder
from medmtl.study import Study
from medmtl.tasks import AnyTask
from medmtl.tasks.classification import Classification

Say = Callable[[str], None]
PER = "per-{}"


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
    """Whether the run's evaluation is that of the bundle that it has now, seen through the bundle's own views."""
    if not (run.evaluation / RESULT).is_file() or not (run.evaluation / SPEC).is_file():
        return False
    provenance = _read_json(run.evaluation / RESULT)["provenance"]
    return VIEWS not in provenance and bool(provenance["bundle"] == run.read_facts().get("bundle_id"))


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
    tasks = pooled_tasks({fold.number: fold.spec for fold in folds})
    shown, unseen = _galleries(folds, prepared, table, tasks)
    material = Material(
        f"{folds[0].study.name}, {len(folds)} folds", {"test": table}, folds[0].spec, folds[0].study.evaluation,
        _provenance(folds), tasks=tasks,
        controls={name: rows for name, (rows, _) in sides.items()}, sides=sides,
        thumbnail=thumbnails(prepared), figures=shown, notes=[*_notes(folds, table, units), *unseen],
    )  # fmt: skip
    found = evaluate_cases(out, material, say=say)
    result = {**found.result, **({"units": units} if units else {})}
    write_atomic(out / RESULT, to_json(result))
    _seal(out, {fold.number: fold.spec for fold in folds})
    return Evaluation(out, result, found.table, found.tasks)


def _galleries(
    folds: Sequence[Fold], prepared: Prepared, table: pd.DataFrame, tasks: Mapping[str, AnyTask]
) -> tuple[dict[str, Figure], list[str]]:
    """The worst cases of all folds, each as the model of its own fold saw it; in words, whose model is gone."""
    config = folds[0].study.evaluation.failures
    if config is None or not config.gallery:
        return {}, []
    bundles = {fold.number: _bundle(fold) for fold in folds}
    gone = [str(number) for number, bundle in bundles.items() if bundle is None]
    worst = to_show(table[~table[FOLD].isin([int(number) for number in gone])], tasks, config)
    wanted = {case for found in worst.values() for case, _ in found}
    seen: Views = {}
    for fold in folds:
        bundle, mine = bundles[fold.number], wanted & set(fold.test["case_id"])
        if bundle is None or not mine:
            continue
        own = replace(prepared, study=fold.study, spec=fold.spec)
        dataset = own.dataset(tuple(case for case in prepared.manifest.cases if case.case_id in mine))
        seen |= looked_at(predictor_of(replace(bundle, spec=fold.spec), fold.study), dataset, worst, mine)
    said = f"The galleries with saliency leave out the cases of fold {', '.join(gone)}: its bundle is gone."
    return failure_galleries(worst, seen), [said] if gone else []


def _bundle(fold: Fold) -> Bundle | None:
    """The model that answered a fold's cases; None where its folder has none, or another one, by now."""
    try:
        bundle = load_bundle(fold.run.bundle)
    except UserError:
        return None
    return bundle if bundle.id == fold.result["provenance"]["bundle"] else None


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


def _control_sides(folds: Sequence[Fold]) -> dict[str, Side]:
    """The controls that every fold's evaluation has, each as it was fitted and decided on its own fold."""
    each = [control_sides(_control_tables(fold), fold.spec.tasks) for fold in folds]
    shared = [name for name in each[0] if all(name in sides for sides in each)]
    return {name: _joined({fold.number: sides[name] for fold, sides in zip(folds, each, strict=True)})
            for name in shared}  # fmt: skip


def _control_tables(fold: Fold) -> dict[str, pd.DataFrame]:
    """Name -> case table of a fold's controls; none of a run that was evaluated without."""
    place = fold.run.evaluation / CONTROLS
    if not place.is_file():
        return {}
    return {str(name): rows for name, rows in read_cases(place).groupby("control", sort=False)}


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
    tables, trivial = [], []
    for fold in folds:
        thresholds = fold.result["units"]["thresholds"]
        own: dict[str, AnyTask] = {
            name: task.model_copy(update={"threshold": thresholds[name]}) if name in thresholds else task
            for name, task in aggregated_tasks(fold.spec.tasks).items()
        }
        specs[fold.number] = fold.spec.model_copy(update={"tasks": own})
        rows = read_cases(fold.run.evaluation / UNITS)
        tables.append(rows[rows["split"] == "test"].assign(**{FOLD: fold.number}))
        constants = per_unit(tables[-1], _control_tables(fold))
        trivial.append({name: (of_units, own) for name, of_units in constants.items()})
    table = pd.concat(tables, ignore_index=True)
    sides = {name: _joined({fold.number: each[name] for fold, each in zip(folds, trivial, strict=True)})
             for name in TRIVIAL if all(name in each for each in trivial)}  # fmt: skip
    images, noun = table.groupby("case_id")["images"].max(), str(first["by"]).removeprefix("meta.")
    folder = out / PER.format(noun)
    material = Material(
        f"{study.name}, {len(folds)} folds, per {noun}", {"test": table}, specs[folds[0].number],
        study.evaluation.model_copy(update={"aggregate": None, "failures": None, "by": ()}),
        _provenance(folds), tasks=pooled_tasks(specs),
        controls={name: rows for name, (rows, _) in sides.items()}, sides=sides,
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
        said = "; ".join(f"{name} {metric} {_cell(task['overall'][metric])}{_beside(task, metric)}"
                         for name, task, metric in firsts)  # fmt: skip
        notes.append(f"Per {noun} ({units['how']}): {said}. More in {PER.format(noun)}/report.html.")
    return notes


def _cell(cell: Mapping[str, Any]) -> str:
    if cell["value"] is None:
        return "-"
    return f"{cell['value']:.3f}" + ("" if cell["low"] is None else f" [{cell['low']:.3f}, {cell['high']:.3f}]")


def _beside(task: Mapping[str, Any], metric: str) -> str:
    """`` (training mean 3.214, training median 3.105)`` after an error."""
    known = {name: value for name, value in beside(of_controls(task), metric).items() if value is not None}
    said = ", ".join(f"{control_label(name)} {value:.3f}" for name, value in known.items())
    return f" ({said})" if said else ""


def _read_json(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree
