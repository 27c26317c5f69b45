"""Laws of the drawn skin study: same seed, same bytes; annotators do what they are said to do; gaps as promised."""

import hashlib
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

from medmtl.data.case import Case, Manifest, read_manifest
from medmtl.data.synthetic.dermoscopy import ANNOTATORS, annotate, mean_dice, write_dermoscopy_study
from medmtl.data.synthetic.skin import Lesion, draw_lesion, true_mask
from medmtl.errors import UserError
from medmtl.io.raster import read_image, read_mask


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("study")
    return read_manifest(write_dermoscopy_study(folder, cases=300, groups=240, size=48))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _masks(study: Manifest, case: Case) -> dict[str, np.ndarray]:
    columns = [name for name in case.targets if name.startswith("lesion.")]
    return {name.removeprefix("lesion."): read_mask(study.path(case.targets[name])) == 1 for name in columns}


def test_the_seed_decides_the_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_dermoscopy_study(tmp_path / name, cases=12, groups=9, seed=seed, size=40)
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    images = [{v for k, v in _digests(tmp_path / n).items() if k.startswith("images")} for n in "ac"]
    assert not images[0] & images[1]


def test_counts_and_places(study: Manifest) -> None:
    assert len(study.cases) == 300
    assert study.domains == ("set-A", "set-B", "set-C")
    by_group: dict[str, set[tuple[str, str]]] = {}
    for case in study.cases:
        by_group.setdefault(case.group, set()).add((case.split, case.domain))
    assert len(by_group) == 240
    assert all(len(found) == 1 for found in by_group.values())
    count = Counter((case.split, case.domain) for case in study.cases)
    assert all(count[split, domain] for split in ("train", "val", "test") for domain in study.domains)
    assert count["train", "set-C"] < min(count["train", "set-A"], count["train", "set-B"])


def test_what_each_data_set_publishes(study: Manifest) -> None:
    shares = {
        domain: np.mean(["lesion_consensus" in c.targets for c in study.cases if c.domain == domain])
        for domain in study.domains
    }
    assert shares["set-A"] == pytest.approx(0.35, abs=0.14)
    assert shares["set-B"] == shares["set-C"] == 1
    most = {d: max(len(_masks(study, c)) for c in study.cases if c.domain == d) for d in study.domains}
    assert most == {"set-A": 4, "set-B": 3, "set-C": 2}
    assert np.mean(["diagnosis" not in case.targets for case in study.cases]) == pytest.approx(0.10, abs=0.05)


def test_the_graph_of_annotators_is_incomplete_and_connected(study: Manifest) -> None:
    pairs = Counter(pair for case in study.cases for pair in combinations(sorted(_masks(study, case)), 2))
    assert set(pairs) == set(combinations(ANNOTATORS, 2))
    assert not any(len(_masks(study, case)) == len(ANNOTATORS) for case in study.cases)
    assert any(len(_masks(study, case)) == 1 for case in study.cases)


def test_agreement_is_that_of_the_masks_and_its_weight_the_number_of_pairs(study: Manifest) -> None:
    checked = 0
    for case in study.cases:
        masks = list(_masks(study, case).values())
        if len(masks) < 2:
            assert masks == [] or "agreement" not in case.targets
            continue
        dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in combinations(masks, 2)]
        assert float(case.targets["agreement"]) == pytest.approx(np.mean(dice), abs=1e-6)
        assert case.meta["annotator_pairs"] == str(len(dice))
        consensus = read_mask(study.path(case.targets["lesion_consensus"]))
        np.testing.assert_array_equal(consensus, np.mean(masks, axis=0) > 0.5)
        checked += 1
    assert checked > 100


def test_annotators_do_what_they_are_said_to_do(study: Manifest) -> None:
    """Sensitivity and specificity against the truth, near the lesion: the large, the small, the careless."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ANNOTATORS}
    for case in study.cases:
        truth = read_mask(study.path(case.meta["truth_mask"])) == 1
        for name, mask in _masks(study, case).items():
            area = mask.sum() / truth.sum()
            dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
            found[name].append((area, dice, (mask & truth).sum() / truth.sum()))
    area, dice, sensitivity = ({n: np.mean([v[k] for v in values]) for n, values in found.items()} for k in range(3))
    assert area["A2"] > 1.3
    assert area["A3"] < 0.75
    assert abs(area["A1"] - 1) < 0.06
    assert max(dice, key=dice.__getitem__) == "A1"
    assert dice["A1"] > 0.93
    assert dice["A5"] < dice["A1"] - 0.03
    assert sensitivity["A2"] > 0.97 > sensitivity["A3"] + 0.1
    assert dice["A4"] < dice["A1"] - 0.03  # five straight strokes


def test_sharp_lesions_are_agreed_on_and_fuzzy_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    drawn = draw_lesion(rng)
    agreement = []
    for fuzziness in (0.0, 0.5, 1.0):
        lesion = Lesion(drawn.malignant, fuzziness, (0.0, 0.0), 0.45, drawn.outline, drawn.colours)
        masks = [annotate(lesion, one, np.random.default_rng(1), 96) for one in ANNOTATORS.values()]
        agreement.append(mean_dice(masks))
        assert true_mask(lesion, 96).sum() == pytest.approx(
            true_mask(drawn, 96).sum() * (0.45 / drawn.radius) ** 2, rel=0.1
        )
    assert agreement[0] > agreement[1] + 0.05 > agreement[2] + 0.1


def test_malignant_lesions_are_agreed_on_less(study: Manifest) -> None:
    by_kind = {
        kind: [float(c.meta["truth_agreement"]) for c in study.cases if c.meta["truth_diagnosis"] == kind]
        for kind in ("benign", "malignant")
    }
    assert np.mean(by_kind["malignant"]) < np.mean(by_kind["benign"]) - 0.03
    assert 0.25 < len(by_kind["malignant"]) / 300 < 0.45
    labelled = [case for case in study.cases if "diagnosis" in case.targets]
    assert all(case.targets["diagnosis"] == case.meta["truth_diagnosis"] for case in labelled)


def _profile(study: Manifest, case: Case) -> np.ndarray:
    """Darkness by distance from the middle of the picture, and how uneven it and its colour are."""
    image = read_image(study.path(case.image), channels=3)
    y, x = np.mgrid[:48, :48] / 24 - 1
    dark = np.median(image[:, np.hypot(y, x) > 0.75]) - image.mean(0)
    near = np.hypot(y, x) < 0.75
    steep = np.hypot(*np.gradient(dark))[near]
    inside = dark > max(0.3 * np.quantile(dark[near], 0.95), 0.02)
    colour = (image[0] - image[2])[inside & near]
    return np.array(
        [
            *np.quantile(dark[near], (0.5, 0.9, 0.98)),
            *np.quantile(steep, (0.5, 0.9, 0.97)),
            np.quantile(steep, 0.97) / max(np.quantile(dark[near], 0.95), 0.05),
            inside.mean(),
            colour.std() if colour.size else 0.0,
            dark[inside & near].std() if colour.size else 0.0,
        ]
    )


def test_agreement_and_diagnosis_can_be_learned_and_neither_is_trivial(study: Manifest) -> None:
    features = np.stack([_profile(study, case) for case in study.cases])
    features = (features - features.mean(0)) / features.std(0)
    train = np.array([case.split == "train" for case in study.cases])
    malignant = np.array([case.meta["truth_diagnosis"] == "malignant" for case in study.cases])
    scores = LogisticRegression(C=0.3).fit(features[train], malignant[train]).predict_proba(features)[:, 1]
    assert 0.6 < roc_auc_score(malignant[~train], scores[~train]) < 0.95
    agreement = np.array([float(case.targets.get("agreement", "nan")) for case in study.cases])
    fit, test = train & np.isfinite(agreement), ~train & np.isfinite(agreement)
    predicted = Ridge(alpha=10).fit(features[fit], agreement[fit]).predict(features[test])
    error = np.abs(predicted - agreement[test]).mean()
    trivial = np.abs(np.median(agreement[fit]) - agreement[test]).mean()
    assert 0.02 < error < 0.97 * trivial


def test_pigment_is_where_the_truth_is(study: Manifest) -> None:
    darker = []
    for case in study.cases[:80]:
        image = read_image(study.path(case.image), channels=3)
        truth = read_mask(study.path(case.meta["truth_mask"])) == 1
        assert image.shape == (3, 48, 48)
        assert 0.02 < truth.mean() < 0.6
        y, x = np.mgrid[:48, :48] / 24 - 1
        darker.append(image[:, truth].mean() < image[:, ~truth & (np.hypot(y, x) < 0.9)].mean() - 0.04)
    assert np.mean(darker) > 0.95


@pytest.mark.parametrize("wrong", [{"domains": 0}, {"domains": 9}, {"groups": 5}, {"cases": 10}, {"size": 8}])
def test_impossible_studies_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="E-SYN-SIZE"):
        write_dermoscopy_study(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())
