"""Controls against known truth: a linear world is found, groups stay apart, nothing of val or test is fitted."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from laws import refuses
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from medmtl.controls.config import CarryForward, ElasticNetControl, RidgeControl, check_controls, control_name
from medmtl.controls.features import coarse_images
from medmtl.controls.linear import Training, fit_classes, fit_number
from medmtl.controls.store import control_tables
from medmtl.controls.tables import Setting, build_control, constant_controls
from medmtl.data.case import Case, read_manifest, write_manifest
from medmtl.data.preprocess import Preprocess
from medmtl.data.split import ColumnSplit, split_cases
from medmtl.io.nifti import write_nifti
from medmtl.io.volume import Volume
from medmtl.tasks.classification import Classification
from medmtl.tasks.domain import Domain
from medmtl.tasks.ordinal import Ordinal
from medmtl.tasks.regression import Regression

TASKS = {
    "score": Regression(low=0, high=100),
    "stage": Ordinal(low=1, high=5),
    "ill": Classification(classes=("no", "yes")),
    "rare": Regression(low=0, high=10),
    "site": Domain(),
}
PREPROCESS = Preprocess()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 patients with two images each of 24 x 24 px; the red of the upper left quarter is the score, the rest noise.

    A baseline lies 6 points below the score; every fourth score is missing, and 'rare' has three labels.
    """
    out, rng = tmp_path_factory.mktemp("controls"), np.random.default_rng(0)
    cases = []
    for n in range(120):
        score = float(rng.integers(10, 90))
        pixels = rng.integers(0, 255, (24, 24, 3))
        pixels[:12, :12, 0] = np.clip(score * 2.5 + rng.normal(0, 4, (12, 12)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(out / f"c{n:03d}.png")
        targets = {"stage": str(1 + int(score // 20)), "ill": "yes" if score > 50 else "no"}
        if n % 4:
            targets["score"] = f"{score:.1f}"
        if n < 3:
            targets["rare"] = "5"
        meta = {"baseline": f"{max(score - 6, 0):.1f}", "sex": "FM"[n // 2 % 2], "leak": f"{score:.1f}"}
        if n % 10 == 1:
            del meta["baseline"]
        split = "train" if n < 70 else "val" if n < 90 else "test"
        cases.append(Case(f"c{n:03d}", f"p{n // 2:02d}", f"c{n:03d}.png", "ab"[n % 2], split, targets, meta))
    write_manifest(out / "manifest.csv", cases)
    return out


@pytest.fixture
def setting(folder: Path) -> Setting:
    manifest = read_manifest(folder / "manifest.csv")
    return Setting(manifest, split_cases(manifest, ColumnSplit(), stratify=None), PREPROCESS, TASKS)


@contextmanager
def no_bar(name: str, total: int) -> Iterator:
    yield lambda done: None


def rows(table: pd.DataFrame, task: str, split: str = "test") -> pd.DataFrame:
    return table[(table["task"] == task) & (table["split"] == split)]


def mae(table: pd.DataFrame, task: str) -> float:
    found = rows(table, task).dropna(subset="target")
    return float((found["prediction"] - found["target"]).abs().mean())


def test_mean_and_median_are_those_of_the_training_labels(setting: Setting) -> None:
    train = np.array([float(c.targets["score"]) for c in setting.split.train if "score" in c.targets])
    stages = np.array([int(c.targets["stage"]) for c in setting.split.train])
    found = constant_controls(setting)
    assert list(found) == ["training_mean", "training_median"]
    for name, of in (("training_mean", np.mean), ("training_median", np.median)):
        table = found[name].table
        assert set(table["task"]) == {"score", "stage", "rare"} and set(table["split"]) == {"val", "test"}
        assert rows(table, "score")["prediction"].unique() == pytest.approx([of(train)])
        assert rows(table, "stage")["expected"].unique() == pytest.approx([of(stages)])
        assert rows(table, "stage")["prediction"].unique() == [round(float(of(stages)))]
    score = rows(found["training_mean"].table, "score")
    assert len(score) == 30 and score["target"].isna().sum() == len([n for n in range(90, 120) if n % 4 == 0])


@pytest.mark.parametrize(
    "control", [RidgeControl(grid=4), ElasticNetControl(grid=4), RidgeControl(grid=4, components=20)]
)
def test_a_linear_world_is_found_from_the_images(setting: Setting, control: RidgeControl) -> None:
    found = build_control(setting, control)
    mean = constant_controls(setting)["training_mean"].table
    for task in ("score", "stage"):
        assert mae(found.table, task) < 0.5 * mae(mean, task), task
    assert any("rare: 3 labelled training cases, 10 are needed" in remark for remark in found.remarks)
    ill = rows(found.table, "ill")
    if isinstance(control, RidgeControl):
        truth = [int(case.targets["ill"] == "yes") for case in setting.split.test]
        assert roc_auc_score(truth, ill["p.yes"]) > 0.9
        assert np.allclose(ill["p.no"] + ill["p.yes"], 1)
    else:
        assert ill.empty and "elastic_net says nothing about ill: an elastic net is of numbers." in found.remarks
    again = build_control(setting, control)
    pd.testing.assert_frame_equal(found.table, again.table)


def test_columns_join_the_image_or_stand_alone(setting: Setting) -> None:
    alone = build_control(setting, RidgeControl(image=False, numeric=("leak",), categorical=("sex",)))
    assert mae(alone.table, "score") < 1
    blind = build_control(setting, RidgeControl(image=False, categorical=("sex",)))
    assert mae(blind.table, "score") > 10
    refuses("E-CFG-COVARIATE", lambda: build_control(setting, RidgeControl(numeric=("nothing",))), says="meta.nothing")


def test_a_control_is_not_given_the_answer(setting: Setting) -> None:
    cases = tuple(replace(case, meta={**case.meta, "score": case.meta["leak"]}) for case in setting.manifest.cases)
    told = replace(setting, manifest=replace(setting.manifest, cases=cases))
    told = replace(told, split=split_cases(told.manifest, ColumnSplit(), stratify=None))
    found = build_control(told, RidgeControl(image=False, numeric=("score",)))
    assert set(found.table["task"]) == {"stage", "ill"}
    assert "ridge_of_covariates says nothing about score: it is given the answer, meta.score." in found.remarks


def test_nothing_but_training_labels_and_groups_shape_a_control(setting: Setting) -> None:
    changed = {
        part: tuple(replace(case, targets={**case.targets, "score": "0", "ill": "no"}) for case in cases)
        for part, cases in (("val", setting.split.val), ("test", setting.split.test))
    }
    other = replace(setting, split=replace(setting.split, **changed))
    control = RidgeControl(grid=2, categorical=("sex",))
    ours, theirs = build_control(setting, control), build_control(other, control)
    columns = ["case_id", "task", "prediction", "p.yes"]
    pd.testing.assert_frame_equal(ours.table[columns], theirs.table[columns])
    turned = replace(setting, split=replace(setting.split, train=setting.split.train[::-1]))
    np.testing.assert_allclose(build_control(turned, control).table["prediction"], ours.table["prediction"])


def test_the_penalty_is_the_best_over_groups_of_training_cases() -> None:
    """As by hand with scikit-learn; copies of patients that were split over folds would choose next to no penalty."""
    rng = np.random.default_rng(1)
    person = np.repeat(np.arange(30), 4)
    features = rng.normal(size=(30, 40))[person] + 0.01 * rng.normal(size=(120, 40))
    labels = rng.normal(size=30)[person]  # of the patient, unrelated to the features
    groups = np.array([f"p{k}" for k in person])
    model = fit_number(Training(features, 40, labels, groups), "ridge", None)
    y = (labels - labels.mean()) / labels.std()

    def cost(alpha: float) -> float:
        errors = []
        for fitted, judged in GroupKFold(5).split(features, y, groups):
            scaler = StandardScaler().fit(features[fitted])
            ridge = Ridge(alpha=alpha).fit(scaler.transform(features[fitted]), y[fitted])
            errors.append(np.abs(ridge.predict(scaler.transform(features[judged])) - y[judged]).mean())
        return float(np.mean(errors))

    assert model.chosen == {"alpha": min(np.logspace(0, 6, 13), key=cost)} and model.chosen["alpha"] > 100
    assert np.abs(model.numbers(features) - labels.mean()).max() < 0.5, "what cannot be learned is shrunk to the mean"


def test_a_class_that_one_fold_lacks_does_not_stop_the_choice() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0.0] * 30 + [1.0] * 30 + [2.0] * 2)
    features = rng.normal(size=(62, 3)) + labels[:, None]
    groups = np.array([f"p{i}" for i in range(60)] + ["p60", "p60"])
    p = fit_classes(Training(features, 3, labels, groups), None).probabilities(features, 4)
    assert np.allclose(p.sum(axis=1), 1) and (p[:, :3] > 0).all() and not p[:, 3].any()
    assert (p[:60].argmax(axis=1) == labels[:60]).mean() > 0.7


def test_a_carried_score_is_the_prediction(setting: Setting) -> None:
    found = build_control(setting, CarryForward(columns={"score": "baseline"}))
    table = rows(found.table, "score")
    assert mae(found.table, "score") == pytest.approx(6)
    missing = [case.case_id for case in setting.judged if "baseline" not in case.meta]
    assert missing and not set(missing) & set(found.table["case_id"]) and set(table["task"]) == {"score"}
    assert found.remarks == (f"carry_forward lacks {len(missing)} cases of score without meta.baseline.",)
    refuses("E-CTL-TASK", lambda: build_control(setting, CarryForward(columns={"site": "baseline"})), says="score")
    refuses("E-CTL-COLUMN", lambda: build_control(setting, CarryForward(columns={"score": "x"})), says="meta.x")
    wrong = replace(setting, tasks={"score": Regression(low=0, high=20)})
    refuses(
        "E-TGT-RANGE", lambda: build_control(wrong, CarryForward(columns={"score": "baseline"})), says="meta.baseline"
    )


def test_coarse_images_are_means_of_cells_of_pictures_and_volumes(setting: Setting, tmp_path: Path) -> None:
    case = setting.split.test[0]
    found = coarse_images([case], setting.manifest.root, PREPROCESS, 2)[0]
    pixels = np.asarray(Image.open(setting.manifest.path(case.image)), float) / 255
    cells = [pixels[r : r + 12, c : c + 12, k].mean() for k in range(3) for r in (0, 12) for c in (0, 12)]
    np.testing.assert_allclose(found, cells, rtol=1e-6)
    array = np.random.default_rng(0).uniform(0, 100, (8, 8, 8)).astype(np.float32)
    write_nifti(tmp_path / "v.nii.gz", Volume(array, np.eye(4)))
    volume = Preprocess.model_validate(
        {"channels": 1, "volume": {"intensity": {"kind": "range", "low": 0, "high": 100}}}
    )
    coarse = coarse_images([Case("v", "p", "v.nii.gz")], tmp_path, volume, 2)[0].reshape(2, 2, 2)
    assert coarse[1, 0, 0] == pytest.approx(array[:4, :4, 4:].mean() / 100, rel=1e-5), "axes are slices, rows, columns"


def test_controls_are_kept_and_made_again_when_what_they_rest_on_changes(setting: Setting, tmp_path: Path) -> None:
    setting = replace(setting, tasks={name: setting.tasks[name] for name in ("score", "rare")})
    control = RidgeControl(grid=2, categorical=("sex",))
    first = control_tables(setting, [control], tmp_path, bar=no_bar)
    assert list(first) == ["training_mean", "training_median", "ridge_with_covariates"]
    place = next(tmp_path.glob("ridge_with_covariates-*.csv"))
    stamp = place.stat().st_mtime_ns
    again = control_tables(setting, [control], tmp_path, bar=no_bar)["ridge_with_covariates"]
    assert place.stat().st_mtime_ns == stamp
    kept = first["ridge_with_covariates"]
    assert (again.chosen, again.remarks) == (kept.chosen, kept.remarks)
    pd.testing.assert_frame_equal(again.table, kept.table, check_dtype=False)
    place.with_suffix(".json").unlink()  # a run that was killed between the two files
    control_tables(setting, [control], tmp_path, bar=no_bar)
    assert json.loads(place.with_suffix(".json").read_text())["chosen"] == kept.chosen
    for other in (replace(setting, preprocess=Preprocess(resize=(12, 12))),
                  replace(setting, tasks={"score": TASKS["score"]}),
                  replace(setting, split=replace(setting.split, val=setting.split.val[:-1]))):  # fmt: skip
        before = len(list(tmp_path.glob("*.csv")))
        control_tables(other, [control], tmp_path, bar=no_bar)
        assert len(list(tmp_path.glob("*.csv"))) == before + 1


def test_names_of_controls_are_made_and_checked() -> None:
    assert control_name(RidgeControl(image=False, numeric=("age",))) == "ridge_of_covariates"
    assert control_name(CarryForward(columns={"a": "b"}, name="baseline")) == "baseline"
    with pytest.raises(ValueError, match="two controls are called 'ridge'"):
        check_controls((RidgeControl(), RidgeControl(grid=3)))
    with pytest.raises(ValueError, match="cannot be called"):
        check_controls((RidgeControl(name="training_mean"),))
    with pytest.raises(ValueError, match="cannot be called"):
        check_controls((RidgeControl(name="../x"),))
    with pytest.raises(ValueError, match="no feature"):
        RidgeControl(image=False)
    with pytest.raises(ValueError, match="columns are named without"):
        RidgeControl(numeric=("meta.age",))
