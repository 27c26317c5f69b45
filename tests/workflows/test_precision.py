"""A bf16 training keeps a model that is measured, frozen and evaluated as its bundle predicts: in fp32."""

import pandas as pd
import pytest

from medmtl.bundle import load_bundle
from medmtl.config import validate
from medmtl.data.synthetic.mitosis import write_mitosis_study
from medmtl.experiment import freeze_thresholds, train
from medmtl.predictor import Predictor
from medmtl.prepared import prepare
from medmtl.results.run import evaluate_run
from medmtl.study import Study
from medmtl.sweep import validated

pytestmark = pytest.mark.slow
STUDY = {
    "name": "half",
    "preprocess": {"window": [32, 32]},
    "encoder": {"name": "test_resnet", "norm": "group"},
    "tasks": {
        "atypical": {"kind": "classification", "classes": ["normal", "atypical"]},
        "vote_fraction": {"kind": "regression", "low": 0, "high": 1},
    },
    "loader": {"batch_size": 8, "workers": 0},
    "optim": {"epochs": 1, "learning_rate": 1e-3},
    "fit": {"precision": "bf16", "monitor": "vote_fraction.mae", "device": "cpu", "threads": 1},
    "evaluation": {"resamples": 100},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module", params=["identity", "flips"])
def trained(request, tmp_path_factory):
    """(run, bundle, the validation table in either precision)."""
    place = tmp_path_factory.mktemp("half")
    manifest = write_mitosis_study(place / "data", cases=60, groups=12, domains=2, size=40)
    tree = {**STUDY, "views": request.param, "data": {"manifest": str(manifest)}}
    study = validate(Study, tree, where="test")
    run = train(study, runs=place / "runs", say=lambda text: None)
    bundle, prepared = load_bundle(run.bundle), prepare(study)
    data = prepared.dataset(prepared.split.val)
    tables = {name: Predictor.of(bundle, precision=name).table(data, batch_size=8) for name in ("fp32", "bf16")}
    once = Predictor.of(bundle, views="identity").table(data, batch_size=8)
    return run, bundle, tables, once


def _values(table, task, column):
    return table[table["task"] == task].set_index("case_id")[column].sort_index().astype(float)


def _mae(table):
    return (_values(table, "vote_fraction", "prediction") - _values(table, "vote_fraction", "target")).abs().mean()


def test_the_threshold_is_that_of_single_precision(trained):
    _, bundle, tables, _ = trained
    found = bundle.spec.tasks["atypical"].threshold
    expected, half = (freeze_thresholds(bundle.spec, table).tasks["atypical"].threshold for table in tables.values())
    assert found == pytest.approx(expected, abs=1e-6)
    assert abs(half - expected) > 1e-5, "the comparison cannot fail"


def test_the_selected_value_is_that_of_single_precision(trained):
    _, bundle, tables, once = trained
    selected = bundle.provenance["selected"]
    assert selected["value"] == pytest.approx(_mae(once), abs=1e-6)
    if bundle.spec.views != "identity":
        assert selected["value_with_views"] == pytest.approx(_mae(tables["fp32"]), abs=1e-6)
    assert abs(_mae(tables["bf16"]) - _mae(tables["fp32"])) > 1e-5, "the comparison cannot fail"


def test_an_evaluation_is_of_what_is_predicted(trained):
    run, _, tables, _ = trained
    evaluate_run(run, say=lambda text: None)
    table = pd.read_csv(run.evaluation / "cases.csv", dtype={"case_id": str})
    table = table[table["split"] == "val"]
    for task, column in (("atypical", "p.atypical"), ("vote_fraction", "prediction")):
        found, expected, half = (_values(each, task, column) for each in (table, tables["fp32"], tables["bf16"]))
        assert (found - expected).abs().max() < 1e-5 < (half - expected).abs().max()
    measured = validated(run)["tasks"]["vote_fraction"]["overall"]["mae"]["value"]
    assert measured == pytest.approx(_mae(tables["fp32"]), abs=1e-6)
