"""What a model adds to its controls, by group and at a glance: known differences, plain words, many tasks."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from laws import refuses

from medmtl.bundle import ModelSpec
from medmtl.data.preprocess import Preprocess
from medmtl.evaluation import plots
from medmtl.evaluation.groups import metrics_by
from medmtl.evaluation.overview import format_result, overview
from medmtl.evaluation.report import write_report
from medmtl.evaluation.skill import control_sides, skill, strongest
from medmtl.evaluation.summary import evaluate_table
from medmtl.models.encoder import TimmConfig
from medmtl.results import Material, evaluate_cases, read_cases
from medmtl.study import EvaluationConfig
from medmtl.tasks.classification import Classification
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression

N = 120
SCORE = Regression(low=0, high=100, unit="points")
SETTINGS = EvaluationConfig(resamples=100, gallery=0, failures=None)


def numbers(error: float, *, task: str = "score", seed: int = 0, split: str = "test") -> pd.DataFrame:
    """Scores of 60 patients, two images each, predicted with an error of so many points."""
    truth, rng = np.random.default_rng(1), np.random.default_rng(seed)
    target = truth.uniform(20, 80, N)
    diagnosis = np.array(["CN", "MCI", "AD"])[np.arange(N) // 2 % 3]
    diagnosis[:4] = "rare"
    return pd.DataFrame({
        "case_id": [f"{split}{i:03d}" for i in range(N)], "group": [f"{split}{i // 2}" for i in range(N)],
        "domain": np.array(["A", "B"])[np.arange(N) // 2 % 2], "split": split, "task": task, "target": target,
        "prediction": target + rng.normal(0, error, N), "meta.diagnosis": diagnosis,
    })  # fmt: skip


def classes(shift: float, *, split: str = "test") -> pd.DataFrame:
    """A binary task whose probabilities are all pushed up by ``shift`` log-odds: their order is the same."""
    rng = np.random.default_rng(2)
    label = (rng.random(N) < 0.4).astype(float)
    p = 1 / (1 + np.exp(-(3 * (2 * label - 1) + rng.normal(0, 1, N) + shift)))
    table = numbers(1, task="ill", split=split)
    names = np.where(label == 1, "yes", "no")
    return table.assign(**{"target": label, "target_label": names, "prediction": (p > 0.5) * 1.0, "p.no": 1 - p,
                           "p.yes": p})  # fmt: skip


def result_of(
    table: pd.DataFrame, tasks: dict[str, Regression], controls: dict[str, pd.DataFrame], by: tuple[str, ...] = ()
) -> dict:
    result = evaluate_table(table, tasks, resamples=100)
    gained = skill(table, tasks, control_sides(controls, tasks), resamples=100)
    groups = metrics_by(table, tasks, by, result["bootstrap"])
    for name, entry in result["tasks"].items():
        entry["controls"], entry["by"] = gained[name], groups[name]
    return result


def test_a_difference_is_model_less_control_and_its_interval_is_paired() -> None:
    model, ridge = numbers(5), numbers(12, seed=3)
    found = skill(model, {"score": SCORE}, {"ridge": (ridge, {"score": SCORE})}, resamples=300)["score"]["ridge"]
    mae = {name: (t["prediction"] - t["target"]).abs().mean() for name, t in (("model", model), ("control", ridge))}
    cell = found["metrics"]["mae"]
    assert (cell["model"], cell["control"]) == pytest.approx((mae["model"], mae["control"]))
    assert cell["difference"] == pytest.approx(mae["model"] - mae["control"])
    assert cell["low"] < cell["difference"] < cell["high"] < 0 and cell["verdict"] == "better"
    assert found["n"] == N
    bias = found["metrics"]["bias"]
    assert bias["verdict"] in ("different", "no difference shown"), "a shift has no better side"


def test_cases_that_a_control_lacks_are_left_out_and_a_task_that_it_lacks_has_no_entry() -> None:
    few = numbers(3, seed=4).head(40)
    tasks = {"score": SCORE, "other": SCORE}
    both = pd.concat([numbers(5), numbers(5, task="other")])
    found = skill(both, tasks, control_sides({"carry_forward": few}, tasks), resamples=100)
    assert found["score"]["carry_forward"]["n"] == 40 and found["other"] == {}
    shared = numbers(5).head(40)
    assert found["score"]["carry_forward"]["metrics"]["mae"]["model"] == pytest.approx(
        (shared["prediction"] - shared["target"]).abs().mean()
    )


def test_a_control_of_classes_is_judged_at_its_own_threshold() -> None:
    task = Classification(classes=("no", "yes"), threshold=0.5)
    control = pd.concat([classes(4.0), classes(4.0, split="val")])
    found = skill(classes(0.0), {"ill": task}, control_sides({"ridge": control}, {"ill": task}), resamples=100)
    cell = found["ill"]["ridge"]["metrics"]["balanced_accuracy"]
    assert cell["control"] == pytest.approx(cell["model"], abs=0.05)
    same = skill(classes(0.0), {"ill": task}, {"ridge": (classes(4.0), {"ill": task})}, resamples=100)
    assert same["ill"]["ridge"]["metrics"]["balanced_accuracy"]["control"] < cell["control"] - 0.1


@pytest.mark.parametrize(("error", "words", "low"), [
    (3.0, "better than ridge", 0.7), (7.0, "not shown to be better than ridge", 0.3), (14.0, "worse than ridge", 0.3),
])  # fmt: skip
def test_the_verdict_is_said_plainly_about_the_strongest_control(error: float, words: str, low: float) -> None:
    controls = {
        "training_mean": numbers(30, seed=5),
        "training_median": numbers(31, seed=6),
        "ridge": numbers(8, seed=7),
    }
    result = result_of(numbers(error, seed=8), {"score": SCORE}, controls)
    (line,) = overview(result)
    assert (line.words, line.metric, line.n) == (words, "mae", N)
    assert strongest(result["tasks"]["score"]["controls"], "mae") == "ridge"
    assert strongest(result["tasks"]["score"]["controls"], "pearson") == "ridge"
    assert list(line.controls) == ["training_mean", "training_median", "ridge"]
    assert line.icc is not None and line.icc > low
    text = format_result(result)
    assert words in text and "training mean" in text and "training median" in text


def test_groups_have_the_whole_table_and_rare_values_are_pooled() -> None:
    table = numbers(5)
    result = result_of(table, {"score": SCORE}, {}, by=("diagnosis",))
    by = result["tasks"]["score"]["by"]["diagnosis"]
    assert set(by) == {"CN", "MCI", "AD", "other values"} and "rare" not in json.dumps(by)
    part = table[table["meta.diagnosis"] == "MCI"]
    alone = evaluate_table(part, {"score": SCORE}, resamples=100)["tasks"]["score"]["overall"]
    assert by["MCI"] == alone
    assert by["other values"]["mae"] == {"value": pytest.approx(by["other values"]["mae"]["value"]), "low": None,
                                         "high": None, "n": 4, "reason": "n < 5: interval omitted"}  # fmt: skip
    refuses("E-EVAL-BY", lambda: metrics_by(table, {"score": SCORE}, ("sex",), {}), says="diagnosis")


def many(count: int) -> tuple[pd.DataFrame, dict[str, Regression], dict[str, pd.DataFrame]]:
    """Case table, tasks and controls of so many tasks, one better than ridge, the last ones worse."""
    tasks = {f"item_{k:02d}": SCORE for k in range(count)}
    table = pd.concat([numbers(4 + k, task=name, seed=k) for k, name in enumerate(tasks)])
    controls = {
        name: pd.concat([numbers(e, task=task, seed=50 + e) for task in tasks])
        for name, e in (("training_mean", 20), ("training_median", 21), ("ridge", 8))
    }
    return table, tasks, controls


def test_fourteen_tasks_are_a_line_each_and_sections_that_fold(tmp_path: Path) -> None:
    table, tasks, controls = many(14)
    result = result_of(table, tasks, controls, by=("diagnosis",))
    lines = format_result(result).splitlines()
    assert len(lines) == 16, "heads, a line per task, and where the rest is"
    said = "\n".join(lines)
    assert all(
        words in said for words in ("  better than ridge", "not shown to be better than ridge", "worse than ridge")
    )
    page = write_report(
        tmp_path / "report.html", title="many", evaluation=result, table=table, figures={}, provenance={}
    ).read_text()
    assert page.count("<details>") == 14 and "<details open>" not in page
    top = re.sub(r"<[^>]+>", " ", page.split("id=overview")[1].split("</section>")[0])
    assert len(re.findall(r"item_\d\d", top)) == 14 and top.count("better than ridge") >= 3
    assert all(head in top for head in ("ICC(2,1)", "training mean", "training median", "ridge"))
    section = re.sub(r"<[^>]+>", " ", page.split('id="task-item-00"')[1].split("</details>")[0])
    assert re.search(r"RMSE.{1,40}\[", section) and "By diagnosis" in section and "Against controls" in section
    assert "better than training median" in section and "Limits of agreement" in section


def test_any_case_table_becomes_a_folder_that_can_be_read_back(tmp_path: Path) -> None:
    table, tasks, controls = many(2)
    said: list[str] = []
    material = Material(
        "two", {"test": table}, ModelSpec(preprocess=Preprocess(), encoder=TimmConfig(), tasks=tasks),
        SETTINGS.model_copy(update={"by": ("diagnosis",)}), {"bundle": "b1"}, controls=controls,
    )  # fmt: skip
    found = evaluate_cases(tmp_path, material, say=said.append)
    assert "Pearson r" in said[0], "of few tasks every headline metric is printed"
    assert "<details open>" in found.report.read_text()
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(result["tasks"]["item_00"]["controls"]) == set(controls)
    assert result["tasks"]["item_00"]["by"]["diagnosis"]["AD"]["icc_agreement"]["value"] > 0.5
    written = read_cases(tmp_path / "controls.csv")
    assert set(written["control"]) == set(controls) and len(written) == 3 * len(table)
    assert len(read_cases(tmp_path / "cases.csv")) == 2 * N
    assert (tmp_path / "figures" / "item_00-agreement.svg").is_file()


def test_agreement_tells_domains_apart_and_draws_bias_and_limits_of_levels() -> None:
    rows = numbers(5).assign(target=np.arange(N) % 5 + 1.0, prediction=(np.arange(N) + 1) % 5 + 1.0)
    figure = plots.agreement(rows, step=1)
    left, right = figure.axes
    names = [text.get_text() for text in left.get_legend().get_texts()]
    assert names == ["identity", "A (60)", "B (60)"]
    shown = [{tuple(dots.get_facecolor()[0][:3]) for dots in axes.collections} for axes in (left, right)]
    assert len(shown[0]) == 2 and shown[0] == shown[1], "one colour per domain, the same in both panels"
    difference = (rows["prediction"] - rows["target"]).to_numpy()
    heights = sorted(line.get_ydata()[0] for line in right.lines)
    half = 1.96 * difference.std(ddof=1)
    assert heights == pytest.approx(
        sorted([0.0, difference.mean(), difference.mean() - half, difference.mean() + half])
    )
    offsets = np.concatenate([dots.get_offsets() for dots in left.collections])
    assert np.abs(offsets - np.round(offsets)).max() < 0.301 and len(np.unique(offsets, axis=0)) == N
    many_sites = rows.assign(domain=[f"site {i % 20:02d}" for i in range(N)])
    legend = [text.get_text() for text in plots.agreement(many_sites).axes[0].get_legend().get_texts()]
    assert len(legend) == len(plots.PALETTE) + 1 and legend[-1] == "other domains (78)"


def test_ordinal_controls_pass_through_the_same_code() -> None:
    task = Ordinal(low=1, high=5)
    level = np.arange(N) % 5 + 1.0
    table = numbers(1, task="stage").assign(target=level, prediction=level, expected=level)
    worse = table.assign(prediction=3.0, expected=3.0)
    found = skill(table, {"stage": task}, control_sides({"training_median": worse}, {"stage": task}), resamples=100)
    cells = found["stage"]["training_median"]["metrics"]
    assert cells["mae"]["verdict"] == "better" and cells["quadratic_kappa"]["control"] == pytest.approx(0)
    assert cells["spearman"]["control"] is None


def test_settings_of_controls_are_typed() -> None:
    ok = EvaluationConfig.model_validate(
        {"controls": [{"kind": "ridge", "grid": 4}, {"kind": "carry_forward", "columns": {"score": "baseline"}}],
         "by": ["diagnosis"]}
    )  # fmt: skip
    assert [control.kind for control in ok.controls] == ["ridge", "carry_forward"]
    for wrong in ([{"kind": "lasso"}], [{"kind": "ridge"}, {"kind": "ridge"}], [{"kind": "carry_forward"}]):
        with pytest.raises(ValueError, match="controls"):
            EvaluationConfig.model_validate({"controls": wrong})
