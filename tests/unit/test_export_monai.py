"""A MONAI Bundle that monai.bundle runs, with the answers of the bundle it was made of."""

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from laws import refuses
from monai.bundle import run
from monai.bundle.properties import InferProperties
from monai.utils import BundleProperty

from medmtl.bundle import ModelSpec, load_bundle, save_bundle
from medmtl.config import validate
from medmtl.export.monai_bundle import transforms
from medmtl.export.pipeline import ExportJob, export
from medmtl.io.raster import write_png
from medmtl.predictor import Predictor

FIXED = {"kind": "fixed", "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3]}
TREE = {
    "preprocess": {"resize": [45, 38], "window": [32, 32], "normalise": FIXED},
    "encoder": {"name": "test_efficientnet"},
    "tasks": {
        "grade": {"kind": "classification", "classes": ["low", "high"]},
        "size": {"kind": "regression", "low": 0, "high": 10},
        "mask": {"kind": "segmentation", "classes": ["background", "nucleus"], "decoder": {"width": 8}},
    },
}
PREPROCESS = {
    "resize and window": TREE["preprocess"],
    "window": {"window": [32, 32], "normalise": FIXED},
    "resize, padded": {"resize": [29, 40], "window": [32, 32], "pad": True},
    "resize, own deviation": {"resize": [32, 32], "normalise": {"kind": "image"}},
    "grey": {"channels": 1, "window": [32, 32], "normalise": {"kind": "image", "per_channel": False}},
}
REFUSED = {
    "patches": {"patches": {"size": [32, 32]}},
    "highlights": {"window": [32, 32], "highlights": {}},
    "pad": {"window": [32, 32], "pad": True},
    "normalise": {"window": [32, 32], "normalise": {"kind": "foreground"}},
    "volume": {"channels": 1, "volume": {}, "window": [16, 16, 16]},
}


def _bundle(folder, preprocess):
    spec = validate(ModelSpec, {**TREE, "preprocess": preprocess}, where="test")
    torch.manual_seed(0)
    model = spec.build()
    for name, parameter in model.heads.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    save_bundle(folder, spec, model, provenance={}, card="# {bundle_id}\n")
    return folder


@pytest.fixture
def pictures(tmp_path):
    """PNG images of several sizes and one file that is no image."""
    rng = np.random.default_rng(1)
    for name, size in {"a": (60, 51), "b": (47, 90)}.items():
        write_png(tmp_path / f"pictures/{name}.png", rng.integers(0, 256, (*size, 3)).astype(np.uint8))
    (tmp_path / "pictures/notes.txt").write_text("no image")
    return tmp_path / "pictures"


def test_monai_runs_it_on_a_folder_of_images(tmp_path, pictures):
    folder = _bundle(tmp_path / "bundle", TREE["preprocess"])
    out = tmp_path / "out"
    done = export(ExportJob(folder, out, "monai", images=(pictures,)))
    assert set(done.files) == {"models/model.ts", "configs/inference.json"} and done.images == 2
    run(
        config_file=str(out / "configs/inference.json"),
        meta_file=str(out / "configs/metadata.json"),
        bundle_root=str(out),
        dataset_dir=str(pictures),
        output_dir=str(tmp_path / "answers"),
        device="cpu",
    )
    bundle = load_bundle(folder)
    for name in ("a.png", "b.png"):
        image = bundle.spec.preprocess.apply(bundle.spec.preprocess.read(pictures / name)[0])
        for task, expected in Predictor.of(bundle).decode(image[None]).items():
            found = np.load(tmp_path / f"answers/{name}.{task}.npy", allow_pickle=False)
            np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-5)
    assert len(list((tmp_path / "answers").iterdir())) == 6
    assert not [path for path in out.rglob("*") if path.suffix in (".pt", ".pth", ".pkl")]


@pytest.mark.skipif(find_spec("fire") is None, reason="the command of monai.bundle needs fire (medmtl[export])")
def test_the_documented_command_writes_the_same_answers(tmp_path, pictures):
    """As ``docs/export.md`` has it, word for word."""
    out, answers = tmp_path / "out", tmp_path / "answers"
    export(ExportJob(_bundle(tmp_path / "bundle", TREE["preprocess"]), out, "monai", tasks=("size",)))
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```\n(python -m monai\.bundle run .*?)\n```", page, re.DOTALL)
    command = command.replace("\\\n", "")  # a shell joins the lines
    places = {"OUT": str(out), "IMAGES": str(pictures), "ANSWERS": str(answers), "python": sys.executable}
    words = shlex.split(re.sub(r"\b(OUT|IMAGES|ANSWERS|python)\b", lambda found: places[found[0]], command))
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    network = torch.jit.load(out / "models/model.ts")
    spec = load_bundle(tmp_path / "bundle").spec
    for name in ("a.png", "b.png"):
        image = spec.preprocess.apply(spec.preprocess.read(pictures / name)[0])[None]
        found = np.load(answers / f"{name}.size.npy", allow_pickle=False)
        np.testing.assert_allclose(found, network(image)["size"][0].numpy(), atol=1e-5)
    assert len(list(answers.iterdir())) == 2


def test_monai_knows_its_properties_and_its_metadata_says_what_the_network_is(tmp_path):
    folder = _bundle(tmp_path / "bundle", TREE["preprocess"])
    out = tmp_path / "out"
    export(ExportJob(folder, out, "monai", tasks=("grade", "mask")))
    config = json.loads((out / "configs/inference.json").read_text())
    required = {name for name, known in InferProperties.items() if known[BundleProperty.REQUIRED]}
    assert required - set(config) == {"evaluator"}  # an ignite engine, which the workflow does without
    known = json.loads((out / "configs/metadata.json").read_text())
    outputs = known["network_data_format"]["outputs"]
    answers = torch.jit.load(out / "models/model.ts")(torch.zeros(1, 3, 32, 32))
    assert {name: tensor.shape[1] for name, tensor in answers.items()} == {
        name: output["num_channels"] for name, output in outputs.items()
    }
    assert outputs["mask"]["channel_def"] == {"0": "background", "1": "nucleus"}
    assert known["network_data_format"]["inputs"]["image"]["spatial_shape"] == [32, 32]
    assert known["medmtl"]["bundle"] == load_bundle(folder).id and "research use only" in known["intended_use"]


@pytest.mark.parametrize("case", PREPROCESS)
def test_monais_transforms_do_what_the_preprocessing_does(tmp_path, case):
    """Through `export`, which compares drawn image files end to end; here one answer is enough."""
    folder = _bundle(tmp_path / "bundle", PREPROCESS[case])
    done = export(ExportJob(folder, tmp_path / "out", "monai", tasks=("mask",)))
    assert done.files["configs/inference.json"]["mask"] < 1e-5


def test_another_transform_is_seen(tmp_path, monkeypatch):
    """MONAI's own resize does not smooth as ours does: the comparison from image files on must refuse it."""
    from medmtl.export import monai_bundle

    def own_resize(preprocess):
        steps = transforms(preprocess)
        steps[3] = {"_target_": "Resized", "keys": "image", "spatial_size": [45, 38], "mode": "bilinear"}
        return steps

    monkeypatch.setattr(monai_bundle, "transforms", own_resize)
    folder = _bundle(tmp_path / "bundle", TREE["preprocess"])
    refuses("E-EXP-PARITY", lambda: export(ExportJob(folder, tmp_path / "out", "monai")), says="inference.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", REFUSED)
def test_what_monai_cannot_express_is_refused_by_name(key):
    spec = validate(ModelSpec, {**TREE, "preprocess": {**REFUSED[key]}}, where="test")
    refuses("E-EXP-MONAI", lambda: transforms(spec.preprocess), says=f"preprocess.{key}")
