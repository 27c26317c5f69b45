"""One mechanism for partial labels: what is missing leaves no trace, what is auxiliary keeps its weight."""

from dataclasses import replace

import pytest
import torch
from laws import (
    BALANCERS,
    MIXED,
    TASKS,
    WEIGHED,
    balancer,
    batch,
    counts_a_weight_of_two_as_the_sample_twice,
    gradients,
    ignores_the_unit_of_weights,
    objective,
    targets_of,
)

from medmtl.engine.optim import OptimConfig
from medmtl.models.head import Strength

MAIN = sum(not task.auxiliary for task in MIXED.values())
PARTIAL = {"grade": [0, 2, 4], "size": [1, 3], "mask": [5, 6], "domain": [0, 1, 7]}


def _equal(a, b):
    assert torch.equal(a[0], b[0])
    for name in a[1]:
        one, other = a[1][name], b[1][name]
        assert (one is None and other is None) or torch.equal(one, other), name


def _other_placeholders(batch, tasks):
    """The same batch with other valid targets wherever the label is missing."""
    targets = dict(batch.targets)
    for task_name, task in tasks.items():
        name = task.target or task_name
        other = targets_of(task, len(batch.case_ids), seed=77)
        mask = batch.labelled[name].view(-1, *[1] * (other.ndim - 1))
        targets[name] = torch.where(mask, targets[name], other)
        assert not torch.equal(targets[name], batch.targets[name]) or mask.all()
    return replace(batch, targets=targets)


@pytest.mark.parametrize("kind", BALANCERS)
def test_a_placeholder_changes_no_bit_under_any_balancer(kind):
    partial = batch(**PARTIAL)
    first, second = (
        gradients(objective(balancer=balancer(kind, MAIN)), b) for b in (partial, _other_placeholders(partial, MIXED))
    )
    _equal(first, second)


@pytest.mark.parametrize("name", TASKS)
def test_a_placeholder_changes_no_bit_of_any_task(name):
    tasks = {name: TASKS[name]}
    column = TASKS[name].target or name
    partial = batch(tasks, **{column: [0, 2, 3]})
    first, second = (gradients(objective(tasks), b) for b in (partial, _other_placeholders(partial, tasks)))
    _equal(first, second)
    task, target = TASKS[name], partial.targets[column]
    kinds = len(getattr(task, "classes", ())) or len(getattr(task, "levels", ()))
    other = task.high - target if name in ("mse", "l1", "huber") else (target + 1) % kinds
    changed = replace(partial, targets={column: other})  # labels this time
    assert not torch.equal(gradients(objective(tasks), changed)[0], first[0])


def test_a_loss_is_the_mean_over_the_labelled():
    whole = batch(**PARTIAL)
    found = objective()(whole)
    for i, (name, task) in enumerate(MIXED.items()):
        chosen = PARTIAL[task.target or name]
        output = objective().model(whole.image)[name][chosen]
        expected = task.loss(output, whole.targets[task.target or name][chosen]).mean()
        torch.testing.assert_close(found.losses[i], expected.detach())
    expected = (found.losses * torch.tensor([1.0, 1.0, 0.5, 1.0])).sum()
    torch.testing.assert_close(found.scalar.detach(), expected)


def test_a_task_that_weighs_its_cases_has_the_weighted_mean():
    whole = batch(WEIGHED, **PARTIAL)
    found = objective(WEIGHED)(whole)
    for i, (name, task) in enumerate(WEIGHED.items()):
        some = PARTIAL[task.target or name]
        weights = whole.weights[f"sure_of_{name}"][some]
        assert weights.sum() < 1
        output = objective(WEIGHED).model(whole.image)[name][some]
        expected = (weights * task.loss(output, whole.targets[task.target or name][some])).sum() / weights.sum()
        torch.testing.assert_close(found.losses[i], expected.detach().float())


@pytest.mark.parametrize("tasks", [{name: task} for name, task in WEIGHED.items()], ids=list(WEIGHED))
def test_weights_obey_their_laws(tasks):
    column = next(task.target or name for name, task in tasks.items())
    for labelled in ({}, {column: PARTIAL[column]}):
        ignores_the_unit_of_weights(tasks, batch(tasks, **labelled))
        counts_a_weight_of_two_as_the_sample_twice(tasks, batch(tasks, **labelled))


@pytest.mark.parametrize("kind", BALANCERS)
def test_neither_placeholder_nor_weight_of_an_unlabelled_sample_changes_a_bit(kind):
    partial = batch(WEIGHED, **PARTIAL)
    other = _other_placeholders(partial, WEIGHED)
    weights = {
        column: torch.where(partial.labelled["domain" if name == "site" else name], partial.weights[column], 1e30)
        for name, column in ((name, task.weigh) for name, task in WEIGHED.items())
    }
    assert not torch.equal(weights["sure_of_size"], partial.weights["sure_of_size"])
    first, second = (
        gradients(objective(WEIGHED, balancer(kind, MAIN)), b) for b in (partial, replace(other, weights=weights))
    )
    _equal(first, second)


def test_a_weighted_task_leaves_the_others_bit_for_bit():
    one = {**MIXED, "size": WEIGHED["size"]}
    plain, weighed = (objective(tasks)(batch(tasks, **PARTIAL)).losses for tasks in (MIXED, one))
    assert [torch.equal(a, b) for a, b in zip(plain, weighed, strict=True)] == [True, False, True, True]


@pytest.mark.parametrize("kind", BALANCERS)
def test_an_absent_task_is_forgotten_and_decay_spares_its_head(kind):
    whole = objective(balancer=balancer(kind, MAIN))
    optimizer = OptimConfig(learning_rate=0.1, weight_decay=0.5).build(
        whole.model.encoder, list(whole.model.heads.values()), whole.balancer
    )
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    losses = whole(batch(**{**PARTIAL, "size": [], "domain": []}))
    assert losses.present.tolist() == [True, False, True, False]
    assert losses.losses[1] == losses.losses[3] == 0
    losses.scalar.backward()
    assert all(p.grad is not None for p in whole.model.parameters())  # the graph is whole: DDP waits for nobody
    whole.forget_absent(losses.present)
    for name, parameter in whole.named_parameters():
        if name.startswith(("model.heads.size", "model.heads.site")):
            assert parameter.grad is None
        elif not name.startswith("balancer"):
            assert parameter.grad is not None
    optimizer.step()
    for name, parameter in whole.named_parameters():
        absent = name.startswith(("model.heads.size", "model.heads.site"))
        if not name.startswith("balancer"):
            assert torch.equal(parameter, before[name]) == absent, name


@pytest.mark.parametrize("kind", [k for k in BALANCERS if k != "fixed"])
def test_an_adversary_has_the_same_weight_under_every_balancer(kind):
    """Its head's gradient is that of its own loss, whatever the balancer makes of the others."""
    _, fixed = gradients(objective(), batch(**PARTIAL))
    _, balanced = gradients(objective(balancer=balancer(kind, MAIN)), batch(**PARTIAL))
    for name in (n for n in fixed if n.startswith("model.heads.site")):
        torch.testing.assert_close(balanced[name], fixed[name])
    others = [n for n in fixed if n.startswith("model.heads.grade")]
    differs = any(not torch.allclose(balanced[n], fixed[n]) for n in others)
    assert differs == (kind != "dwa")  # in its first epochs all weights are 1


def test_only_auxiliary_tasks_are_a_study_too():
    tasks = {"site": TASKS["adversary"]}
    whole = objective(tasks)
    assert torch.isfinite(whole(batch(tasks)).scalar)


def test_an_adversary_pushes_the_encoder_the_other_way():
    def encoder_gradients(strength):
        tasks = {
            "site": TASKS["adversary"].model_copy(update={"strength": Strength(value=strength, schedule="linear")})
        }
        whole = objective(tasks)
        whole.model.advance(1.0)
        return gradients(whole, batch(tasks))[1]

    against, double = encoder_gradients(1.0), encoder_gradients(2.0)
    plain = gradients(objective({"site": TASKS["domain"]}), batch({"site": TASKS["domain"]}))[1]
    for name in (n for n in plain if n.startswith("model.encoder")):
        torch.testing.assert_close(against[name], -plain[name])
        torch.testing.assert_close(double[name], -2 * plain[name])
    assert any(g.abs().sum() > 0 for g in plain.values())


@pytest.mark.parametrize("kind", BALANCERS)
def test_observing_changes_neither_loss_nor_gradient(kind):
    first, second = (
        gradients(objective(balancer=balancer(kind, MAIN)), batch(**PARTIAL), observe=observe)
        for observe in (False, True)
    )
    _equal(first, second)
    whole = objective()
    assert whole(batch(**PARTIAL)).gramian is None
    G = whole(batch(**PARTIAL), observe=True).gramian
    assert G.shape == (4, 4) and not G.requires_grad
    torch.testing.assert_close(G, G.T)


def test_a_task_s_own_weight_scales_its_loss_alone():
    heavy = {**MIXED, "grade": MIXED["grade"].model_copy(update={"weight": 3.0})}
    plain, scaled = (gradients(objective(tasks), batch(**PARTIAL))[1] for tasks in (MIXED, heavy))
    for name in plain:
        if name.startswith("model.heads"):
            factor = 3.0 if ".grade." in name else 1.0
            torch.testing.assert_close(scaled[name], factor * plain[name])
    losses = [objective(tasks)(batch(**PARTIAL)).losses for tasks in (MIXED, heavy)]
    assert torch.equal(*losses)  # reported unweighted


def test_the_last_scope_is_the_end_of_the_encoder():
    model = objective().model
    everything, last = model.shared("all"), model.shared("last")
    assert [id(p) for p in last] == [id(p) for p in everything[-len(last) :]]
    share = sum(p.numel() for p in last) / sum(p.numel() for p in everything)
    assert 0.25 <= share < 1
    everything[0].requires_grad_(False)
    assert len(model.shared("all")) == len(everything) - 1
