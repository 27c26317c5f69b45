"""A bundle is the model, whole: it computes the same bits, it is refused when it is not itself, and it runs no code."""

import datetime
import hashlib
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from laws import refuses, written

from medmtl.bundle import CARD, SPEC, WEIGHTS, ModelSpec, example_input, load_bundle, save_bundle
from medmtl.config import validate
from medmtl.data.case import Case
from medmtl.data.loader import CaseDataset
from medmtl.data.target import ClassTarget
from medmtl.errors import SafetyRefusal
from medmtl.predictor import Predictor, case_table

TREE = {
    "preprocess": {"window": [32, 32], "normalise": {"kind": "fixed", "mean": [0.5] * 3, "std": [0.25] * 3}},
    "encoder": {"name": "test_efficientnet"},
    "tasks": {
        "grade": {"kind": "classification", "classes": ["low", "high"], "threshold": 0.4},
        "size": {"kind": "regression", "low": 0, "high": 10, "centre": 4.0, "scale": 2.0},
        "mask": {"kind": "segmentation", "classes": ["background", "nucleus"], "decoder": {"width": 8}},
        "site": {"kind": "domain_adversary", "classes": ["north", "south"]},
    },
    "views": "flips",
}


@pytest.fixture(scope="module")
def spec():
    return validate(ModelSpec, TREE, where="test")


@pytest.fixture(scope="module")
def model(spec):
    torch.manual_seed(0)
    model = spec.build().train()
    model(torch.rand(4, 3, 32, 32))  # running statistics of their own
    return model.eval()


@pytest.fixture
def folder(spec, model, tmp_path):
    save_bundle(tmp_path / "bundle", spec, model, provenance={"seed": 3}, card="# {bundle_id}\n")
    return tmp_path / "bundle"


def _outputs(model, images):
    with torch.inference_mode():
        return model.eval()(images)


def test_what_is_read_back_computes_the_same_bits(folder, spec, model):
    bundle = load_bundle(folder)
    images = torch.rand(3, 3, 32, 32)
    expected = _outputs(model, images)
    found = _outputs(bundle.model, images)
    assert all(torch.equal(found[name], expected[name]) for name in expected) and set(found) == set(spec.tasks)
    assert bundle.spec == spec and bundle.provenance == {"seed": 3} and not bundle.model.training
    assert (folder / CARD).read_text() == f"# {bundle.id}\n"
    assert str(load_bundle(str(folder)).id) == bundle.id


def test_the_id_follows_model_and_weights_and_not_the_provenance(folder, spec, model, tmp_path):
    first = load_bundle(folder).id
    assert save_bundle(tmp_path / "b", spec, model, provenance={"seed": 4}, card="") == first
    frozen = spec.model_copy(update={"views": "identity"})
    assert save_bundle(tmp_path / "c", frozen, model, provenance={}, card="") != first
    assert save_bundle(tmp_path / "d", spec, spec.build(), provenance={}, card="") != first


def test_equal_models_give_equal_bytes(folder, spec, model, tmp_path):
    save_bundle(tmp_path / "again", spec, model.to(memory_format=torch.channels_last), provenance={"seed": 3}, card="")
    for name in (SPEC, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("place", [9, 5000, -1])
def test_a_flipped_byte_is_refused(folder, place):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[place] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    refuses("E-BUN-HASH", lambda: load_bundle(folder), kind=SafetyRefusal)


def test_a_bundle_of_another_format_or_in_pieces_is_refused(folder):
    tree = _undigested(folder)
    for change, code in (
        ({"format": 3}, "E-BUN-FORMAT"),
        ({"modle": tree["model"]}, "E-BUN-FORMAT"),
        ({"provenance": 5}, "E-BUN-FORMAT"),
        ({"provenance": [1]}, "E-BUN-FORMAT"),
        ({"provenance": {"made": datetime.date(2020, 1, 1)}}, "E-BUN-FORMAT"),
        ({"model": {**tree["model"], "views": "spin"}}, "E-CFG"),
        ({"model": None}, "E-CFG"),
        ({"model": {**tree["model"], "encoder": {"kind": "timm", "name": "test_convnext"}}}, "E-BUN-WEIGHTS"),
        ({"weights_sha256": None}, "E-BUN-HASH"),
    ):
        (folder / SPEC).write_text(yaml.safe_dump({**tree, **change}))
        refuses(code, lambda: load_bundle(folder))
    for key in ("weights_sha256", "model"):
        (folder / SPEC).write_text(yaml.safe_dump({name: tree[name] for name in tree.keys() - {key}}))
        refuses("E-BUN-FORMAT", lambda: load_bundle(folder), says=f"no {key}")
    (folder / SPEC).unlink()
    refuses("E-BUN-FILE", lambda: load_bundle(folder), says=SPEC)


def _undigested(folder):
    """The specification as it was written before it had a digest of its own."""
    tree = yaml.safe_load((folder / SPEC).read_text()) | {"format": 1}
    del tree["spec_sha256"]
    return tree


def test_one_without_a_digest_of_its_specification_still_loads(folder):
    found = load_bundle(folder)
    (folder / SPEC).write_text(yaml.safe_dump(_undigested(folder)))
    old = load_bundle(folder)
    assert (old.spec, old.provenance) == (found.spec, found.provenance)
    assert found.sealed and not old.sealed


def test_one_that_lost_its_digest_is_refused(folder):
    tree = _undigested(folder) | {"format": 2}
    (folder / SPEC).write_text(yaml.safe_dump(tree))
    refuses("E-BUN-HASH", lambda: load_bundle(folder), kind=SafetyRefusal, says="altered")


ALTERED = {  # keys -> another value: valid each, and with another meaning
    "a class's name": (("model", "tasks", "grade", "classes"), ["low", "none"]),
    "the classes' order": (("model", "tasks", "grade", "classes"), ["high", "low"]),
    "a threshold": (("model", "tasks", "grade", "threshold"), 0.9),
    "a number's scale": (("model", "tasks", "size", "scale"), 20.0),
    "how it is normalised": (("model", "preprocess", "normalise", "mean"), [0.4, 0.5, 0.5]),
    "the views": (("model", "views"), "identity"),
    "where it came from": (("provenance", "seed"), 4),
    "who wrote it": (("medmtl",), "0"),
    "its digest": (("spec_sha256",), None),
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_specification_is_refused(folder, what):
    (*parents, key), value = ALTERED[what]
    tree = node = yaml.safe_load((folder / SPEC).read_text())
    for parent in parents:
        node = node[parent]
    assert node[key] != value
    node[key] = value
    (folder / SPEC).write_text(yaml.safe_dump(tree))
    refuses("E-BUN-HASH", lambda: load_bundle(folder), kind=SafetyRefusal, says="altered")
    if what != "its digest":  # nothing else would have refused it
        (folder / SPEC).write_text(yaml.safe_dump(_undigested(folder)))
        load_bundle(folder)


def test_another_order_of_keys_or_layout_of_the_yaml_is_no_alteration(folder):
    tree = yaml.safe_load((folder / SPEC).read_text())
    (folder / SPEC).write_text("# a remark\n" + yaml.safe_dump(tree, sort_keys=True, default_flow_style=True, width=40))
    load_bundle(folder)


def test_the_digest_survives_yaml(spec, model, tmp_path):
    """Texts and numbers that YAML writes in a way of its own; a lone NEL it reads back as a space."""
    provenance = {
        "texts": ["1e5", "no", "2020-01-01", "null", "0x1f", "1_000", "µm", "a: b\n c ", "\U0001f9e0", "\x85", ""],
        "numbers": [1e-7, 1e22, -0.0, 0.1 + 0.2, 5e-324, 2**70, float("inf"), True, None],
        "tuple": (1, (2.0,)),
    }
    identity = save_bundle(tmp_path / "odd", spec, model, provenance=provenance, card="")
    found = load_bundle(tmp_path / "odd")
    assert found.id == identity
    assert found.provenance["texts"] == [" " if text == "\x85" else text for text in provenance["texts"]]
    assert found.provenance["numbers"] == provenance["numbers"]


@pytest.mark.parametrize("content", [pickle.dumps({"weights": [1.0]}), b"", b"PK\x03\x04" + bytes(40), b"\xff" * 64])
def test_weights_that_are_no_safetensors_file_are_refused_though_their_hash_be_right(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    tree = {**_undigested(folder), "weights_sha256": hashlib.sha256(content).hexdigest()}
    (folder / SPEC).write_text(yaml.safe_dump(tree))
    refuses("E-BUN-WEIGHTS", lambda: load_bundle(folder), kind=SafetyRefusal, says="no safetensors file")


def test_a_spec_that_would_run_code_is_refused(folder):
    (folder / SPEC).write_text("format: !!python/object/apply:os.getcwd []\n")
    refuses("E-CFG-YAML", lambda: load_bundle(folder), says="python/object")


def test_nothing_is_unpickled(folder, monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("something was unpickled")

    for target in ("torch.load", "torch.serialization.load", "pickle.load", "pickle.loads"):
        monkeypatch.setattr(target, forbidden)
    monkeypatch.setattr(pickle, "Unpickler", forbidden)
    load_bundle(folder)
    assert not [p for p in folder.iterdir() if p.read_bytes()[:2] in (b"PK", b"\x80\x02")]


def test_task_names_are_names():
    refuses("E-CFG", lambda: validate(ModelSpec, {**TREE, "tasks": {"a b/c": TREE["tasks"]["grade"]}}, where="x"))
    refuses("E-CFG", lambda: validate(ModelSpec, {**TREE, "tasks": {}}, where="x"))


# prediction


def test_any_batch_size_gives_the_same_answer(folder):
    predictor = Predictor.of(load_bundle(folder))
    images = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = predictor.decode(images)
    for size in (1, 2, 3):
        parts = [predictor.decode(part) for part in images.split(size)]
        for name, value in whole.items():
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, atol=1e-5, rtol=1e-4)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(predictor.decode(images[order])["mask"], whole["mask"][order], atol=1e-5, rtol=1e-4)


def test_views_are_averaged_in_probability_and_undone_on_maps(spec, model):
    images = torch.rand(2, 3, 32, 32)
    found = Predictor(model, spec, views="dihedral").decode(images)
    grade, mask = [], []
    for turns in range(4):
        for flip in (False, True):
            seen = torch.rot90(images, turns, (-2, -1))
            outputs = _outputs(model, seen.flip(-1) if flip else seen)
            grade.append(outputs["grade"].softmax(1))
            maps = outputs["mask"].softmax(1)
            mask.append(torch.rot90(maps.flip(-1) if flip else maps, -turns, (-2, -1)))
    torch.testing.assert_close(found["grade"], torch.stack(grade).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["mask"], torch.stack(mask).mean(0), atol=1e-5, rtol=1e-4)
    turned = Predictor(model, spec, views="dihedral").decode(torch.rot90(images, 1, (-2, -1)))
    torch.testing.assert_close(turned["grade"], found["grade"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(turned["mask"], torch.rot90(found["mask"], 1, (-2, -1)), atol=1e-5, rtol=1e-4)


def test_predicting_leaves_the_model_as_it_was(spec, model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, state = torch.rand(2, 3, 32, 32), torch.get_rng_state()
    Predictor(model, spec).decode(images)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()


def test_the_case_table_has_a_row_per_case_and_task(spec, model, tmp_path):
    cases = [Case(f"c{i}", f"g{i}", f"{i}.png", "", "", {} if i == 1 else {"grade": "low"}, {"age": str(i)})
             for i in (2, 0, 1)]  # fmt: skip
    study = written(tmp_path, cases, size=32)
    targets = {"grade": ClassTarget(("low", "high"))}
    dataset = CaseDataset(study.cases, study.root, targets, (), spec.preprocess)
    done = []
    table = Predictor(model, spec).table(dataset, batch_size=2, tick=done.append)
    assert done == [2, 1]
    assert table[["task", "case_id"]].to_numpy().tolist() == [[t, f"c{i}"] for t in spec.tasks for i in range(3)]
    grade = table[table["task"] == "grade"].set_index("case_id")
    assert grade["target"].isna().tolist() == [False, True, False] and grade["meta.age"].tolist() == ["0", "1", "2"]
    assert grade.loc["c0", "predicted_label"] == ("high" if grade.loc["c0", "p.high"] >= 0.4 else "low")
    part = Predictor(model, spec).table(dataset, batch_size=2, indices=[2])
    assert len(part) == len(spec.tasks)
    nobody = Predictor(model, spec).table(dataset, batch_size=2, indices=[])  # a rank with nothing to do
    assert len(pd.concat([nobody, part])) == len(part)
    assert list(case_table([]).columns) == ["case_id", "task", "target", "prediction"]


def test_arrays_are_images_whatever_their_type(spec, model):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 36, 3), dtype=np.uint8)
    predictor = Predictor(model, spec)
    eight, unit = predictor.arrays(pixels), predictor.arrays((pixels / 255).astype(np.float32))
    pd.testing.assert_frame_equal(eight, unit, atol=1e-6)
    assert {"grade.p.high", "size.prediction", "mask.prediction", "site.predicted_label"} <= set(eight)


def test_the_example_has_the_network_s_input_size(spec):
    assert example_input(spec).shape == (1, 3, 32, 32)
