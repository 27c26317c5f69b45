"""The listing of ``docs/export.md``, which needs no medmtl, makes of image files what :class:`Preprocess` makes."""

import csv
import io
import json
import re
import types
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from medmtl.bundle import ModelSpec, save_bundle
from medmtl.config import plain, validate
from medmtl.data import background, grid
from medmtl.data.preprocess import Preprocess
from medmtl.export.pipeline import ExportJob, export
from medmtl.inference.pipeline import Job, predict
from medmtl.models.sliding import slide

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
IMPORTS = {"functools", "itertools", "math", "nibabel", "numpy", "PIL", "scipy"}
NORMALISE = [
    {"kind": "none"},
    {"kind": "image"},
    {"kind": "image", "per_channel": False},
    {"kind": "foreground"},
]
kinds = pytest.mark.parametrize(
    "normalise", [*NORMALISE, {"kind": "fixed"}], ids=lambda how: "-".join(map(str, how.values()))
)


@pytest.fixture(scope="module")
def recipe():
    """The page's listing as a module of its own; it imports four libraries and nothing of ours."""
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert {name.partition(".")[0] for name in re.findall(r"^\s*(?:from|import) (\S+)", text, re.MULTILINE)} == IMPORTS
    module = types.ModuleType("recipe")
    exec(compile(text, str(PAGE), "exec"), module.__dict__)  # our own page, as a reader would run it
    return module


def settings(**tree):
    normalise = dict(tree.pop("normalise", {"kind": "none"}))
    if normalise["kind"] == "fixed":
        count = tree["channels"]
        normalise |= {"mean": [0.5, 0.4, 0.3][:count], "std": [0.25, 0.2, 0.3][:count]}
    return validate(Preprocess, {**tree, "normalise": normalise}, where="test")


def both(recipe, path, preprocess):
    """(What the listing gives, what medmtl gives), [C, *S]; the listing sees JSON alone."""
    found = recipe.network_input(path, json.loads(json.dumps(plain(preprocess))))[0]
    expected = preprocess.apply(preprocess.read(path)[0]).numpy()
    assert found.dtype == expected.dtype == np.float32 and found.shape == expected.shape
    assert expected.std() > 1e-3  # an image of one value would agree with anything
    return found, expected


def agrees(recipe, path, preprocess, *, resized=0.0):
    """Bit for bit until it is normalised, but for a resize; then as the last bit of mean and deviation allows."""
    unit = preprocess.model_copy(update={"normalise": validate(Preprocess, {}, where="test").normalise})
    found, expected = both(recipe, path, unit)
    np.testing.assert_allclose(found, expected, rtol=0, atol=resized)
    found, expected = both(recipe, path, preprocess)
    spread = 0.05 if resized else 1.0  # least deviation of the drawn pictures, and of their fixed constants
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 + resized / spread)


# ---- pictures


def drawn(size, *, channels=3, seed=0, dtype=np.uint8):
    """Noise about a slope, with some highlights, one of them at the edge and one too large."""
    rng, (height, width) = np.random.default_rng(seed), size
    slope = np.linspace(0.1, 0.6, height * width).reshape(height, width, 1)
    image = slope + 0.15 * rng.random((height, width, channels))
    for where in [np.s_[3:6, 4:7], np.s_[0:2, -2:], np.s_[10, 10], np.s_[-12:-4, 2:12]]:
        image[where] = 0.95
    top = np.iinfo(dtype).max
    return np.squeeze((image * top).round().astype(dtype))


@kinds
@pytest.mark.parametrize("resize", [None, (45, 38), (61, 40)], ids=["as it is", "smaller", "larger"])
@pytest.mark.parametrize("window", [None, (33, 64)], ids=["whole", "window"])
def test_a_picture_is_resized_cropped_padded_and_normalised(recipe, tmp_path, resize, window, normalise):
    for channels, size in ((3, (60, 51)), (1, (31, 38))):
        Image.fromarray(drawn(size, channels=channels)).save(tmp_path / "a.png")
        preprocess = settings(channels=channels, resize=resize, window=window, pad=True, normalise=normalise)
        agrees(recipe, tmp_path / "a.png", preprocess, resized=5e-7 if resize else 0.0)


@pytest.mark.parametrize("how", [{}, {"dilate_px": 0, "sigma_px": 0.8, "largest": 0.03}, {"chroma": 0.01}])
@pytest.mark.parametrize("channels", [1, 3])
def test_highlights_are_filled_with_the_same_values(recipe, tmp_path, channels, how):
    Image.fromarray(drawn((60, 51), channels=channels)).save(tmp_path / "a.png")
    preprocess = settings(channels=channels, highlights=how, normalise={"kind": "image"})
    agrees(recipe, tmp_path / "a.png", preprocess)
    filled = preprocess.seen(preprocess.read(tmp_path / "a.png")[0])
    plainly = preprocess.model_copy(update={"highlights": None})
    assert not torch.equal(filled, plainly.seen(preprocess.read(tmp_path / "a.png")[0]))


def _exif(image):
    exif = image.getexif()
    exif[274] = 6  # orientation: a quarter turn
    return exif


FILES = {
    "grey of 16 bits": (1, lambda path: Image.fromarray(drawn((40, 30), channels=1, dtype=np.uint16)).save(path)),
    "palette": (3, lambda path: Image.fromarray(drawn((40, 30))).quantize(16).save(path)),
    "one bit": (1, lambda path: Image.fromarray(drawn((40, 30), channels=1)).convert("1").save(path)),
    "opaque alpha": (3, lambda path: Image.fromarray(drawn((40, 30))).convert("RGBA").save(path)),
    "grey and opaque alpha": (1, lambda path: Image.fromarray(drawn((40, 30), channels=1)).convert("LA").save(path)),
    "turned": (3, lambda path: (image := Image.fromarray(drawn((40, 30)))).save(path, exif=_exif(image))),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_picture_is_read_as_the_same_numbers(recipe, tmp_path, kind):
    channels, save = FILES[kind]
    save(tmp_path / "a.png")
    agrees(recipe, tmp_path / "a.png", settings(channels=channels))


@pytest.mark.parametrize("size", [(45, 38), (200, 17), (61, 333)])
def test_pillow_resizes_as_the_filter_does(recipe, size):
    image = np.random.default_rng(0).random((1, 120, 97), dtype=np.float32)
    pillow = Image.fromarray(image[0], mode="F").resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(np.asarray(pillow), recipe.resized(image, size)[0], atol=5e-6)


# ---- volumes


def affine(codes, zooms, degrees=0.0):
    """Axes along ``codes``, then turned about (1, 2, 3)."""
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    turn = nib.quaternions.angle_axis2mat(np.radians(degrees), [1, 2, 3])
    result = np.eye(4)
    result[:3, :3] = turn @ np.array([directions[code] for code in codes], float).T * zooms
    result[:3, 3] = -40, 25, 7
    return result


PLACES = {
    "RAS": affine("RAS", (1, 1, 1)),
    "LAS anisotropic": affine("LAS", (0.8, 0.8, 3.0)),
    "IPL permuted": affine("IPL", (1.7, 0.6, 1.2)),
    "LPS oblique": affine("LPS", (0.9, 1.1, 2.5), 21),
    "PSR far from its axes": affine("PSR", (2, 1.4, 0.7), -43),
}


def head(shape=(19, 24, 15), seed=0):
    """(Texture in an ellipsoid, 0 around it; where the ellipsoid is)."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (place**2).sum(0) < 0.6
    return np.where(inside, np.random.default_rng(seed).normal(300, 60, shape), 0.0), inside


def _ringing():
    tissue, inside = head()
    rng = np.random.default_rng(1)
    waves = rng.normal(0, 0.5, tissue.shape) * (rng.random(tissue.shape) < 0.2)
    return np.where(inside, tissue, waves).astype(np.float32)


def _one_voxel_below():
    tissue, _ = head()
    tissue[0, 0, 0] = -25
    return (tissue - 1000).astype(np.float32)


def _lowest_is_frequent():
    """A quarter of the voxels are the lowest value, more lie close together just above: a share that float32 rounds."""
    rng, count = np.random.default_rng(2), 19 * 24 * 15
    lowest = next(n for n in range(count // 4, count) if float(np.float32(n) / np.float32(count)) < n / count)
    close = rng.uniform(0.0096, 0.0104, count * 35 // 100)
    values = np.concatenate((np.zeros(lowest), close, rng.uniform(0.05, 1, count - lowest - close.size)))
    return rng.permutation(1000 * values).reshape(19, 24, 15).astype(np.float32)


def _signal_below():
    """The most frequent value has a fifth of the voxels well below it, 15 % of the range above: no ringing."""
    rng, count = np.random.default_rng(5), 19 * 24 * 15
    below, above = rng.uniform(-150, -100, count // 5), rng.uniform(100, 1000, count // 3)
    values = np.concatenate((below, above, np.full(count - below.size - above.size, 0.0)))
    return rng.permutation(values).reshape(19, 24, 15).astype(np.float32)


VOLUMES = {
    "integers": head()[0].astype(np.int16),
    "tissue about 0, no air": np.random.default_rng(3).normal(0, 50, (19, 24, 15)).astype(np.float32),
    "noisy air": np.abs(head()[0] + np.random.default_rng(4).normal(20, 5, (19, 24, 15))),
    "ringing": _ringing(),
    "one voxel below the background": _one_voxel_below(),
    "signal below the background": _signal_below(),
    "a lowest value as frequent as any": _lowest_is_frequent(),
}
INTENSITIES = [
    {"kind": "range", "low": -1020, "high": 320},
    {"kind": "percentile"},
    {"kind": "percentile", "low": 2.0, "high": 98.0},
    {"kind": "percentile", "foreground": False},
    {"kind": "percentile", "low": 1.0, "foreground": False},
]
VOXELS = [None, (2.0, 1.5, 1.5), (0.7, 0.9, 1.1), (4.0, 0.8, 3.0)]


def saved(folder, array, where):
    nib.Nifti1Image(array, where).to_filename(folder / "v.nii.gz")
    return folder / "v.nii.gz"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spacing_mm", VOXELS, ids=str)
@pytest.mark.parametrize("axes", ["SAR", "LIP"])
def test_a_volume_is_turned_and_resampled(recipe, tmp_path, place, spacing_mm, axes):
    path = saved(tmp_path, VOLUMES["integers"], PLACES[place])
    volume = {"axes": axes, "spacing_mm": spacing_mm}
    window, normalise = ((16, 20, 41), {"kind": "foreground"}) if axes == "SAR" else (None, {"kind": "none"})
    agrees(recipe, path, settings(channels=1, volume=volume, window=window, pad=True, normalise=normalise))


@pytest.mark.parametrize("array", VOLUMES)
@pytest.mark.parametrize("intensity", INTENSITIES, ids=lambda how: "-".join(map(str, how.values())))
def test_intensities_have_the_same_background_and_limits(recipe, tmp_path, monkeypatch, array, intensity):
    path = saved(tmp_path, VOLUMES[array], PLACES["LPS oblique"])
    preprocess = settings(channels=1, volume={"intensity": intensity, "spacing_mm": (2, 2, 2)})
    agrees(recipe, path, preprocess)
    for module, name in ((recipe, "SAMPLE"), (background, "_SAMPLE"), (grid, "_SAMPLE")):
        monkeypatch.setattr(module, name, 1500)  # of larger volumes, one in several voxels is looked at
    agrees(recipe, path, preprocess)


@kinds
@pytest.mark.parametrize("spacing_mm", VOXELS[:2], ids=str)
def test_a_volume_is_cropped_padded_and_normalised(recipe, tmp_path, normalise, spacing_mm):
    path = saved(tmp_path, VOLUMES["ringing"], PLACES["RAS"])
    volume = {"spacing_mm": spacing_mm}
    for size in ((17, 8, 40), (9, 14, 11)):
        agrees(recipe, path, settings(channels=1, volume=volume, window=size, pad=True, normalise=normalise))
    patches = settings(channels=1, volume=volume, patches={"size": (8, 30, 17)}, normalise=normalise)
    agrees(recipe, path, patches)


def test_scaled_numbers_units_of_length_and_a_qform_are_read_alike(recipe, tmp_path):
    image = nib.Nifti1Image(VOLUMES["integers"], None)
    where = PLACES["LPS oblique"].copy()
    where[:3] *= 1e-3
    image.set_qform(where, code=1)
    image.header.set_xyzt_units("meter")
    image.header.set_slope_inter(0.37, -11.5)
    image.to_filename(tmp_path / "v.nii.gz")
    agrees(recipe, tmp_path / "v.nii.gz", settings(channels=1, volume={"spacing_mm": (2, 2, 2)}))
    flat = nib.Nifti1Image(VOLUMES["integers"][..., 7:8, None], PLACES["RAS"])  # a fourth axis of one
    flat.to_filename(tmp_path / "v.nii.gz")
    agrees(recipe, tmp_path / "v.nii.gz", settings(channels=1, volume={}))


# ---- a file and its answers


@pytest.mark.parametrize(("shape", "overlap"), [((21, 19), 0.5), ((16, 40), 0.25), ((16, 12), 0.9)])
def test_windows_slide_and_blend_alike(recipe, shape, overlap):
    image = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(0))

    def answers(windows, row=0):
        ramp = torch.linspace(0, 1, 16)[:, None]  # an answer that depends on the place in the window
        return {"map": windows * ramp, "value": windows.amax((1, 2, 3)), "class": windows.mean((2, 3))}

    expected = slide(image, answers, size=(16, 12), overlap=overlap, together=3)
    for name, value in expected.items():
        found = recipe.slid(
            image.numpy(),
            {"size": [16, 12], "overlap": overlap},
            lambda x, name=name: answers(torch.tensor(x))[name].numpy(),
        )
        np.testing.assert_allclose(found, value.numpy(), atol=1e-6)


def _bundle(folder):
    """A bundle of volumes whose answers depend on every voxel of its window, and much."""
    tree = {
        "preprocess": {
            "channels": 1,
            "volume": {"spacing_mm": [2.0, 1.6, 1.8]},
            "window": [9, 32, 32],
            "pad": True,
            "normalise": {"kind": "foreground"},
        },
        "encoder": {"kind": "slices", "name": "test_efficientnet"},
        "tasks": {
            "age": {"kind": "regression", "low": 0, "high": 100, "centre": 50, "scale": 20, "unit": "years"},
            "grade": {"kind": "classification", "classes": ["low", "high"]},
        },
    }
    spec = validate(ModelSpec, tree, where="test")
    torch.manual_seed(0)
    model = spec.build()
    for name, parameter in model.heads.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=2.0)
    save_bundle(folder, spec, model, provenance={}, card="{bundle_id}")
    return folder


def test_a_file_alone_gives_the_numbers_of_predict(recipe, tmp_path):
    """From the exported file and the page, nothing else: description, image, network, answer."""
    bundle, images = _bundle(tmp_path / "bundle"), tmp_path / "in"
    export(ExportJob(bundle, tmp_path / "out", "torchscript"))
    images.mkdir()
    for number, array in enumerate(VOLUMES.values()):
        saved(images, array, PLACES["LPS oblique"]).rename(images / f"{number}.nii.gz")
    predict(Job(bundle, images, tmp_path / "told", device="cpu"), console=Console(file=io.StringIO()))
    with (tmp_path / "told" / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = {row["image"]: row for row in csv.DictReader(stream)}
    assert len(rows) == len(VOLUMES)
    told = {"medmtl.json": ""}
    network = torch.jit.load(tmp_path / "out" / "model.ts", _extra_files=told)
    description = json.loads(told["medmtl.json"])
    ages = []
    for name, row in rows.items():
        image = recipe.network_input(images / name, description["preprocess"])
        assert list(image.shape[1:]) == description["input"]["image"][1:]
        found = network(torch.from_numpy(image))
        expected = [float(row[key]) for key in ("age.value", "grade.p.low", "grade.p.high")]  # of 7 digits
        np.testing.assert_allclose([float(found["age"]), *found["grade"][0].tolist()], expected, rtol=2e-6)
        ages.append(expected[0])
    assert np.ptp(ages) > 1  # years
