"""Laws of the drawn colposcopy study: same seed, same bytes; known scores; gaps; a comorbidity that misleads."""

import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medmtl.data.case import Case, Manifest, read_manifest
from medmtl.data.synthetic.colposcopy import ACETOWHITE, CIN2PLUS, COMORBIDITIES, SUSPICIOUS, write_colposcopy_study
from medmtl.errors import UserError
from medmtl.io.raster import read_image, read_mask


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("study")
    return read_manifest(write_colposcopy_study(folder, cases=360, groups=180, size=48))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_seed_decides_the_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_colposcopy_study(tmp_path / name, cases=12, groups=9, seed=seed, size=40)
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    assert not set(_digests(tmp_path / "a").values()) & set(_digests(tmp_path / "c").values())


def test_a_patient_has_one_record_several_pictures_and_one_place(study: Manifest) -> None:
    assert len(study.cases) == 360
    by_group: dict[str, list[Case]] = defaultdict(list)
    for case in study.cases:
        by_group[case.group].append(case)
    assert len(by_group) == 180
    assert sum(len(cases) > 1 for cases in by_group.values()) > 90
    for cases in by_group.values():
        assert len({(case.split, case.domain) for case in cases}) == 1
        for column in ("swede", "suspicious", "cin2plus"):
            assert len({case.targets.get(column) for case in cases}) == 1
        for column in ("comorbidity", "age", "transformation_zone", "truth_swede", "truth_grade"):
            assert len({case.meta.get(column) for case in cases}) == 1


def test_every_site_is_in_every_part_and_the_last_is_rare_in_train(study: Manifest) -> None:
    count = Counter((case.split, case.domain) for case in study.cases)
    assert study.domains == ("site-A", "site-B", "site-C")
    assert all(count[split, domain] for split in ("train", "val", "test") for domain in study.domains)
    assert count["train", "site-C"] < min(count["train", "site-A"], count["train", "site-B"])


@pytest.mark.parametrize(
    ("target", "missing"), [("swede", 0.12), ("suspicious", 0.12), ("acetowhite", 0.10), ("lesion", 0.40)]
)
def test_gaps(study: Manifest, target: str, missing: float) -> None:
    assert np.mean([target not in case.targets for case in study.cases]) == pytest.approx(missing, abs=0.08)


def test_histology_exists_more_often_where_the_score_is_high(study: Manifest) -> None:
    low, high = (
        np.mean(["cin2plus" in case.targets for case in study.cases if chosen(int(case.meta["truth_swede"]))])
        for chosen in (lambda score: score <= 2, lambda score: score >= 6)
    )
    assert low < 0.5 < high


def test_scores_are_near_the_truth_and_the_two_targets_are_two(study: Manifest) -> None:
    both = [case for case in study.cases if "swede" in case.targets]
    off = [int(case.targets["swede"]) - int(case.meta["truth_swede"]) for case in both]
    assert set(off) <= {-1, 0, 1}
    assert 0.7 < np.mean([value == 0 for value in off]) < 0.95
    assert all(case.targets["suspicious"] == SUSPICIOUS[int(case.targets["swede"]) >= 5] for case in both)
    assert {int(case.meta["truth_swede"]) for case in study.cases} >= {0, 1, 3, 5, 7, 9, 10}
    for case in study.cases:
        if "cin2plus" in case.targets:
            assert case.targets["cin2plus"] == CIN2PLUS[case.meta["truth_grade"] in ("CIN2", "CIN3")]
    known = [case for case in both if "cin2plus" in case.targets]
    same = np.mean([SUSPICIOUS.index(c.targets["suspicious"]) == CIN2PLUS.index(c.targets["cin2plus"]) for c in known])
    assert 0.7 < same < 0.98  # related, and not the same


def test_masks_are_where_the_image_is_white(study: Manifest) -> None:
    seen = 0
    for case in study.cases:
        image = read_image(study.path(case.image), channels=3)
        assert image.shape == (3, 48, 48)
        if "acetowhite" in case.targets:
            assert (case.targets["acetowhite"] == ACETOWHITE[0]) == (case.meta["truth_lesion_share"] == "0.0000")
        if "lesion" not in case.targets:
            continue
        mask = read_mask(study.path(case.targets["lesion"])) == 1
        assert mask.mean() == pytest.approx(float(case.meta["truth_lesion_share"]), abs=1e-4)
        clear = case.meta["truth_comorbidity"] != "inflammation" and case.meta["quality"] == "ok"
        if clear and mask.mean() > 0.03 and int(case.meta["truth_swede"]) >= 6:
            y, x = np.mgrid[:48, :48] / 24 - 1
            around = (np.hypot(y, x) < 0.6) & ~mask
            seen += 1
            assert _pallor(image)[mask].mean() > _pallor(image)[around].mean()
    assert seen > 20


def _pallor(image: np.ndarray) -> np.ndarray:
    """How white a pixel is: the least of its green and blue, as a share of its red."""
    return np.minimum(image[1], image[2]) / np.maximum(image[0], 0.05)


def _features(study: Manifest, cases: list[Case]) -> np.ndarray:
    """Pallor and its unevenness, in rings about the middle: what a simple classifier can see of a lesion."""
    y, x = np.mgrid[:48, :48] / 24 - 1
    away = np.hypot(y, x)
    rows = []
    for case in cases:
        pallor = _pallor(read_image(study.path(case.image), channels=3))
        inside = pallor[away < 0.75]
        rings = [pallor[(away >= low) & (away < low + 0.25)] for low in (0.0, 0.25, 0.5)]
        rows.append([*np.quantile(inside, (0.25, 0.5, 0.75, 0.9)), inside.std(), *(ring.mean() for ring in rings)])
    return np.array(rows)


def test_suspicion_can_be_seen_but_not_where_the_cervix_is_inflamed(study: Manifest) -> None:
    usable = [c for c in study.cases if c.meta["filter"] == "acetic" and c.meta["quality"] == "ok"]
    features = _features(study, usable)
    label = np.array([int(case.meta["truth_swede"]) >= 5 for case in usable])
    inflamed = np.array([case.meta["truth_comorbidity"] == "inflammation" for case in usable])
    atrophic = np.array([case.meta["truth_comorbidity"] == "atrophy" for case in usable])
    patient = np.array([int(case.group[1:]) for case in usable])
    scores = np.zeros(len(usable))
    for fold in range(5):  # by patient, with as much inflammation in training as there is
        test = patient // 3 % 5 == fold
        centre, scale = features[~test].mean(0), features[~test].std(0)
        model = LogisticRegression(C=0.3, max_iter=1000).fit((features[~test] - centre) / scale, label[~test])
        scores[test] = model.predict_proba((features[test] - centre) / scale)[:, 1]
    clear, misled = (roc_auc_score(label[which], scores[which]) for which in (~inflamed, inflamed))
    assert 0.72 < clear < 0.99
    assert misled < clear - 0.25
    assert roc_auc_score(label[atrophic], scores[atrophic]) > misled + 0.15


def test_inflammation_is_no_hint_of_disease(study: Manifest) -> None:
    """Independent by design: neither prevalence nor part of the study goes with it."""
    patients = {case.group: case for case in study.cases}.values()
    for split in ("train", "val", "test"):
        part = [case.meta["truth_comorbidity"] for case in patients if case.split == split]
        for name, share in COMORBIDITIES.items():
            assert np.mean([found == name for found in part]) == pytest.approx(share, abs=0.08)
    rate = {
        name: np.mean([int(c.meta["truth_swede"]) >= 5 for c in patients if c.meta["truth_comorbidity"] == name])
        for name in ("none", "inflammation")
    }
    assert abs(rate["none"] - rate["inflammation"]) < 0.2


def test_colour_tells_the_site_but_hardly_the_label(study: Manifest) -> None:
    acetic = [case for case in study.cases if case.meta["filter"] == "acetic"]
    mean = np.stack([read_image(study.path(case.image), channels=3).mean((1, 2)) for case in acetic])
    features = (mean - mean.mean(0)) / mean.std(0)
    train = np.array([case.split == "train" for case in acetic])
    site = np.array([case.domain for case in acetic])
    label = np.array([int(case.meta["truth_swede"]) >= 5 for case in acetic])
    assert LogisticRegression(C=100).fit(features[train], site[train]).score(features[~train], site[~train]) > 0.8
    scores = LogisticRegression().fit(features[train], label[train]).predict_proba(features[~train])[:, 1]
    assert roc_auc_score(label[~train], scores) < 0.8


def test_the_green_filter_takes_red_away(study: Manifest) -> None:
    green = [case for case in study.cases if case.meta["filter"] == "green"]
    assert 0.02 < len(green) / len(study.cases) < 0.15
    for case in green:
        red, light, blue = read_image(study.path(case.image), channels=3).mean((1, 2))
        assert light > 1.5 * max(red, blue)
        assert "lesion" not in case.targets


@pytest.mark.parametrize("wrong", [{"domains": 0}, {"domains": 9}, {"groups": 5}, {"cases": 10}, {"size": 8}])
def test_impossible_studies_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="E-SYN-SIZE"):
        write_colposcopy_study(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())
