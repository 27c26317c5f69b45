"""One study with several settings: trained, compared on validation, and only when the choice is made read on test."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from medmtl.bars import bar
from medmtl.bundle import load_bundle
from medmtl.config import Config, digest, load, override, read_yaml, validate
from medmtl.controls.tables import constant_controls
from medmtl.errors import UserError
from medmtl.evaluation import plots
from medmtl.evaluation.plots.sweep import sweep_figure
from medmtl.evaluation.skill import control_label
from medmtl.evaluation.summary import evaluate_table
from medmtl.evaluation.trivial import ERRORS, TRIVIAL, beside, of_controls, trivial_errors
from medmtl.files import write_atomic
from medmtl.metrics import describe
from medmtl.nested import Family, Say, family
from medmtl.pooling import evaluated
from medmtl.predictor import Predictor
from medmtl.prepared import prepare
from medmtl.process import device_named
from medmtl.results import RESULT, aligned, evaluate_run, setting_of
from medmtl.runs import RunFolder
from medmtl.study import Study

VALIDATION = "validation.json"  # in a run's folder


class SweepConfig(Config):
    """A study's file, and the keys that each entry sets; ``name`` in an entry is what it is called in the table."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")  # None: the file's name
    study: str  # path from the current folder
    set: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Entry:
    """One setting: its name, the keys it sets, and the study that they make."""

    name: str
    keys: Mapping[str, Any]
    study: Study


def read_sweep(path: Path, overrides: Sequence[str] = ()) -> tuple[str, Study, list[Entry]]:
    """The sweep's name, its study and its entries, every one of them checked; ``overrides`` go to all entries."""
    config = load(SweepConfig, path)
    tree = override(read_yaml(Path(config.study)), overrides)
    base = validate(Study, tree, where=config.study)
    entries: list[Entry] = []
    for i, setting in enumerate(config.set):
        where = f"{path} set[{i}]"
        keys = {key: value for key, value in setting.items() if key != "name"}
        if not keys:
            raise UserError(
                "E-SWEEP-EMPTY", "the entry sets no key", "write key: value, as optim.epochs: 30", where=where
            )
        study = validate(Study, override(tree, [f"{key}={_text(value)}" for key, value in keys.items()]), where=where)
        name = str(setting.get("name") or ", ".join(_short(key, value) for key, value in keys.items()))
        for other in entries:
            if other.name == name or other.study.sha256 == study.sha256:
                alike = "name" if other.name == name else "settings"
                raise UserError(
                    "E-SWEEP-TWICE", f"the {alike} of entry {other.name!r} again", "remove or change one", where=where
                )
        entries.append(Entry(name, keys, study))
    return config.name or path.stem, base, entries


def _text(value: Any) -> str:
    """A value as an override is written: YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


def _short(key: str, value: Any) -> str:
    return f"{key.removeprefix('tasks.')}={_text(value)}"


def sweep(
    path: Path, overrides: Sequence[str] = (), *, runs: Path = Path("runs"), test: bool = False, say: Say = print
) -> dict[str, Any]:
    """Train every entry, or confirm it, and measure it on validation; with ``test`` on the test part, too.

    Choose on validation, freeze the choice, then read the test part once. Returns what ``sweep.json`` holds.
    """
    name, base, entries = read_sweep(path, overrides)
    folder = f"sweep-{name}-{digest([entry.study.sha256 for entry in entries])[:8]}"
    params = {"study": base.name, "entries": {entry.name: plain_keys(entry.keys) for entry in entries}}
    with family(base, runs, folder, count=len(entries), params=params) as parent:
        rows = [_one(parent, entry, test, say) for entry in entries]
        tree = {"sweep": name, "study": base.name, "monitor": base.monitored, "entries": rows}
        parent.write("sweep.json", tree)
        text = format_sweep(tree)
        write_atomic(parent.folder.path / "sweep.txt", text + "\n")
        plots.save(_figure(tree), parent.folder.path, "sweep")
        if parent.tracker is not None:
            parent.tracker.log_metrics(dict(_metrics(tree)))
    say(f"{text}\nin {parent.folder.path}")
    return tree


def plain_keys(keys: Mapping[str, Any]) -> str:
    """The keys of an entry as one line."""
    return ", ".join(f"{key}={_text(value)}" for key, value in keys.items())


def _one(parent: Family, entry: Entry, test: bool, say: Say) -> dict[str, Any]:
    run = parent.train(entry.study, entry.name, say)
    parts = {"val": validated(run)}
    if test:
        if not evaluated(run):
            evaluate_run(run, say=say)
        parts["test"] = json.loads((run.evaluation / RESULT).read_text(encoding="utf-8"))
    metrics = {
        part: {
            name: {metric: task["overall"][metric] for metric in task["headline"] if metric in task["overall"]}
            for name, task in result["tasks"].items()
            if not task["auxiliary"]
        }
        for part, result in parts.items()
    }
    trivial = {
        part: {
            name: known for name, task in result["tasks"].items() if (known := task.get("trivial") or of_controls(task))
        }
        for part, result in parts.items()
    }
    bundle = run.read_facts().get("bundle_id")
    return {"name": entry.name, "set": dict(entry.keys), "run": run.path.name, "bundle": bundle, "metrics": metrics,
            "trivial": trivial}  # fmt: skip


def validated(run: RunFolder) -> dict[str, Any]:
    """The metrics of a run's bundle on its validation part, with intervals clustered by group; kept in its folder.

    Thresholds, and with ``fit.keep: best`` the epoch, were chosen on these cases: they rank settings, and flatter all.
    ``trivial`` of a task: the errors of the training mean and median on the same cases.
    """
    path, bundle = run.path / VALIDATION, load_bundle(run.bundle)
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if known["bundle"] == bundle.id and all("trivial" in task for task in known["tasks"].values()):
            return known
    study = load(Study, run.study)
    prepared = prepare(study)
    predictor = Predictor.of(bundle, device=device_named(study.fit.device))
    dataset = prepared.dataset(prepared.split.val)
    with bar("predicting val", len(dataset)) as tick:
        table = predictor.table(dataset, batch_size=study.loader.evaluation_batch_size, tick=tick)
    e = study.evaluation
    measured = evaluate_table(table, bundle.spec.tasks, resamples=e.resamples, level=e.level)
    controls = {name: control.table for name, control in constant_controls(setting_of(prepared)).items()}
    for name, task in measured["tasks"].items():
        task["trivial"] = trivial_errors(table[table["task"] == name], bundle.spec.tasks[name], controls)
    result = {"bundle": bundle.id, "split": prepared.split.sha256, **measured}
    write_atomic(path, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return result


def best_entry(tree: Mapping[str, Any]) -> str | None:
    """The entry with the best monitored metric on validation; the first of equals, None where none has a value."""
    task, _, metric = tree["monitor"].partition(".")
    values = {row["name"]: row["metrics"]["val"].get(task, {}).get(metric, {}).get("value") for row in tree["entries"]}
    known = {name: value for name, value in values.items() if value is not None}
    sign = 1 if describe(metric).higher_is_better else -1
    return max(known, key=lambda name: sign * known[name]) if known else None


def format_sweep(tree: Mapping[str, Any]) -> str:
    """One line for each entry: the first headline metric of every task on validation, and on test where it was read.

    Beside an error, those of the training mean and median on the same cases; below, which entries are no better.
    """
    columns = list(_columns(tree))
    lines = [("entry", *(name for column in columns for name in _heads(tree, column)), "run")]
    for row in tree["entries"]:
        lines.append((row["name"], *(text for column in columns for text in _texts(tree, row, column)), row["run"]))
    best = best_entry(tree)
    chosen = f"best {tree['monitor']} on validation: {best}" if best else f"no entry has {tree['monitor']}"
    return "\n".join([aligned(lines), chosen, *_no_better(tree, columns)])


Column = tuple[str, str, str]  # part, task, metric


def _known(row: Mapping[str, Any], column: Column) -> dict[str, float | None]:
    """What the training mean and median of an entry come to in a column."""
    part, task, metric = column
    return beside(row.get("trivial", {}).get(part, {}).get(task, {}), metric)


def _controls(tree: Mapping[str, Any], column: Column) -> list[str]:
    return [name for name in TRIVIAL if any(name in _known(row, column) for row in tree["entries"])]


def _heads(tree: Mapping[str, Any], column: Column) -> list[str]:
    return [" ".join(column), *(control_label(name) for name in _controls(tree, column))]


def _texts(tree: Mapping[str, Any], row: Mapping[str, Any], column: Column) -> list[str]:
    part, task, metric = column
    known = [_known(row, column).get(name) for name in _controls(tree, column)]
    cell = row["metrics"].get(part, {}).get(task, {}).get(metric)
    return [_cell(cell), *("-" if value is None else f"{value:.3f}" for value in known)]


def _no_better(tree: Mapping[str, Any], columns: Sequence[Column]) -> list[str]:
    """A line for each error that entries do not bring below the smaller one of the training mean and median."""
    lines = []
    for part, task, metric in columns:
        names = []
        for row in tree["entries"]:
            value = row["metrics"].get(part, {}).get(task, {}).get(metric, {}).get("value")
            known = [other for other in _known(row, (part, task, metric)).values() if other is not None]
            if metric in ERRORS and value is not None and known and value >= min(known):
                names.append(row["name"])
        if names:
            lines.append(
                f"{part} {task} {metric}: no better than a constant (training mean or median): {', '.join(names)}"
            )
    return lines


def _columns(tree: Mapping[str, Any]) -> list[Column]:
    """(part, task, metric): the first headline metric of every task, and the monitored one."""
    found: dict[Column, None] = {}
    task, _, metric = tree["monitor"].partition(".")
    for part in ("val", "test"):
        for row in tree["entries"]:
            for name, cells in row["metrics"].get(part, {}).items():
                for key in dict.fromkeys([*list(cells)[:1], *([metric] if name == task and metric in cells else [])]):
                    found[part, name, key] = None
    return list(found)


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["value"] is None:
        return "-"
    return f"{cell['value']:.3f}" + ("" if cell["low"] is None else f" [{cell['low']:.3f}, {cell['high']:.3f}]")


def _figure(tree: Mapping[str, Any]) -> plots.Figure:
    keys = dict.fromkeys((task, metric) for _, task, metric in _columns(tree))
    panels = {
        (task, metric): [
            {part: cells[task][metric] for part, cells in row["metrics"].items() if metric in cells.get(task, {})}
            for row in tree["entries"]
        ]
        for task, metric in keys
    }
    return sweep_figure(f"{tree['sweep']} ({tree['study']})", [row["name"] for row in tree["entries"]], panels)


def _metrics(tree: Mapping[str, Any]) -> list[tuple[str, float]]:
    """``<entry>.<part>.<task>.<metric>`` of the table's columns."""
    rows = []
    for row in tree["entries"]:
        for part, task, metric in _columns(tree):
            value = row["metrics"].get(part, {}).get(task, {}).get(metric, {}).get("value")
            rows += [] if value is None else [(f"{row['name']}.{part}.{task}.{metric}", value)]
    return rows
