"""The bootstrap draws groups, not rows, in an order that depends on nothing but names and the seed."""

import numpy as np
import pytest

from medmtl.errors import UserError
from medmtl.stats import bootstrap, cluster_weights, paired_interval, percentile_interval, weight_blocks

GROUPS = np.array(["b", "a", "c", "a", "b", "b", "d"])


def test_samples_of_a_group_share_one_multiplicity_and_groups_are_drawn_as_often_as_there_are_groups() -> None:
    weights = cluster_weights(GROUPS, resamples=200, seed=1)
    assert weights.shape == (200, 7)
    assert np.array_equal(weights, weights.round())
    for name in "abcd":
        assert np.ptp(weights[:, name == GROUPS], axis=1).max() == 0
    first = [int(np.flatnonzero(name == GROUPS)[0]) for name in "abcd"]
    assert (weights[:, first].sum(axis=1) == 4).all()
    assert weights[:, first].min() == 0, "some group must be left out in some resample"


def test_permuting_rows_permutes_columns_and_nothing_else() -> None:
    order = np.random.default_rng(0).permutation(len(GROUPS))
    weights = cluster_weights(GROUPS, resamples=50, seed=3)
    assert np.array_equal(cluster_weights(GROUPS[order], resamples=50, seed=3), weights[:, order])


def test_the_seed_alone_decides_and_numbers_or_text_name_the_same_group() -> None:
    a = cluster_weights([1, 2, 3, 1], resamples=20, seed=5)
    assert np.array_equal(a, cluster_weights(["1", "2", "3", "1"], resamples=20, seed=5))
    assert not np.array_equal(a, cluster_weights([1, 2, 3, 1], resamples=20, seed=6))


def test_blocks_do_not_change_the_draws() -> None:
    small = np.concatenate(list(weight_blocks(GROUPS, resamples=31, seed=2, cells=14)))
    assert np.array_equal(small, cluster_weights(GROUPS, resamples=31, seed=2))


def test_bootstrap_variance_of_a_mean_is_that_of_drawing_groups() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    values = rng.normal(size=40)[groups]  # identical within a group: five images add no information
    means = bootstrap(lambda w: {"m": w @ values / w.sum(axis=1)}, groups, resamples=4000, seed=0)["m"]
    expected = values[::5].std() / np.sqrt(40)
    assert means.std() == pytest.approx(expected, rel=0.05)
    rows = bootstrap(lambda w: {"m": w @ values / w.sum(axis=1)}, np.arange(200), resamples=4000, seed=0)["m"]
    assert rows.std() < 0.6 * means.std(), "drawing rows would claim too narrow an interval"


def test_percentile_interval_matches_numpy_and_leaves_out_undefined_resamples() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    assert percentile_interval(values) == pytest.approx(np.percentile(values, [2.5, 97.5]))
    assert percentile_interval(values, 0.5) == pytest.approx(np.percentile(values, [25, 75]))
    holed = np.concatenate([values, np.full(1000, np.nan)])
    assert percentile_interval(holed) == percentile_interval(values), "exactly half undefined still counts"
    assert np.isnan(percentile_interval(np.append(holed, np.nan))).all()
    assert np.isnan(percentile_interval(np.array([]))).all()


def test_a_paired_interval_is_that_of_the_difference() -> None:
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(size=300), rng.normal(size=300)
    groups = np.arange(300)
    draw = bootstrap(
        lambda w: {"a": w @ np.abs(noise) / 300, "b": w @ (np.abs(noise) + 0.01 + 0.001 * truth) / 300},
        groups, resamples=500, seed=0,
    )  # fmt: skip
    low, high = paired_interval(draw["a"], draw["b"])
    assert 0.009 < low < 0.01 < high < 0.011, "what both models share cancels"
    apart = percentile_interval(draw["a"])
    assert high - low < 0.01 * (apart[1] - apart[0])
    assert paired_interval(draw["b"], draw["a"]) == pytest.approx((-high, -low))


@pytest.mark.parametrize("call", [
    lambda: cluster_weights(GROUPS, resamples=0, seed=0),
    lambda: percentile_interval(np.ones(3), level=95),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(call: object) -> None:
    with pytest.raises(UserError):
        call()  # type: ignore[operator]


def test_no_rows_give_no_columns() -> None:
    assert cluster_weights([], resamples=3, seed=0).shape == (3, 0)
