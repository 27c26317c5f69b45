"""Laws of the synthetic study: same seed, same bytes; known truth; the gaps and shifts that it promises."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medmtl.data.case import Manifest, read_manifest
from medmtl.data.synthetic.mitosis import ATYPICAL_PHASES, CLASSES, NORMAL_PHASES, PHASES, write_mitosis_study
from medmtl.errors import UserError
from medmtl.io.raster import read_image, read_mask


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return read_manifest(write_mitosis_study(tmp_path_factory.mktemp("study"), cases=320, groups=48, size=48))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_seed_decides_the_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_mitosis_study(tmp_path / name, cases=12, groups=9, seed=seed, size=40)
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    assert _digests(tmp_path / "a") != _digests(tmp_path / "c")


def test_counts(study: Manifest) -> None:
    assert len(study.cases) == 320
    assert len({case.group for case in study.cases}) == 48
    assert study.domains == ("scanner-A", "scanner-B", "scanner-C")


def test_a_slide_has_one_split_and_one_scanner(study: Manifest) -> None:
    by_group: dict[str, set[tuple[str, str]]] = {}
    for case in study.cases:
        by_group.setdefault(case.group, set()).add((case.split, case.domain))
    for found in by_group.values():
        assert len({split for split, _ in found}) == 1
        assert len({domain for _, domain in found} - {""}) <= 1


def test_every_scanner_is_in_every_split_and_the_last_is_rare_in_train(study: Manifest) -> None:
    count = Counter((case.split, case.domain) for case in study.cases)
    for split in ("train", "val", "test"):
        assert all(count[split, domain] > 0 for domain in study.domains)
    train = {domain: count["train", domain] for domain in study.domains}
    assert train["scanner-C"] < min(train["scanner-A"], train["scanner-B"])
    assert count["test", "scanner-C"] > train["scanner-C"]


@pytest.mark.parametrize(
    ("target", "missing"), [("atypical", 0.10), ("vote_fraction", 0.10), ("nucleus", 0.30), ("phase.expert1", 0.25)]
)
def test_gaps(study: Manifest, target: str, missing: float) -> None:
    share = np.mean([target not in case.targets for case in study.cases])
    assert share == pytest.approx(missing, abs=0.06)


def test_labels_follow_the_votes(study: Manifest) -> None:
    for case in study.cases:
        votes = [case.targets.get(f"vote.expert{i}") for i in (1, 2, 3)]
        assert votes[0] in CLASSES
        if "atypical" in case.targets:
            atypical = votes.count("atypical")
            assert case.targets["atypical"] == CLASSES[atypical >= 2]
            assert case.targets["vote_fraction"] == f"{atypical / 3:.4f}"
            assert case.meta["unanimous"] == str(int(atypical in (0, 3)))
        for i in (1, 2):
            phase = case.targets.get(f"phase.expert{i}")
            assert phase is None or (phase in ATYPICAL_PHASES) == (votes[i - 1] == "atypical")


def test_experts_err_but_the_majority_is_mostly_right(study: Manifest) -> None:
    labelled = [case for case in study.cases if "atypical" in case.targets]
    agreement = np.mean([case.targets["atypical"] == case.meta["truth"] for case in labelled])
    assert 0.92 < agreement < 1
    for i in (1, 2, 3):
        assert 0.8 < np.mean([case.targets[f"vote.expert{i}"] == case.meta["truth"] for case in labelled]) < agreement


def test_truth_is_the_class_of_the_phase(study: Manifest) -> None:
    assert {case.meta["truth_phase"] for case in study.cases} == set(PHASES)
    assert all((c.meta["truth_phase"] in NORMAL_PHASES) == (c.meta["truth"] == "normal") for c in study.cases)


def test_files_are_images_and_masks_of_the_dark_figure(study: Manifest) -> None:
    for case in study.cases[:60]:
        image = read_image(study.path(case.image), channels=3)
        assert image.shape == (3, 48, 48)
        if "nucleus" not in case.targets:
            continue
        mask = read_mask(study.path(case.targets["nucleus"]))
        assert set(np.unique(mask)) == {0, 1}
        assert 0.01 < mask.mean() < 0.25
        assert image[0][mask == 1].mean() < image[0][mask == 0].mean() - 0.1


def test_colour_tells_the_scanner_but_not_the_label(study: Manifest) -> None:
    known = [case for case in study.cases if case.domain and "atypical" in case.targets]
    mean = np.stack([read_image(study.path(case.image), channels=3).mean((1, 2)) for case in known])
    features = (mean - mean.mean(0)) / mean.std(0)
    train = np.array([case.split == "train" for case in known])
    domain = np.array([case.domain for case in known])
    label = np.array([case.targets["atypical"] == "atypical" for case in known])
    scanner = LogisticRegression().fit(features[train], domain[train]).score(features[~train], domain[~train])
    scores = LogisticRegression().fit(features[train], label[train]).predict_proba(features[~train])[:, 1]
    assert scanner > 0.75
    assert roc_auc_score(label[~train], scores) < 0.75


@pytest.mark.parametrize("wrong", [{"domains": 0}, {"domains": 9}, {"groups": 5}, {"cases": 10}, {"size": 8}])
def test_impossible_studies_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="E-SYN-SIZE"):
        write_mitosis_study(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())
