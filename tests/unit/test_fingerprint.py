"""Laws of the gate: images of the kind pass as often as is said, others are named by what gives them away; a bundle
keeps its own."""

import csv
import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from laws import refuses
from rich.console import Console
from scipy.ndimage import gaussian_filter

from medmtl.bundle import SPEC, ModelSpec, load_bundle, save_bundle
from medmtl.data.case import Case
from medmtl.data.preprocess import Preprocess
from medmtl.errors import SafetyRefusal, UserError
from medmtl.fingerprint import (
    FILE,
    KEY,
    LEVEL,
    Facts,
    Fingerprint,
    compare,
    conformal_quantile,
    fingerprint,
    level_of,
    look,
    read_fingerprint,
    write_fingerprint,
)
from medmtl.fingerprint.cases import facts_of, features_of, pooled, training_fingerprint
from medmtl.fingerprint.facts import _mean, _median, _percentiles
from medmtl.inference.job import Gate
from medmtl.inference.ledger import read_ledger
from medmtl.inference.pipeline import Job, Summary, look_ahead, predict
from medmtl.io.nifti import write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Volume
from medmtl.predictor import Predictor

TASKS: dict[str, Any] = {"grade": {"kind": "classification", "classes": ["low", "high"]}}
CT = {"channels": 1, "volume": {"intensity": {"kind": "range", "low": -100, "high": 300}}}


def _blobs(seed: int, size: tuple[int, int] = (40, 48)) -> np.ndarray:
    """A picture of soft discs on pink, with a fine grain."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.full((*size, 3), (0.8, 0.6, 0.7)) + rng.normal(0, 0.02, 3)
    for _ in range(6):
        row, column, radius = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(3, 9)
        image -= 0.35 * np.exp(-(((rows - row) ** 2 + (columns - column) ** 2) / radius**2))[..., None] * rng.random(3)
    return (np.clip(image + rng.normal(0, 0.01, image.shape), 0, 1) * 255).astype(np.uint8)


def _study(root: Path, count: int, first: int = 0) -> list[Case]:
    for n in range(first, first + count):
        write_png(root / f"{n}.png", _blobs(n))
    return [Case(f"{n}", f"{n}", f"{n}.png", meta={"modality": "XC"}) for n in range(first, first + count)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    tree = {"preprocess": {"window": [32, 32]}, "encoder": {"name": "test_efficientnet"}, "tasks": TASKS}
    spec = ModelSpec.model_validate(tree)
    model = spec.build()
    known = training_fingerprint(Predictor(model, spec), _study(root, 80), root, held_out=_study(root, 40, 100))
    provenance = write_fingerprint(folder, known)
    save_bundle(folder, spec, model, provenance=provenance, card="{bundle_id}")
    return folder


def _facts(**numbers: float) -> Facts:
    return Facts("picture", 3, {"height_px": 100.0, "mean": 0.5, **numbers}, {"modality": "XC", "plane": "x"})


KNOWN = fingerprint([_facts(mean=0.4, height_px=80), _facts(mean=0.6, height_px=160)])


@pytest.mark.parametrize(
    ("facts", "level", "fields"),
    [
        (_facts(), "in_range", set()),
        (_facts(mean=0.6), "in_range", set()),
        (_facts(mean=0.649), "in_range", set()),  # a quarter of the range beyond its end
        (_facts(mean=0.651), "warn", {"mean"}),
        (_facts(mean=0.999), "warn", {"mean"}),
        (_facts(mean=1.01), "refuse", {"mean"}),
        (_facts(mean=float("nan")), "refuse", {"mean"}),
        (_facts(height_px=66), "warn", {"height_px"}),  # 80 / 2 ** 0.25 = 67.3
        (_facts(height_px=68), "in_range", set()),
        (_facts(height_px=19), "refuse", {"height_px"}),  # 80 / 2 ** 2
        (_facts(height_px=641, mean=0.7), "refuse", {"height_px", "mean"}),
        (replace(_facts(), channels=1), "refuse", {"channels"}),
        (replace(_facts(), kind="volume"), "refuse", {"kind"}),
        (replace(_facts(), labels={"modality": "US"}), "refuse", {"modality"}),
        (replace(_facts(), labels={"plane": "y"}), "warn", {"plane"}),
        (replace(_facts(), labels={}), "in_range", set()),  # what is unknown is not compared
        (replace(_facts(), numbers={}), "in_range", set()),
    ],
)
def test_the_field_that_is_out_of_range_is_named(facts: Facts, level: str, fields: set[str]) -> None:
    verdict = compare(KNOWN, facts)
    assert (verdict.level, set(verdict.fields)) == (level, fields)


def test_a_header_s_free_text_is_never_repeated() -> None:
    known = fingerprint([replace(_facts(), labels={"body_part": "SKIN"})])
    verdict = compare(known, replace(_facts(), labels={"body_part": "JANE DOE"}))
    assert "JANE" not in str(verdict.fields)
    assert "SKIN" in verdict.fields["body_part"]


# ---- how far off, and how often images of the kind are


def _drawn(rng: np.random.Generator, images: int, patient: int = 1) -> tuple[list[Facts], list[str]]:
    """Two numbers that go together, alike within a patient."""
    facts, groups = [], []
    for number in range(images // patient):
        centre = rng.normal(0.5, 0.1)
        for value in centre + rng.normal(0, 0.02, patient):
            together = {"p01": value, "p99": 1 - value + rng.normal(0, 0.01)}
            facts.append(Facts("picture", 3, {}, appearance=together))
            groups.append(str(number))
    return facts, groups


def test_the_distance_is_mahalanobis_to_the_nearest_training_image() -> None:
    rng = np.random.default_rng(0)
    known = fingerprint(_drawn(rng, 300)[0])
    gauge = known.gauges["appearance"]
    table = np.asarray(gauge.reference)
    mixed = np.linalg.inv(np.asarray(gauge.precision)) * np.outer(gauge.scale, gauge.scale)  # their covariance
    found = (0.45, 0.5)
    offsets = table - found
    expected = np.sqrt(np.einsum("ni,ij,nj->n", offsets, np.linalg.inv(mixed), offsets) / 2).min() / gauge.unit
    assert gauge.ratio(found) == pytest.approx(expected)
    np.testing.assert_allclose(mixed, np.cov(table.T), rtol=0.05)  # 300 images leave little to shrink
    assert gauge.ratio(table[7]) == pytest.approx(0, abs=1e-9)


def test_numbers_that_do_not_occur_together_are_far_off() -> None:
    known = fingerprint(_drawn(np.random.default_rng(0), 300)[0])
    assert compare(known, Facts("picture", 3, {}, appearance={"p01": 0.4, "p99": 0.6})).level == "in_range"
    verdict = compare(known, Facts("picture", 3, {}, appearance={"p01": 0.6, "p99": 0.6}))
    assert verdict.level == "refuse"
    assert verdict.fields.keys() <= {"p01", "p99"}
    assert verdict.distance is not None
    assert verdict.distance > 2


@pytest.mark.parametrize(("groups", "patient"), [(150, 1), (150, 3), (40, 1)])
def test_fresh_images_of_the_kind_are_doubted_as_often_as_is_said(groups: int, patient: int) -> None:
    """The mean over many studies of the share of fresh images that are doubted, against the stated level."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(20):
        known = fingerprint(*_drawn(rng, groups * patient, patient))
        fresh = _drawn(rng, 100 * patient, patient)[0]
        shares.append(np.mean([compare(known, one).level != "in_range" for one in fresh]))
    assert known.level == level_of(groups)
    assert np.mean(shares) <= 1.25 * known.level + 0.002
    if groups * patient == 150:
        assert np.mean(shares) >= known.level / 5  # a gate that never doubts anything would be of no use


def test_the_level_that_so_many_groups_allow() -> None:
    assert level_of(99) == level_of(1000) == LEVEL == 0.01
    assert level_of(98) > LEVEL
    assert level_of(24) == pytest.approx(0.04)


def test_the_quantile_counts_groups() -> None:
    scores = np.arange(99.0)
    assert conformal_quantile(scores, [str(n) for n in range(99)], level=0.01) == 98
    assert (
        conformal_quantile(scores, [str(n) for n in range(99)], level=0.1) == 89
    )  # the 90th of 99, with 1 at infinity
    assert math.isinf(conformal_quantile(scores[:98], [str(n) for n in range(98)], level=0.01))
    crowd = np.concatenate([np.zeros(20), np.full(1000, 5.0)])  # one patient with a thousand images is one patient
    names = [str(n) for n in range(20)] + ["x"] * 1000
    assert conformal_quantile(crowd, names, level=0.1) == 0
    assert conformal_quantile(crowd, names, level=0.05) == 5


@pytest.mark.parametrize(("groups", "level"), [(19, None), (20, "warn"), (98, "warn"), (99, "refuse")])
def test_few_patients_are_too_few_to_refuse_by(groups: int, level: str | None) -> None:
    known = fingerprint(*_drawn(np.random.default_rng(0), groups * 3, 3))
    assert bool(known.gauges) == (level is not None)
    far = Facts("picture", 3, {}, appearance={"p01": 9.0, "p99": 9.0})
    assert compare(known, far).level == (level or "in_range")
    if known.gauges:
        broken = Facts("picture", 3, {}, appearance={"p01": float("nan"), "p99": 0.5})
        assert compare(known, broken).level == "refuse"


def test_a_number_that_never_moves_measures_little() -> None:
    facts = [
        replace(one, appearance={**one.appearance, "std": 0.2}) for one in _drawn(np.random.default_rng(0), 100)[0]
    ]
    known = fingerprint(facts)
    assert compare(known, replace(facts[0], appearance={**facts[0].appearance, "std": 0.201})).level == "in_range"
    assert compare(known, replace(facts[0], appearance={**facts[0].appearance, "std": 0.5})).fields.keys() == {"std"}


def test_extremes_of_many_cases_are_no_range() -> None:
    values = [0.5] * 300 + [0.99]
    assert fingerprint([_facts(mean=value) for value in values]).ranges["mean"][1] == 0.5
    assert fingerprint([_facts(mean=value) for value in (0.5, 0.99)]).ranges["mean"] == (0.5, 0.99)


# ---- what is seen of an image


def test_a_picture_s_facts() -> None:
    image = np.zeros((3, 20, 30), np.float32)
    image[0], image[1, :10] = 0.5, 1.0
    facts = look(torch.as_tensor(image), preprocess=Preprocess(), labels={"modality": " xc "})
    assert (facts.kind, facts.channels, facts.labels) == ("picture", 3, {"modality": "XC"})
    numbers = {"height_px": 20, "width_px": 30, "red_mean": 0.5, "green_mean": 0.5, "blue_mean": 0, "mean": 1 / 3}
    for name, value in numbers.items():
        assert facts.numbers[name] == pytest.approx(value), name
    assert facts.numbers["std"] == pytest.approx(image.std(), rel=1e-5)
    assert (facts.numbers["p01"], facts.numbers["p50"], facts.numbers["p99"]) == (0, 0.25, 1)


def test_noise_is_its_standard_deviation_and_halves_with_the_size() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, (1, 1024, 1024)).astype(np.float32)
    seen = look(torch.as_tensor(np.clip(0.5 + noise, 0, 1)), preprocess=Preprocess(channels=1)).appearance
    assert math.exp(seen["noise"]) == pytest.approx(0.05, rel=0.03)
    assert math.exp(seen["detail"]) == pytest.approx(0.05, rel=0.03)
    for name in ("noise_2", "noise_3", "detail_2"):
        assert math.exp(seen[name]) == pytest.approx(0.5, rel=0.1), name


def test_an_image_is_seen_as_the_network_sees_it() -> None:
    """Twice as large a file of the same picture looks the same; what lies outside the window does not count."""
    small = torch.as_tensor(_blobs(0, (64, 64)).transpose(2, 0, 1) / 255, dtype=torch.float32)
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    preprocess = Preprocess(resize=(32, 32), window=(24, 24))
    one, two = (look(image, preprocess=preprocess).appearance for image in (small, large))
    for name, value in one.items():
        assert two[name] == pytest.approx(value, abs=0.1 if name[:5] in ("noise", "detai") else 0.01), name
    framed = small.clone()
    framed[:, :6] = framed[:, -6:] = 0
    assert look(framed, preprocess=preprocess).appearance["mean"] == pytest.approx(one["mean"], abs=1e-6)


def test_a_volume_upside_down_is_named_by_its_layout() -> None:
    preprocess = Preprocess.model_validate(CT)
    assert preprocess.volume is not None

    def facts(seed: int, flip: bool = False) -> Facts:
        array = np.random.default_rng(seed).normal(0, 20, (12, 12, 12))
        array[3:9, 3:9, 8:] += 200 + 2 * seed % 7
        volume = Volume((array[:, :, ::-1] if flip else array).astype(np.int16), np.eye(4))
        pixels, grid = preprocess.volume.image(volume)  # type: ignore[union-attr]
        return look(pixels, volume=volume, grid=grid, preprocess=preprocess)

    known = fingerprint([facts(seed) for seed in range(100)])
    assert known.gauges.keys() == {"appearance", "layout"}
    assert [compare(known, facts(seed)).level for seed in range(100, 105)].count("in_range") >= 4
    verdict = compare(known, facts(200, flip=True))
    assert verdict.level == "refuse"
    assert "layout" in verdict.fields


def test_layout_is_the_mean_of_the_parts() -> None:
    image = torch.zeros(3, 9, 9)
    image[:, :3, 6:] = 0.75
    assert look(image, preprocess=Preprocess()).layout == {f"part_{n}": 0.75 * (n == 2) for n in range(9)}


@pytest.mark.parametrize("turned", [False, True])
def test_a_volume_s_facts_do_not_depend_on_how_it_is_stored(turned: bool) -> None:
    array = np.random.default_rng(0).integers(-1000, 500, (10, 12, 6)).astype(np.int16)
    affine = np.diag([0.7, 0.8, 3.0, 1.0])
    volume = Volume(array, affine)
    if turned:  # the same voxels, stored along (k, -i, j)
        move = np.zeros((4, 4))
        move[2, 0], move[0, 1], move[1, 2], move[3, 3] = 1, -1, 1, 1
        move[0, 3] = 9
        volume = Volume(np.flip(array, 0).transpose(2, 0, 1), affine @ move)
    preprocess = Preprocess.model_validate(CT)
    assert preprocess.volume is not None
    pixels, grid = preprocess.volume.image(volume)
    facts = look(pixels, volume=volume, grid=grid, preprocess=preprocess)
    expected = {"spacing_d_mm": 3.0, "spacing_h_mm": 0.8, "spacing_w_mm": 0.7, "extent_d_mm": 18, "extent_w_mm": 7,
                "mean": array.mean(), "p50": np.median(array)}  # fmt: skip
    for name, value in expected.items():
        assert facts.numbers[name] == pytest.approx(value, rel=1e-5), name
    assert facts.labels["plane"] == "slices along d"


def test_features_are_those_of_the_first_view_or_the_mean_over_windows(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone = []
    for views in ("identity", "flips"):
        predictor = Predictor.of(loaded, views=views)
        with pooled(predictor) as calls:
            predictor.decode(images)
        found = features_of(calls, 3, len(predictor.views))
        assert found is not None
        alone.append(np.array(found))
    with torch.inference_mode():
        expected = loaded.model.encoder(images)[-1].mean((2, 3))
    np.testing.assert_allclose(alone[0], expected, atol=1e-5)
    np.testing.assert_array_equal(alone[0], alone[1])
    windows = [torch.rand(2, 5), torch.rand(1, 5)]
    (mean,) = features_of(windows, 1, 1) or []
    np.testing.assert_allclose(mean, torch.cat(windows).mean(0), rtol=1e-6)
    assert features_of(windows, 2, 1) is None


# ---- a bundle's own


def test_it_is_read_as_it_was_written(bundle: Path, tmp_path: Path) -> None:
    known = read_fingerprint(bundle, load_bundle(bundle).provenance)
    assert known is not None
    assert (known.cases, known.groups, known.level) == (120, 120, LEVEL)
    assert known.gauges.keys() == {"appearance"}
    assert known == read_fingerprint(tmp_path, write_fingerprint(tmp_path, known))


def test_a_changed_or_missing_one_is_refused_and_none_is_none(bundle: Path, tmp_path: Path) -> None:
    provenance = load_bundle(bundle).provenance
    (tmp_path / FILE).write_text((bundle / FILE).read_text().replace('"cases": 120', '"cases": 121'))
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(SafetyRefusal, match="E-BUN-HASH"):
            read_fingerprint(folder, provenance)
    assert read_fingerprint(tmp_path, {}) is None


def _written(folder: Path, tree: Any) -> Fingerprint:
    text = json.dumps(tree)
    (folder / FILE).write_text(text)
    known = read_fingerprint(folder, {KEY: hashlib.sha256(text.encode()).hexdigest()})
    assert known is not None
    return known


@pytest.mark.parametrize(("held_out", "level"), [(0, "warn"), (99, "warn"), (100, "refuse")])
def test_one_of_format_1_is_compared_as_before(held_out: int, level: str, tmp_path: Path) -> None:
    """Features by ``sqrt(mean((f - m)^2 / v))``, doubted from 1.25 and refused from 3 times the 99 % quantile on."""
    tree = {"format": 1, "cases": 40, "kind": "picture", "channels": 3, "ranges": {"mean": [0.4, 0.6]}, "labels": {},
            "mean": [1.0, 2.0], "variance": [4.0, 0.25], "distance_99": 2.0, "held_out": held_out}  # fmt: skip
    known = _written(tmp_path, tree)
    assert known.level is None
    for ratio, expected in ((1.24, "in_range"), (1.26, "warn"), (2.99, "warn"), (3.01, level)):
        features = (1 + 2 * ratio * 2.0, 2 - 0.5 * ratio * 2.0)
        verdict = compare(known, replace(_facts(), features=features))
        assert (verdict.level, set(verdict.fields)) == (expected, {"features"} if ratio > 1.25 else set())
    assert compare(known, _facts(mean=0.651)).fields.keys() == {"mean"}
    assert _written(tmp_path, {**tree, "mean": [], "variance": []}).gauges == {}
    assert _written(tmp_path, {**tree, "mean": [], "variance": [], "distance_99": 0.0}).gauges == {}


def test_the_first_files_of_format_1_know_of_no_held_out_cases(tmp_path: Path) -> None:
    """As bundles of volumes have them: no ``held_out``, so their distance warns and does not refuse."""
    tree = {"format": 1, "cases": 40, "kind": "volume", "channels": 1,
            "ranges": {"spacing_d_mm": [3.0, 3.0], "extent_d_mm": [183.0, 183.0], "mean": [0.11, 0.18]},
            "labels": {"plane": ["isotropic"]}, "mean": [0.5, -0.25], "variance": [0.01, 4.0],
            "distance_99": 2.0}  # fmt: skip
    known = _written(tmp_path, tree)
    assert known == _written(tmp_path, {**tree, "held_out": 0})
    facts = Facts("volume", 1, {"spacing_d_mm": 3.0, "mean": 0.15}, {"plane": "isotropic"}, features=(0.5, -0.25))
    assert compare(known, facts).level == "in_range"
    assert compare(known, replace(facts, features=(9.0, 90.0))).level == "warn"


APPEARANCE = {"names": ["a", "b"], "scale": [1.0, 2.0], "reference": [[0.0, 0.0], [1.0, 1.0]], "unit": 2.0,
              "precision": [[1.0, 0.0], [0.0, 1.0]], "refuse": None}  # fmt: skip
CURRENT = {"format": 2, "cases": 9, "kind": "picture", "channels": 3, "ranges": {"mean": [0.4, 0.6]}, "labels": {},
           "groups": 9, "level": 0.1, "gauges": {"appearance": APPEARANCE}}  # fmt: skip
FIRST = {"format": 1, "cases": 40, "kind": "picture", "channels": 3, "ranges": {}, "labels": {}, "mean": [1.0],
         "variance": [4.0], "distance_99": 2.0}  # fmt: skip


def _gauge(**change: Any) -> dict[str, Any]:
    return {**CURRENT, "gauges": {"appearance": {**APPEARANCE, **change}}}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({**CURRENT, "format": 3}, "format 3"),
        ({**CURRENT, "format": None}, "format None"),
        ([1], ""),
        (None, ""),
        ({**CURRENT, "cases": "many"}, "cases"),
        ({**CURRENT, "ranges": {"mean": [0.4]}}, "ranges.mean"),
        ({**CURRENT, "ranges": {"mean": "ab"}}, "ranges.mean"),
        ({**CURRENT, "labels": [["plane"]]}, "labels"),
        ({**CURRENT, "extra": 1}, "unknown key 'extra'"),
        ({name: value for name, value in CURRENT.items() if name != "gauges"}, "'gauges' is missing"),
        ({name: value for name, value in CURRENT.items() if name != "ranges"}, "ranges"),
        ({**CURRENT, "gauges": {"appearance": None}}, "gauges.appearance"),
        (_gauge(unit="far"), "gauges.appearance.unit"),
        (_gauge(other=1), "unknown key 'other'"),
        (_gauge(names=["a"]), "differ in size"),
        (_gauge(reference=[[0.0]]), "differ in size"),
        (_gauge(reference=[]), "differ in size"),
        (_gauge(precision=[[1.0, 0.0]]), "not square"),
        ({name: value for name, value in FIRST.items() if name != "variance"}, "'variance' is missing"),
        ({**FIRST, "held_out": "none"}, ""),
        ({**FIRST, "variance": ["x"]}, ""),
        ({**FIRST, "variance": [4.0, 1.0]}, "differ in size"),
    ],
)
def test_what_is_no_fingerprint_is_named(tree: Any, says: str, tmp_path: Path) -> None:
    assert _written(tmp_path, CURRENT).cases == 9
    assert _written(tmp_path, FIRST).cases == 40
    assert says in refuses("E-BUN-FORMAT", lambda: _written(tmp_path, tree), kind=UserError, says="--gate off")


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    for content in (b"{", b"\xff\xfe\x00", b"[" * 100_000):
        (tmp_path / FILE).write_bytes(content)
        provenance = {KEY: hashlib.sha256(content).hexdigest()}
        refuses("E-BUN-FORMAT", partial(read_fingerprint, tmp_path, provenance), says=FILE)


def test_a_gate_is_not_taken_away_by_forgetting_its_hash(bundle: Path, scans: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    tree = yaml.safe_load((bundle / SPEC).read_text())
    del tree["provenance"][KEY]
    (tmp_path / "bundle" / SPEC).write_text(yaml.safe_dump(tree))
    job = Job(tmp_path / "bundle", scans, tmp_path / "out", device="cpu")
    for gate in get_args(Gate):
        refuses("E-BUN-HASH", partial(predict, replace(job, gate=gate)), kind=SafetyRefusal)


def _verdicts(bundle: Path, root: Path, change: Callable[[np.ndarray], np.ndarray], first: int = 500) -> list[Any]:
    loaded = load_bundle(bundle)
    known = read_fingerprint(bundle, loaded.provenance)
    assert known is not None
    found = []
    for seed in range(first, first + 30):
        image = np.clip(change(_blobs(seed).astype(np.float64)), 0, 255)
        write_png(root / "one.png", image.round().astype(np.uint8))
        found.append(compare(known, facts_of(loaded.spec.preprocess, Case("n", "n", "one.png"), root)))
    return found


def test_fresh_cases_pass(bundle: Path, tmp_path: Path) -> None:
    verdicts = _verdicts(bundle, tmp_path, lambda image: image)
    assert sum(verdict.level == "in_range" for verdict in verdicts) >= 29
    assert not any(verdict.level == "refuse" for verdict in verdicts)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noise of 0.05": lambda image: image + np.random.default_rng(0).normal(0, 0.05 * 255, image.shape),
    "blur of 3 px": lambda image: gaussian_filter(image, (3, 3, 0)),
    "inverted": lambda image: 255 - image,
    "green as red": lambda image: image[..., [1, 0, 2]],
    "black": lambda image: 0 * image,
    "static": lambda image: np.random.default_rng(0).uniform(0, 255, image.shape),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_images_are_doubted(kind: str, bundle: Path, tmp_path: Path) -> None:
    verdicts = _verdicts(bundle, tmp_path, CHANGES[kind])
    assert sum(verdict.level != "in_range" for verdict in verdicts) >= 29
    assert all(verdict.fields for verdict in verdicts if verdict.level != "in_range")


@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_the_stronger_the_change_the_further_off(kind: str, bundle: Path, tmp_path: Path) -> None:
    def change(image: np.ndarray, strength: float) -> np.ndarray:
        if kind == "blur":
            return np.asarray(gaussian_filter(image, (6 * strength, 6 * strength, 0)))
        return image + np.random.default_rng(0).normal(0, 100 * strength, image.shape)

    distances = [
        np.median([verdict.distance for verdict in _verdicts(bundle, tmp_path, partial(change, strength=strength))])
        for strength in (0.0, 0.125, 0.25, 0.5, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 1 < distances[-1]


# ---- in a job


def _run(*args: Any, **more: Any) -> Summary:
    return predict(Job(*args, device="cpu", **more), console=Console(file=io.StringIO()))


def _table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    _study(tmp_path / "in", 3, 200)
    write_png(tmp_path / "in" / "dark.png", (_blobs(1) * 0.08).astype(np.uint8))
    return tmp_path / "in"


def test_the_gate_warns_and_refers(bundle: Path, scans: Path, tmp_path: Path) -> None:
    summary = _run(bundle, scans, tmp_path / "out")
    rows = _table(tmp_path / "out" / "predictions.csv")
    assert {name: row["gate"] for name, row in rows.items()} == {
        "200.png": "in_range", "201.png": "in_range", "202.png": "in_range", "dark.png": "refuse",
    }  # fmt: skip
    dark = rows["dark.png"]
    assert dark["status"] == "ok"
    assert dark["grade.label"] in ("low", "high")
    assert "mean: 0.0" in dark["gate.reason"]
    assert dark["refer_to_reader"] == "true"
    assert dark["refer.reason"].startswith("unlike the training images: ")
    assert [rows[name]["refer_to_reader"] for name in ("200.png", "201.png")] == ["false", "false"]
    assert (summary.exit_code, summary.referred) == (0, 1)
    assert "dark.png" in (tmp_path / "out" / "summary.md").read_text()


def test_the_gate_refuses_where_it_is_told_to(bundle: Path, scans: Path, tmp_path: Path) -> None:
    summary = _run(bundle, scans, tmp_path / "out", gate="refuse")
    assert (summary.ok, summary.failed, summary.referred, summary.exit_code) == (3, 1, 1, 3)
    (error,) = _table(tmp_path / "out" / "errors.csv").values()
    assert (error["image"], error["code"]) == ("dark.png", "E-PRE-GATE")
    row = _table(tmp_path / "out" / "predictions.csv")["dark.png"]
    assert (row["grade.label"], row["refer_to_reader"], row["refer.reason"]) == ("", "true", "E-PRE-GATE")


def test_off_and_unknown_say_so_and_change_no_result(bundle: Path, scans: Path, tmp_path: Path) -> None:
    _run(bundle, scans, tmp_path / "warn")
    _run(bundle, scans, tmp_path / "off", gate="off")
    loaded = load_bundle(bundle)
    save_bundle(tmp_path / "old", loaded.spec, loaded.model, provenance={}, card="")
    _run(tmp_path / "old", scans, tmp_path / "unknown")
    tables = {name: _table(tmp_path / name / "predictions.csv") for name in ("warn", "off", "unknown")}
    assert {row["gate"] for row in tables["off"].values()} == {"off"}
    assert {row["gate"] for row in tables["unknown"].values()} == {"unknown"}
    for name in tables["warn"]:
        assert len({table[name]["grade.p.high"] for table in tables.values()}) == 1
    assert all(entry.cells["refer_to_reader"] == "false" for entry in read_ledger(tmp_path / "off" / "cases.jsonl"))


def test_a_gate_without_a_fingerprint_says_that_it_looks_at_nothing(bundle: Path, scans: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    save_bundle(tmp_path / "old", loaded.spec, loaded.model, provenance={}, card="")
    job = Job(tmp_path / "old", scans, tmp_path / "out", device="cpu", gate="refuse")
    for action in (predict, look_ahead):
        refuses("E-PRE-JOB", partial(action, job), kind=UserError, says="--gate warn or off")
    assert not (tmp_path / "out").exists()
    cases: list[tuple[Path, Gate, int]] = [(job.bundle, "warn", 1), (job.bundle, "off", 0), (bundle, "warn", 0)]
    for used, gate, said in cases:
        console = Console(file=io.StringIO(), width=400)
        out = tmp_path / f"{used.name}-{gate}"
        predict(replace(job, bundle=used, gate=gate, out=out), console=console)
        assert (out / "summary.md").read_text().count("has no fingerprint") == said
        assert console.file.getvalue().count("has no fingerprint") == said  # type: ignore[attr-defined]


def test_a_volume_of_other_voxels_and_values_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tree = {"preprocess": CT, "encoder": {"kind": "slices", "name": "test_efficientnet"}, "tasks": TASKS}
    spec = ModelSpec.model_validate(tree)
    model = spec.build()

    def write(path: Path, seed: int, thick: float = 3.0, scale: float = 1.0) -> None:
        noise = np.random.default_rng(seed).normal(0, 60, (20, 20, 8)) * scale
        write_nifti(path, Volume(noise.astype(np.int16), np.diag([1.0, 1.0, thick, 1.0])))

    for n in range(8):
        write(tmp_path / "study" / f"{n}.nii.gz", n)
    cases = [Case(f"{n}", f"{n}", f"{n}.nii.gz") for n in range(8)]
    known = training_fingerprint(Predictor(model, spec), cases, tmp_path / "study")
    save_bundle(tmp_path / "bundle", spec, model, provenance=write_fingerprint(tmp_path / "bundle", known), card="")
    write(tmp_path / "in" / "same.nii.gz", 50)
    write(tmp_path / "in" / "thick.nii.gz", 51, thick=9.0)
    write(tmp_path / "in" / "values.nii.gz", 52, scale=20.0)
    assert _run(tmp_path / "bundle", tmp_path / "in", tmp_path / "out").exit_code == 0
    rows = _table(tmp_path / "out" / "predictions.csv")
    assert rows["same.nii.gz"]["gate"] in ("in_range", "warn")  # eight cases are few to calibrate a distance on
    assert "spacing" not in rows["same.nii.gz"]["gate.reason"]
    assert (rows["thick.nii.gz"]["gate"], rows["values.nii.gz"]["gate"]) == ("refuse", "refuse")
    assert "spacing_d_mm: 9, trained on 3 to 3" in rows["thick.nii.gz"]["gate.reason"]
    assert "std: 1" in rows["values.nii.gz"]["gate.reason"]


@pytest.mark.parametrize("count", [1, 2, 3, 100, 4097])
def test_percentiles_are_numpys_to_the_bit(count):
    values = (np.random.default_rng(count).random((1, count), dtype=np.float32) * 10).round(2)
    wanted = (0, 1, 50, 99, 100)
    assert _percentiles(values, wanted) == np.percentile(values.astype(np.float64), wanted).tolist()
    values[0, -1] = np.nan
    assert np.isnan(_percentiles(values, wanted)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1), (7, 13), (3, 64, 64)])
def test_mean_and_median_are_numpys_to_the_bit(shape, dtype):
    values = np.random.default_rng(len(shape)).random(shape).astype(dtype)
    assert (_mean(values), _median(values)) == (float(values.mean()), float(np.median(values)))
    assert _mean(values.T) == float(values.T.mean())
    values.flat[0] = np.nan
    assert np.isnan([_mean(values), _median(values)]).all()
