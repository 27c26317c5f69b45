"""Laws of several bundles as one model: means and spreads by hand, of equal weights no spread, costs are told."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from medmtl.bundle import SPEC, ModelSpec, load_bundle, save_bundle
from medmtl.errors import UserError
from medmtl.inference.forward import Model
from medmtl.inference.pipeline import Job, Summary, predict
from medmtl.io.raster import read_mask, write_png
from medmtl.predictor import Predictor

TASKS: dict[str, Any] = {
    "grade": {"kind": "classification", "classes": ["low", "mid", "high"]},
    "sign": {"kind": "classification", "classes": ["no", "yes"], "threshold": 0.5},
    "age": {"kind": "regression", "low": -100, "high": 100, "unit": "years"},
    "stage": {"kind": "ordinal", "low": 0, "high": 3},
    "gland": {"kind": "segmentation", "classes": ["background", "gland"], "decoder": {"width": 16}},
}


def _bundle(folder: Path, seed: int, threshold: float = 0.5, **changes: Any) -> Path:
    torch.manual_seed(seed)
    tasks = {**TASKS, "sign": {**TASKS["sign"], "threshold": threshold}, **changes.pop("tasks", {})}
    preprocess = {"window": [32, 32], **changes}
    spec = ModelSpec.model_validate(
        {"preprocess": preprocess, "encoder": {"name": "test_efficientnet"}, "tasks": tasks}
    )
    save_bundle(folder, spec, spec.build(), provenance={}, card="{bundle_id}")
    return folder


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("folds")
    return [_bundle(root / f"{n}", n, threshold) for n, threshold in enumerate((0.0, 1.0, 0.2))]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    for n in range(3):
        pixels = np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        write_png(root / f"{n}.png", pixels)
    return root


def _run(folds: list[Path], scans: Path, out: Path, **more: Any) -> Summary:
    job = Job(folds[0], scans, out, also=tuple(folds[1:]), device="cpu", **more)
    return predict(job, console=Console(file=io.StringIO()))


def _table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        return {row["image"]: row for row in csv.DictReader(stream)}


def test_cells_are_means_and_spreads_of_the_bundles(folds: list[Path], scans: Path, tmp_path: Path) -> None:
    _run(folds, scans, tmp_path / "out")
    rows = _table(tmp_path / "out")
    loaded = [load_bundle(path) for path in folds]
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = loaded[0].spec.preprocess.apply(torch.from_numpy(pixels).permute(2, 0, 1) / 255)[None]
    each = [Predictor.of(bundle).decode(image) for bundle in loaded]
    stacked = {name: torch.stack([one[name][0] for one in each]).double() for name in TASKS}
    row = rows["1.png"]
    for k, label in enumerate(("low", "mid", "high")):
        assert float(row[f"grade.p.{label}"]) == pytest.approx(float(stacked["grade"][:, k].mean()), abs=1e-6)
    assert float(row["age.value"]) == pytest.approx(float(stacked["age"].mean()), abs=1e-4)
    for name in ("grade", "sign", "stage"):
        expected = float(stacked[name].std(0, correction=0).max())
        assert float(row[f"{name}.spread"]) == pytest.approx(expected, rel=1e-3, abs=1e-5), name
    assert float(row["age.spread"]) == pytest.approx(float(stacked["age"].std(correction=0)), rel=1e-3, abs=1e-4)
    spread = float(stacked["gland"].std(0, correction=0).amax(0).mean())
    assert float(row["gland.spread"]) == pytest.approx(spread, rel=1e-3)
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / row["gland.mask"]), stacked["gland"].mean(0).argmax(0))
    yes = float(stacked["sign"][:, 1].mean())
    assert row["sign.label"] == ("yes" if yes >= 0.4 else "no")  # the mean of the thresholds
    assert row["bundle"] == "+".join(bundle.id for bundle in loaded)


def test_the_same_weights_twice_are_those_weights(folds: list[Path], scans: Path, tmp_path: Path) -> None:
    _run(folds[:1], scans, tmp_path / "one")
    loaded = load_bundle(folds[0])
    other = loaded.spec.model_copy(update={"views": "flips"})  # which the first bundle does not ask for
    save_bundle(tmp_path / "again", other, loaded.model, provenance={}, card="")
    _run([folds[0], tmp_path / "again"], scans, tmp_path / "two")
    one, two = _table(tmp_path / "one"), _table(tmp_path / "two")
    for name, row in one.items():
        for column in row:
            if column not in ("bundle",) and not column.startswith("warn"):
                assert two[name][column] == row[column], column
        assert {two[name][f"{task}.spread"] for task in TASKS} == {"0"}
    assert "grade.spread" not in one["0.png"]


def test_one_bundle_twice_is_refused(folds: list[Path], scans: Path, tmp_path: Path) -> None:
    """Its spread of 0 would look like certainty."""
    shutil.copytree(folds[0], tmp_path / "copy")
    for twice in ([folds[0], folds[0]], [folds[1], folds[0], tmp_path / "copy"]):
        with pytest.raises(UserError, match=r"E-PRE-ENSEMBLE .* given twice"):
            _run(twice, scans, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_whose_specification_nothing_seals_is_warned_about(
    folds: list[Path], scans: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(folds[1], old)
    tree = yaml.safe_load((old / SPEC).read_text())
    del tree["spec_sha256"]
    (old / SPEC).write_text(yaml.safe_dump({**tree, "format": 1}, sort_keys=False))
    said = {name: io.StringIO() for name in ("sealed", "old")}
    for name, bundle in (("sealed", folds[1]), ("old", old)):
        job = Job(folds[0], scans, tmp_path / name / "out", also=(bundle,), device="cpu", gate="off")
        predict(job, console=Console(file=said[name], width=300))
    ids = [load_bundle(old).id]
    text = f"whether the specification of {ids[0]} was edited"
    for name, found in (("sealed", []), ("old", ids)):
        out = tmp_path / name / "out"
        assert json.loads((out / "manifest.json").read_text())["unsealed"] == found
        assert (text in (out / "summary.md").read_text()) == (text in said[name].getvalue()) == bool(found)


def test_the_cost_of_each_is_told(folds: list[Path], scans: Path, tmp_path: Path) -> None:
    _run(folds, scans, tmp_path / "out", views="flips")
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    ids = [load_bundle(path).id for path in folds]
    assert told["bundles"] == ids
    assert list(told["seconds_per_image"]) == [f"{n} {name}" for n, name in enumerate(ids, start=1)]
    spent = sum(told["seconds_per_image"].values()) * 3
    assert 0 < spent <= told["seconds"]["forward"] + 0.002


def test_the_cost_of_a_view_is_its_share(folds: list[Path]) -> None:
    model = Model.of([load_bundle(path) for path in folds[:2]], device=torch.device("cpu"), views="flips")
    model.decode({str(n): torch.rand(3, 32, 32) for n in range(3)})
    assert model.views == 4 and list(model.view_cost()) == list(model.cost())
    for name, seconds in model.cost().items():
        assert seconds > 0 and model.view_cost()[name] == pytest.approx(seconds / 4, abs=1e-6)
    assert Model.of([load_bundle(folds[0])], device=torch.device("cpu"), views=None).views == 1  # the bundle's own


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"window": [64, 64]}, "preprocessing"),
        ({"tasks": {"age": {**TASKS["age"], "unit": "months"}}}, "tasks"),
        ({"tasks": {"stage": {**TASKS["stage"], "high": 4}}}, "tasks"),
        ({"tasks": {"more": TASKS["sign"]}}, "tasks"),
    ],
)
def test_bundles_that_cannot_be_averaged_are_refused(
    folds: list[Path], scans: Path, tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    other = _bundle(tmp_path / "other", 9, **changes)
    with pytest.raises(UserError, match=f"E-PRE-ENSEMBLE.*{what}"):
        _run([folds[0], other], scans, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_set_of_bundles_is_another_job(folds: list[Path], scans: Path, tmp_path: Path) -> None:
    _run(folds[:2], scans, tmp_path / "out")
    with pytest.raises(UserError, match=r"E-PRE-OUT.*bundle"):
        _run(folds, scans, tmp_path / "out")
    assert _run(folds[:2], scans, tmp_path / "out").resumed == 3


def test_views_and_their_cost_are_told(folds: list[Path], scans: Path, tmp_path: Path) -> None:
    _run(folds, scans, tmp_path / "out", views="flips")
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert told["views_per_image"] == 4
    for name, seconds in told["seconds_per_image"].items():
        assert told["seconds_per_view"][name] == pytest.approx(seconds / 4, abs=1e-6)
    page = (tmp_path / "out" / "summary.md").read_text()
    assert "for each of its 4 views. Whether they are worth it is not known here" in page
    loaded = load_bundle(folds[0])
    spec = loaded.spec.model_copy(update={"views": "flips"})
    selected = {"monitor": "grade.auroc", "value": 0.75, "value_with_views": 0.8125}
    save_bundle(tmp_path / "flips", spec, loaded.model, provenance={"selected": selected}, card="")
    _run([tmp_path / "flips"], scans, tmp_path / "gain")
    page = (tmp_path / "gain" / "summary.md").read_text()
    assert "4 views. On validation grade.auroc was 0.75 with one view and 0.8125 with all of them." in page
    _run([tmp_path / "flips"], scans, tmp_path / "other", views="mirror")  # what was not measured is not told
    assert "is not known here" in (tmp_path / "other" / "summary.md").read_text()
    _run(folds[:1], scans, tmp_path / "one")
    page = (tmp_path / "one" / "summary.md").read_text()
    assert "s an image, of one view." in page and "worth it" not in page
