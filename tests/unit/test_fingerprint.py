"""Laws of the gate: training images pass, others are named by what gives them away; a bundle keeps its own."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from medmtl.bundle import ModelSpec, load_bundle, save_bundle
from medmtl.data.case import Case
from medmtl.data.preprocess import Preprocess
from medmtl.errors import SafetyRefusal
from medmtl.fingerprint import (
    FILE,
    Facts,
    compare,
    facts_of,
    features_of,
    fingerprint,
    look,
    pooled,
    read_fingerprint,
    training_fingerprint,
    write_fingerprint,
)
from medmtl.inference.ledger import read_ledger
from medmtl.inference.pipeline import Job, Summary, predict
from medmtl.io.nifti import write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Volume
from medmtl.predictor import Predictor

TASKS: dict[str, Any] = {"grade": {"kind": "classification", "classes": ["low", "high"]}}
CT = {"channels": 1, "volume": {"intensity": {"kind": "range", "low": -100, "high": 300}}}


def _blobs(seed: int, size: tuple[int, int] = (40, 48)) -> np.ndarray:
    """A picture of soft discs on pink, which no noise resembles."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.full((*size, 3), (0.8, 0.6, 0.7)) + rng.normal(0, 0.02, 3)
    for _ in range(6):
        row, column, radius = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(3, 9)
        image -= 0.35 * np.exp(-(((rows - row) ** 2 + (columns - column) ** 2) / radius**2))[..., None] * rng.random(3)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


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
    known = training_fingerprint(Predictor(model, spec), _study(root, 40), root, held_out=_study(root, 20, 100))
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


def test_the_distance_is_mahalanobis_with_a_diagonal() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(500, 4)) * (1.0, 5.0, 0.1, 2.0) + (0.0, 3.0, -1.0, 10.0)
    facts = [replace(_facts(), features=tuple(row)) for row in table]
    known = fingerprint(facts, held_out=facts[:300])
    mean, variance = table.mean(0), table.var(0, ddof=1)
    expected = np.sqrt((((table[7] - mean) ** 2) / variance).mean())
    assert known.distance(table[7]) == pytest.approx(expected)
    assert known.distance_99 == pytest.approx(
        np.quantile(np.sqrt((((table[:300] - mean) ** 2) / variance).mean(1)), 0.99)
    )
    assert compare(known, facts[0]).level == "in_range"
    beside = replace(_facts(), features=tuple(mean + 2 * known.distance_99 * np.sqrt(variance)))
    assert compare(known, beside).fields.keys() == {"features"}
    assert compare(known, beside).level == "warn"
    far = replace(_facts(), features=tuple(mean + 4 * known.distance_99 * np.sqrt(variance)))
    assert compare(known, far).level == "refuse"


@pytest.mark.parametrize(("held_out", "level"), [(0, "warn"), (99, "warn"), (100, "refuse")])
def test_few_held_out_cases_are_too_few_to_refuse_by(held_out: int, level: str) -> None:
    """All images of a patient whom the training did not know can lie far off together."""
    facts = [replace(_facts(), features=tuple(row)) for row in np.random.default_rng(0).normal(size=(200, 4))]
    known = fingerprint(facts, held_out=facts[:held_out])
    assert compare(known, replace(_facts(), features=(50.0,) * 4)).level == level
    assert compare(known, replace(_facts(), features=(float("nan"),) * 4)).level == "refuse"


def test_a_feature_that_never_moves_measures_little() -> None:
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.normal(size=(50, 3)), np.full(50, 2.0)])
    known = fingerprint([replace(_facts(), features=tuple(row)) for row in table])
    assert compare(known, replace(_facts(), features=(0.0, 0.0, 0.0, 2.001))).level == "in_range"


def test_extremes_of_many_cases_are_no_range() -> None:
    values = [0.5] * 300 + [0.99]
    assert fingerprint([_facts(mean=value) for value in values]).ranges["mean"][1] == 0.5
    assert fingerprint([_facts(mean=value) for value in (0.5, 0.99)]).ranges["mean"] == (0.5, 0.99)


# ---- what is seen of an image


def test_a_picture_s_facts() -> None:
    image = np.zeros((3, 20, 30), np.float32)
    image[0], image[1, :10] = 0.5, 1.0
    facts = look(torch.as_tensor(image), preprocess=Preprocess(), modality=" xc ")
    assert (facts.kind, facts.channels, facts.labels) == ("picture", 3, {"modality": "XC"})
    numbers = {"height_px": 20, "width_px": 30, "red_mean": 0.5, "green_mean": 0.5, "blue_mean": 0, "mean": 1 / 3}
    for name, value in numbers.items():
        assert facts.numbers[name] == pytest.approx(value), name
    assert facts.numbers["std"] == pytest.approx(image.std(), rel=1e-5)
    assert (facts.numbers["p01"], facts.numbers["p50"], facts.numbers["p99"]) == (0, 0.25, 1)


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
    assert known.cases == 40
    assert len(known.mean) == len(known.variance) > 0
    assert known == read_fingerprint(tmp_path, write_fingerprint(tmp_path, known))


def test_a_changed_or_missing_one_is_refused_and_none_is_none(bundle: Path, tmp_path: Path) -> None:
    provenance = load_bundle(bundle).provenance
    (tmp_path / FILE).write_text((bundle / FILE).read_text().replace('"cases": 40', '"cases": 41'))
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(SafetyRefusal, match="E-BUN-HASH"):
            read_fingerprint(folder, provenance)
    assert read_fingerprint(tmp_path, {}) is None


def test_fresh_cases_pass_and_other_images_do_not(bundle: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    known = read_fingerprint(bundle, loaded.provenance)
    assert known is not None
    predictor = Predictor.of(loaded)
    verdicts = [compare(known, facts_of(predictor, case, tmp_path)) for case in _study(tmp_path, 60, 500)]
    assert sum(verdict.level == "in_range" for verdict in verdicts) >= 57
    assert not any(verdict.level == "refuse" for verdict in verdicts)
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    write_png(tmp_path / "noise.png", noise)
    verdict = compare(known, facts_of(predictor, Case("n", "n", "noise.png"), tmp_path))
    assert verdict.level == "refuse"
    assert "features" in verdict.fields


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
    _run(tmp_path / "old", scans, tmp_path / "unknown", gate="refuse")
    tables = {name: _table(tmp_path / name / "predictions.csv") for name in ("warn", "off", "unknown")}
    assert {row["gate"] for row in tables["off"].values()} == {"off"}
    assert {row["gate"] for row in tables["unknown"].values()} == {"unknown"}
    for name in tables["warn"]:
        assert len({table[name]["grade.p.high"] for table in tables.values()}) == 1
    assert all(entry.cells["refer_to_reader"] == "false" for entry in read_ledger(tmp_path / "off" / "cases.jsonl"))


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
