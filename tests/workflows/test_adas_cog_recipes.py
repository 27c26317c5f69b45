"""The recipes of ADAS-Cog fit the manifests that are prepared and drawn, and one of them is trained for an epoch."""

import json
from pathlib import Path

import pytest

from medmtl import cli
from medmtl.config import load
from medmtl.data.adas_cog import ITEMS
from medmtl.data.case import Manifest, read_manifest
from medmtl.data.synthetic.brain import write_brain_study
from medmtl.data.synthetic.brain_anatomy import REGIONS
from medmtl.data.synthetic.brain_source import write_brain_source
from medmtl.prepared import prepare
from medmtl.study import Study
from workflows.adas_cog import prepare as workflow

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = ("adas_cog.yaml", "adas_cog_cpu.yaml", "smoke/adas_cog.yaml")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("drawn")
    return read_manifest(write_brain_study(folder, cases=96, groups=48, spacing_mm=8.0))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("prepared")
    write_brain_source(folder / "raw", format="nifti", cases=54, groups=30, spacing_mm=8.0, head=False)
    workflow.prepare(folder / "raw", folder / "study")
    return read_manifest(folder / "study" / "manifest.csv")


def columns(manifest: Manifest) -> set[str]:
    return {name for case in manifest.cases for name in case.meta}


def test_drawn_and_prepared_studies_have_the_same_columns(drawn: Manifest, prepared: Manifest) -> None:
    assert set(drawn.targets) - {"regions"} == set(prepared.targets) - {"cdrsb"}
    assert columns(drawn) - {f"truth_{name}" for name in ("hippocampus", "cortex", "ventricles")} == columns(
        prepared
    ) - {"site"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_reads_what_is_there(recipe: str, drawn: Manifest, prepared: Manifest) -> None:
    study = load(Study, CONFIGS / recipe)
    manifest = drawn if recipe.startswith("smoke") else prepared
    for name, task in study.tasks.items():
        if task.kind != "domain_adversary":
            assert set(task.columns(name)) <= set(manifest.targets), name
        if name in ITEMS:
            assert (task.low, task.high) == (0, ITEMS[name].high), name
    assert set(study.evaluation.by) <= columns(manifest)
    if study.covariates is not None:
        assert {*study.covariates.numeric, *study.covariates.categorical} <= columns(manifest)
        later = {"adas13_m6", "adas13_m12", "adas13_m24"}
        assert set(study.covariates.tasks) <= later, "the baseline's total is the label of a baseline image"
    for control in study.evaluation.controls:
        if control.kind == "ridge":
            assert "baseline_adas13" not in control.columns
            assert set(control.columns) <= columns(manifest)
        else:
            assert set(control.columns) <= set(study.tasks) and set(control.columns.values()) <= columns(manifest)


def test_the_full_recipe_has_every_item_and_a_total_of_them() -> None:
    study = load(Study, CONFIGS / "adas_cog.yaml")
    assert study.tasks["adas13"].sum_of == tuple(ITEMS) == study.emphasis.items
    assert set(ITEMS) <= set(study.tasks)
    assert {penalty.kind for penalty in study.penalties} == {"consistency", "temporal_smoothness"}


def test_the_regions_of_the_demo_are_those_of_the_masks() -> None:
    assert load(Study, CONFIGS / "smoke" / "adas_cog.yaml").tasks["regions"].classes == REGIONS


def test_a_recipe_is_split_by_subject_and_fitted(prepared: Manifest) -> None:
    path = prepared.root / prepared.name
    ready = prepare(load(Study, CONFIGS / "adas_cog_cpu.yaml", [f"data.manifest={path}", "data.split.folds=3"]))
    parts = {name: {case.group for case in cases} for name, cases in ready.split.parts().items()}
    assert not (parts["train"] & parts["test"] or parts["train"] & parts["val"] or parts["val"] & parts["test"])
    assert sum(len(cases) for cases in ready.split.parts().values()) == 54


@pytest.mark.slow
def test_the_small_recipe_trains_and_evaluates(prepared: Manifest, tmp_path: Path) -> None:
    settings = [f"data.manifest={prepared.root / prepared.name}", "data.split.folds=3", "optim.epochs=1",
                "loader.workers=0", "tracking.enabled=false", "evaluation.resamples=100", "evaluation.gallery=1",
                "evaluation.failures=null", "views=identity"]  # fmt: skip
    runs = tmp_path / "runs"
    assert cli.run(["train", str(CONFIGS / "adas_cog_cpu.yaml"), "--runs", str(runs), *settings]) == 0
    (run,) = runs.iterdir()
    assert cli.run(["evaluate", str(run)]) == 0
    tasks = json.loads((run / "evaluation" / "evaluation.json").read_text())["tasks"]
    assert set(tasks) == {"adas13", "q1", "q4", "q8", "adas13_m12", "adas13_m24", "mmse"}
    assert tasks["adas13"]["overall"]["mae"]["value"] is not None
