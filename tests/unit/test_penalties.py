"""Penalties: a total that is the sum of its items, time points that are alike; against sums by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from laws import BALANCERS, SCORE, TASKS, balancer, batch, gradients, objective, refuses
from torch import nn

from medmtl.config import override, validate
from medmtl.engine.optim import OptimConfig
from medmtl.models.head import PoolConfig
from medmtl.study import Study
from medmtl.tasks.penalties import Consistency, FeatureLaplacian, State, TemporalSmoothness, correlation, laplacian

TIMES = ("q2", "total", "later")
ALL = (
    Consistency(total="total", weight=0.5),
    TemporalSmoothness(tasks=TIMES, weight=0.3),
    FeatureLaplacian(tasks=TIMES, weight=2.0, above=0.2),
)


def _state(whole, images):
    pyramid = whole.model.encoder(images.image)
    outputs = whole.model(images.image)
    return State(whole.tasks, dict(whole.model.heads.items()), outputs, pyramid[-1].flatten(2).mean(-1))


def test_consistency_is_in_the_units_of_the_score():
    """Ordinal log-odds 0 and -100: half the mass at 5's side; 4 + 2 x; 1 + x; against 7 + 4 x; over a range of 20."""
    log_odds = torch.tensor([[100.0, 100, 100, 0, -100], [100.0, 100, -100, -100, -100]])  # mean levels 3.5 and 2
    outputs = {
        "q1": log_odds,
        "q2": torch.tensor([[1.0], [-5.0]]),  # 6 and -6: not clamped
        "q3": torch.tensor([[0.5], [0.0]]),  # 1.5 and 1
        "total": torch.tensor([[1.0], [0.0]]),  # 11 and 7
    }
    state = State(SCORE, {}, outputs, torch.zeros(2, 8))
    value = Consistency(total="total").value(state)
    assert float(value) == pytest.approx((abs(11 - (3.5 + 6 + 1.5)) + abs(7 - (2 - 6 + 1))) / 2 / 20)


def test_smoothness_is_the_squared_steps_of_the_weights():
    whole = objective(SCORE)
    w = [whole.model.heads[name].affine.weight.detach()[0].numpy() for name in TIMES]
    expected = ((w[1] - w[0]) ** 2).sum() + ((w[2] - w[1]) ** 2).sum()
    found = TemporalSmoothness(tasks=TIMES).value(_state(whole, batch(SCORE)))
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-5)
    backwards = TemporalSmoothness(tasks=("total", "q2", "later")).value(_state(whole, batch(SCORE)))
    assert float(backwards.detach()) != pytest.approx(float(found.detach()), rel=1e-3)  # the order of time matters


def test_smoothness_goes_through_the_score_of_an_ordinal_head():
    whole = objective(SCORE)
    steps = whole.model.heads["q1"].score.affine.weight - whole.model.heads["q2"].affine.weight
    found = TemporalSmoothness(tasks=("q2", "q1")).value(_state(whole, batch(SCORE)))
    torch.testing.assert_close(found, steps.square().sum())


def test_correlation_is_pearson_s_and_zero_where_nothing_varies():
    torch.manual_seed(0)
    features = torch.randn(12, 5)
    features[:, 1] = 2 - 3 * features[:, 0]
    features[:, 3] = 7.0
    expected = np.corrcoef(features[:, [0, 1, 2, 4]].double().numpy().T)
    found = correlation(features)
    np.testing.assert_allclose(found[[0, 1, 2, 4]][:, [0, 1, 2, 4]], expected, atol=1e-6)
    assert found[0, 1] == pytest.approx(-1) and not found[3].any() and not found[:, 3].any()
    assert not correlation(torch.randn(1, 5)).any()  # one image says nothing


@pytest.mark.parametrize("above", [0.0, 0.4, 0.9])
def test_the_laplacian_is_the_sum_over_pairs(above):
    torch.manual_seed(1)
    r = correlation(torch.randn(6, 5)).double()
    w = torch.randn(5, dtype=torch.float64)
    pairs = sum(
        abs(r[j, k]) * (w[j] - r[j, k].sign() * w[k]) ** 2
        for j in range(5)
        for k in range(5)
        if j != k and abs(r[j, k]) >= above
    )
    L = laplacian(r, above)
    torch.testing.assert_close(w @ L @ w, torch.as_tensor(pairs / 2, dtype=torch.float64))
    assert torch.linalg.eigvalsh(L).min() > -1e-12


def test_the_feature_penalty_is_zero_for_weights_that_follow_the_features():
    """Two features that are one another's negative want opposite weights; a third that is alone wants nothing."""
    x = torch.randn(16)
    features = torch.stack([x, -x, torch.randn(16)], 1)
    heads = {name: PoolConfig().build(3, 1) for name in TIMES}
    penalty = FeatureLaplacian(tasks=TIMES, above=0.9)
    for weight, expected in (([2.0, -2.0, 5.0], 0.0), ([2.0, 2.0, 5.0], 3 * 16 / 3), ([1.0, 0.0, 9.0], 3 * 1 / 3)):
        for head in heads.values():
            head.affine.weight = nn.Parameter(torch.tensor([weight]))
        assert float(penalty.value(State(SCORE, heads, {}, features))) == pytest.approx(expected, abs=1e-4)


def test_covariates_are_not_features():
    whole = objective(SCORE)
    plain = FeatureLaplacian(tasks=TIMES, above=0.2).value(_state(whole, batch(SCORE)))
    smooth = TemporalSmoothness(tasks=TIMES).value(_state(whole, batch(SCORE)))
    whole.model.fuse(list(SCORE), torch.zeros(3))
    with torch.no_grad():
        whole.model.heads["later"].affine.weight[:, 8:] = 2.0
    assert float(FeatureLaplacian(tasks=TIMES, above=0.2).value(_state(whole, batch(SCORE)))) == pytest.approx(
        float(plain)
    )
    found = TemporalSmoothness(tasks=TIMES).value(_state(whole, batch(SCORE)))
    assert float(found) == pytest.approx(float(smooth) + 12, rel=1e-5)  # what they weigh is to be smooth, too


@pytest.mark.parametrize("kind", BALANCERS)
def test_penalties_stand_outside_the_balancer(kind):
    whole = batch(SCORE)
    penalised, plain = (objective(SCORE, balancer(kind, len(SCORE)), penalties=penalties) for penalties in (ALL, ()))
    torch.manual_seed(2)
    with_them = penalised(whole)
    torch.manual_seed(2)
    without = plain(whole)
    values = torch.stack([penalty.value(_state(penalised, whole)) for penalty in ALL]).detach()
    torch.testing.assert_close(with_them.penalties, values)  # each as its own, without its weight
    expected = without.scalar.detach() + (values * torch.tensor([0.5, 0.3, 2.0])).sum()
    torch.testing.assert_close(with_them.scalar.detach(), expected)
    assert torch.equal(with_them.losses, without.losses) and len(without.penalties) == 0


def test_a_weight_of_zero_is_measured_and_changes_no_bit():
    idle = [penalty.model_copy(update={"weight": 0.0}) for penalty in ALL]
    first, second = gradients(objective(SCORE), batch(SCORE)), gradients(objective(SCORE, penalties=idle), batch(SCORE))
    assert torch.equal(first[0], second[0]) and all(torch.equal(g, second[1][name]) for name, g in first[1].items())
    assert (objective(SCORE, penalties=idle)(batch(SCORE)).penalties > 0).all()
    assert all(type(penalty).model_fields["weight"].default == 0 for penalty in ALL)


def test_consistency_needs_no_label_and_teaches_every_head_but_the_others():
    nobody = {name: [] for name in SCORE}
    for penalties, taught in (((), set()), ((ALL[0],), {"q1", "q2", "q3", "total"})):
        whole = objective(SCORE, penalties=penalties)
        losses = whole(batch(SCORE, **nobody))
        losses.scalar.backward()
        assert torch.isfinite(losses.scalar) and not losses.present.any() and bool(losses.scalar) == bool(penalties)
        whole.forget_absent(losses.present)
        moved = {
            name
            for name, head in whole.model.heads.items()
            if all(p.grad is not None and p.grad.any() for n, p in head.named_parameters() if "gaps" not in n)
        }
        assert moved == taught
        assert bool(whole.model.encoder.first[0].weight.grad.any()) == bool(penalties)


def test_a_head_that_only_a_penalty_teaches_follows_it():
    """Minimising it brings the total to the sum of its items without any label of either."""
    whole = objective(SCORE, penalties=[Consistency(total="total", weight=1.0)])
    optimizer = OptimConfig(learning_rate=0.02, weight_decay=0).build(
        whole.model.encoder, list(whole.model.heads.values()), whole.balancer
    )
    images = batch(SCORE, **{name: [] for name in SCORE})
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        losses = whole(images)
        losses.scalar.backward()
        whole.forget_absent(losses.present)
        optimizer.step()
        values.append(float(losses.penalties[0]))
    assert values[-1] < 0.2 * values[0]


def test_a_placeholder_changes_no_bit_beside_penalties():
    partial = batch(SCORE, q1=[0], q2=[1, 2], total=[])
    other = {k: torch.where(partial.labelled[k], v, v.flip(0)) for k, v in partial.targets.items()}
    first, second = (gradients(objective(SCORE, penalties=ALL), b) for b in (partial, replace(partial, targets=other)))
    assert torch.equal(first[0], second[0]) and all(torch.equal(g, second[1][name]) for name, g in first[1].items())


def test_penalties_are_exact_under_bf16():
    whole, images = objective(SCORE, penalties=ALL), batch(SCORE)
    exact = whole(images).penalties
    with torch.autocast("cpu", torch.bfloat16):
        found = whole(images).penalties
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[1], exact[1])  # of the weights alone
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.05)


def _tasks(**more):
    numbers = {name: {"kind": "regression", "low": 0, "high": 5} for name in ("q1", "q2", "m06", "m12")}
    return {**numbers, "total": {"kind": "regression", "low": 0, "high": 10, "sum_of": ["q1", "q2"]},
            "grade": {"kind": "classification", "classes": ["a", "b"]}, **more}  # fmt: skip


TREE = {"name": "score", "data": {"manifest": "absent.csv"}, "tasks": _tasks()}
OVER_TIME = "penalties=[{kind: temporal_smoothness, tasks: [m06, m12]}]"


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (["penalties=[{kind: consistency, total: q1}]"], "sum_of"),
        (["penalties=[{kind: consistency, total: nobody}]"], "nobody"),
        (["penalties=[{kind: temporal_smoothness, tasks: [m06, grade]}]"], "grade"),
        (["penalties=[{kind: temporal_smoothness, tasks: [m06]}]"], "tasks"),
        (["penalties=[{kind: temporal_smoothness, tasks: [m06, m06]}]"], "twice"),
        ([OVER_TIME, "tasks.m12.pool.hidden=4"], "pool.hidden"),
        ([OVER_TIME, "covariates={numeric: [age], tasks: [m06]}"], "covariates"),
        (["penalties=[{kind: feature_laplacian, tasks: [m06, m12]}]", "tasks.m12.pool.over=attention"], "pool.over"),
        (["penalties=[{kind: consistency, total: total}, {kind: consistency, total: total}]"], "two of one kind"),
        (["penalties=[{kind: consistency, total: total, weight: -1}]"], "weight"),
        (["tasks.total.sum_of=[q1, grade]"], "grade"),
        (["tasks.total.sum_of=[q1, total]"], "total"),
        (["tasks.total.sum_of=[q1, q1]"], "twice"),
        (["tasks.total.sum_of=[q1, q9]"], "q9"),
    ],
)
def test_a_study_refuses_penalties_that_fit_no_task(assignments, says):
    refuses("E-CFG", lambda: validate(Study, override(TREE, assignments), where="test"), says=says)


def test_a_task_alone_has_neither_items_nor_penalties():
    study = validate(Study, override(TREE, [OVER_TIME]), where="test")
    assert study.penalties[0].label == "temporal_smoothness.m06"
    alone = study.alone("total")
    assert alone.penalties == () and alone.tasks["total"].sum_of == ()
    assert validate(Study, alone.model_dump(mode="json"), where="again") == alone


def test_a_head_without_pooled_features_has_no_place_in_them():
    with pytest.raises(ValueError, match="mask"):
        TemporalSmoothness(tasks=("mask", "mse")).check(TASKS)
