"""Which balancer obeys which law; the formulas by hand and by brute force."""

import copy
import math

import numpy as np
import pytest
import torch
from laws import (
    BALANCERS,
    balancer,
    does_not_conflict,
    gramians,
    ignores_the_unit,
    is_equivariant,
    reduces_to_the_sum,
    weights_of,
)
from scipy.optimize import minimize
from torch import nn
from torchjd.aggregation import UPGradWeighting

from medmtl.balance.gramian import Gramian, NonNegativeProjector, cosines, jacobian
from medmtl.balance.static import Balancer, DynamicWeightAverage, Uncertainty

ON_GRADIENTS = ("upgrad", "pcgrad", "mgda", "aligned_mtl", "cagrad")
ALL = torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["upgrad", "mgda"])
def test_does_not_conflict(kind):
    does_not_conflict(weights_of(kind))


@pytest.mark.parametrize("kind", ["upgrad", "mgda", "aligned_mtl", "cagrad"])
def test_is_equivariant(kind):
    is_equivariant(weights_of(kind), tolerance=5e-3 if kind == "cagrad" else 1e-4)


@pytest.mark.parametrize("kind", ON_GRADIENTS)
def test_ignores_the_unit(kind):
    ignores_the_unit(weights_of(kind), tolerance=5e-3)


@pytest.mark.parametrize("kind", ON_GRADIENTS)
def test_without_conflict_it_is_the_sum(kind):
    reduces_to_the_sum(weights_of(kind), tolerance=5e-3)


@pytest.mark.parametrize("kind", ["upgrad", "pcgrad", "aligned_mtl"])
def test_orthogonal_tasks_of_one_length_are_summed(kind):
    G = 4 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(weights_of(kind)(G), torch.ones(3, dtype=torch.float64), atol=1e-3, rtol=1e-3)


def _projected(J, u):
    """min_v v^T G v with v >= u, by a general solver."""
    G = J @ J.T
    best = minimize(lambda v: v @ G @ v, u + 1, jac=lambda v: 2 * G @ v, bounds=[(low, None) for low in u],
                    method="SLSQP", options={"ftol": 1e-14, "maxiter": 500})  # fmt: skip
    return best.x


def test_the_projector_solves_the_quadratic_program():
    """The projection of J^T u on the cone {x: J x >= 0} is J^T v with v the solution of the dual program."""
    for J, G in gramians(count=8):
        U = torch.eye(3, dtype=torch.float64) / 3
        found = NonNegativeProjector(epsilon=1e-9)(U, G)
        for u, v in zip(U.numpy(), found.numpy(), strict=True):
            direction, best = J.numpy().T @ v, J.numpy().T @ _projected(J.numpy(), u)
            np.testing.assert_allclose(direction, best, atol=2e-4 * float(G.trace()) ** 0.5)
            assert (J.numpy() @ direction >= -1e-6 * float(G.trace())).all() and (v >= u - 1e-9).all()


def test_upgrad_is_the_mean_of_the_projections():
    """A(J) = 1/T sum_t pi_J(g_t) (Quinton & Rey 2024, eq. 3), here times T; the weighting is TorchJD's."""
    for J, G in gramians():
        expected = sum(_projected(J.numpy(), row) for row in np.eye(3))
        found = weights_of("upgrad")(G).numpy()
        np.testing.assert_allclose(
            J.numpy().T @ found, J.numpy().T @ expected, rtol=2e-2, atol=2e-2 * float(G.trace()) ** 0.5
        )
        torchjd = 3 * UPGradWeighting(projector=NonNegativeProjector())(G / G.diagonal().mean())
        np.testing.assert_allclose(found, torchjd.numpy(), atol=1e-4)


@pytest.mark.parametrize("tasks", [4, 9])
@pytest.mark.parametrize("rounding", [torch.float32, torch.bfloat16])
def test_upgrad_bears_gradients_that_are_nearly_parallel(tasks, rounding):
    """Rounding gives such a Gramian negative eigenvalues, which a Cholesky factor does not have."""
    for seed in range(10):
        source = torch.Generator().manual_seed(seed)
        common, own = (torch.randn(n, 2000, generator=source) for n in (1, tasks))
        J = common * torch.rand(tasks, 1, generator=source) + 0.02 * own
        G = (J @ J.T).to(rounding).double()
        v = NonNegativeProjector()(torch.eye(tasks, dtype=torch.float64) / tasks, G)
        assert torch.isfinite(v).all() and (v.diagonal() >= 1 / tasks - 1e-12).all() and (v >= 0).all()
        slack = 1e-3 if rounding == torch.float32 else 2e-2
        assert (v.sum(0) @ (J @ J.T).double() >= -slack * G.trace()).all()


def test_upgrad_is_linear_under_scaling():
    """Scaling the tasks' gradients by c scales the direction linearly in c (Quinton & Rey 2024, definition 3)."""
    weighting = UPGradWeighting(projector=NonNegativeProjector(epsilon=1e-10))
    J, _ = gramians()[1]

    def direction(c):
        scaled = torch.tensor(c, dtype=torch.float64)[:, None] * J
        return weighting(scaled @ scaled.T) @ scaled

    a, b, both = direction([1.0, 2.0, 0.5]), direction([3.0, 0.5, 1.0]), direction([4.0, 2.5, 1.5])
    torch.testing.assert_close(a + b, both, rtol=1e-4, atol=1e-4)


def test_mgda_is_the_shortest_vector_of_the_hull():
    for _, G in gramians():
        weights = weights_of("mgda")(G) / 3
        assert weights.sum().item() == pytest.approx(1, abs=1e-5) and (weights >= -1e-6).all()
        best = minimize(lambda w, G=G.numpy(): w @ G @ w, np.full(3, 1 / 3), bounds=[(0, 1)] * 3, method="SLSQP",
                        constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-14})  # fmt: skip
        found = float(weights @ G @ weights)  # Frank-Wolfe stops after 100 steps
        assert best.fun - 1e-6 <= found <= best.fun + 1e-3 * float(G.trace()) < float(G.mean())


def test_pcgrad_of_two_tasks_is_the_papers_projection():
    """g_i - (g_i . g_j / |g_j|^2) g_j where they conflict (Yu et al. 2020, algorithm 1), summed; else the plain sum."""
    built = balancer("pcgrad", 2)
    for g, h in (([1.0, 0.0], [-1.0, 1.0]), ([1.0, 0.0], [1.0, 1.0])):
        J = torch.tensor([g, h])
        shared, probe = nn.Parameter(torch.zeros(2)), torch.zeros(2, requires_grad=True)
        built(J @ shared + probe, [shared], ALL[:2]).backward()
        dot = min(float(J[0] @ J[1]), 0.0)
        expected = J[0] - dot / float(J[1] @ J[1]) * J[1] + J[1] - dot / float(J[0] @ J[0]) * J[0]
        torch.testing.assert_close(shared.grad, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", BALANCERS)
@pytest.mark.parametrize("present", [(True, False, True), (False, True, False), (False, False, False)])
def test_an_absent_task_has_no_say(kind, present):
    """With tasks absent, the others are balanced as if these did not exist; the loss of nobody is 0."""
    torch.manual_seed(3)
    present = torch.tensor(present)
    shared = nn.Parameter(torch.randn(4))
    J = torch.randn(3, 4) * present[:, None]  # an absent task has an exact zero loss and gradient
    built = balancer(kind, 3)
    if kind == "dwa":
        built.history[:] = torch.tensor([[1.0, 1.0, 1.0], [0.5, 1.0, 2.0]])
    torch.manual_seed(0)
    built(J @ shared, [shared], present).backward()
    assert torch.isfinite(shared.grad).all()
    if not present.any():
        assert (shared.grad == 0).all()
    elif kind != "dwa":  # its weights follow history, not presence
        some = nn.Parameter(shared.detach().clone())
        torch.manual_seed(0)
        balancer(kind, int(present.sum()))(J[present] @ some, [some], ALL[: present.sum()]).backward()
        torch.testing.assert_close(shared.grad, some.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ON_GRADIENTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_passed_on_to_be_skipped(kind, bad):
    shared = nn.Parameter(torch.ones(2))
    losses = torch.stack([shared.sum(), bad * shared[0]])
    built = balancer(kind, 2)
    built(losses, [shared], ALL[:2]).backward()
    assert not torch.isfinite(shared.grad).all()


@pytest.mark.parametrize("kind", ON_GRADIENTS)
def test_without_any_gradient_on_shared_parameters_heads_still_learn(kind):
    shared, probe = nn.Parameter(torch.zeros(2)), torch.ones(2, requires_grad=True)
    balancer(kind, 2)(probe * 1.0 + 0 * shared, [shared], ALL[:2]).backward()
    assert probe.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", BALANCERS)
def test_state_makes_a_round_trip(kind):
    built = balancer(kind, 2)
    shared = nn.Parameter(torch.tensor([1.0, -1.0]))
    for epoch in range(3):
        for _ in range(2):
            built(torch.stack([shared.sum() ** 2 + 1, (shared[0] - epoch) ** 2]), [shared], ALL[:2]).backward()
        built.end_epoch()
    if kind == "uncertainty":
        for value in built.log_variance:
            nn.init.normal_(value)
    other = balancer(kind, 2)
    other.load_state_dict(copy.deepcopy(built.state_dict()))
    scalars = []
    for each in (built, other):
        torch.manual_seed(0)
        scalars.append(each(torch.stack([shared.sum(), shared[0] * 2]), [shared], ALL[:2]).item())
    assert scalars[0] == scalars[1]
    assert bool(built.state_dict()) == (kind in ("uncertainty", "dwa"))


def test_pcgrad_is_random_but_counted():
    built = balancer("pcgrad", 3)
    J = torch.tensor([[1.0, 0.0], [-1.0, 0.4], [-0.5, -1.0]])

    def weights(seed):
        torch.manual_seed(seed)
        probe = torch.zeros(3, requires_grad=True)
        shared = nn.Parameter(torch.zeros(2))
        built(J @ shared + probe, [shared], ALL).backward()
        return tuple(probe.grad.tolist())

    assert weights(0) == weights(0)
    assert len({weights(seed) for seed in range(8)}) > 1


def test_rank_zero_decides_for_all(monkeypatch):
    monkeypatch.setattr("medmtl.distributed.from_rank_0", lambda weights: weights.copy_(torch.tensor([5.0, 7.0])))
    shared, probe = nn.Parameter(torch.ones(2)), torch.zeros(2, requires_grad=True)
    balancer("pcgrad", 2)(shared * 1.0 + probe, [shared], ALL[:2]).backward()
    assert probe.grad.tolist() == [5.0, 7.0]


def test_uncertainty_is_the_papers_formula_and_forgets_the_absent():
    """L_t / (2 sigma_t^2) + log sigma_t (Kendall et al. 2018, eq. 7), s = log sigma^2; minimal at sigma_t^2 = L_t."""
    built = Uncertainty(3)

    def set_to(*values):
        for parameter, value in zip(built.log_variance, values, strict=True):
            nn.init.constant_(parameter, value)

    set_to(0.5, -1.0, 2.0)
    losses = torch.tensor([2.0, 3.0, 0.0])
    present = torch.tensor([True, True, False])
    scalar = built(losses, [], present)
    variance = np.exp([0.5, -1.0])
    assert scalar.item() == pytest.approx((np.array([2.0, 3.0]) / (2 * variance) + np.log(variance) / 2).sum())
    scalar.backward()
    assert built.log_variance[2].grad == 0
    built.zero_grad()
    set_to(math.log(2), math.log(3), 0)
    built(losses, [], present).backward()
    assert [float(value.grad) for value in built.log_variance] == pytest.approx([0, 0, 0], abs=1e-6)


def test_an_absent_tasks_variance_is_moved_by_nothing():
    """A zero gradient would leave it to AdamW's momentum, hence the gradient is dropped."""
    built = Uncertainty(2)
    optimizer = torch.optim.AdamW(built.parameters(), lr=0.1)
    moved = []
    for present in (torch.tensor([True, True]), torch.tensor([True, False])):
        optimizer.zero_grad()
        built(torch.tensor([4.0, 4.0 * present[1]]), [], present).backward()
        built.forget_absent(present)
        before = [value.item() for value in built.log_variance]
        optimizer.step()
        moved.append([value.item() != old for value, old in zip(built.log_variance, before, strict=True)])
    assert moved == [[True, True], [True, False]]


def test_dynamic_weights_by_hand():
    """w = T softmax(r / temperature), r_t = L_t(e - 1) / L_t(e - 2) (Liu et al. 2019), means over labelled steps."""
    built = DynamicWeightAverage(2, temperature=2.0).train()
    seen = []

    def epoch(*steps):
        for losses, present in steps:
            seen.append(built(torch.tensor(losses), [], torch.tensor(present)).item())
        built.end_epoch()

    both = (True, True)
    assert built.weights().tolist() == [1.0, 1.0]
    epoch(([4.0, 1.0], both), ([2.0, 1.0], both))  # means 3, 1
    assert built.weights().tolist() == [1.0, 1.0]
    epoch(([1.0, 0.0], (True, False)), ([2.0, 3.0], both))  # means 1.5, 3 (one labelled step)
    rates = np.array([1.5 / 3, 3 / 1])
    expected = 2 * np.exp(rates / 2) / np.exp(rates / 2).sum()
    assert built.weights().tolist() == pytest.approx(list(expected))
    epoch(([1.0, 0.0], (True, False)))  # the second task was absent all epoch: its history stays, its rate is 1
    assert seen[-1] == pytest.approx(expected[0])
    rates = np.array([1 / 1.5, 1.0])
    assert built.weights().tolist() == pytest.approx(list(2 * np.exp(rates / 2) / np.exp(rates / 2).sum()))
    built.eval()
    before = copy.deepcopy(built.state_dict())
    built(torch.tensor([9.0, 9.0]), [], torch.tensor(both))
    assert all(torch.equal(before[k], v) for k, v in built.state_dict().items())


def test_the_jacobian_holds_zeros_where_a_task_does_not_reach():
    a, b = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([[3.0]]))
    J = jacobian(torch.stack([(a**2).sum(), b.sum() * a[0]]), [a, b])
    assert J.tolist() == [[2.0, 4.0, 0.0], [3.0, 0.0, 1.0]]


def test_cosines_are_zero_without_a_gradient():
    J = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.0], [3.0, 3.0]])
    root = 0.5**0.5
    expected = torch.tensor([[1, -1, 0, root], [-1, 1, 0, -root], [0, 0, 0, 0], [root, -root, 0, 1]])
    torch.testing.assert_close(cosines(J @ J.T), expected)


def test_a_balancer_that_forgot_its_function_says_so():
    with pytest.raises(TypeError, match="Balancer"):
        Balancer()(torch.zeros(1), [], ALL[:1])
    assert isinstance(balancer("upgrad", 2), Gramian)
