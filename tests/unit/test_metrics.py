"""Every metric equals scikit-learn or scipy on the samples repeated as often as their weights say."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn import metrics as sk

from medmtl import metrics
from medmtl.errors import UserError
from medmtl.stats import cluster_weights

RNG = np.random.default_rng(0)
N = 120
TARGET = (RNG.random(N) < 0.3).astype(float)
SCORE = np.clip(np.round(0.3 * TARGET + RNG.random(N) * 0.7, 2), 0, 1)  # two decimals: many ties
WEIGHTS = np.concatenate([np.ones((1, N)), cluster_weights(RNG.integers(0, 30, N), resamples=12, seed=0)])


def _repeated(row: int, *arrays: np.ndarray) -> list[np.ndarray]:
    return [np.repeat(array, WEIGHTS[row].astype(int), axis=0) for array in arrays]


def _ece(outcome: np.ndarray, confidence: np.ndarray) -> float:
    """Straight from the definition, bin by bin."""
    gap = 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & ((confidence < (b + 1) / 15) | (b == 14))
        if inside.any():
            gap += inside.mean() * abs(outcome[inside].mean() - confidence[inside].mean())
    return gap


BINARY: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "balanced_accuracy": lambda y, p: sk.balanced_accuracy_score(y, p >= 0.4),
    "auroc": sk.roc_auc_score,
    "auprc": sk.average_precision_score,
    "sensitivity": lambda y, p: sk.recall_score(y, p >= 0.4),
    "specificity": lambda y, p: sk.recall_score(y, p >= 0.4, pos_label=0),
    "f1": lambda y, p: sk.f1_score(y, p >= 0.4),
    "accuracy": lambda y, p: sk.accuracy_score(y, p >= 0.4),
    "brier": sk.brier_score_loss,
    "ece": _ece,
}


def test_binary_metrics_equal_scikit_learn_on_repeated_samples() -> None:
    ours = metrics.binary(TARGET, SCORE, 0.4, WEIGHTS)
    assert set(ours) == set(BINARY)
    for row in range(len(WEIGHTS)):
        y, p = _repeated(row, TARGET, SCORE)
        for name, oracle in BINARY.items():
            assert ours[name][row] == pytest.approx(oracle(y, p), abs=1e-12), (name, row)


@pytest.mark.parametrize("scores", [np.full(N, 0.5), TARGET, 1 - TARGET, RNG.random(N)])
def test_ranking_metrics_of_extreme_scores(scores: np.ndarray) -> None:
    ours = metrics.binary(TARGET, scores, 0.5, np.ones((1, N)))
    assert ours["auroc"][0] == pytest.approx(sk.roc_auc_score(TARGET, scores))
    assert ours["auprc"][0] == pytest.approx(sk.average_precision_score(TARGET, scores))


def test_fractional_weights_are_scikit_learns_sample_weight() -> None:
    weights = RNG.random((1, N))
    ours = metrics.binary(TARGET, SCORE, 0.4, weights)
    assert ours["auroc"][0] == pytest.approx(sk.roc_auc_score(TARGET, SCORE, sample_weight=weights[0]))
    assert ours["auprc"][0] == pytest.approx(sk.average_precision_score(TARGET, SCORE, sample_weight=weights[0]))
    assert ours["brier"][0] == pytest.approx(sk.brier_score_loss(TARGET, SCORE, sample_weight=weights[0]))


@pytest.mark.parametrize(("present", "undefined"), [
    (0.0, {"balanced_accuracy", "auroc", "auprc", "sensitivity"}),
    (1.0, {"balanced_accuracy", "auroc", "specificity"}),
])  # fmt: skip
def test_one_class_leaves_exactly_these_undefined(present: float, undefined: set[str]) -> None:
    ours = metrics.binary(np.full(5, present), np.linspace(0, 1, 5), 0.5, np.ones((2, 5)))
    assert {name for name, value in ours.items() if np.isnan(value).all()} == undefined
    assert all(value.shape == (2,) for value in ours.values())


def test_a_resample_that_misses_a_class_is_nan_and_its_neighbours_are_not() -> None:
    weights = np.array([[1.0, 1, 1], [3, 0, 0], [0, 0, 0]])
    ours = metrics.binary([0, 1, 1], [0.2, 0.7, 0.9], 0.5, weights)
    assert np.array_equal(np.isnan(ours["auroc"]), [False, True, True])
    assert np.array_equal(np.isnan(ours["accuracy"]), [False, False, True])


def test_a_missing_value_is_never_averaged_silently() -> None:
    with pytest.raises(AssertionError, match="missing"):
        metrics.binary([0, 1], [np.nan, 0.5], 0.5, np.ones((1, 2)))


K = 4
LABELS = RNG.choice(K, size=N, p=[0.6, 0.25, 0.1, 0.05])
PROBABILITIES = RNG.dirichlet(np.ones(K), size=N) * 0.6 + 0.4 * np.eye(K)[LABELS] * RNG.random((N, 1))
PROBABILITIES /= PROBABILITIES.sum(axis=1, keepdims=True)

MULTICLASS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "balanced_accuracy": lambda y, p: sk.balanced_accuracy_score(y, p.argmax(1)),
    "auroc": lambda y, p: np.mean([sk.roc_auc_score(y == k, p[:, k]) for k in np.unique(y)]),
    "macro_f1": lambda y, p: sk.f1_score(y, p.argmax(1), average="macro"),
    "accuracy": lambda y, p: sk.accuracy_score(y, p.argmax(1)),
    "cohen_kappa": lambda y, p: sk.cohen_kappa_score(y, p.argmax(1)),
    "brier": lambda y, p: sk.brier_score_loss(y, p, labels=range(K), scale_by_half=False),
    "ece": lambda y, p: _ece((p.argmax(1) == y).astype(float), p.max(1)),
}


@pytest.mark.filterwarnings("ignore:.*y_pred contains classes not in y_true.*")
def test_multiclass_metrics_equal_scikit_learn_on_repeated_samples() -> None:
    ours = metrics.multiclass(LABELS, PROBABILITIES, WEIGHTS)
    assert set(ours) == set(MULTICLASS)
    assert min(len(np.unique(_repeated(row, LABELS)[0])) for row in range(len(WEIGHTS))) >= 2
    for row in range(len(WEIGHTS)):
        y, p = _repeated(row, LABELS, PROBABILITIES)
        for name, oracle in MULTICLASS.items():
            assert ours[name][row] == pytest.approx(oracle(y, p), abs=1e-9), (name, row)


def test_classes_that_do_not_occur_are_left_out_of_the_means() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    ours = metrics.multiclass([0, 1, 1], probabilities, np.ones((1, 3)))
    assert ours["balanced_accuracy"][0] == pytest.approx(0.75)
    assert ours["auroc"][0] == pytest.approx(1.0)
    one = metrics.multiclass([1, 1], probabilities[1:], np.ones((1, 2)))
    assert np.isnan(one["auroc"][0])
    assert np.isfinite(one["brier"][0])
    assert np.isnan(metrics.multiclass([0], probabilities[:1], np.ones((1, 1)))["cohen_kappa"][0]), "chance is certain"


def _anova(y: np.ndarray, p: np.ndarray) -> tuple[float, float, float, float]:
    """Mean squares between cases, between judges and of the residual, and n, by the two-way table's own sums."""
    x = np.stack([y, p], axis=1).astype(float)
    n, k = x.shape
    grand, cases, judges = x.mean(), x.mean(axis=1, keepdims=True), x.mean(axis=0, keepdims=True)
    B = k * ((cases - grand) ** 2).sum() / (n - 1)
    J = n * ((judges - grand) ** 2).sum() / (k - 1)
    return B, J, ((x - cases - judges + grand) ** 2).sum() / ((n - 1) * (k - 1)), n


def _icc_2_1(y: np.ndarray, p: np.ndarray) -> float:
    B, J, E, n = _anova(y, p)
    return (B - E) / (B + E + 2 * (J - E) / n)


def _icc_3_1(y: np.ndarray, p: np.ndarray) -> float:
    B, _, E, _ = _anova(y, p)
    return (B - E) / (B + E)


AGREEMENT: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "icc_agreement": _icc_2_1,
    "icc_consistency": _icc_3_1,
    "bias": lambda y, p: np.mean(p - y),
    "loa_low": lambda y, p: np.mean(p - y) - 1.96 * np.std(p - y, ddof=1),
    "loa_high": lambda y, p: np.mean(p - y) + 1.96 * np.std(p - y, ddof=1),
}
VALUE = np.round(RNG.normal(30, 8, N))
PREDICTED = np.round(VALUE * 0.6 + RNG.normal(10, 5, N))
REGRESSION: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "mae": sk.mean_absolute_error,
    "rmse": sk.root_mean_squared_error,
    "r2": sk.r2_score,
    "pearson": lambda y, p: scipy_stats.pearsonr(y, p).statistic,
    "spearman": lambda y, p: scipy_stats.spearmanr(y, p).statistic,
    **AGREEMENT,
}


def test_regression_metrics_equal_scikit_learn_and_scipy_on_repeated_samples() -> None:
    ours = metrics.regression(VALUE, PREDICTED, WEIGHTS)
    assert set(ours) == set(REGRESSION)
    for row in range(len(WEIGHTS)):
        y, p = _repeated(row, VALUE, PREDICTED)
        for name, oracle in REGRESSION.items():
            assert ours[name][row] == pytest.approx(oracle(y, p), abs=1e-9), (name, row)


LEVEL = RNG.choice(6, size=N, p=[0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
EXPECTED = np.clip(LEVEL + RNG.normal(0, 1.2, N), 0, 5)
ORDINAL: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "quadratic_kappa": lambda y, p: sk.cohen_kappa_score(y, p.round().astype(int), weights="quadratic"),
    "mae": lambda y, p: sk.mean_absolute_error(y, p.round()),
    "accuracy_within_1": lambda y, p: np.mean(np.abs(y - p.round()) <= 1),
    "accuracy": lambda y, p: sk.accuracy_score(y, p.round().astype(int)),
    "balanced_accuracy": lambda y, p: sk.balanced_accuracy_score(y, p.round().astype(int)),
    "spearman": lambda y, p: scipy_stats.spearmanr(y, p).statistic,
    **{name: lambda y, p, oracle=oracle: oracle(y, p.round()) for name, oracle in AGREEMENT.items()},
}


@pytest.mark.filterwarnings("ignore:.*y_pred contains classes not in y_true.*")
def test_ordinal_metrics_equal_scikit_learn_on_repeated_samples() -> None:
    ours = metrics.ordinal(LEVEL, EXPECTED.round(), EXPECTED, WEIGHTS)
    assert set(ours) == set(ORDINAL)
    for row in range(len(WEIGHTS)):
        y, p = _repeated(row, LEVEL, EXPECTED)
        for name, oracle in ORDINAL.items():
            assert ours[name][row] == pytest.approx(oracle(y, p), abs=1e-9), (name, row)


def test_intraclass_correlations_of_the_table_of_shrout_and_fleiss() -> None:
    """Six targets by four judges, Psychol. Bull. 86, 1979, table 2; the paper's coefficients have two digits.

    ICC(2,1) = (11.24 - 1.02) / (11.24 + 3 * 1.02 + 4 (32.49 - 1.02) / 6), ICC(3,1) = 10.22 / 14.30.
    """
    table = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    ours = metrics.intraclass(table, np.array([np.ones(6), np.full(6, 2.0)]))
    assert (round(ours["icc_agreement"][0], 2), round(ours["icc_consistency"][0], 2)) == (0.29, 0.71)
    assert ours["icc_agreement"][0] == pytest.approx(0.2898, abs=1e-4)
    assert ours["icc_consistency"][0] == pytest.approx(0.7148, abs=1e-4)
    twice = metrics.intraclass([*table, *table], np.ones((1, 12)))
    assert ours["icc_agreement"][1] == pytest.approx(twice["icc_agreement"][0])


def test_a_shift_is_disagreement_but_no_inconsistency_and_a_constant_agrees_with_nobody() -> None:
    ones = np.ones((1, N))
    ours = metrics.regression(VALUE, VALUE + 10, ones)
    assert ours["icc_consistency"][0] == pytest.approx(1) and ours["icc_agreement"][0] < 0.7
    assert (ours["bias"][0], ours["loa_low"][0], ours["loa_high"][0]) == pytest.approx((10, 10, 10))
    far = metrics.regression(VALUE + 1e7, PREDICTED + 1e7, ones)
    near = metrics.regression(VALUE, PREDICTED, ones)
    for name in AGREEMENT:
        assert far[name][0] == pytest.approx(near[name][0], abs=1e-6), name
    mean = metrics.regression(VALUE, np.full(N, VALUE.mean()), ones)
    assert abs(mean["icc_consistency"][0]) < 0.01
    flat = metrics.regression([0.1, 0.1, 0.1], [1.0, 2.0, 4.0], np.ones((1, 3)))
    assert np.isnan(flat["icc_agreement"][0]) and flat["bias"][0] == pytest.approx(7 / 3 - 0.1)
    one = metrics.regression([3.0], [5.0], np.ones((1, 1)))
    assert one["bias"][0] == 2 and np.isnan(one["loa_low"][0]) and np.isnan(one["icc_agreement"][0])


def test_a_signed_metric_is_better_near_zero() -> None:
    assert metrics.is_better("bias", 0.1, -0.5) and metrics.is_better("bias", -0.1, 0.5)
    assert not metrics.is_better("bias", -2.0, 1.0)
    assert [metrics.describe(name).arrow for name in ("bias", "mae", "icc_agreement")] == ["→ 0", "↓", "↑"]


def test_quadratic_kappa_of_constants_is_0_or_undefined() -> None:
    """A constant prediction agrees no more than chance; where chance is certain there is nothing to compare with."""
    weights = np.array([[1.0, 1, 1], [2, 0, 0], [0, 1, 3]])
    ours = metrics.ordinal([1, 3, 3], [3, 3, 3], [3, 3, 3], weights)["quadratic_kappa"]
    assert ours[:2] == pytest.approx([0, 0])
    assert np.isnan(ours[2])
    levels, ones = np.array([[0, 2, 2, 3], [1, 2, 3, 3]]), np.ones((1, 4))
    kappa, shifted = (metrics.ordinal(y, p, p, ones)["quadratic_kappa"] for y, p in (levels, levels + 7))
    assert shifted == pytest.approx(kappa)


def test_a_constant_has_no_correlation_and_no_r2_but_an_error() -> None:
    values = np.array([0.1, 0.1, 0.1, 5.0])
    weights = np.array([[1.0, 1, 1, 0], [1, 1, 1, 1]])
    ours = metrics.regression(values, np.array([1.0, 2.0, 4.0, 3.0]), weights)
    for name in ("r2", "pearson", "spearman"):
        assert np.array_equal(np.isnan(ours[name]), [True, False]), name
    assert np.isfinite(ours["mae"]).all()
    flat = metrics.regression([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], np.ones((1, 3)))
    assert np.isnan(flat["pearson"][0])
    assert flat["r2"][0] == pytest.approx(0.0), "predicting the mean explains nothing, but is defined"


def test_a_large_offset_costs_no_precision() -> None:
    ours = metrics.regression(VALUE + 1e7, PREDICTED + 1e7, np.ones((1, N)))
    assert ours["r2"][0] == pytest.approx(sk.r2_score(VALUE, PREDICTED), abs=1e-6)
    assert ours["pearson"][0] == pytest.approx(scipy_stats.pearsonr(VALUE, PREDICTED).statistic, abs=1e-6)


def test_nothing_at_all_is_nan_and_not_a_crash() -> None:
    empty, weights = np.zeros(0), np.zeros((2, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [
            metrics.binary(empty, empty, 0.5, weights),
            metrics.multiclass(empty, np.zeros((0, 3)), weights),
            metrics.regression(empty, empty, weights),
            metrics.ordinal(empty, empty, empty, weights),
            metrics.intraclass(np.zeros((0, 2)), weights),
        ]
    assert all(np.isnan(value).all() for group in found for value in group.values())


def test_weighted_nanmean_skips_nan_and_is_nan_without_weight() -> None:
    weights = np.array([[1.0, 1, 1], [0, 2, 1], [0, 5, 0]])
    ours = metrics.weighted_nanmean([1.0, np.nan, 4.0], weights)
    assert ours[:2] == pytest.approx([2.5, 4.0])
    assert np.isnan(ours[2])


def test_best_threshold_beats_every_other_cut() -> None:
    found = metrics.best_threshold(TARGET, SCORE)
    cuts = np.linspace(0, 1, 2001)
    best = max(sk.balanced_accuracy_score(TARGET, cut <= SCORE) for cut in cuts)
    assert sk.balanced_accuracy_score(TARGET, found <= SCORE) == pytest.approx(best)
    order = RNG.permutation(N)
    assert metrics.best_threshold(TARGET[order], SCORE[order]) == found


def test_best_threshold_is_the_midpoint_nearest_a_half() -> None:
    assert metrics.best_threshold([0, 1], [0.2, 0.4]) == pytest.approx(0.3)
    assert metrics.best_threshold([0, 1, 0, 1], [0.1, 0.3, 0.7, 0.9]) == pytest.approx(0.2)  # 0.2 and 0.8 are as good
    assert metrics.best_threshold([1, 0], [0.2, 0.8]) == pytest.approx(0.1)  # upside down: one class, 0.1 and 0.9
    assert metrics.best_threshold([1, 1], [0.9, 0.8]) == 0.5
    near = np.nextafter(0.25, 1)
    found = metrics.best_threshold([0, 1], [0.25, near])
    assert 0.25 < found <= near


def test_every_metric_is_described_and_classes_inherit() -> None:
    annotators = {"ged", "agreement", "agreement_iou", "agreement_hd95", "human_agreement"}
    made = {*BINARY, *MULTICLASS, *REGRESSION, *ORDINAL, "dice", "iou", "hd95", *annotators}
    assert made == set(metrics.METRICS)
    assert metrics.describe("dice.nucleus").label == "Dice nucleus"
    assert not metrics.describe("hd95.nucleus").higher_is_better
    for name, entry in metrics.METRICS.items():
        assert entry.description, name
        assert entry.label, name
    with pytest.raises(UserError, match="auroc"):
        metrics.describe("dise")


def test_is_better_follows_the_direction_of_the_metric() -> None:
    assert metrics.is_better("auroc", 0.9, 0.8)
    assert metrics.is_better("brier", 0.1, 0.2)
    assert not metrics.is_better("hd95.lesion", 3.0, 3.0)


def test_the_bagged_threshold_is_the_mean_of_the_best_ones_of_resampled_groups() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(120) < 0.3).astype(int)
    p, g = 1 / (1 + np.exp(-rng.normal(1.2 * (2 * y - 1), 1))), np.arange(120) // 4
    found = metrics.bagged_threshold(y, p, g, resamples=40)
    counts = cluster_weights(g, resamples=40, seed=0)
    rows = [[i for i in range(120) for _ in range(int(count[i]))] for count in counts]
    assert found == pytest.approx(np.mean([metrics.best_threshold(y[row], p[row]) for row in rows]))
    order = np.random.default_rng(1).permutation(120)
    assert metrics.bagged_threshold(y[order], p[order], g[order], resamples=40) == pytest.approx(found, abs=1e-12)
    assert metrics.bagged_threshold(y, p, np.arange(120), resamples=40) != found
    assert np.isnan(metrics.bagged_threshold([1, 1], [0.2, 0.4], [0, 1], resamples=10))
