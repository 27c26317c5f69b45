"""What a study may not say: a key that nothing reads as things are set, and a number that is none or means nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from laws import refuses

import medmtl
from medmtl.bundle import ModelSpec
from medmtl.config import flatten, load, override, plain, to_yaml, validate
from medmtl.errors import UserError
from medmtl.study import Study
from medmtl.tasks.domain import Domain

FOLDER = Path(medmtl.__file__).parent.parent / "configs"
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "sweeps")
TREE = {
    "name": "tiny",
    "data": {"manifest": "manifest.csv"},
    "preprocess": {"window": [32, 32]},
    "encoder": {"name": "test_efficientnet"},
    "tasks": {
        "grade": {"kind": "classification", "classes": ["a", "b"]},
        "stage": {"kind": "ordinal", "low": 0, "high": 3},
        "size": {"kind": "regression", "low": 0, "high": 10},
        "lesion": {"kind": "segmentation", "classes": ["skin", "lesion"]},
        "areas": {"kind": "annotators", "classes": ["skin", "lesion"]},
        "site": {"kind": "domain_adversary"},
        "scanner": {"kind": "domain"},
    },
}
PAIR = "emphasis={items: [stage, size], key: [size]}"
BUNDLE = "init={bundle: elsewhere}"
RIDGE = "evaluation.controls=[{kind: ridge, image: false, numeric: [age]}]"


def _study(*assignments):
    return validate(Study, override(TREE, assignments), where="test")


# key, a value, what makes it idle, what makes it act (None: nothing does)
IDLE = [
    ("tasks.grade.threshold", "0.123", [], None),
    ("tasks.grade.prior", "[0.9, 0.1]", [], None),
    ("tasks.site.prior", "[0.9, 0.1]", [], None),
    ("tasks.stage.prior", "[0.1, 0.2, 0.3, 0.4]", [], None),
    ("tasks.lesion.prior", "[0.9, 0.1]", [], None),
    ("tasks.areas.prior", "[0.9, 0.1]", [], None),
    ("tasks.size.centre", "0.9", [], None),
    ("tasks.size.scale", "5", [], None),
    ("tasks.site.classes", "[q, r]", [], None),
    ("tasks.scanner.classes", "[q, r]", [], None),
    ("tasks.areas.trace", "0.5", ["tasks.areas.training=each"], []),
    ("tasks.areas.diagonal", "0.8", ["tasks.areas.training=soft"], []),
    ("covariates.scales", "{age: {mean: 1, deviation: 2}}", ["covariates.numeric=[age]"], None),
    ("covariates.categories", "{sex: [F, M]}", ["covariates.categorical=[sex]"], None),
    ("balance.radius", "0.2", ["balance.kind=upgrad"], ["balance.kind=cagrad"]),
    ("sampler.power", "0.5", [], ["sampler.balance=domain"]),
    ("sampler.target", "grade", ["sampler.balance=domain"], ["sampler.balance=both"]),
    ("sampler.target", "grade", [], ["sampler.balance=label"]),
    ("encoder.weights_sha256", "'00'", [], ["encoder.weights=b0.safetensors"]),
    ("encoder.weights_sha256", "'00'", ["encoder.weights=timm"], ["encoder.weights=b0.safetensors"]),
    ("encoder.weights", "timm", [BUNDLE], ["init={bundle: elsewhere, parts: [heads.grade]}"]),
    ("emphasis.factors.strong", "9", [PAIR], [PAIR, "emphasis.preset=strong"]),
    ("emphasis.factors.moderate", "9", [PAIR], [PAIR, "emphasis.by=arm", "emphasis.groups={treated: moderate}"]),
    ("preprocess.pad", "true", ["preprocess.window=null"], []),
    ("data.split.validation", "0.3", ["data.split.kind=kfold"], ["data.split={kind: kfold, test: fold}"]),
    ("augment.fourier.band", "0.5", [], ["augment.fourier.strength=0.1"]),
    ("augment.highlights.radius_px", "3", [], ["augment.highlights.count=1"]),
    ("augment.geometry.affine.padding", "zeros", [], ["augment.geometry.affine.rotate_deg=5"]),
    ("augment.mri.motion.moves", "3", [], ["augment.mri.motion.rotate_deg=5"]),
    ("augment.mri.ghosting.copies", "[3, 4]", [], ["augment.mri.ghosting.strength=0.5"]),
    ("augment.mri.bias_field.degree", "2", [], ["augment.mri.bias_field.strength=0.5"]),
    ("augment.mri.keep_background", "true", [], ["augment.mri.gibbs.alpha=0.5"]),
    ("evaluation.controls.0.grid", "4", [RIDGE], [RIDGE, "evaluation.controls.0.image=true"]),
    ("evaluation.controls.0.components", "4", [RIDGE], [RIDGE, "evaluation.controls.0.image=true"]),
]

LABELS = {
    "grade": [0, 1, 1],
    "stage": [0, 1, 3],
    "size": [1.0, 2.0, 7.0],
    "lesion": [np.eye(4, dtype=int)],
    "areas": [np.eye(4, dtype=int)],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, value, _, acting in IDLE[:8] if acting is None])
def test_what_is_said_to_be_fitted_is(key, value):
    """The oracle of the rows above: a task that was given the value equals, fitted, one that was not."""
    _, name, field = key.split(".")
    task = _study().tasks[name]
    given = validate(type(task), {**plain(task), field: yaml.safe_load(value)}, where="test")
    assert given != task
    if field == "threshold":
        table = pd.DataFrame({"target": [0, 1], "p.a": [0.8, 0.3], "p.b": [0.2, 0.7], "group": ["x", "y"]})
        assert given.freeze(table) == task.freeze(table)
    else:
        labels = LABELS.get(name, [0, 1])
        domains = {"classes": ("d0", "d1")} if name == "site" else {}
        fitted, plainly = (each.model_copy(update=domains).fit(labels) for each in (given, task))
        assert fitted == plainly and getattr(plainly, field) is not None


@pytest.mark.parametrize(("key", "value", "idle", "acting"), IDLE, ids=[f"{row[0]}-{i}" for i, row in enumerate(IDLE)])
def test_a_key_that_nothing_reads_is_refused_and_one_that_is_read_is_not(key, value, idle, acting):
    message = refuses("E-CFG", lambda: _study(*idle, f"{key}={value}"), says=f"{key} is ")
    assert "which nothing reads: " in message and "remove it, or write " in message
    _study(*idle)
    default = message.rpartition("or write ")[2].partition(" — ")[0]
    _study(*idle, f"{key}={default}")  # the remedy is one, and a resolved study reads back
    if acting is not None:
        assert f"{_leaf(_study(*acting, f'{key}={value}'), key)}" != default


def _leaf(study, key):
    tree = plain(study)
    for part in key.split("."):
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return tree


def test_all_keys_that_nothing_reads_are_told_at_once_and_the_study_is_not_printed():
    message = refuses("E-CFG", lambda: _study("sampler.power=0.5", "tasks.size.scale=5"), says="sampler.power is 0.5")
    assert "tasks.size.scale is 5.0" in message and "manifest.csv" not in message
    assert message.startswith(
        "E-CFG test: tasks.size.scale is 5.0, which nothing reads: fit takes it from the training"
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_study_of_one_task_alone_is_read_back(path):
    """What is left of a study when a task is alone is written to its run, and nothing of it may be idle then."""
    study = load(Study, path)
    for name in (name for name, task in study.tasks.items() if not task.auxiliary):
        alone = study.alone(name)
        assert validate(Study, plain(alone), where="test") == alone


def test_weights_that_are_given_are_honoured_and_so_not_refused():
    study = _study("tasks.grade.class_weights=[1, 3]", "tasks.stage.importance=[1, 2, 0]")
    assert study.tasks["grade"].fit([0, 1]).class_weights == (1, 3)
    assert study.tasks["stage"].fit([0, 1]).importance == (1, 2, 0)


def test_a_resolved_study_and_a_fitted_specification_are_read_back(tmp_path):
    study = _study("covariates={numeric: [age], tasks: [size]}")
    (tmp_path / "study.yaml").write_text(to_yaml(study), encoding="utf-8")
    assert load(Study, tmp_path / "study.yaml") == study
    tasks = {name: study.tasks[name].fit([0, 1, 1]) for name in ("grade", "stage", "size")}
    tasks["grade"] = tasks["grade"].model_copy(update={"threshold": 0.4})
    spec = ModelSpec(preprocess=study.preprocess, encoder=study.encoder, tasks=tasks)
    assert validate(ModelSpec, plain(spec), where="test") == spec
    assert {"tasks.grade.threshold", "tasks.size.centre"} <= set(flatten(plain(spec)))


BAD = [
    ("pool.dropout", ["1.5", "1", "-0.1"]),
    ("pool.hidden", ["-3", "1.5"]),
    ("weight", ["-1", ".nan", ".inf", "-.inf"]),
]
NUMBERS = {
    **{f"tasks.{task}.{key}": values for task in ("grade", "stage", "size") for key, values in BAD},
    "tasks.grade.class_weights": ["[1, -5]", "[1, .inf]", "[0, 0]", "[1, 2, 3]"],
    "tasks.grade.criterion": ["{label_smoothing: 1}", "{kind: focal, gamma: .inf}", "{kind: focal, gamma: -1}"],
    "tasks.grade.threshold": ["1.5", ".nan"],
    "tasks.stage.importance": ["[1, 1, -1]", "[0, 0, 0]", "[.nan, 1, 1]"],
    "tasks.size.low": ["-.inf", ".nan", "10"],
    "tasks.size.high": [".inf", "-1", "1e31"],
    "tasks.lesion.decoder.width": ["0", "-1"],
    "tasks.lesion.class_weights": ["[1, -5]", "[0, 0]"],
    "tasks.lesion.spacing_mm": ["[0, 1]", "[1, .inf]"],
    "tasks.lesion.weight": ["-1", ".nan"],
    "tasks.areas.trace": ["-1", ".inf"],
    "tasks.areas.levels": ["[0.5, 1]", "[]", "[.nan]"],
    "tasks.site.strength.value": ["-0.1", ".inf", "1e300"],
    "tasks.site.class_weights": ["[-1, 2]"],
    "encoder.drop_path": ["1.5", "1", "-0.1"],
    "preprocess.channels": ["5", "2", "0"],
    "preprocess.normalise": ["{kind: fixed, mean: [.nan, 0, 0], std: [1, 1, 1]}", "{kind: image, epsilon: .inf}"],
    "optim.betas": ["[1.5, .9]", "[0.9, 1]", "[-0.1, 0.9]"],
    "optim.learning_rate": ["0", ".inf", ".nan"],
    "optim.weight_decay": ["-1", ".inf"],
    "optim.clip_norm": ["0", ".inf"],
    "optim.ema": ["0", "1", ".nan"],
    "loader.cache_gib": [".inf", "0"],
    "fit.checkpoint_minutes": [".inf", "0"],
    "augment.blur.sigma": ["-1", "1e4"],
    "augment.noise.std": ["-1", "1e300"],
    "augment.mri.rician.std": ["-1", "1e300"],
    "augment.colour.gamma": ["-1", ".inf"],
    "augment.geometry.affine.scale": ["[0, 1]", "[1, .inf]"],
    "balance": ["{kind: dwa, temperature: 0}", "{kind: dwa, temperature: .inf}", "{kind: cagrad, radius: 1}"],
    "penalties": ["[{kind: consistency, total: size, weight: -1}]"],
    "emphasis": ["{items: [stage, size], key: [size], factors: {strong: .inf}}"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in NUMBERS.items() for value in values])
def test_a_number_that_means_nothing_is_refused_with_its_key(key, value):
    message = refuses("E-CFG", lambda: _study(f"{key}={value}"))
    owner, _, name = key.rpartition(".")
    assert key in message or (f"{owner}: " in message and name in message), message  # a task's own check names both


@pytest.mark.parametrize(
    "assignment",
    [
        "tasks.grade.weight=0",  # measured, and taught nothing
        "tasks.grade.class_weights=[0, 1]",
        "tasks.stage.importance=[0, 1, 0]",
        "tasks.grade.pool={hidden: 0, dropout: 0}",
        "tasks.size={kind: regression, low: -5, high: -1}",
        "tasks.site.strength.value=0",
        "encoder.drop_path=0.99",
        "optim={betas: [0, 0], weight_decay: 0, warmup: 0, final: 0}",
        "balance={kind: cagrad, radius: 0}",
        "preprocess.channels=1",
    ],
)
def test_a_bound_that_means_something_is_allowed(assignment):
    _study(assignment)


def test_uncertainties_need_a_loss_to_learn_from():
    """exp(-s) 0 + s has no minimum; a task outside the balancer may have any weight."""
    zero = ["balance.kind=uncertainty", "tasks.grade.weight=0"]
    refuses("E-CFG", lambda: _study(*zero), says="tasks.grade.weight is 0")
    _study("balance.kind=uncertainty", "tasks.site.weight=0")
    _study(*zero, "tasks.grade.auxiliary=true")


def test_a_domain_s_class_weights_are_as_many_as_its_domains():
    task = Domain(classes=("x", "y", "z"), class_weights=(1, 2))
    with pytest.raises(UserError, match=r"E-CFG-DOMAIN .*2 numbers, the training part 3 domains: x, y, z"):
        task.fit([0, 1, 2])
    assert task.model_copy(update={"class_weights": (1, 2, 0)}).fit([0, 1, 2]).class_weights == (1, 2, 0)
