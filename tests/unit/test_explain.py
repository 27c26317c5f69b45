"""Explanations of volumes and images: where the model looks, in native space, in pictures, and slice by slice."""

import csv

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from laws import refuses
from torch import nn

from medmtl import cli
from medmtl.bundle import ModelSpec, save_bundle
from medmtl.cli import explain as command
from medmtl.data.case import Case, write_manifest
from medmtl.data.grid import RangeIntensity, VolumeGrid
from medmtl.data.loader import CaseDataset
from medmtl.data.patches import Patches
from medmtl.data.preprocess import Preprocess
from medmtl.evaluation.plots.slices import slice_weights
from medmtl.inference.attention import attention
from medmtl.inference.evidence import evidence
from medmtl.inference.explain import ExplainJob, explain
from medmtl.inference.montage import focus, heat, labelled, montage, panel_widths
from medmtl.inference.occlusion import occlusion
from medmtl.inference.saliency import saliency
from medmtl.io.nifti import read_nifti, write_nifti
from medmtl.io.raster import read_image, write_png
from medmtl.io.volume import Volume
from medmtl.models.decoder import DecoderConfig
from medmtl.models.encoder import TimmConfig
from medmtl.models.encoders import EfficientNet3dConfig, SlicesConfig
from medmtl.models.head import PoolConfig
from medmtl.predictor import Predictor
from medmtl.tasks.classification import Classification
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

TASKS = {
    "score": Regression(low=0, high=100, pool=PoolConfig(over="attention")),
    "kind": Classification(classes=("a", "b")),
    "ball": Segmentation(classes=("out", "in"), decoder=DecoderConfig(width=4)),
}


class Spot(nn.Module):
    """Answers from one box of the image alone."""

    def __init__(self, box):
        super().__init__()
        self.box = (slice(None), slice(None), *box)

    def forward(self, image, covariates=None):
        mean = image[self.box].flatten(1).mean(1, keepdim=True)
        return {"score": mean, "kind": torch.cat([mean, -mean], 1), "ball": torch.cat([-image, image], 1)}


def spot_predictor(box, **preprocess):
    tasks = {**TASKS, "score": TASKS["score"].fit([40.0, 60.0])}
    spec = ModelSpec.model_construct(preprocess=Preprocess(channels=1, **preprocess), tasks=tasks, views="identity")
    return Predictor(Spot(box), spec)


BOX = (slice(8, 12), slice(4, 8), slice(12, 16))


@pytest.mark.parametrize("task", ["score", "kind"])
def test_saliency_and_occlusion_of_a_volume_lie_where_the_model_looks(task):
    image = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(0)) + 1
    predictor = spot_predictor(BOX)
    for found in (saliency(predictor, image, task), occlusion(predictor, image, task, boxes=4)):
        assert found.shape == (16, 16, 16)
        inside = np.zeros(found.shape, bool)
        inside[BOX] = True
        assert np.abs(found[inside]).sum() > 0.95 * np.abs(found).sum() > 0


def test_occlusion_is_the_loss_of_the_answer_in_its_unit():
    image = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    image[(0, *BOX)] += 0.4
    predictor = spot_predictor(BOX)
    covered = image.clone()
    covered[(0, *BOX)] = image.mean()
    lost = predictor.decode(image[None])["score"] - predictor.decode(covered[None])["score"]
    found = occlusion(predictor, image, "score", boxes=4)
    assert float(lost) > 1 and found[10, 6, 14] == pytest.approx(float(lost), rel=1e-5) and found[0, 0, 0] == 0
    of_a_mask = occlusion(predictor, image, "ball", boxes=4)
    assert of_a_mask[10, 6, 14] > 0 and of_a_mask[0, 0, 0] != 0  # every voxel is its own


def test_patches_are_explained_by_windows():
    """Each window looks at the same corner of itself; the blended map is there and nowhere else."""
    box = (slice(0, 4),) * 3
    predictor = spot_predictor(box, patches=Patches(size=(8, 8, 8), overlap=0.0))
    image = torch.rand(1, 16, 8, 12, generator=torch.Generator().manual_seed(0)) + 1
    found = saliency(predictor, image, "score")
    assert found.shape == (16, 8, 12)
    assert found[:4, :4, :4].min() > 0.3 and found[8:12, :4, :4].min() > 0.3 and found[5:8, 5:].max() < 0.1
    one = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    np.testing.assert_array_equal(
        saliency(predictor, one, "kind"), saliency(spot_predictor(box), one, "kind")
    )  # a single window is the whole


# Slices


def spec_of(encoder, tasks=TASKS, **preprocess):
    where = {"channels": 1, **preprocess}
    return ModelSpec(preprocess=Preprocess(**where), encoder=encoder, tasks=tasks)


def trained(spec):
    """Fresh parameters, the attention no longer uniform."""
    torch.manual_seed(0)
    model = spec.build().eval()
    for head in model.heads.values():
        if getattr(head, "pool", None) is not None:
            nn.init.normal_(head.pool.score.weight, std=30.0)
    return Predictor(model, spec)


def test_attention_is_the_head_s_own_and_only_where_there_is_one():
    predictor = trained(spec_of(SlicesConfig(name="test_efficientnet")))
    image = torch.rand(1, 7, 32, 40, generator=torch.Generator().manual_seed(0))
    found = attention(predictor, image, "score")
    with torch.no_grad():
        own = predictor.model.heads["score"].pool.weights(predictor.model.encoder(image[None])[-1])[0]
    np.testing.assert_allclose(found, own, atol=1e-6)
    assert found.std() > 1e-3 and attention(predictor, image, "kind") is None
    assert not predictor.model.heads["score"].pool._forward_hooks


def test_a_slab_shares_its_weight_evenly_and_windows_are_blended():
    predictor = trained(spec_of(EfficientNet3dConfig()))
    image = torch.rand(1, 70, 32, 32, generator=torch.Generator().manual_seed(0))
    found = attention(predictor, image, "score")
    with torch.no_grad():
        own = predictor.model.heads["score"].pool.weights(predictor.model.encoder(image[None])[-1])[0]
    assert len(own) == 3 and found.shape == (70,)
    np.testing.assert_allclose([found[:32].sum(), found[32:64].sum(), found[64:].sum()], own, atol=1e-6)
    np.testing.assert_allclose(found[:32], found[0], rtol=1e-5)
    patched = trained(spec_of(SlicesConfig(name="test_efficientnet"), patches={"size": [4, 32, 32]}))
    windows = attention(patched, image[:, :9], "score")
    assert windows.shape == (9,) and windows.sum() == pytest.approx(1) and windows.min() > 0


def test_attention_over_an_image_is_a_map():
    predictor = trained(spec_of(TimmConfig(name="test_efficientnet"), {"score": TASKS["score"]}))
    found = attention(predictor, torch.rand(1, 64, 50), "score")
    assert found.shape == (64, 50) and found.sum() == pytest.approx(1)


# Pictures


def test_a_montage_has_the_head_and_the_front_up_and_square_voxels():
    array = np.zeros((3, 4, 5))
    array[2, 3, 4] = 9  # the head, the front, the right
    picture = montage(array, (2, 3, 4), axes="SAR", spacing=(2.0, 1.0, 1.0))
    assert picture.shape == (6, 5 + 2 + 5 + 2 + 4)
    assert picture[1, 4] == 9  # axial: front row, right column, centred in the height
    assert (picture[0:2, 7 + 4] == 9).all()  # coronal: the head's slice is two pixels high
    assert (picture[0:2, 14 + 3] == 9).all()  # sagittal: the front stays to the right
    assert (picture > 0).sum() == 1 + 2 + 2
    flipped = montage(array[::-1, ::-1], (0, 0, 4), axes="IPR", spacing=(2.0, 1.0, 1.0))
    np.testing.assert_array_equal(flipped[:, :12], picture[:, :12])


def test_focus_is_the_middle_of_the_foreground():
    mask = np.zeros((9, 9, 9), int)
    mask[2:5, 6, 1:4] = 1
    assert focus(mask, mask.shape) == (3, 6, 2) and focus(0 * mask, (9, 8, 7)) == (4, 4, 3) == focus(None, (9, 8, 7))


def test_heat_leaves_what_is_zero_and_tells_signs_apart():
    grey = np.full((1, 3, 3), 100, np.uint8)
    out = heat(grey, np.array([[0.0, 1.0, -1.0]]))
    assert out[0, 0].tolist() == [100, 100, 100]
    assert out[0, 1, 0] > out[0, 1, 2] and out[0, 2, 2] > out[0, 2, 0]


@pytest.mark.parametrize(("shape", "ruler"), [((36, 44, 30), 20), ((9, 8, 7), 5), ((200, 240, 250), 50)])
def test_a_picture_for_people_is_large_and_says_what_it_shows(shape, ruler):
    spacing = (2.0, 1.0, 1.0)
    cut = montage(np.ones(shape), tuple(n // 2 for n in shape), axes="SAR", spacing=spacing)
    widths = panel_widths(shape, spacing)
    assert sum(widths) + 2 * (len(widths) - 1) == cut.shape[1]
    grey = np.repeat((100 * cut).astype(np.uint8)[..., None], 3, 2)
    shown = labelled(grey, widths, "SAR", millimetres=1.0, scale=(-0.5, 0.5))
    factor = shown.shape[1] // cut.shape[1]
    assert shown.shape[1] == factor * cut.shape[1] >= 640 > (factor - 1) * cut.shape[1]
    inner = shown[22 : 22 + factor * cut.shape[0]]
    np.testing.assert_array_equal(inner, np.kron(grey, np.ones((factor, factor, 1), np.uint8)))  # nothing is stretched
    bar = shown[22 + inner.shape[0] + 10].max(1) == 255  # the ruler's row
    assert bar[4] and np.argmin(bar[4:]) == ruler * factor
    colours = shown[-30]
    assert colours[5, 2] > colours[5, 0] and colours[-6, 0] > colours[-6, 2]  # blue below 0, red and yellow above
    starts = np.cumsum([0, *((width + 2) * factor for width in widths[:-1])])
    assert all((shown[:20, start : start + 60] > 128).any() for start in starts)  # each plane is named


def test_bars_stand_at_their_slices():
    rows = pd.DataFrame({"slice": [0, 1, 2], "position_mm": [-3.0, 0.0, 3.0], "weight": [0.2, 0.5, 0.3]})
    axes = slice_weights(rows, title="t").axes[0]
    assert [(p.get_x() + p.get_width() / 2, p.get_height()) for p in axes.patches] == [
        (pytest.approx(-3), 0.2), (pytest.approx(0), 0.5), (pytest.approx(3), 0.3)]  # fmt: skip
    assert slice_weights(rows[:0], title="t").axes


# The job


AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])
AFFINE[:3, 3] = (30.0, -20.0, 5.0)
GRID = VolumeGrid(spacing_mm=(3.0, 2.5, 2.5), intensity=RangeIntensity(low=0, high=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two volumes, one that is cut off, and a bundle."""
    root = tmp_path_factory.mktemp("explain")
    cases = []
    for n in range(3):
        array = np.random.default_rng(n).random((26, 30, 12)).astype(np.float32)
        write_nifti(root / f"v{n}.nii.gz", Volume(array, AFFINE))
        mask = np.zeros((26, 30, 12), np.int16)
        mask[3:9, 20:26, 4:8] = 1
        write_nifti(root / f"m{n}.nii.gz", Volume(mask, AFFINE))
        targets = {"score": "20", "ball": f"m{n}.nii.gz"} if n else {"score": "30"}
        cases.append(Case(f"c{n}", f"p{n}", f"v{n}.nii.gz", "a", "test", targets))
    (root / "v2.nii.gz").write_bytes((root / "v2.nii.gz").read_bytes()[:900])
    write_manifest(root / "manifest.csv", cases)
    spec = spec_of(
        SlicesConfig(name="test_efficientnet"), {"score": TASKS["score"], "ball": TASKS["ball"]}, volume=GRID,
        window=(10, 24, 24), pad=True,
    )  # fmt: skip
    predictor = trained(spec)
    save_bundle(root / "bundle", spec, predictor.model, provenance={}, card="")
    return root, predictor, cases


def test_cases_of_a_manifest_are_explained_in_native_space(folder, tmp_path):
    root, predictor, _ = folder
    job = ExplainJob(root / "bundle", (root / "manifest.csv",), tmp_path / "out", boxes=2)
    done = explain(job)
    assert (done.cases, done.failed, done.exit_code) == (3, 1, 3)
    rows = list(csv.DictReader(done.table.open()))
    assert [(row["case_id"], row["task"], row["status"]) for row in rows] == [
        ("c0", "score", "ok"), ("c0", "ball", "ok"), ("c1", "score", "ok"), ("c1", "ball", "ok"), ("c2", "", "failed")
    ]  # fmt: skip
    assert rows[-1]["code"].startswith("E-") and rows[-1]["message"]
    for row in rows[:-1]:
        for name in row["files"].split():
            assert (tmp_path / "out" / name).is_file()
    volume = read_nifti(tmp_path / "out/c0/score.saliency.nii.gz")
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.array.shape == (26, 30, 12)
    preprocess = predictor.spec.preprocess
    native, source = preprocess.read(root / "v0.nii.gz")
    expected = saliency(predictor, preprocess.apply(native), "score")
    back = preprocess.restore(torch.from_numpy(expected).float()[None], native.shape[1:]).maps
    np.testing.assert_allclose(volume.array, GRID.place(source).to_native(back)[0], atol=1e-4)
    assert not volume.array[:, :, 0].any() and volume.array.max() > 0.2  # the window leaves out the lowest slice
    picture = read_image(tmp_path / "out/c0/score.occlusion.png", channels=3)
    assert picture.std() > 0.05 and picture.shape[2] >= 640
    assert nib.load(tmp_path / "out/c1/ball.occlusion.nii.gz").shape == (26, 30, 12)


def test_slices_are_listed_with_their_place_in_the_patient(folder, tmp_path):
    root, predictor, _ = folder
    job = ExplainJob(root / "bundle", (root / "v1.nii.gz",), tmp_path / "out", tasks=("score",))
    done = explain(job, draw=lambda table: [table.with_suffix(".svg")])
    (table,) = done.attention
    assert pd.read_csv(done.table)["files"][0].split() == [
        f"v1/score.{end}" for end in ("saliency.nii.gz", "saliency.png", "attention.csv", "attention.svg")
    ]
    rows = pd.read_csv(table)
    preprocess = predictor.spec.preprocess
    native, _ = preprocess.read(root / "v1.nii.gz")
    weights = attention(predictor, preprocess.apply(native), "score")
    assert rows["slice"].tolist() == list(range(1, 11)) and len(native[0]) == 12
    np.testing.assert_allclose(rows["weight"], weights, rtol=1e-4)
    np.testing.assert_allclose(rows["position_mm"], 5.0 + 3.0 * rows["slice"], atol=1e-3)


def test_what_cannot_be_is_refused(folder, tmp_path):
    root, _, _ = folder
    image = root / "v0.nii.gz"
    refuses("E-EXP-TASK", lambda: explain(ExplainJob(root / "bundle", (image,), tmp_path / "o", tasks=("age",))))
    refuses("E-EXP-NAME", lambda: explain(ExplainJob(root / "bundle", (image, image), tmp_path / "o")), says="v0")
    (tmp_path / "mine.txt").write_text("x")
    refuses("E-EXP-OUT", lambda: explain(ExplainJob(root / "bundle", (image,), tmp_path)))
    gone = explain(ExplainJob(root / "bundle", (root / "gone.nii.gz",), tmp_path / "o"))
    assert gone.exit_code == 4


def test_the_command_draws_the_slices_too(folder, tmp_path, capsys):
    assert command.explain is not None
    root, _, _ = folder
    out = tmp_path / "out"
    code = cli.run(["explain", str(root / "bundle"), str(root / "manifest.csv"), str(out), "--limit", "1",
                    "--task", "score", "--device", "cpu"])  # fmt: skip
    assert code == 0 and "1 of 1 cases explained" in capsys.readouterr().out
    assert {path.name for path in (out / "c0").iterdir()} == {
        "score.saliency.nii.gz", "score.saliency.png", "score.attention.csv", "score.attention.png",
        "score.attention.svg"}  # fmt: skip


def test_images_in_two_dimensions_are_explained_as_pictures(tmp_path):
    spec = spec_of(TimmConfig(name="test_efficientnet"), window=(32, 32))
    predictor = trained(spec)
    save_bundle(tmp_path / "bundle", spec, predictor.model, provenance={}, card="")
    write_png(tmp_path / "i.png", np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8))
    done = explain(ExplainJob(tmp_path / "bundle", (tmp_path / "i.png",), tmp_path / "out", boxes=2))
    assert done.exit_code == 0 and not done.attention
    names = {path.name for path in (tmp_path / "out/i").iterdir()}
    assert names == {f"{task}.{kind}.png" for task in TASKS for kind in ("saliency", "occlusion")}
    assert read_image(tmp_path / "out/i/score.saliency.png", channels=3).shape == (3, 40, 50)


# The gallery of the report


def test_evidence_of_a_volume_is_a_picture_of_three_slices(folder):
    root, predictor, cases = folder
    targets = {name: task.reader() for name, task in predictor.spec.tasks.items()}
    dataset = CaseDataset(cases[:2], root, targets, (), predictor.spec.preprocess)
    with_mask, without = (evidence(predictor, dataset, i, "score") for i in (1, 0))
    size = with_mask.image.shape[:2]
    assert with_mask.image.dtype == np.uint8 and with_mask.image.shape == (*size, 3)
    assert with_mask.target.shape == with_mask.prediction.shape == with_mask.saliency.shape == size
    assert without.target is None and without.prediction is not None
    foreground = np.bincount(with_mask.target.ravel())
    assert foreground[1] > 20  # each of the three slices goes through the mask
