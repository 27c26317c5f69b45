"""From a case table to intervals, domains and comparisons: known numbers, invariances, and the edges of a study."""

import json
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import pytest

from medmtl import metrics
from medmtl.errors import UserError
from medmtl.evaluation.compare import compare_repeats, compare_tables, format_comparison
from medmtl.evaluation.summary import evaluate_table
from medmtl.stats import cluster_weights
from medmtl.tasks.base import Task


class Binary(Task):
    """A two-class task that knows nothing but its metrics."""

    kind: Literal["binary"] = "binary"
    threshold: float = 0.5
    headline: ClassVar[tuple[str, ...]] = ("auroc",)

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        return metrics.binary(table["target"], table["p.yes"], self.threshold, weights)

    def constant(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(**{"p.yes": 0.25})


class Score(Task):
    """A number."""

    kind: Literal["score"] = "score"
    headline: ClassVar[tuple[str, ...]] = ("mae",)

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        return metrics.regression(table["target"], table["prediction"], weights)


class Mask(Task):
    """One foreground class; predicting nothing is the constant."""

    kind: Literal["mask"] = "mask"
    headline: ClassVar[tuple[str, ...]] = ("dice.lesion",)

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: metrics.weighted_nanmean(table[name], weights) for name in ("dice.lesion", "hd95.lesion")}

    def constant(self, table: pd.DataFrame) -> pd.DataFrame:
        empty = table["target"] == 0
        return table.assign(**{"dice.lesion": empty.astype(float), "hd95.lesion": np.where(empty, 0.0, np.nan)})


TASKS: dict[str, Task] = {"grade": Binary(), "age": Score(), "lesion": Mask()}
N = 90


def _table(*, noise: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Three tasks over 30 patients and domains A, B and unknown; every tenth grade is not labelled."""
    truth, rng = np.random.default_rng(1), np.random.default_rng(seed)
    base = {
        "case_id": [f"c{i:03d}" for i in range(N)],
        "group": [f"p{i // 3}" for i in range(N)],
        "domain": [("A", "B", "")[(i // 3) % 3] for i in range(N)],
        "split": "test",
    }
    label = (truth.random(N) < 0.4).astype(float)
    score = 1 / (1 + np.exp(-(2 * label - 1 + noise * rng.normal(size=N))))
    grade = pd.DataFrame({
        **base, "task": "grade", "target": np.where(np.arange(N) % 10 == 0, np.nan, label),
        "prediction": (score >= 0.5).astype(float), "p.no": 1 - score, "p.yes": score,
        "target_label": np.where(label == 1, "yes", "no"), "predicted_label": np.where(score >= 0.5, "yes", "no"),
    })  # fmt: skip
    years = truth.normal(60, 10, N)
    age = pd.DataFrame({**base, "task": "age", "target": years, "prediction": years + 5 * noise * rng.normal(size=N)})
    dice = np.clip(truth.beta(6, 2, N) - 0.1 * noise, 0, 1)
    size = np.where(np.arange(N) < 9, 0.0, 0.2)
    lesion = pd.DataFrame({
        **base, "task": "lesion", "target": size, "prediction": size,
        "dice.lesion": np.where(size == 0, 1.0, dice), "hd95.lesion": np.where(dice < 0.5, np.nan, 10 * (1 - dice)),
    })  # fmt: skip
    return pd.concat([grade, age, lesion], ignore_index=True)


TABLE = _table()


def _evaluate(table: pd.DataFrame = TABLE, tasks: dict[str, Task] = TASKS, resamples: int = 60) -> dict:
    return evaluate_table(table, tasks, resamples=resamples)


def test_overall_values_counts_and_intervals() -> None:
    found = _evaluate()["tasks"]["grade"]
    rows = TABLE[(TABLE["task"] == "grade") & TABLE["target"].notna()]
    assert (found["kind"], found["headline"]) == ("binary", ["auroc"])
    assert (found["n"], found["n_missing"], found["groups"]) == (81, 9, 30)
    exact = metrics.binary(rows["target"], rows["p.yes"], 0.5, np.ones((1, 81)))
    draws = metrics.binary(rows["target"], rows["p.yes"], 0.5, cluster_weights(rows["group"], resamples=60, seed=0))
    for name, cell in found["overall"].items():
        assert cell["value"] == pytest.approx(exact[name][0])
        assert (cell["low"], cell["high"]) == pytest.approx(tuple(np.nanpercentile(draws[name], [2.5, 97.5])))
        assert cell["n"] == 81


def test_domains_partition_the_cases_and_an_empty_one_is_unknown() -> None:
    found = _evaluate()["tasks"]["age"]
    assert list(found["domains"]) == ["A", "B", "unknown"]
    part = TABLE[(TABLE["task"] == "age") & (TABLE["domain"] == "B")]
    error = (part["target"] - part["prediction"]).abs().mean()
    assert found["domains"]["B"]["mae"]["value"] == pytest.approx(error)
    assert sum(cells["mae"]["n"] for cells in found["domains"].values()) == N


def test_the_worst_domain_follows_the_direction_of_the_metric() -> None:
    table = TABLE.copy()
    table.loc[(table["domain"] == "B") & (table["task"] == "age"), "prediction"] += 40
    found = _evaluate(table)["tasks"]
    assert found["age"]["worst_domain"]["mae"]["domain"] == "B"
    worst = found["grade"]["worst_domain"]["auroc"]
    assert worst["value"] == min(cells["auroc"]["value"] for cells in found["grade"]["domains"].values())
    assert {"domain": worst["domain"], **found["grade"]["domains"][worst["domain"]]["auroc"]} == worst
    assert worst["low"] < worst["value"] < worst["high"]


def test_two_cases_of_a_scanner_are_no_worst_domain_where_another_has_an_interval() -> None:
    table = TABLE[TABLE["task"] == "age"].copy()
    table.iloc[:2, table.columns.get_loc("domain")] = "new"
    table.iloc[:2, table.columns.get_loc("prediction")] += 100
    found = _evaluate(table, {"age": TASKS["age"]})["tasks"]["age"]
    assert found["domains"]["new"]["mae"]["value"] > found["worst_domain"]["mae"]["value"]
    assert found["worst_domain"]["mae"]["domain"] != "new"
    small = _evaluate(table.head(2), {"age": TASKS["age"]})["tasks"]["age"]
    assert small["worst_domain"]["mae"] == {"domain": "new", **small["domains"]["new"]["mae"]}


def test_the_constant_control_is_at_chance() -> None:
    found = _evaluate()["tasks"]
    assert found["grade"]["control"]["constant"]["auroc"] == pytest.approx(0.5)
    assert found["age"]["control"]["constant"] == {}, "a task without a constant has no control"


def test_an_empty_mask_is_no_perfect_control() -> None:
    found = _evaluate()["tasks"]["lesion"]
    assert found["control"]["constant"]["dice.lesion"] == pytest.approx(0.1)
    assert found["control"]["constant"]["hd95.lesion"] is None, "0 mm over the empty targets alone would look perfect"
    assert (found["n_empty_target"], found["n_empty_prediction"]) == (9, 9)
    defined = int(TABLE["hd95.lesion"].notna().sum())
    assert found["overall"]["hd95.lesion"]["n"] == defined < N


def test_row_order_changes_nothing_and_the_result_is_strict_json() -> None:
    text = json.dumps(_evaluate(), allow_nan=False)
    assert json.dumps(_evaluate(TABLE.sample(frac=1, random_state=4)), allow_nan=False) == text


def test_intervals_are_those_of_patients_not_of_images() -> None:
    single = TABLE.assign(group=TABLE["case_id"])
    copies = pd.concat([single.assign(case_id=TABLE["case_id"] + str(k)) for k in range(4)], ignore_index=True)
    alone = copies.assign(group=copies["case_id"])
    once, four, alone = (
        evaluate_table(table, {"age": Score()}, resamples=400)["tasks"]["age"]["overall"]["mae"]
        for table in (single, copies, alone)
    )
    assert (four["low"], four["high"]) == pytest.approx((once["low"], once["high"])), "copies are no new evidence"
    assert alone["high"] - alone["low"] < 0.6 * (four["high"] - four["low"])


def test_one_class_is_undefined_with_a_reason_and_the_rest_is_not() -> None:
    table = TABLE[(TABLE["task"] == "grade") & (TABLE["target"] == 0)]
    cells = _evaluate(table)["tasks"]["grade"]["overall"]
    assert (cells["auroc"]["value"], cells["auroc"]["reason"]) == (None, "one class")
    assert cells["specificity"]["value"] is not None
    assert cells["specificity"]["low"] is not None


def test_a_constant_target_is_named_as_such() -> None:
    table = TABLE[TABLE["task"] == "age"].assign(target=3.0)
    cells = _evaluate(table)["tasks"]["age"]["overall"]
    assert (cells["r2"]["value"], cells["r2"]["reason"]) == (None, "constant target")
    assert cells["mae"]["value"] is not None


def test_few_cases_or_few_groups_have_no_interval() -> None:
    rows = TABLE[TABLE["task"] == "age"]
    few = _evaluate(rows.head(4))["tasks"]["age"]["overall"]["mae"]
    assert (few["low"], few["reason"]) == (None, "n < 5: interval omitted")
    assert few["value"] is not None
    two = _evaluate(rows.head(6))["tasks"]["age"]["overall"]["mae"]
    assert two["reason"] == "fewer than 5 groups: interval omitted"


class Fragile(Score):
    """Defined only where both of the first two patients are drawn: in about 1 - 2/e + 1/e² = 40 % of the resamples."""

    def metrics(self, table: pd.DataFrame, weights: np.ndarray) -> dict[str, np.ndarray]:
        whole = (weights[:, [0, 3]] > 0).all(axis=1)
        return {"mae": np.where(whole, 1.0, np.nan)}


def test_a_metric_undefined_in_most_resamples_has_no_interval() -> None:
    cell = _evaluate(tasks={"age": Fragile()}, resamples=300)["tasks"]["age"]["overall"]["mae"]
    assert cell["value"] == 1.0
    assert cell["low"] is None
    assert "more than half of the resamples" in cell["reason"]


def test_no_labels_at_all_and_no_rows_at_all() -> None:
    for table in (TABLE.assign(target=np.nan), TABLE.head(0)):
        found = _evaluate(table)["tasks"]["grade"]
        assert found["n"] == 0
        assert found["overall"]["auroc"]["reason"] == "no labelled case"
        assert found["worst_domain"] == {}


def test_a_label_without_prediction_is_counted_and_left_out() -> None:
    table = TABLE.copy()
    table.loc[table["case_id"] == "c001", ["prediction", "p.yes"]] = np.nan
    found = _evaluate(table)["tasks"]["grade"]
    assert (found["n"], found["n_unpredicted"], found["n_missing"]) == (80, 1, 9)


@pytest.mark.parametrize(("table", "text"), [
    (TABLE.drop(columns="group"), "no column group"),
    (pd.concat([TABLE, TABLE.head(1)]), "'c000' occurs twice"),
])  # fmt: skip
def test_a_table_that_would_mislead_is_refused(table: pd.DataFrame, text: str) -> None:
    with pytest.raises(UserError, match=text):
        _evaluate(table)


BETTER = _table(noise=0.3, seed=7)


def test_a_better_model_is_called_better_in_every_direction() -> None:
    found = compare_tables(TABLE, BETTER, TASKS, resamples=200)["tasks"]
    for task, metric in (("grade", "auroc"), ("grade", "brier"), ("age", "mae"), ("lesion", "dice.lesion")):
        cell = found[task]["overall"][metric]
        assert cell["verdict"] == "better", (task, metric, cell)
        assert cell["difference"] == pytest.approx(cell["b"] - cell["a"])
        assert cell["low"] <= cell["difference"] <= cell["high"]
    assert set(found["grade"]["domains"]) == {"A", "B", "unknown"}


def test_swapping_the_tables_swaps_the_verdict_exactly() -> None:
    there = compare_tables(TABLE, BETTER, TASKS, resamples=50)["tasks"]["age"]["overall"]["mae"]
    back = compare_tables(BETTER, TABLE, TASKS, resamples=50)["tasks"]["age"]["overall"]["mae"]
    assert (back["low"], back["high"]) == pytest.approx((-there["high"], -there["low"]))
    assert (there["verdict"], back["verdict"]) == ("better", "worse")


def test_a_table_against_itself_shows_no_difference() -> None:
    for task in compare_tables(TABLE, TABLE, TASKS, resamples=50)["tasks"].values():
        for cell in task["overall"].values():
            assert (cell["difference"], cell["low"], cell["high"]) == (0.0, 0.0, 0.0)
            assert cell["verdict"] == "no difference shown"


def test_only_shared_cases_are_compared_and_the_others_counted() -> None:
    shorter = BETTER[~BETTER["case_id"].isin(["c001", "c002"])]
    found = compare_tables(TABLE, shorter, TASKS, resamples=20)["tasks"]["grade"]
    assert (found["n"], found["only_a"], found["only_b"]) == (79, 2, 0)
    rows = TABLE[(TABLE["task"] == "grade") & TABLE["target"].notna() & ~TABLE["case_id"].isin(["c001", "c002"])]
    expected = metrics.binary(rows["target"], rows["p.yes"], 0.5, np.ones((1, 79)))["auroc"][0]
    assert found["overall"]["auroc"]["a"] == pytest.approx(expected)


def test_a_distance_that_one_side_lacks_is_left_out_on_both() -> None:
    rows = TABLE["task"] == "lesion"
    other = TABLE.copy()
    worst = other.loc[rows, "hd95.lesion"].idxmax()
    other.loc[worst, "hd95.lesion"] = np.nan  # nothing predicted in the hardest case must not look like progress
    cell = compare_tables(TABLE, other, TASKS, resamples=20)["tasks"]["lesion"]["overall"]["hd95.lesion"]
    assert cell["difference"] == 0.0
    assert cell["n"] == int(TABLE.loc[rows, "hd95.lesion"].notna().sum()) - 1


def test_different_labels_are_refused() -> None:
    other = BETTER.copy()
    other.loc[other.index[N + 5], "target"] += 1
    with pytest.raises(UserError, match="c005"):
        compare_tables(TABLE, other, TASKS, resamples=5)


def test_each_side_may_have_its_own_threshold() -> None:
    other = {**TASKS, "grade": Binary(threshold=0.9)}
    cell = compare_tables(TABLE, TABLE, TASKS, tasks_b=other, resamples=20)["tasks"]["grade"]["overall"]["sensitivity"]
    assert cell["b"] < cell["a"]


def test_the_text_table_holds_the_verdicts_and_lines_up() -> None:
    found = compare_tables(TABLE, BETTER.iloc[:-1], TASKS, resamples=50)
    text = format_comparison(found, labels=("old", "new"))
    lines = text.splitlines()
    assert lines[0].split()[:6] == ["task", "domain", "n", "metric", "old", "new"]
    column = lines[0].index("metric")
    assert {line[column:].split()[0] for line in lines[2:6]} == {"AUROC"}
    assert "new is" in lines[0]
    assert "better" in text
    assert "lesion: 1 cases only in old, 0 only in new" in text
    assert len(format_comparison(found, headline_only=False).splitlines()) > len(lines)


def test_nothing_in_common_is_stated() -> None:
    other = BETTER.assign(case_id="x" + BETTER["case_id"])
    found = compare_tables(TABLE, other, TASKS, resamples=5)
    assert found["tasks"]["grade"]["n"] == 0
    assert "81 cases only in A, 81 only in B" in format_comparison(found)


def test_repeats_of_a_side_count_as_their_mean() -> None:
    runs = [_table(noise=1.0, seed=seed) for seed in (0, 1)]
    other = [_table(noise=0.5, seed=seed) for seed in (2, 3)]
    found = compare_repeats([(t, TASKS) for t in runs], [(t, TASKS) for t in other], resamples=50)
    cell = found["tasks"]["age"]["overall"]["mae"]
    pairs = zip(runs, other, strict=True)
    singles = [compare_tables(a, b, TASKS, resamples=50)["tasks"]["age"]["overall"]["mae"] for a, b in pairs]
    assert cell["a_runs"] == pytest.approx([single["a"] for single in singles])
    assert cell["difference"] == pytest.approx(np.mean([single["difference"] for single in singles]))
    assert cell["low"] < cell["difference"] < cell["high"]
    widest = max(single["high"] - single["low"] for single in singles)
    assert cell["high"] - cell["low"] < widest, "the mean of repeats varies less than one of them"


def test_repeats_of_different_length_are_compared_on_the_cases_that_all_have() -> None:
    short = BETTER[BETTER["case_id"] != "c001"]
    found = compare_repeats([(TABLE, TASKS)], [(BETTER, TASKS), (short, TASKS)], resamples=50)
    assert found["tasks"]["age"]["n"] == N - 1
    assert found["runs"] == {"a": 1, "b": 2}
