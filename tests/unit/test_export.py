"""An exported file answers as the bundle does, in every format, and what differs or cannot be said is not written."""

import json

import numpy as np
import pytest
import torch
from laws import refuses

from medmtl.bundle import ModelSpec, load_bundle, save_bundle
from medmtl.config import validate
from medmtl.errors import EnvironmentFailure
from medmtl.export import formats
from medmtl.export.network import Portable
from medmtl.export.parity import Sample, compare, difference
from medmtl.export.pipeline import ExportJob, export
from medmtl.io.raster import write_png
from medmtl.predictor import Predictor

TASKS = {
    "grade": {"kind": "classification", "classes": ["low", "high"], "threshold": 0.4},
    "size": {"kind": "regression", "low": 0, "high": 10, "centre": 4.0, "scale": 2.0, "unit": "mm"},
    "score": {"kind": "ordinal", "low": 2, "high": 5},
    "mask": {"kind": "segmentation", "classes": ["background", "nucleus"], "decoder": {"width": 8}},
    "readers": {
        "kind": "annotators",
        "classes": ["background", "nucleus"],
        "annotators": ["a", "b"],
        "decoder": {"width": 8},
    },
    "site": {"kind": "domain_adversary", "classes": ["north", "south"]},
}
FIXED = {"kind": "fixed", "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3]}
FLAT = {
    "preprocess": {"resize": [45, 38], "window": [32, 32], "normalise": FIXED},
    "encoder": {"name": "test_efficientnet"},
    "tasks": TASKS,
    "views": "mirror",
}
FEW = {name: TASKS[name] for name in ("size", "mask")}
VOLUME = {"preprocess": {"channels": 1, "volume": {}, "window": [16, 16, 16]}, "views": "identity", "tasks": FEW}
NETWORKS = {
    "efficientnet": FLAT,
    "vit": {**FLAT, "encoder": {"name": "test_vit"}, "views": "identity", "tasks": FEW},
    "slices": {**VOLUME, "encoder": {"kind": "slices", "name": "test_efficientnet"}, "views": "mirror"},
    "vit_3d": {
        **VOLUME,
        "encoder": {"kind": "vit_3d", "size": [16, 16, 16], "patch": 8, "width": 12, "depth": 1, "heads": 2},
    },
}
FORMATS = [
    pytest.param(name, marks=pytest.mark.skipif(name == "onnx" and not formats.installed(form.needs), reason="no onnx"))
    for name, form in formats.FORMATS.items()
]


def _bundle(folder, tree):
    """A bundle whose answers depend on the image: heads and statistics moved away from where they start."""
    spec = validate(ModelSpec, tree, where="test")
    torch.manual_seed(0)
    model = spec.build().train()
    for name, parameter in model.heads.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    size = spec.preprocess.input_size or (32,) * (2 if spec.preprocess.volume is None else 3)
    with torch.no_grad():
        model(torch.rand(4, spec.preprocess.channels, *size))
    save_bundle(folder, spec, model, provenance={}, card="# {bundle_id}\n")
    return folder


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return _bundle(tmp_path_factory.mktemp("flat") / "bundle", FLAT)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """PNG images of several sizes, one of them smaller than the resize."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    for i, size in enumerate([(60, 51), (31, 90), (40, 40)]):
        write_png(folder / f"{i}.png", rng.integers(0, 256, (*size, 3)).astype(np.uint8))
    return folder


def _inputs(bundle, batch):
    preprocess = bundle.spec.preprocess
    rng = torch.Generator().manual_seed(5)
    return torch.randn(batch, preprocess.channels, *preprocess.input_size, generator=rng)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_file_answers_as_the_predictor_whatever_the_batch(tmp_path, kind, network):
    folder = _bundle(tmp_path / "bundle", NETWORKS[network])
    bundle = load_bundle(folder)
    export(ExportJob(folder, tmp_path / "out", kind))
    form = formats.FORMATS[kind]
    runner = form.open(tmp_path / f"out/model{form.suffix}", tuple(bundle.spec.tasks))
    for batch in (1, 5):
        image = _inputs(bundle, batch)
        expected, found = Predictor.of(bundle).decode(image), runner((image,))
        assert set(found) == set(expected)
        for name, answer in expected.items():
            assert difference(bundle.spec, name, answer, found[name]) < 1e-5
            assert batch == 1 or answer.std(0).max() > 1e-4  # an answer that never changes would agree with anything


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_for_each_task_and_what_is_known_of_it(tmp_path, flat, pictures, kind):
    done = export(
        ExportJob(flat, tmp_path / "out", kind, tasks=("size", "grade"), split=True, images=(pictures,), overwrite=True)
    )
    suffix = formats.FORMATS[kind].suffix
    assert set(done.files) == {f"grade{suffix}", f"size{suffix}"} and done.images == 3
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert record["bundle"] == load_bundle(flat).id and "research use only" in record["use"]
    assert set(record["files"]) == set(done.files) and record["parity"]["images"] == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]  # no draft is left
    runner = formats.FORMATS[kind].open(tmp_path / f"out/size{suffix}", ("size",))
    assert set(runner((_inputs(load_bundle(flat), 2),))) == {"size"}
    assert "0.png" not in (tmp_path / "out/export.json").read_text()  # a file name may name a patient


def test_onnx_says_what_it_is_and_names_its_outputs(tmp_path, flat):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    export(ExportJob(flat, tmp_path / "out", "onnx", tasks=("grade", "size", "mask")))
    model = onnx.load(tmp_path / "out/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    known = {item.key: item.value for item in model.metadata_props}
    assert known["medmtl.bundle"] == load_bundle(flat).id and "research use only" in known["medmtl.use"]
    tasks = json.loads(known["medmtl.tasks"])
    assert tasks["grade"]["classes"] == ["low", "high"] and tasks["grade"]["threshold"] == 0.4
    assert tasks["size"]["unit"] == "mm" and json.loads(known["medmtl.preprocess"])["window"] == [32, 32]
    assert [output.name for output in model.graph.output] == ["grade", "size", "mask"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_torchscript_refuses_an_image_of_another_size(tmp_path, flat):
    export(ExportJob(flat, tmp_path / "out", "torchscript", tasks=("size",)))
    network = torch.jit.load(tmp_path / "out/model.ts")
    with pytest.raises(Exception, match="expected an image of"):
        network(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("kind", FORMATS)
def test_covariates_are_an_input_of_the_tasks_that_see_them(tmp_path, kind):
    covariates = {"numeric": ["age"], "scales": {"age": {"mean": 60, "deviation": 10}}, "tasks": ["size"]}
    folder = _bundle(tmp_path / "bundle", {**FLAT, "covariates": covariates})
    bundle = load_bundle(folder)
    form = formats.FORMATS[kind]
    export(ExportJob(folder, tmp_path / "both", kind, tasks=("size", "grade"), split=True))
    image, known = _inputs(bundle, 2), torch.tensor([[1.5, 0.0], [-2.0, 0.0]])
    found = form.open(tmp_path / f"both/size{form.suffix}", ("size",))((image, known))
    predictor = Predictor.of(bundle)
    torch.testing.assert_close(found["size"], predictor.decode(image, known)["size"])
    assert not torch.allclose(found["size"], predictor.decode(image)["size"])
    form.open(tmp_path / f"both/grade{form.suffix}", ("grade",))((image,))  # takes the image alone


def test_windows_of_the_file_slide_as_those_of_the_bundle(tmp_path, pictures):
    tree = {**FLAT, "preprocess": {"patches": {"size": [32, 32]}, "normalise": FIXED}}
    done = export(
        ExportJob(_bundle(tmp_path / "bundle", tree), tmp_path / "out", "torchscript", images=(pictures / "0.png",))
    )
    assert max(done.files["model.ts"].values()) < 1e-5


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path, flat, monkeypatch):
    """The exported network is off by a little: the parity test must see it, and nothing may be left."""
    forward = Portable.forward
    monkeypatch.setattr(Portable, "forward", lambda *given: tuple(y + 1e-2 for y in forward(*given)))
    message = refuses("E-EXP-PARITY", lambda: export(ExportJob(flat, tmp_path / "out", "torchscript")))
    assert all(text in message for text in ("model.ts", "grade"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "broken",
    [
        lambda y: y + 2e-4,
        lambda y: torch.full_like(y, torch.nan),
        lambda y: y[:, :1],
    ],
)
def test_the_comparison_sees_every_kind_of_difference(flat, broken):
    bundle = load_bundle(flat)
    predictor = Predictor.of(bundle)
    sample = Sample("drawn", _inputs(bundle, 2))
    answers = predictor.decode(sample.image)
    assert compare(lambda given: answers, predictor, [sample], ("grade",), file="x") == {"grade": 0.0}
    refuses(
        "E-EXP-PARITY",
        lambda: compare(lambda given: {"grade": broken(answers["grade"])}, predictor, [sample], ("grade",), file="x"),
        says="task grade, drawn",
    )
    refuses("E-EXP-PARITY", lambda: compare(lambda given: {}, predictor, [sample], ("grade",), file="x"), says="inf")


def test_a_value_is_compared_in_units_of_its_range(flat):
    spec = load_bundle(flat).spec
    assert difference(spec, "size", torch.tensor([4.0]), torch.tensor([4.5])) == pytest.approx(0.05)


def test_the_exported_network_is_a_copy(flat):
    bundle = load_bundle(flat)
    network = Portable(bundle, ("grade",))
    assert set(bundle.model.heads) == set(TASKS) and set(network.model.heads) == {"grade"}
    assert all(parameter.requires_grad for parameter in bundle.model.parameters())


def test_what_exists_is_replaced_only_on_demand_and_only_an_export(tmp_path, flat):
    out = tmp_path / "out"
    job = ExportJob(flat, out, "torchscript", tasks=("size",))
    export(job)
    refuses("E-EXP-OUT", lambda: export(job), says="--overwrite")
    (out / "stale").write_text("")
    export(ExportJob(flat, out, "torchscript", tasks=("grade",), overwrite=True))
    assert not (out / "stale").exists() and (out / "model.ts").is_file() and list(tmp_path.iterdir()) == [out]
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("")
    refuses(
        "E-EXP-OUT", lambda: export(ExportJob(flat, other, "torchscript", overwrite=True)), says="no earlier export"
    )
    assert (other / "precious").exists()


def test_what_cannot_be_exported_is_refused_by_name(tmp_path, flat, pictures, monkeypatch):
    refuses(
        "E-EXP-TASK", lambda: export(ExportJob(flat, tmp_path / "out", "torchscript", tasks=("grad",))), says="grade"
    )
    refuses(
        "E-EXP-SIZE", lambda: export(ExportJob(flat, tmp_path / "out", "torchscript", size=(64, 64))), says="[32, 32]"
    )
    refuses("E-EXP-SPLIT", lambda: export(ExportJob(flat, tmp_path / "out", "monai", split=True)))
    open_size = _bundle(tmp_path / "open", {**FLAT, "preprocess": {"normalise": FIXED}})
    refuses(
        "E-EXP-SIZE",
        lambda: export(ExportJob(open_size, tmp_path / "out", "torchscript")),
        says="leaves the image's size open",
    )
    message = refuses(
        "E-EXP-IMAGE",
        lambda: export(
            ExportJob(open_size, tmp_path / "out", "torchscript", size=(31, 64), images=(pictures / "1.png",))
        ),
    )
    assert all(text in message for text in ("1.png", "[31, 90]"))
    export(ExportJob(open_size, tmp_path / "out", "torchscript", size=(31, 90), images=(pictures / "1.png",)))
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    message = refuses(
        "E-EXP-EXTRA",
        lambda: export(ExportJob(flat, tmp_path / "out", "onnx", overwrite=True)),
        kind=EnvironmentFailure,
    )
    assert all(text in message for text in ("onnx, onnxruntime, onnxscript", "medmtl[export]"))
