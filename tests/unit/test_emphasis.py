"""What items weigh: presets of mean 1, and a group of patients' own."""

from dataclasses import replace

import pytest
import torch
from laws import SCORE, balancer, batch, gradients, informed, objective, refuses
from pydantic import ValidationError

from medmtl.config import override, validate
from medmtl.study import Study
from medmtl.tasks.emphasis import Emphasis

ADAS = tuple(f"q{i}" for i in range(1, 14))
SMALL = {"items": ("q1", "q2", "q3"), "key": ("q2",)}
GROUPS = {"by": "diagnosis", "groups": {"CN": "moderate", "MCI": "strong"}}


@pytest.mark.parametrize(
    ("preset", "key", "other"), [("uniform", 1, 1), ("moderate", 26 / 16, 13 / 16), ("strong", 52 / 22, 13 / 22)]
)
def test_presets_of_the_thirteen_items(preset, key, other):
    """13 items, 3 of them key: 2 * 3 + 10 = 16 shares, or 4 * 3 + 10 = 22."""
    emphasis = Emphasis(items=ADAS, preset=preset)
    weights = emphasis.weights(emphasis.preset, [*ADAS, "total"])
    expected = [key if i in (1, 4, 8) else other for i in range(1, 14)]
    assert weights.tolist() == pytest.approx([*expected, 1])
    assert weights[:13].mean() == pytest.approx(1)
    assert weights[0] / weights[1] == pytest.approx({"uniform": 1, "moderate": 2, "strong": 4}[preset])


def test_factors_are_settings():
    emphasis = validate(Emphasis, {"items": ["a", "b"], "key": ["a"], "factors": {"strong": 3}}, where="test")
    assert emphasis.weights("strong", ("a", "b", "c")).tolist() == [1.5, 0.5, 1]


@pytest.mark.parametrize(
    "settings",
    [
        {"items": ("q1",)},
        {"items": ("q1", "q1", "q2"), "key": ("q1",)},
        {"items": ("q1", "q2"), "key": ("q1", "q2")},
        {"items": ("q1", "q2"), "key": ("q3",)},
        {"items": ("q1", "q2"), "key": ()},
        {**SMALL, "by": "diagnosis"},
        {**SMALL, "groups": {"CN": "strong"}},
        {**SMALL, "by": "diagnosis", "groups": {"CN": "heavy"}},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        Emphasis(**settings)


def test_a_preset_multiplies_the_task_s_own_weight():
    tasks = {**SCORE, "q2": SCORE["q2"].model_copy(update={"weight": 3.0})}
    emphasis = Emphasis(**SMALL, preset="strong")  # 4 + 2 shares: 2 for q2, 0.5 for the others
    whole = batch(tasks)
    plain, weighted = objective(SCORE)(whole), objective(tasks, emphasis=emphasis)(whole)
    assert torch.equal(plain.losses, weighted.losses)  # reported without
    expected = (plain.losses * torch.tensor([0.5, 3 * 2.0, 0.5, 1.0, 1.0])).sum()
    torch.testing.assert_close(weighted.scalar.detach(), expected)


def test_uniform_changes_no_bit():
    whole = batch(SCORE)
    plain, even = gradients(objective(SCORE), whole), gradients(objective(SCORE, emphasis=Emphasis(**SMALL)), whole)
    assert torch.equal(plain[0], even[0]) and all(torch.equal(g, even[1][name]) for name, g in plain[1].items())


PARTIAL = {"q1": [0, 2, 4], "q2": [1, 3, 5, 6], "total": [0, 1], "later": []}
STRATUM = {-1: "uniform", 0: "moderate", 1: "strong"}


def test_a_case_s_items_weigh_as_its_group_wants():
    """Against sums by hand; the count of labelled cases divides, so a group's emphasis does not favour its cases."""
    emphasis = Emphasis(**SMALL, **GROUPS)
    whole = informed(batch(SCORE, **PARTIAL))
    expected = 0.0
    outputs = objective(SCORE).model(whole.image)
    for name, task in SCORE.items():
        some = whole.labelled[name].nonzero()[:, 0].tolist()
        factor = [
            float(emphasis.weights(STRATUM[int(whole.stratum[i])], [name]))
            * float(task.loss(outputs[name], whole.targets[name])[i].detach())
            for i in some
        ]
        expected += sum(factor) / max(len(some), 1)
    found = objective(SCORE, emphasis=emphasis)(whole)
    assert float(found.scalar) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(found.losses, objective(SCORE)(whole).losses)


def test_one_group_for_all_is_its_preset():
    whole = replace(informed(batch(SCORE, **PARTIAL)), stratum=torch.full((8,), 1))
    grouped = gradients(objective(SCORE, emphasis=Emphasis(**SMALL, **GROUPS)), whole)
    strong = gradients(objective(SCORE, emphasis=Emphasis(**SMALL, preset="strong")), whole)
    torch.testing.assert_close(grouped[0], strong[0])
    for name, gradient in strong[1].items():
        torch.testing.assert_close(grouped[1][name], gradient)


@pytest.mark.parametrize("kind", ["fixed", "dwa", "upgrad"])
def test_neither_placeholder_nor_group_of_an_unlabelled_sample_changes_a_bit(kind):
    first = informed(batch(SCORE, **{name: [0, 1, 2] for name in SCORE}))
    stratum = torch.where(torch.arange(8) < 3, first.stratum, 1 - first.stratum.clamp(min=0))
    assert not torch.equal(stratum, first.stratum)
    second = replace(
        first,
        stratum=stratum,
        targets={k: torch.where(first.labelled[k], v, v.flip(0)) for k, v in first.targets.items()},
    )
    one, other = (
        gradients(objective(SCORE, balancer(kind, len(SCORE)), emphasis=Emphasis(**SMALL, **GROUPS)), b)
        for b in (first, second)
    )
    assert torch.equal(one[0], other[0]) and all(torch.equal(g, other[1][name]) for name, g in one[1].items())


def test_groups_and_weights_of_cases_go_together():
    """``weigh`` says how sure a label is, the group how much an item matters: sum e w l / sum w."""
    tasks = {**SCORE, "q2": SCORE["q2"].model_copy(update={"weigh": "sure"})}
    whole = informed(batch(tasks))
    emphasis = Emphasis(**SMALL, **GROUPS)
    table = emphasis.table(["q2"])[whole.stratum, 0]
    output = objective(tasks).model(whole.image)["q2"]
    weight = whole.weights["sure"]
    q2 = (table * weight * tasks["q2"].loss(output, whole.targets["q2"])).sum() / weight.sum()
    bare = {name: task for name, task in tasks.items() if name != "q2"}
    light = {name: task.model_copy(update={"weight": 0.0}) for name, task in bare.items()}
    found = objective({**light, "q2": tasks["q2"]}, emphasis=emphasis)
    found.model.load_state_dict(objective(tasks).model.state_dict())
    torch.testing.assert_close(found(whole).scalar.detach().double(), q2.detach())


TREE = {
    "name": "score",
    "data": {"manifest": "absent.csv"},
    "tasks": {name: {"kind": "regression", "low": 0, "high": 5} for name in ("q1", "q2", "q3")},
    "emphasis": {"items": ["q1", "q2", "q3"], "key": ["q2"], "preset": "strong"},
}


@pytest.mark.parametrize(
    ("assignments", "says"),
    [(["emphasis.items=[q1, q2, q4]"], "q4"), (["balance={kind: uncertainty}"], "learns the weights")],
)
def test_a_study_refuses_what_it_cannot_weigh(assignments, says):
    refuses("E-CFG", lambda: validate(Study, override(TREE, assignments), where="test"), says=says)


def test_uncertainty_goes_with_uniform_weights_and_a_task_alone_with_none():
    even = validate(Study, override(TREE, ["balance={kind: uncertainty}", "emphasis.preset=uniform"]), where="test")
    assert even.emphasis.even
    assert even.alone("q1").emphasis is None
