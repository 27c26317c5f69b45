"""A score and its items (ADAS-Cog with 13 items and their total; MMSE, CDR): units, levels, sums, many tasks."""

import numpy as np
import pandas as pd
import pytest
import torch
from laws import balancer, batch, cases, gradients, objective, refuses, written

from medmtl.bundle import ModelSpec
from medmtl.config import validate
from medmtl.data.case import Case
from medmtl.data.loader import CaseDataset
from medmtl.engine.optim import OptimConfig
from medmtl.metrics import describe
from medmtl.predictor import Predictor
from medmtl.tasks.base import summary
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression

MAXIMA = (10, 5, 5, 10, 5, 5, 8, 12, 5, 5, 5, 5, 5)
ITEMS = tuple(f"q{i}" for i in range(1, 14))
ADAS = {
    **{name: Regression(low=0, high=high, standardise="range") for name, high in zip(ITEMS, MAXIMA, strict=True)},
    "adas13": Regression(low=0, high=85, standardise="range", sum_of=ITEMS),
}
CDR = Ordinal(classes=("0", "0.5", "1", "2", "3"))


# ------------------------------------------------------------------------------------------------------------ scaling


@pytest.mark.parametrize(("criterion", "centre", "scale"), [("mse", 3, 12 / 12**0.5), ("l1", 2, 3), ("huber", 2, 3)])
def test_a_range_scales_by_itself_and_centres_on_the_labels(criterion, centre, scale):
    labels = [1, 1, 2, 8, 3]
    task = Regression(low=0, high=12, criterion=criterion, standardise="range").fit(labels)
    assert (task.centre, task.scale) == pytest.approx((centre, scale))
    assert task.fit([1, 2]).scale == task.scale  # whatever the labels
    assert Regression(low=0, high=12, criterion=criterion).fit(labels).scale != pytest.approx(scale)


def test_labels_spread_over_the_range_cost_one():
    labels = np.linspace(0, 12, 4001)
    for criterion in ("mse", "l1"):
        task = Regression(low=0, high=12, criterion=criterion, standardise="range").fit(labels)
        loss = task.loss(torch.zeros(4001, 1), torch.tensor(labels, dtype=torch.float32)).mean()
        assert float(loss) == pytest.approx(1, abs=2e-3)


def test_an_error_of_a_share_of_the_range_costs_the_same_in_every_item():
    """As if every item were divided by its maximum: ((0.1 * max) / max)^2, times 12."""
    for name, high in zip(ITEMS, MAXIMA, strict=True):
        task = ADAS[name].fit([0.0, 0.1, high / 2])
        output = (torch.tensor([[0.6 * high]]) - task.centre) / task.scale
        assert float(task.loss(output, torch.tensor([0.5 * high]))) == pytest.approx(12 * 0.01, rel=1e-4)


# ------------------------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize("high", [5, 8, 10, 12, 30])  # items, MMSE
def test_an_ordinal_item_has_its_maximum_s_levels(high):
    task = Ordinal(low=0, high=high)
    target = torch.arange(high + 1)
    labels = np.repeat(np.arange(high + 1), np.arange(high + 1, 0, -1))
    fitted = task.fit(labels)
    constant = torch.logit(fitted._exceedance()).repeat(len(labels), 1)
    assert float(fitted.loss(constant, torch.tensor(labels)).mean()) == pytest.approx(1, abs=1e-3)
    sharp = 20 * torch.where(target[:, None] > torch.arange(high), 1.0, -1.0)
    torch.testing.assert_close(task.number(sharp), target.float())
    rows = [task.row(decoded, label) for decoded, label in zip(task.decode(sharp), target, strict=True)]
    assert [row["prediction"] for row in rows] == target.tolist() == [row["target"] for row in rows]


def test_half_a_point_is_no_whole_level_and_the_error_says_what_to_do():
    task = Ordinal(low=0, high=5)
    case = Case("c1", "g1", "x.png", targets={"q2": "2.5"}, row=7)
    refuses("E-TGT-LEVEL", lambda: task.reader().read(case, "2.5", None), says="kind: regression")
    assert float(ADAS["q2"].reader().read(case, "2.5", None)) == 2.5


def test_levels_whose_names_are_numbers_count_as_these():
    """CDR: 0, 0.5, 1, 2, 3; half points as names."""
    assert CDR.values == (0, 0.5, 1, 2, 3)
    halves = Ordinal(classes=tuple(str(i / 2) for i in range(11)))
    assert halves.values == tuple(i / 2 for i in range(11))
    assert Ordinal(classes=("none", "mild", "severe")).values == (0, 1, 2)
    case = Case("c1", "g1", "x.png", targets={"cdr": "0.5"})
    assert int(CDR.reader().read(case, "0.5", None)) == 1
    refuses("E-TGT-CLASS", lambda: CDR.reader().read(case, "1.5", None))
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25]])
    assert float(CDR.quantity(probabilities)) == 0.25 + 0.5 + 0.75
    row = CDR.row(probabilities[0], torch.tensor(1))
    assert (row["predicted_label"], row["target_label"]) == ("0.5", "0.5") and row["prediction"] == row["target"] == 1


def test_a_mean_level_can_be_learned_from():
    output = torch.tensor([[0.3, 0.1, -0.2, -1.0]], requires_grad=True)
    CDR.number(output).sum().backward()
    assert (output.grad > 0).all()  # each log-odds raises it


# --------------------------------------------------------------------------------------------------------------- sums


def _spec(tasks):
    tree = {"preprocess": {"window": [12, 12]}, "encoder": {"name": "test_efficientnet"}, "tasks": tasks}
    return validate(ModelSpec, tree, where="test")


TOTAL = {
    "a": {"kind": "regression", "low": 0, "high": 10},
    "b": {"kind": "ordinal", "low": 1, "high": 4},
    "total": {"kind": "regression", "low": 0, "high": 14, "sum_of": ["a", "b"]},
}


def test_the_case_table_has_the_items_sum_beside_the_total(tmp_path):
    spec = _spec(TOTAL)
    torch.manual_seed(0)
    model = spec.build()
    manifest = written(tmp_path, cases(4, 1))
    table = Predictor(model, spec).table(CaseDataset(manifest.cases, tmp_path, {}, (), spec.preprocess), batch_size=3)
    rows = {name: table[table["task"] == name].set_index("case_id") for name in TOTAL}
    expected = rows["a"]["prediction"] + rows["b"]["expected"]
    assert rows["total"]["items_sum"].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-5)
    assert not np.allclose(rows["total"]["items_sum"], rows["total"]["prediction"])
    assert rows["a"]["items_sum"].isna().all()


def test_the_items_sum_has_the_metrics_of_a_prediction():
    task = Regression(low=0, high=14, sum_of=("a", "b")).fit([3.0, 5.0])
    table = pd.DataFrame({"target": [1.0, 4, 7, 9], "prediction": [1.0, 4, 7, 9], "items_sum": [2.0, 4, 6, np.nan]})
    found = summary(task, table)
    assert found["mae"] == 0 and found["mae.items_sum"] == pytest.approx(2 / 3)
    assert found["r2.items_sum"] == pytest.approx(1 - 2 / 18)
    assert describe("mae.items_sum").higher_is_better is False and "items_sum" in describe("mae.items_sum").label
    bare = summary(task, table.drop(columns="items_sum"))
    assert set(bare) == set(found) and np.isnan(bare["mae.items_sum"])
    constant = summary(task, task.constant(table))
    assert constant["mae"] == constant["mae.items_sum"] == pytest.approx((3 + 0 + 3 + 5) / 4)
    weights = np.array([[1, 1, 1, 1], [0, 3, 0, 1]])
    assert task.metrics(table, weights)["mae.items_sum"] == pytest.approx([2 / 3, 0])
    assert not any("items_sum" in name for name in summary(Regression(low=0, high=14), table))


# --------------------------------------------------------------------------------------------------- fourteen at once


def _adas(samples=8, seed=0):
    """Every item lacks some cases, and q13 all."""
    rng = np.random.default_rng(seed)
    some = {name: sorted(rng.choice(samples, 5, replace=False).tolist()) for name in ADAS}
    return batch(ADAS, samples, seed, **{**some, "q13": []})


def test_uncertainty_over_fourteen_tasks_leaves_out_who_has_no_label():
    """The sum of exp(-s) L / 2 + s / 2 over the thirteen that are there, and nothing of the fourteenth moves."""
    whole = objective(ADAS, balancer("uncertainty", 14))
    start = torch.linspace(-1, 1, 14)
    with torch.no_grad():
        for parameter, value in zip(whole.balancer.log_variance, start, strict=True):
            parameter.copy_(value)
    images = _adas()
    losses = whole(images)
    there = [i for i, name in enumerate(ADAS) if name != "q13"]
    assert losses.present.nonzero()[:, 0].tolist() == there
    expected = sum(0.5 * (np.exp(-start[i]) * losses.losses[i] + start[i]) for i in there)
    torch.testing.assert_close(losses.scalar.detach(), expected.float())
    optimizer = OptimConfig(learning_rate=0.05).build(
        whole.model.encoder, list(whole.model.heads.values()), whole.balancer
    )
    head = whole.model.heads["q13"].affine.weight.detach().clone()
    losses.scalar.backward()
    whole.forget_absent(losses.present)
    optimizer.step()
    moved = [not torch.equal(p.detach(), value) for p, value in zip(whole.balancer.log_variance, start, strict=True)]
    assert moved == [name != "q13" for name in ADAS]
    assert torch.equal(whole.model.heads["q13"].affine.weight, head)


def test_uncertainty_finds_every_task_s_own_loss_however_often_it_is_there():
    """The minimum of exp(-s) L / 2 + s / 2 is s = log L; a task that is there in one step of three comes there, too."""
    losses, uncertainty = torch.linspace(0.2, 3, 14), balancer("uncertainty", 14)
    optimizer = torch.optim.SGD(uncertainty.parameters(), lr=0.5)
    for step in range(240):
        present = (torch.arange(14) + step) % 3 == 0
        optimizer.zero_grad()
        uncertainty(torch.where(present, losses, 0.0), [], present).backward()
        uncertainty.forget_absent(present)
        optimizer.step()
    found = torch.stack([parameter.detach() for parameter in uncertainty.log_variance])
    torch.testing.assert_close(found, losses.log(), atol=1e-3, rtol=0)


def test_a_placeholder_changes_no_bit_of_fourteen_tasks():
    images = _adas()
    other = {k: torch.where(images.labelled[k], v, v.flip(0)) for k, v in images.targets.items()}
    first, second = (
        gradients(objective(ADAS, balancer("uncertainty", 14)), b)
        for b in (images, type(images)(images.image, other, images.labelled, images.domain, images.case_ids))
    )
    assert torch.equal(first[0], second[0])
    assert all(g is None or torch.equal(g, second[1][name]) for name, g in first[1].items())
