"""Covariates: fitted on the training part, missing ones named as such, fused in front of the last affine map."""

from dataclasses import replace

import pytest
import torch
from laws import MIXED, SCORE, TASKS, TinyEncoder, batch, cases, gradients, informed, objective, refuses, written
from pydantic import ValidationError

from medmtl.bundle import ModelSpec, load_bundle, save_bundle
from medmtl.config import override, plain, validate
from medmtl.data.batch import Sample, collate
from medmtl.data.case import Case, write_manifest
from medmtl.data.covariates import Covariates
from medmtl.models.head import pooled_head
from medmtl.models.multitask import MultiTaskModel
from medmtl.predictor import Predictor
from medmtl.prepared import prepare
from medmtl.study import Study

KNOWN = Covariates(numeric=("age", "education"), categorical=("sex",))
ROWS = ({"age": "70", "sex": "F"}, {"age": "74", "sex": "M", "education": "12"}, {"age": "60", "education": "12"}, {})
FITTED = KNOWN.fit([Case(f"c{i}", f"g{i}", "x.png", meta=meta) for i, meta in enumerate(ROWS)])


def test_it_is_fitted_to_the_cases_that_have_a_value():
    age, education = FITTED.scales["age"], FITTED.scales["education"]
    assert (age.mean, age.deviation) == pytest.approx((68, (104 / 3) ** 0.5))  # 70, 74, 60
    assert (education.mean, education.deviation) == (12, 1)  # constant: nothing to divide by
    assert FITTED.categories == {"sex": ("F", "M")}
    assert FITTED.names == ("age", "age?", "education", "education?", "sex=F", "sex=M", "sex?")


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"age": "74", "education": "15", "sex": "M"}, [6 / (104 / 3) ** 0.5, 0, 3, 0, 0, 1, 0]),
        (
            {"age": "68", "sex": "F"},
            [0, 0, 0, 1, 1, 0, 0],
        ),  # the mean is 0, and so is what is missing, but for its mark
        ({"age": " ", "sex": "other", "weight": "x"}, [0, 1, 0, 1, 0, 0, 1]),  # training has no other: unknown
        ({}, [0, 1, 0, 1, 0, 0, 1]),
    ],
)
def test_a_case_is_encoded_with_marks_of_what_is_missing(meta, expected):
    torch.testing.assert_close(FITTED.encode(meta), torch.tensor(expected, dtype=torch.float32))
    assert torch.equal(FITTED.absent(), FITTED.encode({}))


@pytest.mark.parametrize("cell", ["old", "nan", "inf", "1,5"])
def test_a_number_that_is_none_is_named_with_its_row(cell):
    bad = Case("c9", "g9", "x.png", meta={"age": cell}, row=11)
    for action in (lambda: KNOWN.check([bad]), lambda: FITTED.of(bad), lambda: KNOWN.fit([bad])):
        refuses("E-COV-NUMBER", action, says="manifest row 11, case c9")


@pytest.mark.parametrize("settings", [{}, {"numeric": ("a",), "categorical": ("a",)}, {"numeric": ("meta.age",)}])
def test_columns_are_different_and_named_without_their_prefix(settings):
    with pytest.raises(ValidationError):
        Covariates(**settings)


def _model(tasks=SCORE, columns=0, **use):
    torch.manual_seed(0)
    encoder = TinyEncoder()
    model = MultiTaskModel(encoder, {name: task.head(encoder) for name, task in tasks.items()})
    if columns:
        fused = [name for name in tasks if pooled_head(model.heads[name]) is not None]
        model.fuse(fused, torch.tensor([0.0, 1.0, 0.0][:columns]), **use)
    return model.eval()


def _weights(model):
    """Random numbers as the covariates' weights, which start at zero; returns those of each head."""
    found = {}
    torch.manual_seed(5)
    for name in model.fused:
        affine = pooled_head(model.heads[name]).affine
        with torch.no_grad():
            affine.weight[:, 8:] = torch.randn(len(affine.weight), 3)
        found[name] = affine.weight[:, 8:]
    return found


def test_at_the_start_covariates_change_nothing():
    """Their weights are zero, and no random number is drawn for them: ablations start from the same image model."""
    image, known = torch.randn(4, 3, 8, 8), torch.randn(4, 3)
    without, fused = _model()(image), _model(columns=3)(image, known)
    for name, output in fused.items():
        torch.testing.assert_close(output, without[name], atol=1e-6, rtol=1e-6)


def test_fusion_is_late_and_additive():
    """output = A features + B covariates + b, whatever the image; in logits and log-odds as in numbers."""
    tasks = {**SCORE, "grade": MIXED["grade"], "mask": MIXED["mask"]}
    image, known = torch.randn(4, 3, 8, 8), torch.randn(4, 3)
    model, plain_model = _model(tasks, 3), _model(tasks)
    B = _weights(model)
    assert set(B) == {*SCORE, "grade"}  # a dense head has no pooled features to stand beside
    outputs, alone = model(image, known), plain_model(image)
    for name, output in outputs.items():
        expected = alone[name] + known @ B[name].T if name in B else alone[name]
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_either_part_can_be_left_out():
    image, other, known = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.randn(2, 3)
    model = _model(columns=3, covariates=False)
    _weights(model)
    assert torch.equal(model(image, known)["q2"], model(image, -known)["q2"])
    model = _model(columns=3, image=False)
    B = _weights(model)
    assert torch.equal(model(image, known)["q2"], model(other, known)["q2"])
    torch.testing.assert_close(model(image, known)["q2"], known @ B["q2"].T)  # this head's bias starts at zero


@pytest.mark.parametrize("use", [{"image": False}, {"covariates": False}])
def test_what_is_left_out_learns_nothing_and_the_graph_stays_whole(use):
    """No parameter without a gradient: distributed training would wait for it."""
    whole = objective(SCORE)
    whole.model.fuse(list(SCORE), torch.zeros(3), **use)
    _, found = gradients(whole, informed(batch(SCORE)))
    assert all(gradient is not None for gradient in found.values())
    weight = found["model.heads.q2.affine.weight"]
    assert weight[:, 8:].any() == ("image" in use) and weight[:, :8].any() == ("covariates" in use)
    assert found["model.encoder.first.0.weight"].any() == ("covariates" in use)


def test_without_covariates_a_case_is_one_of_which_none_is_known():
    model = _model(columns=3)
    _weights(model)
    image = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(image)["q1"], model(image, torch.tensor([[0.0, 1.0, 0.0]]).expand(2, -1))["q1"])
    assert "absent" not in model.state_dict()  # it follows from the specification


def test_the_model_can_be_traced_with_and_without():
    model, image, known = _model(columns=3), torch.randn(2, 3, 8, 8), torch.randn(2, 3)
    _weights(model)
    for inputs in ((image, known), (image,)):
        traced = torch.jit.trace(model, inputs, strict=False)
        other = tuple(torch.randn(5, *tensor.shape[1:]) for tensor in inputs)  # another number of cases
        for name, output in traced(*other).items():
            torch.testing.assert_close(output, model(*other)[name])


def test_a_placeholder_changes_no_bit_beside_covariates():
    def run(value):
        whole = objective(SCORE)
        whole.model.fuse(list(SCORE), torch.zeros(3))
        partial = informed(batch(SCORE, q2=[0, 3], total=[]))
        targets = {**partial.targets, "total": torch.full((8,), value)}
        return gradients(whole, replace(partial, targets=targets))

    first, second = run(1.0), run(19.0)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(gradient, second[1][name]) for name, gradient in first[1].items())


def test_a_batch_carries_them_in_order():
    samples = [(torch.zeros(3, 4, 4), {}, {}, 0, f"c{i}", {}, torch.tensor([float(i), 1.0]), i - 1) for i in range(3)]
    whole = collate([Sample(*sample) for sample in samples])
    assert whole.covariates.tolist() == [[0, 1], [1, 1], [2, 1]] and whole.stratum.tolist() == [-1, 0, 1]
    moved = whole.to("cpu")
    assert torch.equal(moved.covariates, whole.covariates) and torch.equal(moved.stratum, whole.stratum)
    assert collate([Sample(*sample[:6]) for sample in samples]).covariates is None


PARTS = ("train", "train", "val", "test")


def _cases():
    """Ages rise with the group; the test part's are far off, and its sex is a third."""
    found = []
    for case in cases(12, 2, 2):
        group = int(case.group[1:])
        split = PARTS[group % 4]
        meta = {
            "age": str(60 + group + (500 if split == "test" else 0)),
            "sex": "X" if split == "test" else "FM"[group % 2],
        }
        found.append(replace(case, split=split, targets={**case.targets, "size": str(group / 2)}, meta=meta))
    return found


@pytest.fixture
def tree(tmp_path):
    written(tmp_path, _cases())
    return {
        "name": "tiny",
        "data": {"manifest": str(tmp_path / "manifest.csv")},
        "preprocess": {"window": [12, 12]},
        "encoder": {"name": "test_efficientnet"},
        "tasks": {
            "grade": {"kind": "classification", "classes": ["a", "b"]},
            "size": {"kind": "regression", "low": 0, "high": 10},
            "site": {"kind": "domain_adversary"},
        },
        "covariates": {"numeric": ["age"], "categorical": ["sex"]},
    }


def _study(tree, *assignments):
    return validate(Study, override(tree, assignments), where="test")


def test_a_study_fits_them_on_the_training_part_and_hands_them_out(tree):
    prepared = prepare(_study(tree))
    ages = [float(case.meta["age"]) for case in prepared.split.train]
    known = prepared.spec.covariates
    assert known.scales["age"].mean == pytest.approx(sum(ages) / len(ages)) and known.categories["sex"] == ("F", "M")
    dataset = prepared.dataset(prepared.split.test)
    assert torch.equal(dataset[0].covariates, known.of(dataset.cases[0])) and dataset[0].covariates[0] > 50
    assert prepared.spec.fused == ("grade", "size")  # an adversary must not be told by the covariates
    assert prepare(_study(tree, "covariates.tasks=[size]")).spec.fused == ("size",)
    bare = {key: value for key, value in tree.items() if key != "covariates"}
    assert prepare(_study(bare)).dataset(prepared.split.test)[0].covariates is None


@pytest.mark.parametrize(
    ("assignments", "code", "says"),
    [
        (["covariates.numeric=[age, height]"], "E-CFG-COVARIATE", "meta.height"),
        (["covariates.categorical=[race]"], "E-CFG-COVARIATE", "meta.race"),
        (["covariates.numeric=[sex]", "covariates.categorical=[]"], "E-COV-NUMBER", "covariates.categorical"),
        (["covariates.tasks=[site]"], "E-CFG", "site"),
        (["covariates.tasks=[nobody]"], "E-CFG", "nobody"),
        (["covariates.tasks=[]"], "E-CFG", "no task sees them"),
        (["covariates={}"], "E-CFG", "one or more"),
    ],
)
def test_covariates_that_cannot_be_are_refused(tree, assignments, code, says):
    refuses(code, lambda: prepare(_study(tree, *assignments)), says=says)


def test_a_bad_cell_of_any_part_is_found_before_training(tree, tmp_path):
    found = _cases()
    bad = next(i for i, case in enumerate(found) if case.split == "test")
    found[bad] = replace(found[bad], meta={"age": "unknown"})
    write_manifest(tmp_path / "manifest.csv", found)
    refuses("E-COV-NUMBER", lambda: prepare(_study(tree)), says=f"manifest row {bad + 2}")


def test_a_task_alone_keeps_its_covariates(tree):
    study = _study(tree, "covariates.tasks=[size]")
    assert study.alone("size").covariates == study.covariates.model_copy(update={"tasks": None})
    assert study.alone("grade").covariates is None
    assert _study(tree, "tasks.site.kind=domain").alone("site").covariates is None
    assert prepare(study.alone("size")).spec.fused == ("size",)


def test_no_head_sees_its_own_answer(tree):
    tree["tasks"]["age"] = {"kind": "regression", "low": 0, "high": 99}
    refuses("E-CFG", lambda: _study(tree), says="tasks.age would be given its answer")
    tree["covariates"]["tasks"] = ["grade"]
    assert _study(tree).covariates.tasks == ("grade",)
    del tree["tasks"]["age"]
    tree["covariates"]["tasks"] = None
    tree["tasks"]["size"]["target"] = "age"
    refuses("E-CFG", lambda: _study(tree), says="tasks.size would be given its answer")


def test_a_study_without_them_keeps_its_name(tree):
    bare = {key: value for key, value in tree.items() if key != "covariates"}
    assert not {"covariates", "emphasis", "penalties"} & set(_study(bare).tree())
    assert _study(tree).sha256 != _study(bare).sha256 != _study(tree, "covariates.use=image").sha256


def test_a_bundle_knows_what_inference_needs(tree, tmp_path):
    prepared = prepare(_study(tree))
    model = prepared.spec.build()
    with torch.no_grad():
        model.heads["size"].affine.weight[:, -5:] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    save_bundle(tmp_path / "bundle", prepared.spec, model, provenance={}, card="")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.spec == prepared.spec and bundle.model.fused == ("grade", "size")
    dataset = prepared.dataset(prepared.split.val)
    predictor = Predictor.of(bundle)
    table = predictor.table(dataset, batch_size=3).query("task == 'size'")
    batch_of_all = collate([dataset[i] for i in range(len(dataset))])
    alone = predictor.decode(batch_of_all.image)["size"]
    known = predictor.decode(batch_of_all.image, batch_of_all.covariates)["size"]
    order = torch.tensor([batch_of_all.case_ids.index(case) for case in table["case_id"]])
    torch.testing.assert_close(torch.tensor(table["prediction"].to_numpy()).float(), known[order])
    assert (known - alone).abs().max() > 0.01


def test_a_specification_from_before_covariates_is_read(tree):
    prepared = prepare(_study({key: value for key, value in tree.items() if key != "covariates"}))
    old = plain(prepared.spec)
    del old["covariates"]
    for key in ("standardise", "sum_of"):
        del old["tasks"]["size"][key]
    assert validate(ModelSpec, old, where="old") == prepared.spec


def test_adversaries_and_dense_heads_have_no_place_for_them():
    encoder = TinyEncoder()
    assert pooled_head(TASKS["adversary"].head(encoder)) is None and pooled_head(TASKS["mask"].head(encoder)) is None
