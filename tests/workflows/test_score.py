"""A study of a score with covariates, items, emphasis by group and penalties: from files to a bundle, and resumed."""

import os
from dataclasses import replace
from signal import SIGTERM

import numpy as np
import pytest
import torch
from laws import cases, written

from medmtl.bundle import load_bundle
from medmtl.config import override, validate
from medmtl.engine.callbacks import read_history
from medmtl.engine.fit import Trainer
from medmtl.errors import TrainingInterrupted
from medmtl.experiment import train
from medmtl.predictor import Predictor
from medmtl.prepared import prepare
from medmtl.study import Study

pytestmark = pytest.mark.slow  # two short trainings from files
TIMES = ["total", "m12"]
STUDY = {
    "name": "score",
    "preprocess": {"window": [16, 16]},
    "encoder": {"name": "test_resnet", "norm": "group"},
    "tasks": {
        "total": {"kind": "regression", "low": 0, "high": 20, "standardise": "range", "sum_of": ["q1", "q2"]},
        "q1": {"kind": "ordinal", "low": 0, "high": 5},
        "q2": {"kind": "regression", "low": 0, "high": 15, "standardise": "range"},
        "m12": {"kind": "regression", "low": 0, "high": 20, "standardise": "range"},
    },
    "covariates": {"numeric": ["age", "baseline"], "categorical": ["sex"]},
    "emphasis": {"items": ["q1", "q2"], "key": ["q2"], "by": "diagnosis", "groups": {"MCI": "strong"}},
    "penalties": [
        {"kind": "consistency", "total": "total", "weight": 0.1},
        {"kind": "temporal_smoothness", "tasks": TIMES, "weight": 0.01},
        {"kind": "feature_laplacian", "tasks": TIMES, "weight": 0.01},
    ],
    "loader": {"batch_size": 8, "workers": 0},
    "optim": {"epochs": 3, "learning_rate": 0.02, "accumulate": 2},
    "fit": {"threads": 1, "device": "cpu", "keep": "last"},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise images of 32 patients whose score is their baseline's, plus a point where they are men."""
    root, rng, found = tmp_path_factory.mktemp("score"), np.random.default_rng(0), []
    for case in cases(32, 2, 1):
        patient = int(case.group[1:])
        base, sex = int(rng.integers(0, 14)), "FM"[patient % 2]
        q1, q2 = min(base, 5), max(base - 5, 0) + (sex == "M")
        targets = {"total": q1 + q2, "q1": q1, "q2": q2, "m12": min(q1 + q2 + 2, 20)}
        kept = {name: str(value) for name, value in targets.items() if rng.random() > 0.2}
        meta = {
            "age": str(60 + patient),
            "baseline": str(base),
            "sex": sex,
            "diagnosis": ("CN", "MCI")[patient % 3 == 0],
        }
        if patient % 5 == 0:
            del meta["age"]
        found.append(replace(case, split=("train", "train", "val", "test")[patient % 4], targets=kept, meta=meta))
    return written(root, found, size=16).root


def _study(folder, *assignments):
    tree = {**STUDY, "data": {"manifest": str(folder / "manifest.csv")}}
    return validate(Study, override(tree, assignments), where="test")


def _train(study, out):
    return load_bundle(train(study, runs=out, say=lambda text: None).bundle)


def test_killed_and_resumed_it_is_the_same_bit_for_bit(folder, tmp_path, monkeypatch):
    whole = _train(_study(folder), tmp_path / "whole")
    step = Trainer.step

    def killed(self, group):
        losses = step(self, group)
        if self.progress.step == 3:  # within the second epoch
            os.kill(os.getpid(), SIGTERM)
        return losses

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(TrainingInterrupted):
        _train(_study(folder), tmp_path / "killed")
    monkeypatch.undo()
    resumed = _train(_study(folder), tmp_path / "killed")
    logged = [
        {(row["step"], row["name"]): row["value"] for row in read_history(next(out.iterdir()) / "history.jsonl")
         if row["name"].startswith("train.penalty.")}
        for out in (tmp_path / "whole", tmp_path / "killed")
    ]  # fmt: skip
    labels = {"consistency.total", "temporal_smoothness.total", "feature_laplacian.total"}
    assert logged[0] == logged[1] and {name for _, name in logged[0]} == {f"train.penalty.{label}" for label in labels}
    assert all(value > 0 for value in logged[0].values())
    assert resumed.id == whole.id
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_covariates_carry_what_the_image_does_not(folder, tmp_path):
    """The images are noise: with the baseline score the error falls far below the image's alone."""
    error = {}
    for use in ("both", "image", "covariates"):
        study = _study(
            folder, f"covariates.use={use}", "optim.epochs=10", "optim.accumulate=1", "optim.learning_rate=0.04"
        )
        bundle, prepared = _train(study, tmp_path), prepare(study)
        table = Predictor.of(bundle).table(prepared.dataset(prepared.split.test), batch_size=8)
        rows = table[(table["task"] == "total") & table["target"].notna()]
        error[use] = (rows["prediction"] - rows["target"]).abs().mean()
        if use == "both":
            assert rows["items_sum"].notna().all()
    assert error["covariates"] < 0.6 * error["image"] and error["both"] < 0.8 * error["image"], error
