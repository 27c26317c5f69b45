"""Which task obeys which law, and what each says in the case table."""

import numpy as np
import pandas as pd
import pytest
import torch
from laws import (
    MIXED,
    TASKS,
    TinyEncoder,
    chance,
    costs_about_one_at_chance,
    decodes_within_range,
    falls_towards_the_truth,
    is_per_sample,
    table,
    targets_of,
    truth,
)
from pydantic import ValidationError

from medmtl.models.head import AdversaryHead, CumulativeHead, Strength
from medmtl.tasks.base import Task, summary
from medmtl.tasks.classification import Classification
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

CLASSES = {name: task for name, task in TASKS.items() if hasattr(task, "class_weights")}


def everyone(*without):
    chosen = {name: task for name, task in TASKS.items() if name not in without}
    return pytest.mark.parametrize("task", chosen.values(), ids=chosen)


def _fitted(task, samples=3000):
    """The task after seeing skewed training labels, and those labels."""
    rng = np.random.default_rng(0)
    if isinstance(task, Regression):
        labels = np.clip(rng.gamma(2, 1.5, samples), task.low, task.high)
        return task.fit(labels), torch.tensor(labels, dtype=torch.float32)
    names = task.levels if isinstance(task, Ordinal) else task.classes
    share = np.array([6, 3, 1, 1, 1][: len(names)]) / sum([6, 3, 1, 1, 1][: len(names)])
    if isinstance(task, Segmentation):
        masks = rng.choice(len(task.classes), (6, 8, 8), p=share)
        return task.fit(list(masks)), torch.tensor(masks)
    labels = rng.choice(len(names), samples, p=share)
    return task.fit(labels), torch.tensor(labels)


@everyone("mask", "organs")
def test_chance_costs_one(task):
    """On the training labels: exactly 1, but for class weights that do not average 1 over them, and Huber's tails."""
    task, target = _fitted(task)
    odd = getattr(task, "criterion", None) == "huber" or getattr(task, "class_weights", None) == (0.5, 1.0, 1.5)
    tolerance = 0.35 if odd else 1e-3
    costs_about_one_at_chance(task, target, 1 - tolerance, 1 + tolerance)


@everyone("binary", "graded", "focal", "smooth", "score", "stage", "mse", "l1", "huber", "domain", "adversary")
def test_chance_costs_about_one_in_a_mask(task):
    """Cross-entropy costs 1; Dice 0.5 where half is foreground, 1 where next to none is: 0.65 to 1.05 together."""
    unweighted = task.model_copy(update={"class_weights": None})
    costs_about_one_at_chance(unweighted, targets_of(task, 6), 0.65, 1.05)
    costs_about_one_at_chance(unweighted, torch.eye(8, dtype=torch.int64)[None], 0.65, 1.05)


@everyone("graded", "organs")
def test_a_new_head_starts_at_the_constant_predictor_and_costs_at_most_one(task):
    """With a zero image the head gives its bias: the log prior, the centre; never dearer than knowing nothing."""
    task, target = _fitted(task)
    encoder = TinyEncoder()
    torch.manual_seed(0)
    head = task.head(encoder)
    with torch.no_grad():
        last = {AdversaryHead: "inner", CumulativeHead: "score"}.get(type(head))
        last = getattr(head, last) if last else head
        weight = last.predict.weight if isinstance(task, Segmentation) else last.affine.weight
        weight.zero_()
        pyramid = [torch.zeros(len(target), c, 8 // s[0], 8 // s[0])
                   for c, s in zip(encoder.channels, encoder.strides, strict=True)]  # fmt: skip
        output = head(pyramid)
    assert 0.3 < float(task.loss(output, target).mean()) <= 1.35
    decoded = task.decode(output)
    expected = torch.tensor(task.centre if isinstance(task, Regression) else task.prior)
    torch.testing.assert_close(decoded.flatten(2).mean((0, 2)) if decoded.ndim > 2 else decoded.mean(0), expected,
                               atol=2e-3, rtol=1e-3)  # fmt: skip


@everyone("smooth")
def test_the_loss_falls_towards_the_truth(task):
    falls_towards_the_truth(task, targets_of(task, 6))


@everyone()
def test_the_loss_is_per_sample(task):
    is_per_sample(task, targets_of(task, 6))


@everyone()
def test_decoding_stays_in_range_and_may_be_averaged(task):
    decodes_within_range(task, targets_of(task, 6))


@everyone()
def test_rows_and_metrics_agree_that_the_truth_is_perfect(task):
    target = targets_of(task, 12)
    found = summary(task, table(task, truth(task, target), target))
    perfect = {"balanced_accuracy": 1, "accuracy": 1, "auroc": 1, "mae": 0, "rmse": 0, "r2": 1, "cohen_kappa": 1}
    perfect |= {"quadratic_kappa": 1, "accuracy_within_1": 1}
    perfect |= {f"dice.{name}": 1 for name in getattr(task, "classes", ())[1:]}
    checked = [name for name in found if name in perfect]
    assert checked and set(task.headline) <= set(found)
    for name in checked:
        assert found[name] == pytest.approx(perfect[name], abs=1e-5), name


@everyone()
def test_a_missing_label_leaves_the_prediction_and_no_target(task):
    target = targets_of(task, 6)
    decoded = task.decode(chance(task, target))
    known, unknown = task.row(decoded[0], target[0]), task.row(decoded[0], None)
    assert "target" in known and "target" not in unknown
    assert {key: known[key] for key in unknown} == unknown
    assert all(isinstance(value, float | str) for value in known.values())


@everyone()
def test_the_constant_control_depends_on_the_training_labels_alone(task):
    task, _ = _fitted(task)
    target = targets_of(task, 12)
    right, wrong = (table(task, output, target) for output in (truth(task, target), chance(task, target)))
    control = task.constant(right)
    columns = [c for c in control if c not in ("case_id", "task", "target", "target_label")]
    if not isinstance(task, Segmentation):
        assert all(control[column].nunique() == 1 for column in columns)
    pd.testing.assert_frame_equal(control[columns], task.constant(wrong)[columns])
    found = summary(task, control)
    if isinstance(task, Regression):
        assert control["prediction"].iloc[0] == pytest.approx(task.centre)
    elif isinstance(task, Segmentation):
        assert found[f"dice.{task.classes[1]}"] == 0  # every mask has a foreground
    else:
        names = task.levels if isinstance(task, Ordinal) else task.classes
        assert found["balanced_accuracy"] == pytest.approx(1 / len(names))
        assert control[[f"p.{name}" for name in names]].iloc[0].tolist() == pytest.approx(list(task.prior))


def test_balanced_weights_average_one_over_the_training_labels():
    task = Classification(classes=("a", "b", "c", "never"), class_weights="balanced")
    labels = [0] * 70 + [1] * 25 + [2] * 5
    fitted = task.fit(labels)
    weights = np.array(fitted.class_weights)
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[:3] * [70, 25, 5] == pytest.approx([100 / 3] * 3) and weights[3] == 1
    assert fitted.prior == (0.7, 0.25, 0.05, 0.0)
    assert fitted.loss(torch.zeros(100, 4), torch.tensor(labels)).mean() == pytest.approx(1)


@pytest.mark.parametrize(
    ("criterion", "centre", "scale"), [("mse", 3.0, (34 / 6) ** 0.5), ("l1", 2.5, 10 / 6), ("huber", 2.5, 10 / 6)]
)
def test_regression_is_fitted_to_mean_or_median(criterion, centre, scale):
    task = Regression(low=0, high=10, criterion=criterion).fit([1, 1, 2, 8, 3, 3])
    assert (task.centre, task.scale) == pytest.approx((centre, scale))


def test_regression_survives_constant_and_absent_labels():
    assert Regression(low=0, high=8).fit([5.0, 5.0]).scale == 2.0
    assert (Regression(low=0, high=8).fit([]).centre, Regression(low=0, high=8).fit([]).scale) == (4.0, 2.0)
    assert torch.isfinite(Regression(low=0, high=8).fit([5.0]).loss(torch.zeros(1, 1), torch.tensor([5.0]))).all()


def test_a_prediction_beyond_the_range_is_clamped():
    assert TASKS["mse"].decode(torch.tensor([[100.0], [-100.0]])).tolist() == [10.0, 0.0]


def test_a_threshold_decides_and_is_chosen_on_validation():
    task = Classification(classes=("yes", "no"), positive="yes", threshold=0.3)
    assert [task.decide(torch.tensor([p, 1 - p])) for p in (0.29, 0.31, 0.9)] == [1, 0, 0]
    rows = [
        {"group": str(i), "target": float(i < 3), "p.yes": p, "p.no": 1 - p}
        for i, p in enumerate((0.05, 0.1, 0.15, 0.2, 0.25, 0.3))
    ]
    frozen = Classification(classes=("yes", "no"), positive="yes").freeze(pd.DataFrame(rows))
    assert 0.1 < frozen.threshold < 0.25  # index 0 is "yes": the first three are "no"; a mean over resamples
    one_class = pd.DataFrame([{**row, "target": 1.0} for row in rows])
    assert Classification(classes=("yes", "no")).freeze(one_class).threshold is None


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Classification, {"classes": ("a",)}),
        (Classification, {"classes": ("a", "a")}),
        (Classification, {"classes": ("a", "b"), "positive": "c"}),
        (Classification, {"classes": ("a", "b", "c"), "positive": "c"}),
        (Classification, {"classes": ("a", "b", "c"), "threshold": 0.5}),
        (Classification, {"classes": ("a", "b"), "class_weights": (1.0,)}),
        (Classification, {"classes": ("a", "b"), "clases": ("a", "b")}),
        (Regression, {"low": 1, "high": 1}),
        (Segmentation, {"classes": ("background",)}),
        (Segmentation, {"classes": ("background", "x"), "class_weights": (1.0, 1.0, 1.0)}),
        (type(TASKS["adversary"]), {"auxiliary": False}),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, settings):
    with pytest.raises(ValidationError):
        kind(**settings)


def test_a_task_that_forgot_a_function_says_so():
    bare = Task()
    for action in (
        bare.reader,
        lambda: bare.head(TinyEncoder()),
        lambda: bare.loss(torch.zeros(1), torch.zeros(1)),
        lambda: bare.decode(torch.zeros(1)),
        lambda: bare.row(torch.zeros(1), None),
        lambda: bare.metrics(pd.DataFrame(), np.ones((1, 0))),
        lambda: bare.constant(pd.DataFrame()),
    ):
        with pytest.raises(TypeError, match="Task"):
            action()


def test_heads_have_the_shapes_that_losses_want():
    encoder = TinyEncoder()
    pyramid = encoder(torch.randn(2, 3, 8, 8))
    for name, shape in {"grade": (2, 3), "size": (2, 1), "mask": (2, 2, 8, 8), "site": (2, 2)}.items():
        assert MIXED[name].head(encoder)(pyramid).shape == shape


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", (0.5, 0.5, 0.5)),
        ("linear", (0.0, 0.25, 0.5)),
        ("ramp", (0.0, 0.5 * (2 / (1 + np.exp(-5)) - 1), 0.5)),
    ],
)
def test_the_strength_of_an_adversary_follows_its_schedule(schedule, at):
    strength = Strength(value=0.5, schedule=schedule)
    assert [strength.at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx(at, abs=1e-4)


def test_the_gradient_is_reversed_and_scaled_behind_an_adversary_only():
    task = TASKS["adversary"]
    torch.manual_seed(0)
    head = task.head(TinyEncoder())
    features = [torch.zeros(2, 4, 4, 4), torch.randn(2, 8, 2, 2, requires_grad=True)]
    target = torch.tensor([0, 1])

    def both(module):
        output = module(features)
        parameters = [features[1], head.inner.affine.weight]
        return output, torch.autograd.grad(task.loss(output, target).sum(), parameters)

    for strength in (0.3, 1.0, 0.0):
        head.scale.fill_(strength)
        (output, reversed_), (plain, straight) = both(head), both(head.inner)
        assert torch.equal(output, plain)
        torch.testing.assert_close(reversed_[0], -strength * straight[0])
        assert torch.equal(reversed_[1], straight[1])  # the head itself learns to recognise the domain
    head.strength = Strength(value=0.5, schedule="linear")
    head.advance(0.5)
    assert head.scale == 0.25 and "scale" not in head.state_dict()


@pytest.mark.parametrize("name", TASKS)
def test_without_a_labelled_case_every_metric_is_there_and_undefined(name: str) -> None:
    """As in a small validation part where labels are rare; the columns that only labelled cases have are missing."""
    task, target = TASKS[name], targets_of(TASKS[name], 6)
    decoded = task.decode(truth(task, target))
    bare = pd.DataFrame([task.row(value, None) for value in decoded]).assign(target=float("nan"))
    found = summary(task, bare)
    assert set(found) == set(summary(task, table(task, truth(task, target), target)))
    assert all(np.isnan(value) for value in found.values())
