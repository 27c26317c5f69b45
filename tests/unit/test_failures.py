"""Where a model fails: an injected effect comes first, chance is called chance, and a rare value stays unnamed."""

import colorsys
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from laws import refuses
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from medmtl.evaluation import plots
from medmtl.evaluation.case_error import excess_error
from medmtl.evaluation.failure_report import failure_facts, failure_figures, failure_section, write_failures
from medmtl.evaluation.failures import FailureConfig, Failures, failure_analysis, score_test, standardised_difference
from medmtl.evaluation.figures import worst_cases
from medmtl.evaluation.strata import MISSING, OTHER, stratify
from medmtl.stats import cluster_weights
from medmtl.tasks.classification import Classification
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

TASKS = {"score": Regression(low=0, high=100)}
CONFIG = FailureConfig(resamples=100)


def study(seed: int, *, comorbidity: float = 0.0, groups: int = 40, each: int = 3) -> pd.DataFrame:
    """Patients with images of alike difficulty; age and comorbidity of the patient, zone and visit of the image.

    A prediction of a patient with a comorbidity is off by so many standard deviations more.
    """
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), each)
    n = len(group)
    ill = rng.random(groups) < 0.3
    hard = rng.exponential(1, groups)
    error = (0.6 * hard[group] + 0.4 * rng.exponential(1, n) + comorbidity * ill[group]) * rng.choice([-1, 1], n)
    target = rng.uniform(20, 80, n)
    age = rng.integers(20, 70, groups).astype(str)
    age[rng.random(groups) < 0.2] = ""
    return pd.DataFrame({
        "case_id": [f"c{i:04d}" for i in range(n)], "group": [f"g{k}" for k in group],
        "domain": rng.choice(["A", "B"], groups)[group], "task": "score", "target": target,
        "prediction": target + error,
        "meta.age": age[group], "meta.comorbidity": np.where(ill, "yes", "no")[group],
        "meta.zone": rng.choice(["1", "2", "3"], n), "meta.visit": rng.choice(["first", "second"], n),
    })  # fmt: skip


def test_an_injected_comorbidity_comes_first_and_alone() -> None:
    for seed in range(5):
        found = failure_analysis(study(seed, comorbidity=2.5, groups=60), TASKS, CONFIG)
        first = found.rows.iloc[0]
        assert (first["column"], first["stratum"], first["verdict"]) == ("meta.comorbidity", "yes", "worse")
        assert first["effect"] > 1 and first["effect_low"] > 0 and first["p_adjusted"] < 0.05
        assert first["difference"] > 0 and first["difference_low"] > 0, "the mean absolute error is larger there"
        other = found.rows[found.rows["column"] != "meta.comorbidity"]
        assert (other["verdict"] == "no difference shown").all()
        assert list(found.flagged["stratum"]) == ["yes"]
        mirrored = found.rows[(found.rows["column"] == "meta.comorbidity") & (found.rows["stratum"] == "no")].iloc[0]
        assert mirrored["verdict"] == "better" and mirrored["effect"] == pytest.approx(-first["effect"])
        assert mirrored["p_adjusted"] == first["p_adjusted"], "a stratum and its rest are one test"


def test_chance_is_called_a_failure_no_more_often_than_stated() -> None:
    """80 studies without any effect, with patients whose images are alike: at most 5 % flag anything, + 3 s.e."""
    flagged = []
    for seed in range(80):
        rows = failure_analysis(study(seed), TASKS, CONFIG).rows
        flagged.append(bool((rows["verdict"] != "no difference shown").any()))
    assert np.mean(flagged) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 80)


@pytest.mark.parametrize("of", ["patient", "image"])
def test_the_score_test_keeps_its_level_where_images_of_a_patient_are_alike(of: str) -> None:
    """A plain t test of images calls a patient's column an effect in a third of such studies; this one in 5 %."""
    ours, naive = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(40), 5)
        error = rng.exponential(1, 40)[group] + 0.3 * rng.exponential(1, 200)
        inside = (rng.random(40) < 0.3)[group] if of == "patient" else rng.random(200) < rng.beta(1, 3, 40)[group]
        ours.append(score_test(inside[None], error, group, seed=seed, draws=999)[0])
        naive.append(scipy_stats.ttest_ind(error[inside], error[~inside]).pvalue)
    assert 0.02 <= np.mean(np.array(ours) < 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    if of == "patient":
        assert np.mean(np.array(naive) < 0.05) > 0.25


def test_a_stratum_and_its_rest_are_one_test_and_a_copy_of_a_column_costs_nothing() -> None:
    table = study(1)
    copied = table.assign(**{"meta.copy": table["meta.comorbidity"]})
    alone, both = (failure_analysis(rows, TASKS, CONFIG).rows for rows in (table, copied))
    keyed = both[both["column"] != "meta.copy"].reset_index(drop=True)
    pd.testing.assert_frame_equal(keyed, alone)


def test_p_values_are_adjusted_by_holm() -> None:
    rows = failure_analysis(study(2, comorbidity=0.7), TASKS, CONFIG).rows
    counts = rows.groupby("column")["stratum"].nunique()
    tests = []
    for column, part in rows.groupby("column"):
        tests += sorted(part["p"])[:1] if counts[column] == 2 else sorted(part["p"])
    tests.sort()
    adjusted = np.minimum(np.maximum.accumulate([p * (len(tests) - i) for i, p in enumerate(tests)]), 1)
    for p, expected in zip(tests, adjusted, strict=True):
        assert rows.loc[rows["p"] == p, "p_adjusted"].min() == pytest.approx(expected)


def test_the_effect_is_the_standardised_difference_of_repeated_cases() -> None:
    rng = np.random.default_rng(0)
    error, inside = rng.normal(0, 1, 60), rng.random(60) < 0.4
    weights = np.concatenate([np.ones((1, 60)), cluster_weights(np.arange(60) // 3, resamples=5, seed=0)])
    ours = standardised_difference(error, inside, weights)
    for row, weight in enumerate(weights):
        a, b = (np.repeat(error[part], weight[part].astype(int)) for part in (inside, ~inside))
        pooled = np.sqrt((((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / (len(a) + len(b) - 2))
        assert ours[row] == pytest.approx((a.mean() - b.mean()) / pooled)
    nothing = standardised_difference(np.ones(60), inside, np.stack([np.ones(60), inside.astype(float)]))
    assert np.isnan(nothing).all(), "no spread, and no rest"


def test_a_shown_failure_stands_above_a_small_stratum_with_a_larger_effect_by_chance() -> None:
    table = study(2, comorbidity=0.9, groups=80)
    sizes = table["prediction"].sub(table["target"]).abs().groupby(table["group"]).mean().sort_values()
    odd = [*sizes.index[-4:], sizes.index[0]]  # five patients, four of them the hardest
    mixed = table.assign(**{"meta.odd": np.where(table["group"].isin(odd), "x", "y")})
    rows = failure_analysis(mixed, TASKS, CONFIG).rows
    noisy, shown = (rows[(rows["column"] == name)].set_index("stratum") for name in ("meta.odd", "meta.comorbidity"))
    assert noisy.loc["x", "verdict"] == "no difference shown" and shown.loc["yes", "verdict"] == "worse"
    assert noisy.loc["x", "effect"] > shown.loc["yes", "effect"]
    assert rows.iloc[0]["column"] == "meta.comorbidity" and rows.iloc[0]["verdict"] == "worse"


def classified(seed: int = 0, n: int = 240) -> pd.DataFrame:
    """A rare class that is always harder; its share differs between regions, how hard it is does not."""
    rng = np.random.default_rng(seed)
    region = rng.choice(["east", "west"], n)
    label = (rng.random(n) < np.where(region == "east", 0.5, 0.1)).astype(float)
    p = np.clip(np.where(label == 1, 0.45, 0.2) + rng.normal(0, 0.1, n), 0.01, 0.99)
    return pd.DataFrame({
        "case_id": [f"c{i:04d}" for i in range(n)], "group": [f"g{i // 2}" for i in range(n)], "domain": "",
        "task": "sick", "target": label, "prediction": (p > 0.5).astype(float), "p.no": 1 - p, "p.yes": p,
        "target_label": np.where(label == 1, "yes", "no"), "meta.region": region,
    })  # fmt: skip


SICK = {"sick": Classification(classes=("no", "yes"))}


def test_a_stratum_with_more_positives_is_no_failure_by_that_alone() -> None:
    table = classified()
    rows = failure_analysis(table, SICK, CONFIG).rows
    assert (rows["verdict"] == "no difference shown").all()
    east = table["meta.region"] == "east"
    raw = np.where(table["target"] == 1, 1 - table["p.yes"], table["p.yes"])
    assert score_test(east.to_numpy()[None], raw, table["group"].to_numpy(), seed=0)[0] < 0.01
    excess = excess_error(table, SICK["sick"])
    for label in (0, 1):
        assert excess[(table["target"] == label).to_numpy()].mean() == pytest.approx(0, abs=1e-12)


def test_values_and_differences_are_those_of_the_stratum_and_the_rest() -> None:
    table = classified()
    row = failure_analysis(table, SICK, CONFIG).rows.set_index("stratum").loc["east"]
    east = table["meta.region"] == "east"
    value, rest = (roc_auc_score(table.loc[part, "target"], table.loc[part, "p.yes"]) for part in (east, ~east))
    assert (row["metric"], row["n"]) == ("auroc", int(east.sum()))
    assert (row["value"], row["rest"]) == pytest.approx((value, rest))
    assert row["difference"] == pytest.approx(value - rest)
    assert (
        row["low"] < row["value"] < row["high"] and row["difference_low"] < row["difference"] < row["difference_high"]
    )


def test_one_class_in_a_stratum_leaves_its_metric_undefined_and_its_effect_not() -> None:
    table = classified()
    table.loc[table["meta.region"] == "west", ["target", "target_label"]] = [0.0, "no"]
    row = failure_analysis(table, SICK, CONFIG).rows.set_index("stratum").loc["west"]
    assert np.isnan(row["value"]) and row["reason"] == "one class"
    assert np.isfinite(row["effect"]) and np.isfinite(row["p"])


def test_rows_in_any_order_give_the_same() -> None:
    table = study(3, comorbidity=1.0)
    shuffled = table.sample(frac=1, random_state=1)
    ours, other = (failure_analysis(rows, TASKS, CONFIG).rows for rows in (table, shuffled))
    pd.testing.assert_frame_equal(ours, other, rtol=1e-9)


def test_a_rare_value_is_pooled_and_never_named() -> None:
    table = study(0)
    rare = np.where(table["group"] == "g3", "Miller^Jane", np.where(table["group"] == "g4", "Doe^Joe", "plain"))
    found = failure_analysis(table.assign(**{"meta.note": rare}), TASKS, CONFIG)
    note = found.rows[found.rows["column"] == "meta.note"].set_index("stratum")
    assert set(note.index) == {"plain", OTHER}
    assert (note.loc[OTHER, "n"], note.loc[OTHER, "reason"]) == (6, "n < 10")
    assert "Miller" not in found.rows.to_csv() and np.isnan(note.loc[OTHER, "effect"])
    assert note.loc["plain", "reason"] == "the rest: n < 10"
    alone = failure_analysis(table.assign(**{"meta.name": table["case_id"]}), TASKS, CONFIG)
    assert alone.skipped == {"meta.name": "no value is shared by 10 cases of 5 groups"}


def test_many_cases_of_few_patients_are_too_few() -> None:
    table = study(0, each=10)
    few = table["group"].isin(["g0", "g1", "g2"])
    found = failure_analysis(table.assign(**{"meta.site": np.where(few, "X", "Y")}), TASKS, CONFIG).rows
    site = found[found["column"] == "meta.site"].set_index("stratum")
    assert set(site["reason"]) == {"fewer than 5 groups", "the rest: fewer than 5 groups"}
    assert OTHER in site.index and "X" not in site.index
    assert site["p"].isna().all() and (site["verdict"] == "no difference shown").all()


@pytest.mark.parametrize(
    ("values", "strata"),
    [
        (lambda i: f"{i}.5", {"up to 24.5", "above 24.5 to 49.5", "above 49.5 to 74.5", "above 74.5"}),
        (lambda i: "" if i < 20 else str(i % 3), {MISSING, "0", "1", "2"}),
        (lambda i: float("nan") if i % 2 else float(i % 4), {MISSING, "0.0", "2.0"}),
        (lambda i: "9" if i < 90 else str(i), {"up to 9", "above 9"}),
        (lambda i: "x", set()),
        (lambda i: "", set()),
        (lambda i: f"note {i}", set()),
        (lambda i: str(i), set()),
        (lambda i: str(500000 + 37 * i), set()),
    ],
)
def test_strata_of_a_column(values: Callable[[int], object], strata: set[str]) -> None:
    table = pd.DataFrame({
        "case_id": [f"c{i:03d}" for i in range(100)], "group": [f"g{i:03d}" for i in range(100)],
        "meta.x": [values(i) for i in range(100)],
    })  # fmt: skip
    found = stratify(table, "meta.x", minimum=10, groups=5)
    assert set(found.of_case.values()) == strata
    assert bool(found.skipped) == (not strata)
    if "up to 24.5" in strata:
        assert found.of_case["c024"] == "up to 24.5" and found.of_case["c025"] == "above 24.5 to 49.5"
        assert set(pd.Series(found.of_case).value_counts()) == {25}


@pytest.mark.parametrize("groups", [20, 40, 200])
def test_a_number_of_the_patient_is_no_stratum_and_an_age_is(groups: int) -> None:
    """A record's number, the same for all images of a patient, says nothing; ages have ties, however few patients."""
    for seed in range(20):
        table = study(seed, groups=groups)
        rng, patient = np.random.default_rng(seed), table["group"].str[1:].astype(int)
        numbered = table.assign(**{
            "meta.record": (patient + 1).astype(str), "meta.image": [str(i) for i in range(len(table))],
            "meta.age": rng.integers(20, 70, groups)[patient].astype(str), 
            "meta.bmi": rng.normal(25, 3, groups)[patient],
        })  # fmt: skip
        of = {
            name: stratify(numbered, f"meta.{name}", minimum=10, groups=5) for name in ("record", "image", "age", "bmi")
        }
        assert {name for name, strata in of.items() if strata.skipped} == {"record", "image"}, seed
        assert "hardly two groups share" in of["record"].skipped
    found = failure_analysis(numbered, TASKS, CONFIG)
    assert {"meta.record", "meta.image"} <= set(found.skipped) and "meta.age" in set(found.rows["column"])
    asked = failure_analysis(numbered, TASKS, FailureConfig(resamples=100, columns=("record",)))
    assert "meta.record" in set(asked.rows["column"]), "asked for by name"


def test_only_the_columns_asked_for() -> None:
    config = FailureConfig(resamples=100, columns=("zone",))
    found = failure_analysis(study(0), TASKS, config)
    assert set(found.rows["column"]) == {"domain", "meta.zone"}
    wrong = FailureConfig(resamples=100, columns=("zome",))
    refuses("E-FAIL-COLUMN", lambda: failure_analysis(study(0), TASKS, wrong), says="age, comorbidity, zone, visit")


def test_nothing_to_analyse_is_an_empty_result() -> None:
    for table in (study(0).head(0), study(0).assign(target=np.nan), study(0, groups=3)):
        found = failure_analysis(table, TASKS, CONFIG)
        assert isinstance(found, Failures) and found.flagged.empty and found.rows["p"].isna().all()
    auxiliary = {"score": TASKS["score"].model_copy(update={"auxiliary": True})}
    assert failure_analysis(study(0), auxiliary, CONFIG).rows.empty


def test_the_report_holds_the_strata_escaped_and_the_figure_their_effects(tmp_path: Path) -> None:
    table = study(0, comorbidity=2.5, groups=60)
    table["meta.comorbidity"] = table["meta.comorbidity"].replace("yes", "<script>yes</script>")
    found = failure_analysis(table.assign(**{"meta.one": "x"}), TASKS, CONFIG)
    page = failure_section(found)
    assert "<script>" not in page and "comorbidity: &lt;script&gt;yes" in page
    assert page.index("&lt;script&gt;yes") < page.index("zone: ")
    assert "meta.one: the same for every case" in page and "10 cases of 5 groups" in page
    written = pd.read_csv(write_failures(tmp_path / "failures.csv", found))
    assert list(written["effect"]) == pytest.approx(list(found.rows["effect"]))
    facts = json.loads(json.dumps(failure_facts(found), allow_nan=False))
    assert [row["column"] for row in facts["worse"]] == ["meta.comorbidity"]
    axes = failure_figures(found)["failures/score"].axes[0]
    assert "comorbidity" in axes.get_yticklabels()[0].get_text()
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert dots == pytest.approx(list(found.rows["effect"].dropna()))
    empty = failure_analysis(table.head(0), TASKS, CONFIG)
    assert "Nothing to show" in failure_section(empty) and failure_figures(empty) == {}


LESION = Segmentation(classes=("background", "lesion"))


def masks(*cases: tuple[str, str, float, float]) -> pd.DataFrame:
    """(case, group, foreground of the truth, Dice)."""
    table = pd.DataFrame(cases, columns=["case_id", "group", "target", "dice.lesion"])
    return table.assign(task="lesion", prediction=0.1)


def test_the_worst_cases_are_of_different_patients_first() -> None:
    table = masks(("a1", "a", 0.2, 0.1), ("a2", "a", 0.2, 0.0), ("a3", "a", 0.2, 0.2), ("b1", "b", 0.2, 0.6),
                  ("c1", "c", 0.2, 0.5))  # fmt: skip
    for count, expected in (
        (1, ["a2"]),
        (3, ["a2", "c1", "b1"]),
        (4, ["a2", "a1", "c1", "b1"]),
        (9, ["a2", "a1", "a3", "c1", "b1"]),
    ):
        assert [case for case, _ in worst_cases(table, LESION, count)] == expected


def test_empty_truth_is_marked_and_never_all_that_is_shown() -> None:
    empty = [(f"e{i}", f"e{i}", 0.0, 0.0) for i in range(6)]
    lesions = [("x", "x", 0.2, 0.0), ("y", "y", 0.2, 0.4), ("z", "z", 0.2, 0.3)]
    worst = worst_cases(masks(*empty, *lesions), LESION, 4)
    assert [case for case, _ in worst] == ["x", "e0", "e1", "z"]
    assert worst[0][1] == "x\n1 - Dice 1.00" and worst[1][1] == "e0\n1 - Dice 1.00\nno foreground in the truth"
    assert [case for case, _ in worst_cases(masks(*empty), LESION, 4)] == ["e0", "e1", "e2", "e3"], "there is no other"
    numbers = study(0).assign(target=0.0)
    assert (
        len(worst_cases(numbers, TASKS["score"], 4)) == 4
        and "truth" not in worst_cases(numbers, TASKS["score"], 4)[0][1]
    )


def test_the_colours_of_the_gallery_are_what_its_caption_says() -> None:
    mask = np.zeros((16, 16), np.int64)
    mask[4:9, 4:9] = 1
    item = plots.Evidence("c1", np.zeros((16, 16, 3), np.uint8), mask, mask.T, np.ones((16, 16)))
    axes = plots.failure_gallery([item], title="worst").axes[1]
    hues = [colorsys.rgb_to_hsv(*line.get_edgecolor()[0][:3])[0] * 360 for line in axes.collections]
    assert axes.get_title() == "green annotated, orange predicted"
    assert 90 < hues[0] < 170 and 15 < hues[1] < 50, "green, then orange"


def test_the_gallery_has_image_outlines_and_saliency_of_each_case() -> None:
    image, mask = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.int64)
    mask[4:9, 4:9] = 1
    items = [
        plots.Evidence("c1", image, mask, mask.T, np.ones((16, 16))),
        plots.Evidence("c2", image, None, 0 * mask, np.zeros((16, 16))),
        plots.Evidence("c3", image, None, None, np.zeros((16, 16))),
    ]
    figure = plots.failure_gallery(items, title="worst")
    figure.canvas.draw()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[::3] == ["c1", "c2", "c3"] and titles[2::3] == ["saliency"] * 3
    assert titles[1::3] == ["green annotated, orange predicted", "predicted: empty", "no mask"]
    assert len(figure.axes[1].collections) == 2 and not figure.axes[4].collections
    assert plots.failure_gallery([], title="worst")
