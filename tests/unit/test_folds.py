"""Several models as one table: each row is judged by its own fold's settings, and a sweep is read before it trains."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from laws import TASKS, chance, refuses, table, targets_of, truth

from medmtl import metrics
from medmtl.evaluation.compare import compare_tables
from medmtl.evaluation.folds import FOLD, folded
from medmtl.evaluation.plots import render
from medmtl.evaluation.plots.sweep import sweep_figure
from medmtl.evaluation.summary import evaluate_table
from medmtl.sweep import best_entry, format_sweep, read_sweep
from medmtl.tasks.base import Task
from medmtl.tasks.classification import Classification
from medmtl.tasks.regression import Regression


def _rows(task, samples=12, seed=0):
    """A case table of two folds in turn, with group, domain and fold."""
    target = targets_of(task, samples, seed)
    rows = table(task, chance(task, target) + 0.3 * truth(task, target), target)
    known = {"case_id": [f"c{i:02d}" for i in range(samples)], "group": [f"g{i // 2}" for i in range(samples)],
             "domain": "d", "split": "test", "task": "t", FOLD: [i % 2 for i in range(samples)]}  # fmt: skip
    return rows.assign(**known)


@pytest.mark.parametrize("task", [task for name, task in TASKS.items()], ids=list(TASKS))
def test_folds_that_learned_the_same_are_one_task(task):
    rows, whole = _rows(task), folded({0: task, 1: task})
    assert isinstance(whole, type(task)) and whole.headline == task.headline
    one, two = (evaluate_table(rows, {"t": judge}, resamples=100) for judge in (task, whole))
    assert one == two


def _binary(threshold, prior):
    return Classification(classes=("no", "yes"), threshold=threshold, prior=(1 - prior, prior))


def test_a_binary_row_is_decided_by_its_own_folds_threshold():
    folds = {0: _binary(0.3, 0.25), 1: _binary(0.7, 0.5)}
    assert folded(folds).frozen == {"positive": "yes", "threshold": {"0": 0.3, "1": 0.7}}
    rng = np.random.default_rng(0)
    p, y, fold = rng.uniform(size=40), rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    rows = pd.DataFrame({"target": y, "p.yes": p, "p.no": 1 - p, FOLD: fold, "prediction": 0.0})
    whole, weights = folded(folds), rng.integers(0, 3, (5, 40)).astype(float)
    found = whole.metrics(rows, weights)
    moved = np.where(fold == 0, p - 0.3, p - 0.7)  # a case above its own threshold is above 0
    decided = metrics.binary(y, np.where(moved >= 0, 1.0, 0.0), 0.5, weights)
    for name in ("balanced_accuracy", "sensitivity", "specificity", "accuracy"):
        np.testing.assert_allclose(found[name], decided[name], err_msg=name)
    plain = metrics.binary(y, p, 0.5, weights)
    for name in ("auroc", "auprc", "brier", "ece"):
        np.testing.assert_allclose(found[name], plain[name], err_msg=name)
    assert not np.allclose(found["balanced_accuracy"], plain["balanced_accuracy"])


def test_the_constant_of_a_row_is_its_own_folds():
    folds = {k: Regression(low=0, high=10, centre=centre, scale=1.0) for k, centre in ((0, 2.0), (3, 7.0))}
    rows = pd.DataFrame({"target": [1.0, 8.0, 2.0], "prediction": 5.0, FOLD: [0, 3, 0]}, index=[4, 2, 9])
    constant = folded(folds).constant(rows)
    assert constant["prediction"].to_dict() == {4: 2.0, 2: 7.0, 9: 2.0}
    priors = folded({0: _binary(None, 0.25), 3: _binary(None, 0.5)}).constant(rows)
    assert priors["p.yes"].tolist() == [0.25, 0.5, 0.25]


def test_two_folded_sides_are_compared_each_by_its_own_thresholds():
    rows = _rows(TASKS["binary"])
    low, high = (folded({0: _binary(a, 0.5), 1: _binary(b, 0.5)}) for a, b in ((0.1, 0.9), (0.9, 0.1)))
    cells = compare_tables(rows, rows, {"t": low}, tasks_b={"t": high}, resamples=100)["tasks"]["t"]["overall"]
    values = [evaluate_table(rows, {"t": task}, resamples=100)["tasks"]["t"]["overall"] for task in (low, high)]
    cell = cells["balanced_accuracy"]
    assert [cell["a"], cell["b"]] == [value["balanced_accuracy"]["value"] for value in values]
    assert cells["auroc"]["difference"] == 0


def test_a_folded_task_has_no_constant_of_a_task_without_one():
    class Bare(Task):
        pass

    with pytest.raises(TypeError, match="no constant"):
        folded({0: Bare()}).constant(pd.DataFrame({FOLD: [0], "target": [1.0]}))


# ------------------------------------------------------------------------------------------------------------- sweeps

STUDY = {
    "name": "tiny",
    "data": {"manifest": "absent.csv"},
    "tasks": {"a": {"kind": "regression", "low": 0, "high": 1}, "b": {"kind": "regression", "low": 0, "high": 1}},
}


def _sweep(folder, *entries, **more):
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    path = folder / "weights.yaml"
    path.write_text(
        yaml.safe_dump({"study": str(folder / "study.yaml"), "set": list(entries), **more}, sort_keys=False)
    )
    return path


def test_an_entry_sets_its_keys_over_the_command_line_over_the_file(tmp_path):
    path = _sweep(tmp_path, {"name": "x", "tasks.a.weight": 0.25, "optim.betas": [0.5, 0.9]}, {"fit.monitor": "b.mae"},
                  {"optim.learning_rate": 1e-7, "optim.ema": None})  # fmt: skip
    name, base, entries = read_sweep(path, ["tasks.a.weight=3", "optim.ema=0.5"])
    assert (name, base.tasks["a"].weight, [entry.name for entry in entries]) == (
        "weights", 3, ["x", "fit.monitor=b.mae", "optim.learning_rate=1.0e-07, optim.ema=null"]
    )  # fmt: skip
    studies = [entry.study for entry in entries]
    assert [study.tasks["a"].weight for study in studies] == [0.25, 3, 3]
    assert studies[0].optim.betas == (0.5, 0.9) and studies[1].monitored == "b.mae"
    assert (studies[2].optim.learning_rate, studies[2].optim.ema, studies[0].optim.ema) == (1e-7, None, 0.5)


def test_a_sweep_that_cannot_be_read_is_refused(tmp_path):
    refuses("E-CFG", lambda: read_sweep(_sweep(tmp_path, {"optim.epochs": 0})), says="set[0]")
    refuses("E-CFG", lambda: read_sweep(_sweep(tmp_path, {"optim.epochs": 1}, sett=1)), says="sett")
    refuses("E-CFG", lambda: read_sweep(_sweep(tmp_path, {"optim.epochs": 1}, name="a/b")), says="name")
    refuses("E-SWEEP-TWICE", lambda: read_sweep(_sweep(tmp_path, {"seed": 1}, {"seed": 1, "name": "b"})), says="set[1]")


def _cell(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def _tree(monitor, *values):
    def row(name, value):
        cells = {"mae": _cell(value, 0.0, 1.0), "r2": _cell(value)}
        return {"name": name, "run": f"run-{name}", "metrics": {"val": {"a": cells}}}

    return {"sweep": "s", "study": "t", "monitor": monitor, "entries": [row(*pair) for pair in values]}


def test_the_best_entry_is_in_the_metrics_own_direction():
    values = (("one", 0.4), ("two", 0.2), ("three", None), ("four", 0.2))
    assert best_entry(_tree("a.mae", *values)) == "two"
    assert best_entry(_tree("a.r2", *values)) == "one"
    assert best_entry(_tree("a.mae", ("one", None))) is None
    text = format_sweep(_tree("a.r2", *values))
    assert "val a mae" in text and "val a r2" in text and "0.200 [0.000, 1.000]" in text and "best a.r2" in text


def test_an_error_of_a_sweep_stands_beside_the_training_mean_and_median():
    """An entry that is no better than a constant is called so, whatever its rank."""
    tree = _tree("a.mae", ("one", 0.4), ("two", 0.2), ("three", None), ("four", 0.3))
    for row, mean, median in zip(tree["entries"], (0.31, 0.31, 0.31, 0.35), (0.3, 0.3, 0.3, 0.36), strict=True):
        row["trivial"] = {"val": {"a": {"training_mean": {"mae": mean}, "training_median": {"mae": median}}}}
    lines = format_sweep(tree).splitlines()
    assert re.split("  +", lines[0]) == ["entry", "val a mae", "training mean", "training median", "run"]
    cells = [re.split("  +", line) for line in lines[1:5]]
    assert [row[2:4] for row in cells] == [["0.310", "0.300"]] * 3 + [["0.350", "0.360"]]
    assert lines[-1] == "val a mae: no better than a constant (training mean or median): one"


def test_a_sweeps_figure_is_drawn_with_and_without_values():
    panels = {("a", "mae"): [{"val": _cell(0.3, 0.2, 0.4), "test": _cell(0.5)}, {"val": _cell(None)}]}
    drawn = render(sweep_figure("s", ["one", "a longer name"], panels), "png")
    empty = render(sweep_figure("s", ["one"], {("a", "mae"): [{"val": _cell(None)}]}), "png")
    assert drawn.startswith(b"\x89PNG") and len(drawn) != len(empty)
    assert sweep_figure("s", ["one", "two"], panels).axes[0].get_legend_handles_labels()[1] == ["validation", "test"]
