"""Losses against their papers' formulas, one sample at a time, and their scale at chance."""

from math import log

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from medmtl import losses

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [-3.0, 1.0, 2.0], [40.0, 0.0, 0.0]])
TARGET = torch.tensor([0, 1, 2, 1])


def _log_p():
    return log_softmax(LOGITS.double().numpy(), axis=1)[range(4), TARGET.numpy()]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.5)])
def test_focal_is_the_papers_formula(gamma, weights):
    """FL = -alpha_t (1 - p_t)^gamma log p_t (Lin et al. 2017, eq. 5), over its value at p = 1/3."""
    p = np.exp(_log_p())
    expected = -((1 - p) ** gamma) * _log_p() / ((2 / 3) ** gamma * log(3))
    expected = expected * (1 if weights is None else np.array(weights)[TARGET])
    found = losses.focal(LOGITS, TARGET, gamma=gamma, class_weights=weights and torch.tensor(weights))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_focal_without_focus_is_cross_entropy_and_focus_spares_the_easy():
    plain = losses.cross_entropy(LOGITS, TARGET)
    torch.testing.assert_close(losses.focal(LOGITS, TARGET, gamma=0.0), plain)
    focused = losses.focal(LOGITS, TARGET, gamma=2.0) / plain
    assert focused[0] < focused[1] < focused[3]


def test_focal_has_a_finite_gradient_where_the_answer_is_sure():
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    losses.focal(logits, torch.tensor([0, 0]), gamma=0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_smoothed_cross_entropy_by_hand():
    """(1 - s) of the label's and s / K of every class's negative log probability; a weight is the sample's own."""
    everything = log_softmax(LOGITS.double().numpy(), axis=1)
    expected = -(0.9 * _log_p() + 0.1 / 3 * everything.sum(1)) / log(3)
    weights = torch.tensor([0.5, 1.0, 1.5])
    found = losses.cross_entropy(LOGITS, TARGET, class_weights=weights, smoothing=0.1)
    np.testing.assert_allclose(found.numpy(), expected * weights[TARGET].numpy(), rtol=1e-5)


def test_smoothing_punishes_overconfidence():
    confident = torch.tensor([[100.0, 0.0]], requires_grad=True)
    losses.cross_entropy(confident, torch.tensor([0]), smoothing=0.1).sum().backward()
    assert confident.grad[0, 0] > 0


def test_dice_and_cross_entropy_are_halves_of_known_losses():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 5, 7), torch.randint(3, (2, 5, 7))
    ce = torch.nn.functional.cross_entropy(logits, target, reduction="none").mean((1, 2)) / log(3)
    p, truth = logits.softmax(1)[:, 1:], torch.nn.functional.one_hot(target, 3).movedim(-1, 1)[:, 1:]
    dice = 1 - (2 * (p * truth).sum((2, 3)) + 1) / (p.sum((2, 3)) + truth.sum((2, 3)) + 1)
    torch.testing.assert_close(losses.dice_cross_entropy(logits, target), 0.5 * ce + 0.5 * dice.mean(1))


def test_an_empty_mask_has_a_finite_gradient_that_lowers_false_positives():
    logits = torch.zeros(1, 2, 6, 6, requires_grad=True)
    loss = losses.dice_cross_entropy(logits, torch.zeros(1, 6, 6, dtype=torch.int64))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 1] > 0).all() and (logits.grad[:, 0] < 0).all()


@pytest.mark.parametrize(("kind", "expected"), [("mse", (0, 1, 9)), ("l1", (0, 1, 3)), ("huber", (0, 1, 5))])
def test_regression_losses_cost_one_at_one_scale(kind, expected):
    found = losses.regression(torch.zeros(3), torch.tensor([0.0, 1.0, -3.0]), kind=kind)
    assert found.tolist() == list(expected)


def test_an_unknown_regression_loss_is_refused():
    with pytest.raises(ValueError, match="cosine"):
        losses.regression(torch.zeros(1), torch.zeros(1), kind="cosine")


def test_the_masked_mean_counts_the_labelled_of_all_ranks():
    values, labelled = torch.tensor([1.0, 2.0, 30.0]), torch.tensor([True, True, False])
    assert losses.masked_mean(values, labelled, torch.tensor(2), 1) == 1.5
    assert losses.masked_mean(values, labelled, torch.tensor(6), 2) == 1.0  # four more on the other rank
    assert losses.masked_mean(values, torch.zeros(3, dtype=torch.bool), torch.tensor(0), 1) == 0.0


def test_without_weights_the_masked_mean_is_bit_for_bit_sum_over_count():
    source = torch.Generator().manual_seed(0)
    for count in (0, 1, 3, 7):
        values = torch.randn(9, generator=source)
        labelled = torch.arange(9) < count
        expected = torch.where(labelled, values, 0.0).sum() * 2 / torch.tensor(count).clamp(min=1)
        for total in (losses.mass(labelled), losses.mass(labelled).double()):  # double: beside a task with weights
            found = losses.masked_mean(values, labelled, total, 2)
            assert torch.equal(found, expected) and found.dtype == torch.float32


def test_equal_logits_cost_one():
    for classes in (2, 3, 10):
        logits, target = torch.zeros(4, classes), torch.tensor([0, 1, 0, 1])
        for loss in (
            losses.cross_entropy(logits, target),
            losses.cross_entropy(logits, target, smoothing=0.2),
            losses.focal(logits, target, gamma=2.0),
        ):
            torch.testing.assert_close(loss, torch.ones(4))
