"""An epoch's order is a function of (seed, epoch): the same for any ranks, from any batch on, and fair."""

from collections import Counter

import pytest
import torch
from laws import cases
from pydantic import ValidationError

from medmtl.data.sampler import EpochOrder, SamplerConfig


def _flat(order):
    return [draw for batch in order for draw in batch]


def test_every_case_comes_once_an_epoch_and_epochs_and_seeds_differ():
    order = EpochOrder(24, 6, seed=0)
    epochs = [[draw.index for draw in _flat(order.at(epoch))] for epoch in range(3)]
    assert all(sorted(indices) == list(range(24)) for indices in epochs)
    assert len({tuple(indices) for indices in epochs}) == 3
    assert [d.index for d in _flat(EpochOrder(24, 6, seed=1).at(0))] != epochs[0]
    assert [d.index for d in _flat(EpochOrder(24, 6, seed=0).at(1))] == epochs[1]


def test_positions_count_the_samples_and_an_incomplete_batch_is_dropped():
    order = EpochOrder(20, 6, seed=0).at(4)
    draws = _flat(order)
    assert [draw.position for draw in draws] == list(range(18)) and {draw.epoch for draw in draws} == {4}
    assert len(order) == order.batches() == 3


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("weights", [None, torch.arange(1, 25, dtype=torch.float64)])
def test_the_ranks_together_see_what_one_process_sees(world, weights):
    single = list(EpochOrder(24, 6, seed=3, weights=weights).at(2, 1))
    ranks = [list(EpochOrder(24, 6, seed=3, weights=weights, rank=r, world=world).at(2, 1)) for r in range(world)]
    for batch, parts in zip(single, zip(*ranks, strict=True), strict=True):
        assert sorted(draw for part in parts for draw in part) == sorted(batch)
        assert len({len(part) for part in parts}) == 1


def test_an_epoch_can_begin_in_the_middle():
    order = EpochOrder(24, 6, seed=0)
    whole = list(order.at(1))
    for start in range(5):
        assert list(order.at(1, start)) == whole[start:]
        assert len(order) == 4 - start


def test_it_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    list(EpochOrder(8, 2, seed=0, weights=torch.ones(8)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (SamplerConfig(balance="domain"), lambda case: case.domain),
        (SamplerConfig(balance="label", target="grade"), lambda case: case.targets.get("grade", "")),
        (SamplerConfig(balance="both", target="grade"), lambda case: (case.domain, case.targets.get("grade", ""))),
    ],
)
def test_balance_gives_every_cell_the_same_share(config, key):
    found = cases(12, 3)[:31]
    weights = config.weights(found)
    shares = Counter()
    for case, weight in zip(found, weights.tolist(), strict=True):
        shares[key(case)] += weight
    assert max(shares.values()) == pytest.approx(min(shares.values()))
    drawn = Counter()
    for epoch in range(100):
        drawn.update(key(found[d.index]) for d in _flat(EpochOrder(31, 31, seed=0, weights=weights).at(epoch)))
    expected = 3100 / len(shares)
    chi_squared = sum((count - expected) ** 2 / expected for count in drawn.values())
    assert len(drawn) == len(shares) and chi_squared < 3 * len(shares)  # a fixed seed, hence a fixed number


def test_power_goes_from_none_to_full_balance():
    found = cases(9, 2)[:15]
    counts = Counter(case.domain for case in found)
    for power in (0.0, 0.5, 1.0):
        weights = SamplerConfig(balance="domain", power=power).weights(found)
        expected = torch.tensor([counts[case.domain] ** -power for case in found], dtype=torch.float64)
        torch.testing.assert_close(weights, expected)
    assert SamplerConfig().weights(found) is None


def test_balance_by_label_needs_to_know_which():
    with pytest.raises(ValidationError, match="target"):
        SamplerConfig(balance="label")
