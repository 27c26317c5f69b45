"""Augmentation: counted randomness, one geometry for image and labels, and no key that nobody reads."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.transforms as mt
import numpy as np
import pytest
import torch
from monai.transforms.utils import create_rotate, create_shear
from pydantic import BaseModel
from torch import Tensor

from medmtl.config import Config, override
from medmtl.data.appearance import blur, low_frequencies, mix_amplitude, scale_amplitude
from medmtl.data.augment import Augment
from medmtl.data.geometry import Affine, Geometry, Placement, draw_placement, rotation, shearing
from medmtl.data.preprocess import Preprocess
from medmtl.data.stain import LUMA, from_stain_amounts, hue_matrix, restain, saturation_matrix, stain_amounts
from medmtl.errors import UserError

WINDOW = (16, 16)
APPEARANCE: dict[str, Any] = {
    "fourier": {"strength": 1.0, "band": 0.5},
    "stain": {"sigma": 0.5, "bias": 0.5},
    "colour": {
        "gain": 0.5,
        "offset": 0.5,
        "brightness": 0.5,
        "contrast": 0.5,
        "saturation": 0.5,
        "hue_deg": 90,
        "gamma": 1,
    },
    "blur": {"sigma": 2.0},
    "noise": {"std": 0.5},
    "erase": {"fraction": 0.3},
    "highlights": {"count": 3, "radius_px": 4.0},
}
SCANNER: dict[str, Any] = {
    "bias_field": {"strength": 0.4},
    "motion": {"rotate_deg": 10.0, "translate_px": 3.0},
    "ghosting": {"strength": 0.8},
    "gibbs": {"alpha": 0.7},
    "spike": {"strength": 0.5},
    "rician": {"std": 0.1},
    "contrast": {"stretch": 0.3, "gamma": 0.5},
}
AFFINE = {"rotate_deg": 180, "scale": (0.7, 1.4), "shear": 0.3}
EVERYTHING = {"geometry": {"flip": True, "rotate90": True, "jitter_px": 3, "affine": AFFINE}, **APPEARANCE,
              "mri": SCANNER}  # fmt: skip

# Each key, what it is added to, and a value that must change the output.
KEYS: dict[str, tuple[dict[str, Any], Any]] = {
    "geometry.flip": ({}, True),
    "geometry.rotate90": ({}, True),
    "geometry.jitter_px": ({}, 3),
    "geometry.affine.probability": ({"geometry": {"affine": AFFINE}}, 0.0),
    "geometry.affine.rotate_deg": ({}, 30.0),
    "geometry.affine.scale": ({}, [0.5, 0.6]),
    "geometry.affine.shear": ({}, 0.3),
    "geometry.affine.padding": ({"geometry": {"affine": {"scale": (0.1, 0.1)}}}, "zeros"),
    "fourier.band": ({"fourier": {"strength": 1.0}}, 0.9),
    **{f"{group}.probability": ({group: tree}, 0.0) for group, tree in APPEARANCE.items()},
    **{
        f"{group}.{key}": ({}, value)
        for group, tree in APPEARANCE.items()
        for key, value in tree.items()
        if key not in ("band", "radius_px")
    },
    "highlights.radius_px": ({"highlights": {"count": 1}}, 3.0),
    **{f"mri.{group}.{key}": ({}, value) for group, tree in SCANNER.items() for key, value in tree.items()},
    **{f"mri.{group}.probability": ({"mri": {group: tree}}, 0.0) for group, tree in SCANNER.items()},
    "mri.bias_field.degree": ({"mri": {"bias_field": {"strength": 0.4}}}, 1),
    "mri.motion.moves": ({"mri": {"motion": {"translate_px": 3}}}, 5),
    "mri.ghosting.copies": ({"mri": {"ghosting": {"strength": 0.8}}}, [7, 9]),
    "mri.keep_background": (
        {"geometry": {"affine": {"scale": (0.1, 0.1), "padding": "zeros"}}, "mri": {"rician": {"std": 0.1}}},
        True,
    ),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """An image with neighbouring pixels alike, within (0, 1)."""
    rough = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return (blur(rough, sigma=1.5) - 0.5) * 2 + 0.5


def sample(size: int = 30) -> dict[str, Tensor]:
    image = smooth(3, size, size)
    return {"image": image, "mask": (image[0] > 0.5).long()}


def run(tree: dict[str, Any], seed: int = 3, **kwargs: Tensor) -> dict[str, Tensor]:
    return Augment.model_validate(tree).build(WINDOW, ["mask"])(sample(), seed, **kwargs)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


FINGERPRINT = """
import hashlib, json, sys, torch
from medmtl.data.augment import Augment
tree, threads = json.loads(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
torch.manual_seed(threads)
for size in (30, 300):
    x = torch.arange(3 * size * size).remainder(251).view(3, size, size) / 251
    pipeline = Augment.model_validate(tree).build((size // 2, size // 2), ["mask"])
    for seed in (5, 2**100 + 17):
        out = pipeline({"image": x, "mask": x[0].long()}, seed, x.flip(1) if seed == 5 else None)
        print(hashlib.sha256(out["image"].numpy().tobytes() + out["mask"].numpy().tobytes()).hexdigest())
"""


# Counted randomness


def test_the_bits_are_those_of_another_process_with_another_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [json.dumps(EVERYTHING), "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "5"}
    process = subprocess.run(
        [sys.executable, "-c", FINGERPRINT, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    monkeypatch.setattr(sys, "argv", ["", arguments[0], "1"])
    exec(FINGERPRINT, {})
    assert process.stdout == capsys.readouterr().out


def test_only_the_seed_matters_and_global_generators_are_left_alone() -> None:
    pipeline = Augment.model_validate(EVERYTHING).build(WINDOW, ["mask"])
    torch.manual_seed(1)
    np.random.seed(1)
    first = pipeline(sample(), 5)["image"]
    assert torch.initial_seed() == 1
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(1)))
    assert np.random.get_state()[2] == np.random.RandomState(1).get_state()[2]
    assert not torch.equal(pipeline(sample(), 6)["image"], first)
    assert torch.equal(pipeline(sample(), 5)["image"], first)


def test_two_halves_are_the_whole() -> None:
    pipeline = Augment.model_validate(EVERYTHING).build(WINDOW, ["mask"])
    rng = np.random.Generator(np.random.PCG64(8))
    halves = pipeline.intensity(pipeline.geometry(sample(), rng), rng)
    assert torch.equal(halves["image"], pipeline(sample(), 8)["image"])


def test_switching_one_ingredient_on_leaves_the_others_draws() -> None:
    """The mask has seen the same geometry, and stain alone differs in the same way whatever the rest does."""
    geometry = {"flip": True, "rotate90": True, "jitter_px": 3}
    turned = run({"geometry": geometry})
    affine = run({"geometry": {**geometry, "affine": {"scale": (1.0, 1.0001)}}, **APPEARANCE})
    assert torch.equal(affine["mask"], turned["mask"])
    noisy = run({"geometry": geometry, "noise": {"std": 0.1}})["image"] - turned["image"]
    erased = run({"geometry": geometry, "noise": {"std": 0.1}, "blur": {"sigma": 1e-3}, "fourier": {"strength": 1e-7}})
    torch.testing.assert_close(erased["image"] - turned["image"], noisy, atol=1e-4, rtol=0)


# Every key


def test_the_list_of_keys_is_complete() -> None:
    assert sorted(KEYS) == sorted(leaves(Augment))


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_key_changes_the_output(key: str) -> None:
    base, value = KEYS[key]
    changed = override(base, [f"{key}={value!r}".lower()])
    kwargs = {"reference": smooth(3, 20, 20, seed=7)} if key.startswith("fourier") else {}
    different = [not torch.equal(run(base, s, **kwargs)["image"], run(changed, s, **kwargs)["image"]) for s in range(8)]
    assert any(different)


@pytest.mark.parametrize("group", sorted(APPEARANCE))
def test_probability_is_a_probability(group: str) -> None:
    tree = {group: {**APPEARANCE[group], "probability": 0.3}}
    plain = run({})["image"]
    share = np.mean([not torch.equal(run(tree, seed)["image"], plain) for seed in range(200)])
    assert abs(share - 0.3) < 0.11  # three standard deviations of a share of 200, at fixed seeds


def test_what_acts_is_told() -> None:
    assert Augment().acting() == ()
    assert Augment.model_validate({"stain": {"sigma": 0.2, "probability": 0}}).acting() == ()
    tree = {
        "geometry": {"flip": "last", "affine": {"shear": 0.1}},
        "mri": {"gibbs": {"alpha": 0.4}},
        "noise": {"std": 0.1},
    }
    assert Augment.model_validate(tree).acting() == ("geometry.flip", "geometry.affine", "noise", "mri.gibbs")


def test_an_empty_configuration_is_the_central_window() -> None:
    context = sample()
    out = Augment().build(WINDOW, ["mask"])(context, 1)
    expected = Preprocess(window=WINDOW).to_window(context)
    assert all(torch.equal(out[name], expected[name]) for name in context)
    whole = Augment().build(None, ["mask"])(context, 1)
    assert all(torch.equal(whole[name], context[name]) for name in context)


def test_inputs_are_not_written_to_and_values_stay_in_range() -> None:
    context, reference = sample(), smooth(3, 30, 30, seed=2)
    copies, reference_copy = {name: tensor.clone() for name, tensor in context.items()}, reference.clone()
    for window in (WINDOW, None):
        tree = EVERYTHING if window else {**EVERYTHING, "geometry": {"flip": True}}
        pipeline = Augment.model_validate(tree).build(window, ["mask"])
        for seed in range(20):
            out = pipeline(context, seed, reference if seed % 2 else None)
            assert out["image"].dtype == torch.float32
            assert out["image"].min() >= 0
            assert out["image"].max() <= 1
            assert out["image"].shape[1:] == out["mask"].shape == (window or (30, 30))
    assert all(torch.equal(context[name], copies[name]) for name in context)
    assert torch.equal(reference, reference_copy)


# Geometry


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("affine", [False, True])
def test_labels_follow_the_image(axes: int, affine: bool) -> None:
    """A painted blob stays on the blob: exactly on the grid, and up to its rim where the image is interpolated."""
    blob = torch.zeros((24,) * axes)
    blob[(slice(6, 14), slice(9, 17), slice(8, 15))[:axes]] = 1
    tree = {"flip": True, "rotate90": True, "jitter_px": 4, "affine": AFFINE if affine else {}}
    pipeline = Augment.model_validate({"geometry": tree}).build((18,) * axes, ["blob"])
    for seed in range(12):
        out = pipeline({"image": blob[None], "blob": blob.long()}, seed)
        assert out["blob"].dtype == torch.int64
        disagree = (out["image"][0] > 0.5) != out["blob"].bool()
        assert disagree.float().mean() <= (0.02 if affine else 0)
        assert out["blob"].any()


def test_flips_and_turns_reach_all_eight_symmetries_of_the_square() -> None:
    x = torch.arange(16.0).view(1, 4, 4) / 16
    pipeline = Augment(geometry=Geometry(flip=True, rotate90=True)).build((4, 4))
    seen = {tuple(pipeline({"image": x}, seed)["image"].flatten().tolist()) for seed in range(100)}
    oracle = {tuple(f.rot90(k, (1, 2)).flatten().tolist()) for k in range(4) for f in (x, x.flip(1))}
    assert seen == oracle


def test_an_oblong_window_keeps_its_shape() -> None:
    pipeline = Augment(geometry=Geometry(flip=True, rotate90=True)).build((6, 9))
    assert {pipeline({"image": torch.rand(1, 12, 12)}, seed)["image"].shape for seed in range(20)} == {(1, 6, 9)}


@pytest.mark.parametrize(
    ("jitter", "length", "expected"), [(3, 30, range(-3, 4)), (9, 20, range(-2, 3)), (3, 17, (0, 1))]
)
def test_jitter_is_uniform_within_its_bound_and_the_context(jitter: int, length: int, expected: range) -> None:
    first = length // 2 - 8
    rng = np.random.default_rng(0)
    starts = [draw_placement(Geometry(jitter_px=jitter), rng, (length, 40), WINDOW).start for _ in range(700)]
    found, counts = np.unique([start[0] - first for start in starts], return_counts=True)
    assert set(found) == set(expected)
    assert counts.min() > 0.6 * 700 / len(counts)
    assert {start[1] - 12 for start in starts} == set(range(-jitter, jitter + 1))


def test_rotation_and_shear_are_monais() -> None:
    a, h = [0.3, -0.7, 1.1], [0.1, 0.2, -0.1, 0.05, 0.3, -0.2]
    np.testing.assert_allclose(rotation(2, a), create_rotate(2, a[0])[:2, :2], atol=1e-12)
    np.testing.assert_allclose(shearing(2, h), create_shear(2, h[:2])[:2, :2], atol=1e-12)
    xyz = [a[2], -a[1], a[0]]  # planes 12, 02 (the other way round in MONAI) and 01
    np.testing.assert_allclose(rotation(3, a), create_rotate(3, xyz)[:3, :3], atol=1e-12)
    np.testing.assert_allclose(shearing(3, h), create_shear(3, h)[:3, :3], atol=1e-12)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_affine_map_is_monais(axes: int) -> None:
    """Same matrix about the centre, same sampling: MONAI's Affine on a context of the window's size."""
    size = (17, 20, 15)[:axes]
    x = smooth(2, *size)
    matrix = Affine(rotate_deg=40, scale=(0.8, 0.9), shear=0.2).matrix(np.random.default_rng(3).random(11), axes)
    assert matrix is not None
    homogeneous = np.eye(axes + 1)
    homogeneous[:axes, :axes] = matrix
    oracle = mt.Affine(affine=homogeneous, padding_mode="border", image_only=True)(x).as_tensor()
    ours = Placement((0,) * axes, size, matrix, "border", (), 0)(x)
    torch.testing.assert_close(ours, oracle, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("window", "affine", "jitter"),
    [
        ((16, 16), {"rotate_deg": 180, "scale": (0.9, 1.1)}, 3),
        ((16, 12), {"rotate_deg": 15, "shear": 0.2}, 0),
        ((8, 8, 6), AFFINE, 1),
    ],
)
def test_rotation_shows_no_border_within_reach(window: tuple[int, ...], affine: dict[str, Any], jitter: int) -> None:
    """White up to `reach`, black beyond: the black never shows; where white ends with the window, it does."""
    config = Augment.model_validate({"geometry": {"affine": {**affine, "padding": "zeros"}, "jitter_px": jitter}})
    pipeline = config.build(window)

    def darkest(context: tuple[int, ...]) -> float:
        return min(float(pipeline({"image": torch.ones(1, *context)}, seed)["image"].min()) for seed in range(60))

    assert darkest(config.reach(window)) > 1 - 1e-5
    assert darkest(window) < 0.5


def test_reach_without_an_affine_map_is_window_and_jitter() -> None:
    assert Augment().reach((16, 16)) == (16, 16)
    assert Augment(geometry=Geometry(jitter_px=3)).reach((16, 15)) == (22, 21)


# Appearance


def test_stains_there_and_back() -> None:
    x = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.99 + 0.01
    torch.testing.assert_close(from_stain_amounts(stain_amounts(x)), x, atol=2e-6, rtol=0)
    torch.testing.assert_close(restain(x, [1, 1, 1], [0, 0, 0]), x, atol=2e-6, rtol=0)
    assert (restain(torch.zeros(3, 2, 2), [1, 1, 1], [0, 0, 0]) <= 0.5 / 255 + 1e-6).all()


def test_restaining_scales_and_shifts_the_amounts() -> None:
    x = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    factor, bias = [1.1, 0.9, 1.05], [0.05, -0.02, 0.03]
    expected = stain_amounts(x) * torch.tensor(factor).view(3, 1, 1) + torch.tensor(bias).view(3, 1, 1)
    torch.testing.assert_close(stain_amounts(restain(x, factor, bias)), expected, atol=1e-4, rtol=0)


def test_pure_haematoxylin_is_pure_haematoxylin() -> None:
    amounts = torch.tensor([1.0, 0, 0]).view(3, 1)
    colour = torch.tensor([0.65, 0.70, 0.29]).neg().exp().view(3, 1)
    torch.testing.assert_close(from_stain_amounts(amounts), colour)


def test_hue_and_saturation_keep_luma_and_grey() -> None:
    x = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    luma = torch.tensor(LUMA)
    for matrix in (hue_matrix(40), saturation_matrix(1.7), saturation_matrix(0)):
        torch.testing.assert_close(luma @ matrix @ x, luma @ x, atol=2e-3, rtol=0)
        torch.testing.assert_close(matrix @ torch.ones(3), torch.ones(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(hue_matrix(120) @ hue_matrix(240), torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(saturation_matrix(1.0), torch.eye(3))


@pytest.mark.parametrize("size", [(16, 16), (15, 17), (8, 9, 7)])
def test_amplitudes_mix_and_strength_0_is_the_identity(size: tuple[int, ...]) -> None:
    x, other = smooth(2, *size) * 0.2 + 0.4, smooth(2, *size, seed=4) * 0.2 + 0.4
    axes = tuple(range(1, len(size) + 1))
    target, low = np.fft.rfftn(other, axes=axes), low_frequencies(size, 0.4)
    assert low.shape == target.shape[1:]
    same = mix_amplitude(x, amplitude=np.abs(target), low=low, mix=0.0)
    torch.testing.assert_close(same, x, atol=1e-6, rtol=0)
    same = scale_amplitude(x, factor=np.ones((2, low.sum()), np.float32), low=low)
    torch.testing.assert_close(same, x, atol=1e-6, rtol=0)
    mixed = mix_amplitude(x, amplitude=np.abs(target), low=low, mix=1.0)
    before, after = np.fft.rfftn(x, axes=axes), np.fft.rfftn(mixed, axes=axes)
    np.testing.assert_allclose(np.abs(after)[:, low], np.abs(target)[:, low], atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(after[:, ~low], before[:, ~low], atol=1e-3, rtol=1e-3)


def test_blur_and_gamma_are_monais() -> None:
    x = smooth(3, 24, 25)
    oracle = mt.GaussianSmooth(sigma=1.2, approx="scalespace")(x).as_tensor()
    inner = (slice(None), slice(6, -6), slice(6, -6))  # MONAI pads with 0
    torch.testing.assert_close(blur(x, sigma=1.2)[inner], oracle[inner], atol=0.01, rtol=0)
    bright = run({"colour": {"gamma": 0.5}})["image"]
    plain = run({})["image"]
    exponent = bright.log() / plain.log()
    assert 1 / 1.5 <= exponent.min() <= exponent.max() <= 1.5
    torch.testing.assert_close(exponent, exponent.mean().expand_as(exponent), atol=1e-3, rtol=0)


def test_cutout_covers_its_fraction() -> None:
    plain, erased = run({})["image"], run({"erase": {"fraction": 0.25}})["image"]
    assert (plain != erased).any(0).float().mean() == 0.25


# Refusals


@pytest.mark.parametrize(
    ("tree", "code"),
    [({"stain": {"sigma": 0.1}}, "E-AUG-RGB.*augment.stain"), ({"colour": {"hue_deg": 5}}, "E-AUG-RGB")],
)
def test_colours_of_a_grey_image_are_refused(tree: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError, match=code):
        Augment.model_validate(tree).build(None)({"image": torch.rand(1, 8, 8)}, 0)


def test_one_channel_can_change_brightness_and_contrast() -> None:
    tree = {"colour": {"gain": 0.1, "offset": 0.1, "brightness": 0.1, "contrast": 0.1, "gamma": 0.1}}
    assert Augment.model_validate(tree).build(None)({"image": torch.rand(1, 8, 8, 8)}, 0)["image"].shape == (1, 8, 8, 8)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(UserError, match="E-AUG-WINDOW"):
        Augment(geometry=Geometry(jitter_px=2)).build(None)
    with pytest.raises(UserError, match="E-IMG-SMALL"):
        Augment().build((40, 40))(sample(), 0)
    with pytest.raises(UserError, match=r"E-AUG-REFERENCE.*\[3, 8, 8\]"):
        run({"fourier": {"strength": 1.0}}, reference=torch.rand(3, 8, 8))
    for tree, place in (
        ({"highlights": {"probability": 0.5}}, "highlights"),
        ({"mri": {"bias_field": {"probability": 0.2}}}, "mri.bias_field"),
        ({"geometry": {"affine": {"probability": 0.5}}}, "geometry.affine"),
    ):
        with pytest.raises(UserError, match=rf"E-AUG-OFF augment\.{place}: .* no strength"):
            run(tree)
    with pytest.raises(ValueError, match="runs downwards"):
        Affine(scale=(1.1, 0.9))


def test_the_last_axis_alone_is_flipped_where_left_and_right_are_alike():
    rng = np.random.Generator(np.random.PCG64(0))
    drawn = [draw_placement(Geometry(flip="last"), rng, (4, 5, 6), (4, 5, 6)).flips for _ in range(200)]
    assert set(drawn) == {(), (3,)} and 0.35 < np.mean([bool(f) for f in drawn]) < 0.65
