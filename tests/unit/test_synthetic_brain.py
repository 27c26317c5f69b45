"""Laws of the drawn brains: same seed, same bytes; shapes follow atrophy, scores their loadings; gaps as told."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from laws import refuses
from scipy import stats

from medmtl.data.adas_cog import HIGH_11, HIGH_13, ITEMS, MONTHS
from medmtl.data.case import Manifest, read_manifest
from medmtl.data.synthetic.brain import case_name, draw_scan, write_brain_study
from medmtl.data.synthetic.brain_anatomy import REGIONS, Atrophy, draw_anatomy, labels, tissues
from medmtl.data.synthetic.brain_course import HALVES, LOADINGS, Subject, draw_cohort, expected_items
from medmtl.data.synthetic.brain_scanner import SCANNERS, draw_pose, scan
from medmtl.data.synthetic.brain_source import series_folder, write_brain_source
from medmtl.ingest.work import orientation
from medmtl.io.dicom.header import read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import plan
from medmtl.io.masks import check_mask
from medmtl.io.nifti import read_nifti

COARSE = 8.0


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("study")
    return read_manifest(write_brain_study(folder, cases=72, groups=36, spacing_mm=COARSE))


@pytest.fixture(scope="module")
def cohort() -> tuple[Subject, ...]:
    return draw_cohort(images=900, subjects=600, scanners=3, seed=1)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _regions_ml(atrophy: Atrophy, scanner: int = 0, spacing_mm: float = 3.0) -> dict[str, float]:
    """Volumes of a fixed head in a fixed pose."""
    anatomy = draw_anatomy(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    _, found = scan(
        anatomy, atrophy, SCANNERS[scanner], pose=draw_pose(rng), rng=rng, spacing_mm=spacing_mm, head=False
    )
    voxel_ml = abs(np.linalg.det(found.affine[:3, :3])) / 1000
    return {name: float((found.array == n).sum() * voxel_ml) for n, name in enumerate(REGIONS)}


@pytest.mark.parametrize("write", [write_brain_study, write_brain_source])
def test_the_seed_decides_the_bytes(tmp_path, write) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write(tmp_path / name, cases=4, groups=3, domains=1, seed=seed, spacing_mm=COARSE)
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    images = [
        {v for k, v in _digests(tmp_path / n).items() if k.endswith((".dcm", ".gz")) and "mask" not in k} for n in "ac"
    ]
    assert images[0] and not images[0] & images[1]


def test_items_are_the_standard_ones() -> None:
    assert list(ITEMS) == [f"q{n}" for n in range(1, 14)] and (HIGH_13, HIGH_11) == (85, 70)


def test_counts_and_places(study: Manifest) -> None:
    assert len(study.cases) == 72 and study.domains == ("GE 1.5T", "Philips 1.5T", "Siemens 3T")
    by_group: dict[str, set[tuple[str, str]]] = {}
    for case in study.cases:
        by_group.setdefault(case.group, set()).add((case.split, case.domain))
        assert case.case_id == f"{case.group}_{case.meta['visit']}"
    assert len(by_group) == 36 and all(len(found) == 1 for found in by_group.values())
    assert Counter(case.meta["visit"] for case in study.cases)["m00"] == 36
    count = Counter((case.split, case.domain) for case in study.cases)
    assert all(count[split, domain] for split in ("train", "val", "test") for domain in study.domains)
    assert count["train", "Philips 1.5T"] < min(count["train", d] for d in study.domains if d != "Philips 1.5T")


def test_each_scanner_has_its_own_grid_and_masks_lie_on_it(study: Manifest) -> None:
    axes, spacings = {}, {}
    for case in study.cases:
        image = read_nifti(study.path(case.image))
        axes.setdefault(case.domain, set()).add(orientation(image.affine))
        spacings.setdefault(case.domain, set()).add(tuple(np.round(image.spacing, 3)))
        if "regions" in case.targets:
            mask = check_mask(read_nifti(study.path(case.targets["regions"]), labels=True), image, values=range(5))
            assert set(np.unique(mask.array)) >= {0, 1, 2}
    assert axes == {"GE 1.5T": {"LAS"}, "Siemens 3T": {"RAS"}, "Philips 1.5T": {"PSR"}}
    assert len(set.union(*spacings.values())) == 3
    share = np.mean(["regions" in case.targets for case in study.cases])
    assert share == pytest.approx(0.6, abs=0.15)


@pytest.mark.parametrize("scanner", range(3))
def test_the_same_head_is_at_the_same_place_in_every_scanner(scanner: int) -> None:
    """Centres of mass in world coordinates: a lost sign or a swapped axis moves them by centimetres."""
    anatomy, atrophy = draw_anatomy(np.random.default_rng(0)), Atrophy(0.2, 0.2, 0.6)
    pose = draw_pose(np.random.default_rng(5))
    centres = []
    for number in (0, scanner):
        rng = np.random.default_rng(2)
        _, found = scan(anatomy, atrophy, SCANNERS[number], pose=pose, rng=rng, spacing_mm=3.0, head=False)
        for region in (3, 4):
            index = np.argwhere(found.array == region).mean(0)
            centres.append(found.affine[:3, :3] @ index + found.affine[:3, 3])
    np.testing.assert_allclose(centres[2:], centres[:2], atol=1.0)


@pytest.mark.parametrize(
    ("region", "field", "sign"),
    [("hippocampi", "hippocampus", -1), ("cortex", "cortex", -1), ("ventricles", "ventricles", 1)],
)
def test_a_region_follows_its_own_atrophy_and_no_other(region: str, field: str, sign: int) -> None:
    young = Atrophy(0.1, 0.1, 0.1)
    sizes = [_regions_ml(young._replace(**{field: share}))[region] for share in (0.1, 0.4, 0.7, 1.0)]
    assert (np.diff(sizes) * sign > 0).all() and max(sizes) > 1.2 * min(sizes)
    if region != "hippocampi":
        others = [_regions_ml(young._replace(**{field: share}))["hippocampi"] for share in (0.1, 0.9)]
        assert others[1] == pytest.approx(others[0], rel=0.12)


def test_the_temporal_horns_open_where_the_hippocampi_were() -> None:
    young = Atrophy(0.1, 0.1, 0.1)
    before, after = _regions_ml(young), _regions_ml(young._replace(hippocampus=0.8))
    lost, opened = (abs(after[name] - before[name]) for name in ("hippocampi", "ventricles"))
    assert opened == pytest.approx(lost, rel=0.25)
    assert after["cortex"] + after["white_matter"] == pytest.approx(before["cortex"] + before["white_matter"], rel=0.01)


def test_hippocampal_volume_falls_with_the_third_power_of_length() -> None:
    """Shrinking to 1 - 0.4 a along each axis leaves (1 - 0.4 a)^3, in whatever head; without warp 4/3 pi abc each."""
    whole = _regions_ml(Atrophy(0, 0.1, 0.1), spacing_mm=2.0)["hippocampi"]
    half = _regions_ml(Atrophy(0.5, 0.1, 0.1), spacing_mm=2.0)["hippocampi"]
    assert half / whole == pytest.approx(0.8**3, rel=0.05)
    straight = replace(draw_anatomy(np.random.default_rng(0)), warp=(np.zeros((0, 3), np.float32),) * 2 + ((),), lean=0)
    axes = [np.arange(-n, n, 2, dtype=np.float32) for n in (80, 90, 70)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    found = labels(tissues(straight, Atrophy(0, 0, 0), (x, y, z), 2.0))
    assert (found == 4).sum() * 0.008 == pytest.approx(2 * 4 / 3 * np.pi * 8 * 19 * 8 / 1000, rel=0.02)


def test_intensities_are_those_of_the_scanner_and_the_stripped_background_is_zero() -> None:
    anatomy, atrophy = draw_anatomy(np.random.default_rng(0)), Atrophy(0.1, 0.1, 0.3)
    for scanner in SCANNERS:
        rng = np.random.default_rng(2)
        pose = draw_pose(rng)
        image, found = scan(anatomy, atrophy, scanner, pose=pose, rng=rng, spacing_mm=3.0, head=False)
        white = np.median(image.array[found.array == 2]) / scanner.unit
        grey = np.median(image.array[found.array == 4]) / scanner.unit
        assert white == pytest.approx(1, abs=0.25) and grey / white == pytest.approx(scanner.grey, abs=0.15)
        assert (image.array[0] == 0).all() and np.mean(image.array == 0) > 0.3
        head, _ = scan(anatomy, atrophy, scanner, pose=pose, rng=rng, spacing_mm=6.0, head=True)
        assert np.mean(head.array == 0) < 0.2


def test_visits_of_a_subject_are_one_head_that_shrinks(cohort: tuple[Subject, ...]) -> None:
    subject = next(s for s in cohort if s.diagnosis == "AD" and len(s.visits) == 4)
    first, last = subject.visits[0], subject.visits[-1]
    assert all(later >= earlier for earlier, later in zip(first.atrophy, last.atrophy, strict=True))
    grids = [draw_scan(subject, visit, seed=1, spacing_mm=COARSE, head=False)[0] for visit in (first, last)]
    assert grids[0].array.shape == grids[1].array.shape
    assert np.corrcoef(grids[0].array.ravel(), grids[1].array.ravel())[0, 1] > 0.8
    assert not np.array_equal(grids[0].array, grids[1].array)


def test_scores_are_within_their_maxima_and_whole_or_half(cohort: tuple[Subject, ...]) -> None:
    for visit in (visit for subject in cohort for visit in subject.visits):
        for name, score in visit.items.items():
            assert score is None or (0 <= score <= ITEMS[name].high and score % (0.5 if name in HALVES else 1) == 0)
        known = [score for score in visit.items.values() if score is not None]
        assert visit.adas13 == (sum(known) if len(known) == 13 else None)
        assert visit.mmse is None or 0 <= visit.mmse <= 30
        assert visit.cdr in (None, 0, 0.5, 1, 2)


def test_items_depend_on_the_regions_that_their_loadings_name(cohort: tuple[Subject, ...]) -> None:
    """Partial rank correlations: memory items with the hippocampi beyond cortex and ventricles, and the reverse."""
    visits = [v for s in cohort for v in s.visits if all(score is not None for score in v.items.values())]
    table = pd.DataFrame([{**v.items, **v.atrophy._asdict()} for v in visits])
    regions = list(Atrophy._fields)
    assert all(sum(loading[:3]) == pytest.approx(1) for loading in LOADINGS.values())
    for name, chief in (("q1", "hippocampus"), ("q4", "hippocampus"), ("q8", "hippocampus"), ("q10", "cortex"),
                        ("q2", "cortex")):  # fmt: skip
        coefficients = np.linalg.lstsq(
            np.column_stack([stats.zscore(table[regions]), np.ones(len(table))]), table[name], rcond=None
        )[0][:3]
        assert regions[int(np.argmax(coefficients))] == chief, name


def test_expected_scores_rise_with_atrophy_and_fall_with_education() -> None:
    healthy, ill = expected_items(Atrophy(0.1, 0.1, 0.1), 15), expected_items(Atrophy(0.8, 0.7, 0.7), 15)
    assert all(ill[name] > healthy[name] for name in ITEMS) and sum(ill.values()) > 3 * sum(healthy.values())
    assert sum(expected_items(Atrophy(0.6, 0.5, 0.5), 20).values()) < sum(
        expected_items(Atrophy(0.6, 0.5, 0.5), 8).values()
    )


def test_groups_progress_at_their_own_pace_and_lose_visits(cohort: tuple[Subject, ...]) -> None:
    slope = {}
    for diagnosis in ("CN", "MCI", "AD"):
        mine = [s for s in cohort if s.diagnosis == diagnosis and s.visits[-1].months == 24]
        slope[diagnosis] = np.mean([np.mean(s.visits[-1].atrophy) - np.mean(s.visits[0].atrophy) for s in mine])
    assert slope["CN"] < slope["MCI"] < slope["AD"]
    totals = {d: [s.baseline_adas13 for s in cohort if s.diagnosis == d and s.baseline_adas13 is not None]
              for d in slope}  # fmt: skip
    means = {d: np.mean(values) for d, values in totals.items()}
    assert means["CN"] + 5 < means["MCI"] < means["AD"] - 5
    attended = {months: sum(v.months == months for s in cohort for v in s.visits) / len(cohort) for months in MONTHS}
    assert attended[0] == 1 and attended[6] > attended[12] > attended[24] > 0.4
    missing = np.mean([score is None for s in cohort for v in s.visits for score in v.items.values()])
    assert missing == pytest.approx(0.06, abs=0.02)
    assert any(v.diagnosis == "AD" for s in cohort if s.diagnosis == "MCI" for v in s.visits)


def test_a_baseline_image_has_the_later_totals(study: Manifest) -> None:
    cohort = draw_cohort(images=72, subjects=36, scanners=3, seed=0)
    cases = {case.case_id: case for case in study.cases}
    for subject in cohort:
        for visit in subject.visits:
            if visit.imaged:
                case = cases.pop(case_name(subject, visit))
                longitudinal = {f"adas13_m{v.months}": v.adas13 for v in subject.visits if v.adas13 is not None}
                found = {name: float(cell) for name, cell in case.targets.items() if name.startswith("adas13_m")}
                assert found == (longitudinal if visit.months == 0 else {})
                assert case.meta.get("baseline_adas13", "None") == (
                    f"{subject.baseline_adas13:g}" if subject.baseline_adas13 is not None else "None"
                )
    assert not cases


def test_the_truth_is_that_of_the_masks(study: Manifest) -> None:
    truth = pd.read_csv(study.root / "truth.csv", index_col="case_id")
    assert list(truth.index) == [case.case_id for case in study.cases]
    for case in study.cases[:20]:
        row = truth.loc[case.case_id]
        assert float(case.meta["truth_hippocampus"]) == row["atrophy_hippocampus"]
        if "regions" in case.targets:
            mask = read_nifti(study.path(case.targets["regions"]), labels=True)
            voxel_ml = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
            for n, name in enumerate(REGIONS[1:], 1):
                assert row[f"{name}_ml"] == pytest.approx((mask.array == n).sum() * voxel_ml, abs=1e-3)
    assert truth["atrophy_ventricles"].corr(truth["ventricles_ml"], method="spearman") > 0.85
    assert truth["atrophy_cortex"].corr(truth["cortex_ml"], method="spearman") < -0.6


def test_a_dicom_series_holds_the_voxels_and_places_of_the_scan(tmp_path: Path) -> None:
    out = write_brain_source(tmp_path, cases=4, groups=3, domains=1, spacing_mm=COARSE, head=False)
    subject = draw_cohort(images=4, subjects=3, scanners=1, seed=0)[0]
    visit = subject.visits[0]
    folder = series_folder(out, subject, visit)
    (stack,) = plan(read_header(path) for path in sorted(folder.iterdir())).volumes
    found = load(stack)
    image, _ = draw_scan(subject, visit, seed=0, spacing_mm=COARSE, head=False)
    np.testing.assert_array_equal(found.array, image.array)
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-4)
    ds = pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True)
    assert ds.PatientID == subject.ptid and ds.StudyDate == visit.date.strftime("%Y%m%d")
    assert (ds.Manufacturer, float(ds.MagneticFieldStrength)) == ("GE MEDICAL SYSTEMS", 1.5)


def test_sagittal_series_lie_where_their_volumes_do(tmp_path: Path) -> None:
    out = write_brain_source(tmp_path, cases=9, groups=9, spacing_mm=COARSE, head=False)
    subject = draw_cohort(images=9, subjects=9, scanners=3, seed=0)[2]
    folder = series_folder(out, subject, subject.visits[0])
    (stack,) = plan(read_header(path) for path in sorted(folder.iterdir())).volumes
    image, _ = draw_scan(subject, subject.visits[0], seed=0, spacing_mm=COARSE, head=False)
    assert orientation(stack.affine) == "PSR"
    np.testing.assert_array_equal(load(stack).array, image.array)
    np.testing.assert_allclose(stack.affine, image.affine, atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"domains": 4}, {"groups": 5}, {"cases": 8}, {"cases": 40, "groups": 9}, {"spacing_mm": 9.0}]
)
def test_numbers_that_make_no_study_are_refused(tmp_path: Path, wrong: dict) -> None:
    arguments = {"cases": 20, "groups": 10, **wrong}
    if "groups" in wrong and "cases" not in wrong:
        arguments["cases"] = 5
    refuses("E-SYN-SIZE", lambda: write_brain_study(tmp_path, **arguments))
    assert not list(tmp_path.iterdir())
