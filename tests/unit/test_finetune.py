"""A run that starts from a bundle starts there, and what is frozen stays, to the last bit."""

import copy
import os
from dataclasses import replace
from signal import SIGTERM

import pytest
import torch
from laws import cases, refuses, written

from medmtl.assembly import build_trainer
from medmtl.bundle import load_bundle, save_bundle
from medmtl.config import override, validate
from medmtl.data.case import write_manifest
from medmtl.engine import checkpoint
from medmtl.engine.callbacks import Callbacks
from medmtl.engine.fit import Trainer
from medmtl.errors import TrainingInterrupted
from medmtl.experiment import train
from medmtl.finetune import freeze, start_from
from medmtl.prepared import prepare
from medmtl.results import evaluate_run
from medmtl.runs import RunFolder
from medmtl.study import Study

PARTS = ("train", "train", "val", "test")
INIT = "init={bundle: BUNDLE, parts: [encoder, heads.size]}"
FREEZE = "optim.freeze=[heads.size]"


def _cases(size=True):
    for case in cases(12, 2, 2):
        group = int(case.group[1:])
        targets = {**case.targets, **({"size": str(group / 2)} if size else {})}
        yield replace(case, split=PARTS[group % 4], domain="d", targets=targets)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a manifest, its file with all labels, and a trained bundle."""
    folder = tmp_path_factory.mktemp("finetune")
    written(folder, list(_cases()))
    train(_study(folder), runs=folder / "runs", say=lambda text: None)
    return folder


def _study(folder, *assignments, manifest="manifest.csv"):
    tree = {
        "name": "tiny",
        "data": {"manifest": str(folder / manifest)},
        "preprocess": {"window": [12, 12]},
        "encoder": {"name": "test_efficientnet"},
        "tasks": {
            "grade": {"kind": "classification", "classes": ["a", "b"], "pool": {"hidden": 4}},
            "size": {"kind": "regression", "low": 0, "high": 10, "pool": {"hidden": 4}},
        },
        "loader": {"batch_size": 4, "workers": 0},
        "optim": {"epochs": 2, "ema": 0.5},
        "evaluation": {"resamples": 100, "failures": None, "gallery": 0},
        "tracking": {"enabled": False},
    }
    (source,) = (folder / "runs").glob("tiny-*/bundle") if (folder / "runs").exists() else [""]
    return validate(Study, override(tree, [a.replace("BUNDLE", str(source)) for a in assignments]), where="test")


def _bundle(folder):
    (path,) = (folder / "runs").glob("tiny-*/bundle")
    return load_bundle(path)


def _silent(text):
    pass


def _trainer(study, tmp_path):
    return build_trainer(prepare(study), RunFolder(tmp_path / "run"), {}, Callbacks(), _silent)


def test_the_start_is_the_bundle_in_the_named_parts_and_fresh_elsewhere(place, tmp_path):
    source = _bundle(place).model.state_dict()
    fresh = _trainer(_study(place), tmp_path).objective.model.state_dict()
    started = _trainer(_study(place, INIT), tmp_path).objective.model.state_dict()
    for name, value in started.items():
        expected = source if name.startswith(("encoder.", "heads.size.")) else fresh
        assert torch.equal(value, expected[name]), name
    moved = [name for name in source if name.startswith("encoder.") and not torch.equal(source[name], fresh[name])]
    assert moved, "the bundle is not what a fresh model is"


def test_a_number_keeps_the_scale_that_its_head_learned(place, tmp_path):
    """Otherwise the same weights would say another number on a data set with another mean."""
    changed = [replace(c, targets={**c.targets, "size": "9.5" if i % 2 else "9"}) for i, c in enumerate(_cases())]
    write_manifest(place / "other.csv", changed)
    bundle = _bundle(place)
    plain, started = (prepare(_study(place, *more, manifest="other.csv")).spec for more in ((), (INIT,)))
    assert plain.tasks["size"].centre > 9 > bundle.spec.tasks["size"].centre
    assert (started.tasks["size"].centre, started.tasks["size"].scale) == (
        bundle.spec.tasks["size"].centre, bundle.spec.tasks["size"].scale
    )  # fmt: skip


def test_a_head_keeps_the_scale_of_its_covariates(place, tmp_path):
    """Its weights act on ages as the bundle standardised them, whatever the mean of the new patients is."""
    ages = {name: [replace(c, meta={"age": str(first + i)}) for i, c in enumerate(_cases())]
            for name, first in (("young", 20), ("old", 70))}  # fmt: skip
    for name, made in ages.items():
        write_manifest(place / f"{name}.csv", made)
    young, old = (prepare(_study(place, "covariates={numeric: [age]}", manifest=f"{name}.csv")) for name in ages)
    model = young.spec.build()
    save_bundle(tmp_path / "young", young.spec, model, provenance={}, card="")
    init = f"init={{bundle: {tmp_path / 'young'}, parts: [heads.size]}}"
    started = prepare(_study(place, "covariates={numeric: [age]}", init, manifest="old.csv")).spec.covariates
    assert started.scales["age"] == young.spec.covariates.scales["age"] != old.spec.covariates.scales["age"]
    encoder = f"init={{bundle: {tmp_path / 'young'}, parts: [encoder]}}"
    fresh = prepare(_study(place, "covariates={numeric: [age]}", encoder, manifest="old.csv")).spec.covariates
    assert fresh.scales["age"] == old.spec.covariates.scales["age"], "no head is started from: its own scale"


def test_what_is_frozen_is_bit_equal_after_training_and_the_rest_has_moved(place, tmp_path):
    study = _study(place, INIT, "optim.freeze=[heads.size, encoder.net.conv_stem, encoder.net.bn1]")
    run = train(study, runs=tmp_path, say=_silent)
    before, after = _bundle(place).model.state_dict(), load_bundle(run.bundle).model.state_dict()
    still = ("heads.size.", "encoder.net.conv_stem.", "encoder.net.bn1.")
    assert any(name.endswith("bn1.running_mean") and name.startswith(still) for name in after)
    for name in after:
        if name.startswith(still):
            assert torch.equal(before[name], after[name]), name
    moved = {name for name in after if not name.startswith(still) and not torch.equal(before[name], after[name])}
    assert any(name.startswith("heads.grade.") for name in moved)
    assert any(name.startswith("encoder.net.blocks") and name.endswith("weight") for name in moved)
    assert any(name.endswith("running_mean") for name in moved)
    assert load_bundle(run.bundle).provenance["init_bundle"] == _bundle(place).id


def test_without_freezing_every_part_moves(place, tmp_path):
    run = train(_study(place, INIT), runs=tmp_path, say=_silent)
    before, after = _bundle(place).model.state_dict(), load_bundle(run.bundle).model.state_dict()
    for part in ("heads.size.", "encoder.net.conv_stem.", "encoder.net.bn1."):
        assert any(not torch.equal(before[name], after[name]) for name in after if name.startswith(part)), part


def test_a_frozen_task_without_a_label_is_carried_along(place, tmp_path):
    """The study of one annotator has no agreement; the head says what it said, and the report says why it is empty."""
    write_manifest(place / "bare.csv", list(_cases(size=False)))
    study = _study(place, INIT, FREEZE, manifest="bare.csv")
    run = train(study, runs=tmp_path, say=_silent)
    bundle = load_bundle(run.bundle)
    assert bundle.spec.tasks["size"] == _bundle(place).spec.tasks["size"]
    result = evaluate_run(run, say=_silent).result["tasks"]["size"]
    assert (result["n"], result["overall"]["mae"]["reason"]) == (0, "no labelled case")
    refuses("E-CFG-TARGET", lambda: prepare(_study(place, INIT, manifest="bare.csv")), says="target.size")


def test_a_killed_run_with_frozen_parts_resumes_to_the_same_bits(place, tmp_path, monkeypatch):
    study = _study(place, INIT, FREEZE)
    whole = load_bundle(train(study, runs=tmp_path / "whole", say=_silent).bundle)
    step = Trainer.step

    def interrupted(trainer, group):
        losses = step(trainer, group)
        if trainer.progress.step == 3:
            os.kill(os.getpid(), SIGTERM)
        return losses

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(TrainingInterrupted):
        train(study, runs=tmp_path / "killed", say=_silent)
    monkeypatch.setattr(Trainer, "step", step)
    said = []
    resumed = load_bundle(train(study, runs=tmp_path / "killed", say=said.append).bundle)
    assert any("resuming at epoch" in line and "step 3" in line for line in said)
    assert resumed.id == whole.id


def test_the_bundle_may_not_change_under_a_run(place, tmp_path):
    study = _study(place, INIT)
    run = train(study, runs=tmp_path, say=_silent)
    state, _, _ = checkpoint.load_latest(run.checkpoints)
    checkpoint.save(run.checkpoints, {**state, "identity": {**state["identity"], "init_bundle": "x"}}, best=False)
    refuses("E-RUN-CHANGED", lambda: train(study, runs=tmp_path, say=_silent), says="init_bundle was x")


def test_a_finished_run_is_recognised_whatever_number_of_processes_trained_it(place, tmp_path):
    """What torchrun trained is pooled by one process; a half-trained one has to go on as it began."""
    study = _study(place, "optim.epochs=1")
    run = train(study, runs=tmp_path, say=_silent)
    state, _, _ = checkpoint.load_latest(run.checkpoints)
    state["identity"]["world_size"] = 2
    checkpoint.save(run.checkpoints, state, best=False)
    said = []
    train(study, runs=tmp_path, say=said.append)
    assert len(said) == 1 and "this run is finished" in said[0]
    state["progress"]["finished"] = False
    checkpoint.save(run.checkpoints, state, best=False)
    refuses("E-RUN-CHANGED", lambda: train(study, runs=tmp_path, say=_silent), says="world_size was 2, is 1")


def test_a_study_without_these_keys_keeps_its_name():
    """Runs that are on the disk are still found by the command that trained them."""
    tree = {"name": "t", "data": {"manifest": "m.csv"},
            "tasks": {"grade": {"kind": "classification", "classes": ["a", "b"]}}}  # fmt: skip
    study = validate(Study, tree, where="x")
    assert "init" not in study.tree() and "freeze" not in study.tree()["optim"]
    frozen = validate(Study, override(tree, ["optim.freeze=[encoder]"]), where="x")
    started = validate(Study, override(tree, ["init.bundle=b"]), where="x")
    assert len({study.sha256, frozen.sha256, started.sha256}) == 3


def test_a_task_alone_starts_and_freezes_without_the_others(place):
    study = _study(place, INIT, "optim.freeze=[encoder.net.conv_stem, heads.size]")
    alone = study.alone("grade")
    assert (alone.init.parts, alone.optim.freeze) == (("encoder",), ("encoder.net.conv_stem",))
    assert study.alone("size").init.parts == ("encoder", "heads.size")
    only = _study(place, "init={bundle: BUNDLE, parts: [heads.size]}")
    assert only.alone("grade").init is None
    prepare(alone)


@pytest.mark.parametrize(
    ("assignments", "code", "says"),
    [
        (["optim.freeze=[heads.typo]"], "E-CFG", "encoder, heads.grade, heads.size"),
        (["init={bundle: BUNDLE, parts: [head]}"], "E-CFG", "encoder, heads.grade, heads.size"),
        (["init={bundle: BUNDLE, parts: []}"], "E-CFG", "init.parts"),
        (["optim.freeze=[encoder.net.conv_stm]"], "E-CFG-PART", "did you mean 'encoder.net.conv_stem'"),
        (["init={bundle: BUNDLE, parts: [encoder.nothing]}"], "E-CFG-PART", "encoder.nothing"),
        (["optim.freeze=[encoder, heads.grade, heads.size]"], "E-CFG-FREEZE", "nothing is left"),
        (["optim.freeze=[encoder]", "balance={kind: upgrad}"], "E-CFG-FREEZE", "frozen"),
        (["optim.freeze=[encoder]", "fit.observe_every=1"], "E-CFG-FREEZE", "frozen"),
        (["init={bundle: nowhere}"], "E-INIT-BUNDLE", "nowhere"),
        ([INIT, "tasks.size.high=20"], "E-INIT-TASK", "high is 20"),
        ([INIT, "tasks.size.pool.hidden=8"], "E-INIT-SHAPE", "heads.size"),
        (["init={bundle: BUNDLE, parts: [heads.kind]}", "tasks.kind={kind: classification, target: grade, "
          "classes: [a, b]}"], "E-INIT-TASK", "no task 'kind'"),
        ([INIT, "encoder.name=test_resnet"], "E-INIT-SHAPE", "encoder"),
    ],
)  # fmt: skip
def test_a_part_that_is_none_is_refused_with_the_parts(place, tmp_path, assignments, code, says):
    refuses(code, lambda: _trainer(_study(place, *assignments), tmp_path), says=says)


def test_a_frozen_encoder_trains_its_heads_alone(place, tmp_path):
    trainer = _trainer(_study(place, "optim.freeze=[encoder]"), tmp_path)
    names = {id(p): n for n, p in trainer.objective.model.named_parameters()}
    optimised = {names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised == {name for name in names.values() if name.startswith("heads.")}


def test_a_copy_of_a_frozen_model_is_frozen_too(place):
    """The moving average is a deep copy: its statistics must stay as well when it is trained on."""
    bundle = _bundle(place)
    model = bundle.model
    assert start_from(model, _bundle(place), ["encoder"]) == sum(t.numel() for t in model.encoder.state_dict().values())
    freeze(model, ["encoder"])
    twin = copy.deepcopy(model).train()
    twin(torch.randn(4, 3, 12, 12))
    for name, value in twin.encoder.state_dict().items():
        assert torch.equal(value, model.encoder.state_dict()[name]), name
    assert twin.heads.training and not twin.encoder.training
