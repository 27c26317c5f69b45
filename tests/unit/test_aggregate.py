"""Several images of a patient: rules by hand, labels, thresholds of their own, and weights that are learned."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from laws import refuses
from pydantic import ValidationError
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from medmtl.evaluation.aggregate import AggregateConfig, aggregate_table, aggregated_tasks, fitted_attention
from medmtl.evaluation.attention import Attention, fit_attention
from medmtl.evaluation.summary import evaluate_table
from medmtl.evaluation.units import evaluate_units, units_metrics, units_section
from medmtl.tasks.classification import Classification
from medmtl.tasks.domain import Domain
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

SICK = Classification(classes=("no", "yes"), threshold=0.9)
FLIPPED = Classification(classes=("yes", "no"), positive="yes")
TYPE = Classification(classes=("a", "b", "c"))
SWEDE = Ordinal(low=0, high=3)
AGE = Regression(low=0, high=100)


def rows(task, name: str, decoded: list[list[float] | float], targets: list, groups: list[str], **more) -> pd.DataFrame:
    """A case table of decoded outputs; a target of None is missing."""
    found = []
    for i, (value, target) in enumerate(zip(decoded, targets, strict=True)):
        tensor = torch.tensor(value, dtype=torch.float64)
        row = task.row(tensor, None if target is None else torch.tensor(target))
        found.append({"case_id": f"c{i:03d}", "group": groups[i], "domain": "A", "split": "test", "task": name,
                      "target": np.nan, **row, **{key: values[i] for key, values in more.items()}})  # fmt: skip
    return pd.DataFrame(found)


def one(task, name: str, decoded: list, targets: list, how: str) -> pd.Series:
    """The single patient that all images are of."""
    table = rows(task, name, decoded, targets, ["g"] * len(decoded))
    tasks = aggregated_tasks({name: task})
    (found,) = aggregate_table(table, tasks, AggregateConfig(how=how)).to_dict("records")
    return found


@pytest.mark.parametrize(("how", "expected"), [("mean", 0.4), ("max", 0.7), ("noisy_or", 1 - 0.9 * 0.6 * 0.3)])
@pytest.mark.parametrize("task", [SICK, FLIPPED], ids=["last", "first"])
def test_a_binary_class_by_hand_whichever_class_is_positive(task: Classification, how: str, expected: float) -> None:
    order = 1 if task.positive_index == 1 else -1
    decoded = [[1 - p, p][::order] for p in (0.1, 0.4, 0.7)]
    negative = 1 - task.positive_index
    found = one(task, "sick", decoded, [negative, task.positive_index, None], how)
    assert found["p.yes"] == pytest.approx(expected) and found["p.no"] == pytest.approx(1 - expected)
    assert (found["target_label"], found["images"]) == ("yes", 3), "one positive image makes a positive patient"
    assert found["predicted_label"] == ("yes" if expected >= 0.5 else "no"), "the images' threshold is forgotten"
    assert one(task, "sick", decoded, [negative, negative, None], how)["target_label"] == "no"
    assert np.isnan(one(task, "sick", decoded, [None] * 3, how)["target"])


def test_levels_by_hand() -> None:
    images = np.array([[0.5, 0.3, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
    above = 1 - images.cumsum(1)[:, :3]
    for how, expected in (("mean", above.mean(0)), ("max", above.max(0)), ("noisy_or", 1 - (1 - above).prod(0))):
        found = one(SWEDE, "swede", images.tolist(), [1, 3], how)
        p = np.array([found[f"p.{k}"] for k in range(4)])
        np.testing.assert_allclose(1 - p.cumsum()[:3], expected, atol=1e-6)
        assert found["target"] == 3 and found["expected"] == pytest.approx(expected.sum(), abs=1e-6)
        assert found["prediction"] == (expected > 0.5).sum()


def test_noisy_or_of_levels_is_the_distribution_of_the_highest() -> None:
    images = np.random.default_rng(0).dirichlet(np.ones(4), 3)
    found = one(SWEDE, "swede", images.tolist(), [0, 0, 0], "noisy_or")
    highest = np.zeros(4)
    for i in range(4):
        for j in range(4):
            for k in range(4):
                highest[max(i, j, k)] += images[0, i] * images[1, j] * images[2, k]
    np.testing.assert_allclose([found[f"p.{k}"] for k in range(4)], highest, atol=1e-6)


def test_unordered_classes_are_averaged_and_must_agree() -> None:
    images = [[0.6, 0.3, 0.1], [0.0, 0.9, 0.1]]
    for how in ("mean", "max", "noisy_or", "attention"):
        found = one(TYPE, "type", images, [1, 1], how)
        assert [found[f"p.{k}"] for k in "abc"] == pytest.approx([0.3, 0.6, 0.1])
        assert (found["target_label"], found["predicted_label"]) == ("b", "b")
        assert np.isnan(one(TYPE, "type", images, [1, 2], how)["target"])


def test_numbers_follow_max_and_are_averaged_otherwise() -> None:
    for how, value, label in (("mean", 30, 20), ("max", 50, 30), ("noisy_or", 30, 20)):
        found = one(AGE, "age", [10.0, 50.0], [10.0, 30.0], how)
        assert (found["prediction"], found["target"]) == (value, label)


def test_one_image_each_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(30)
    tasks = {"sick": SICK.model_copy(update={"threshold": None})}
    table = rows(
        SICK, "sick", np.stack([1 - p, p], 1).tolist(), list(rng.integers(0, 2, 30)), [f"g{i:02d}" for i in range(30)]
    )
    single = evaluate_table(table, tasks, resamples=100)
    for how in ("mean", "max", "noisy_or"):
        combined = aggregate_table(table, tasks, AggregateConfig(how=how))
        assert combined["case_id"].tolist() == table["group"].tolist()
        found = evaluate_table(combined, tasks, resamples=100)
        for metric, cell in single["tasks"]["sick"]["overall"].items():
            assert found["tasks"]["sick"]["overall"][metric]["value"] == pytest.approx(cell["value"])


def test_a_visit_belongs_to_its_patient_and_images_without_one_stay_together() -> None:
    visits = ["1", "1", "2", "", None, "1"]
    table = rows(AGE, "age", [10.0, 20, 30, 40, 50, 60], [None] * 6, ["g", "g", "g", "g", "g", "h"],
                 **{"meta.visit": visits})  # fmt: skip
    table["domain"] = ["A", "B", "A", "A", "A", "A"]
    found = aggregate_table(table, {"age": AGE}, AggregateConfig(by="meta.visit")).set_index("case_id")
    assert found["prediction"].to_dict() == {"g|1": 15, "g|2": 30, "g|unknown": 45, "h|1": 60}
    assert found["domain"].to_dict() == {"g|1": "several", "g|2": "A", "g|unknown": "A", "h|1": "A"}
    assert found["group"].to_dict() == {"g|1": "g", "g|2": "g", "g|unknown": "g", "h|1": "h"}
    refuses("E-AGG-COLUMN", lambda: aggregate_table(table, {"age": AGE}, AggregateConfig(by="meta.vist")),
            says="group, meta.visit")  # fmt: skip


@pytest.mark.parametrize("by", ["visit", "meta.", "patient"])
def test_a_rule_by_nothing_is_refused(by: str) -> None:
    with pytest.raises(ValidationError, match="group"):
        AggregateConfig(by=by)


def test_masks_domains_and_auxiliary_tasks_stay_per_image() -> None:
    tasks = {
        "sick": SICK, "lesion": Segmentation(classes=("background", "lesion")), "site": Domain(classes=("A", "B")),
        "extra": AGE.model_copy(update={"auxiliary": True}), "swede": SWEDE,
    }  # fmt: skip
    assert list(aggregated_tasks(tasks)) == ["sick", "swede"]


def study(seed: int, patients: int, *, split: str, informative: bool = False) -> pd.DataFrame:
    """Patients with 1 to 6 images; few images of a sick patient show it. ``quality`` tells the images that can."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(patients):
        sick = k % 2
        for _ in range(rng.integers(1, 7)):
            sharp = rng.random() < 0.4
            if informative:  # a blurred image has a score that means nothing
                logit = 3 * (2 * sick - 1) + rng.normal(0, 1) if sharp else rng.normal(0, 4)
            else:
                logit = 2 * (2 * (sick and sharp) - 1) + rng.normal(0, 1)
            found.append((f"{split}{k}", sick, expit(logit), 80 + 5 * rng.normal() if sharp else 20 + 5 * rng.normal()))
    p = np.array([row[2] for row in found])
    groups = [row[0] for row in found]
    sick_rows = rows(SICK, "sick", np.stack([1 - p, p], 1).tolist(), [row[1] for row in found], groups)
    quality = rows(AGE, "quality", [row[3] for row in found], [None] * len(found), groups)
    return pd.concat([sick_rows, quality], ignore_index=True).assign(split=split)


TASKS = {"sick": SICK, "quality": AGE}


def test_the_threshold_is_that_of_the_combined_probability_on_validation() -> None:
    tables = {"val": study(1, 60, split="val"), "test": study(2, 60, split="test")}
    found = evaluate_units(tables, TASKS, AggregateConfig(how="noisy_or"), resamples=100, level=0.95)
    threshold = found.result["thresholds"]["sick"]
    val = found.table[(found.table["split"] == "val") & (found.table["task"] == "sick")]
    assert threshold == SICK.model_copy(update={"threshold": None}).freeze(val).threshold
    test = found.table[(found.table["split"] == "test") & (found.table["task"] == "sick")]
    assert ((test["p.yes"] >= threshold) == (test["prediction"] == 1)).all()
    entry = found.result["tasks"]["sick"]
    assert entry["n"] == 60 and entry["groups"] == 60
    expected = roc_auc_score(test["target"], test["p.yes"])
    assert entry["overall"]["auroc"]["value"] == pytest.approx(expected)
    assert found.result["images"]["most"] <= 6 and found.result["images"]["least"] == 1
    json.dumps(found.result, allow_nan=False)


def test_a_validation_part_of_one_class_leaves_the_threshold_open() -> None:
    val = study(1, 20, split="val")
    val.loc[val["task"] == "sick", ["target", "target_label"]] = [0.0, "no"]
    tables = {"val": val, "test": study(2, 20, split="test")}
    found = evaluate_units(tables, TASKS, AggregateConfig(), resamples=100, level=0.95)
    assert found.result["thresholds"]["sick"] is None
    test = found.table[(found.table["split"] == "test") & (found.table["task"] == "sick")]
    assert ((test["p.yes"] >= 0.5) == (test["prediction"] == 1)).all()


def test_report_and_tracking_have_both() -> None:
    tables = {"val": study(1, 40, split="val"), "test": study(2, 40, split="test")}
    units = evaluate_units(tables, TASKS, AggregateConfig(how="max"), resamples=100, level=0.95).result
    images = evaluate_table(tables["test"], TASKS, resamples=100)
    page = units_section(units, images)
    assert f"{units['tasks']['sick']['overall']['auroc']['value']:.3f}" in page
    assert f"{images['tasks']['sick']['overall']['auroc']['value']:.3f}" in page
    assert "Per group" in page and "combined by max" in page and "sick from" in page
    found = units_metrics(units)
    assert found["test.sick.auroc.per_group"] == units["tasks"]["sick"]["overall"]["auroc"]["value"]
    assert found["test.sick.auroc.per_group.low"] < found["test.sick.auroc.per_group.high"]


def _auroc(how: str, *, informative: bool) -> float:
    tables = {part: study(seed, 120, split=part, informative=informative)
              for seed, part in enumerate(("train", "val", "test"))}  # fmt: skip
    found = evaluate_units(tables, TASKS, AggregateConfig(how=how), resamples=100, level=0.95)
    return found.result["tasks"]["sick"]["overall"]["auroc"]["value"]


def test_attention_learns_which_images_can_be_trusted() -> None:
    """Blurred images score at random; what another task says about them tells which they are."""
    fixed = max(_auroc(how, informative=True) for how in ("mean", "max", "noisy_or"))
    assert _auroc("attention", informative=True) > fixed + 0.03


def test_attention_starts_at_the_mean_and_stays_there_without_labels() -> None:
    rng = np.random.default_rng(0)
    features, above = rng.normal(size=(20, 3)), rng.random((20, 1))
    members = np.arange(20) // 4
    for levels in (np.full(5, np.nan), np.ones(5)):
        found = fit_attention(features, above, members, levels)
        assert not found.w.any() and not found.scores(features).any()


def test_attention_is_the_same_again_and_weights_each_patient_to_one() -> None:
    table = study(0, 60, split="train", informative=True)
    config = AggregateConfig(how="attention")
    first, again = (fitted_attention(table, TASKS, config)["sick"] for _ in range(2))
    assert isinstance(first, Attention) and first.w.any()
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ("V", "U", "w"))
    json.dumps(first.plain())
    tasks = aggregated_tasks(TASKS)
    combined = aggregate_table(table, tasks, config, {"sick": first})
    sick = combined[combined["task"] == "sick"].set_index("case_id")["p.yes"]
    images = table[table["task"] == "sick"].groupby("group")["p.yes"]
    assert (sick >= images.min() - 1e-9).all() and (sick <= images.max() + 1e-9).all(), "between its images"


@pytest.mark.parametrize("name", ["quality", "extra"])
def test_attention_looks_at_the_tasks_that_are_not_auxiliary_alone(name: str) -> None:
    """What is learned on the training part is applied to the test part, whose tasks are the aggregated ones."""
    tables = {part: study(seed, 40, split=part, informative=True) for seed, part in enumerate(("train", "val", "test"))}
    extra = {"extra": AGE.model_copy(update={"auxiliary": True})}
    more = {
        part: pd.concat([table, table[table["task"] == "quality"].assign(task="extra", prediction=50.0)])
        for part, table in tables.items()
    }
    config = AggregateConfig(how="attention")
    tasks = {**TASKS, **extra} if name == "extra" else {"sick": SICK, "quality": extra["extra"]}
    found = evaluate_units(more, tasks, config, resamples=100, level=0.95)
    without = {key: task for key, task in tasks.items() if not task.auxiliary}
    expected = evaluate_units(tables, without, config, resamples=100, level=0.95)
    assert found.result["attention"] == expected.result["attention"]
    assert found.result["tasks"] == expected.result["tasks"] and set(found.result["tasks"]) == set(without)


def test_an_error_per_patient_stands_beside_the_training_mean_and_median() -> None:
    table = rows(AGE, "age", [10.0, 20.0, 60.0, 80.0], [20.0, 40.0, 50.0, 90.0], ["g", "g", "h", "i"])
    controls = {
        "training_mean": table.assign(prediction=45.0), "training_median": table.assign(prediction=35.0),
        "ridge": table.assign(prediction=20.0),
    }  # fmt: skip
    tables = {"val": table, "test": table}
    config = AggregateConfig()
    units = evaluate_units(tables, {"age": AGE}, config, resamples=100, level=0.95, controls=controls).result
    mean, median = ((15 + 5 + 45) / 3, (5 + 15 + 55) / 3)  # patients of 30, 50 and 90
    trivial = units["tasks"]["age"]["trivial"]
    assert set(trivial) == {"training_mean", "training_median"}
    assert [trivial[name]["mae"] for name in trivial] == pytest.approx([mean, median])
    page = units_section(units, evaluate_table(table, {"age": AGE}, resamples=100))
    assert "training mean" in page and f"<td>{mean:.2f}</td><td>{median:.2f}</td>" in page


def test_attention_works_for_levels() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 60)
    table = rows(SWEDE, "swede", p.tolist(), list(rng.integers(0, 4, 60)), [f"g{i // 3:02d}" for i in range(60)])
    config = AggregateConfig(how="attention")
    learned = fitted_attention(table, {"swede": SWEDE}, config)
    found = aggregate_table(table, {"swede": SWEDE}, config, learned)
    total = found[[f"p.{k}" for k in range(4)]].to_numpy()
    np.testing.assert_allclose(total.sum(1), 1, atol=1e-6)
    assert (total >= -1e-9).all()
