"""MR artefacts: MONAI's own transforms with the same numbers, and the physics: periods, copies, distributions."""

import math

import monai.transforms as mt
import numpy as np
import pytest
import torch
from laws import refuses
from torch import Tensor

from medmtl.config import validate
from medmtl.data.appearance import blur
from medmtl.data.augment import Augment
from medmtl.data.geometry import rotation
from medmtl.data.mri import (
    BiasField,
    Ghosting,
    Mri,
    Spike,
    add_rician,
    adjust_contrast,
    bias,
    ghost,
    move,
    ring,
    spike,
)

ON = {
    "bias_field": {"strength": 0.4},
    "motion": {"rotate_deg": 10, "translate_px": 3},
    "ghosting": {"strength": 0.8},
    "gibbs": {"alpha": 0.7},
    "spike": {"strength": 0.5},
    "rician": {"std": 0.1},
    "contrast": {"stretch": 0.3, "gamma": 0.5},
}
sizes = pytest.mark.parametrize("size", [(24, 30), (12, 20, 17)], ids=["2-D", "3-D"])


def head(*size: int, seed: int = 0) -> Tensor:
    """A textured ellipsoid in air that is 0, [1, *S]."""
    index = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij"))
    inside = (index.square().sum(0) < 0.5).float()
    texture = blur(torch.rand(1, *size, generator=torch.Generator().manual_seed(seed)), sigma=1.0)
    return 0.2 * inside + 0.6 * texture * inside


@sizes
def test_shapes_ranges_inputs_and_seeds(size):
    image = head(*size)
    before = image.clone()
    for name, settings in ON.items():
        pipeline = Augment.model_validate({"mri": {name: settings}}).build(None)
        out = [pipeline({"image": image}, seed)["image"] for seed in (1, 1, 2)]
        assert out[0].shape == image.shape and out[0].dtype == torch.float32 and type(out[0]) is Tensor, name
        assert float(out[0].min()) >= 0 and float(out[0].max()) <= 1, name
        assert torch.equal(out[0], out[1]) and not torch.equal(out[0], out[2]), name
        assert not torch.equal(out[0], image) and torch.equal(image, before), name


@sizes
def test_air_stays_air_where_physics_leaves_it_and_everywhere_if_asked(size):
    image = head(*size)
    air = image == 0
    for name, settings in ON.items():
        loud = Augment.model_validate({"mri": {name: settings}}).build(None)({"image": image}, 4)["image"]
        kept = Augment.model_validate({"mri": {name: settings, "keep_background": True}}).build(None)
        assert not kept({"image": image}, 4)["image"][air].any(), name
        assert bool(loud[air].any()) == (name not in ("bias_field", "contrast")), name


def test_each_has_its_own_stream_and_older_ingredients_keep_theirs():
    image = head(24, 30)
    noise = {"noise": {"std": 0.02}}
    alone = Augment.model_validate(noise).build(None)({"image": image}, 9)["image"] - image
    both = Augment.model_validate({**noise, "mri": {"bias_field": {"strength": 1e-7}}}).build(None)
    torch.testing.assert_close(both({"image": image}, 9)["image"] - image, alone, atol=1e-5, rtol=0)
    few, all_on = ({"mri": {k: ON[k] for k in names}} for names in (["gibbs"], ["gibbs", "rician"]))
    quiet = {**all_on["mri"], "rician": {"std": 1e-9}}
    a = Augment.model_validate(few).build(None)({"image": image}, 9)["image"]
    torch.testing.assert_close(Augment.model_validate({"mri": quiet}).build(None)({"image": image}, 9)["image"], a)


@sizes
def test_bias_ringing_spike_and_contrast_are_monais(size):
    image = head(*size)
    axes = len(size)
    drawn = BiasField(strength=0.3).draw(np.random.default_rng(1), image.shape, None)
    oracle = mt.RandBiasField(degree=3, prob=1.0)
    oracle.set_random_state(0)
    oracle.randomize(size)
    oracle._coeff = drawn.keywords["coefficients"]
    assert len(oracle._coeff) == {2: 10, 3: 20}[axes]
    expected = torch.as_tensor(np.asarray(oracle(image, randomize=False))).clamp(0, 1)
    torch.testing.assert_close(drawn(image), expected)

    torch.testing.assert_close(ring(image, alpha=0.6), mt.GibbsNoise(0.6)(image).as_tensor().clamp(0, 1))
    where = tuple(n // 2 + k for n, k in zip(size, (3, -2, 1), strict=False))
    magnitude = math.log(0.4 * float(image.double().sum()))
    oracle_spike = mt.KSpaceSpikeNoise(where, magnitude)(image).as_tensor().clamp(0, 1)
    torch.testing.assert_close(spike(image, where=where, share=0.4), oracle_spike, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        adjust_contrast(image, stretch=1.0, gamma=1.4), mt.AdjustContrast(1.4)(image).as_tensor()
    )


def test_a_bias_field_is_smooth_and_multiplies():
    ratio = bias(torch.full((1, 64, 64), 0.3), coefficients=[0.0, 0.3, *[0.0] * 8], degree=3)[0] / 0.3
    log = ratio.double().log()
    assert log.std() > 0.05 and log.diff(dim=0).abs().max() < 0.02 and log.diff(dim=1).abs().max() < 0.02
    torch.testing.assert_close(log.diff(n=2, dim=0), torch.zeros(62, 64).double(), atol=1e-5, rtol=0)  # degree 1


@pytest.mark.parametrize("frequency", [4, 7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_spike_is_a_stripe_of_its_period_and_strength(axis, frequency):
    size = (16, 20, 24)
    image = torch.full((1, *size), 0.5)
    where = [n // 2 for n in size]
    where[axis] += frequency
    stripes = (spike(image, where=tuple(where), share=0.3) - image)[0].double()
    line = stripes.movedim(axis, 0)[:, 3, 4]
    x = torch.arange(size[axis]).double()
    wave = torch.stack([torch.cos(2 * math.pi * frequency * x / size[axis]),
                        torch.sin(2 * math.pi * frequency * x / size[axis])], 1)  # fmt: skip
    fit = torch.linalg.lstsq(wave, line[:, None]).solution
    torch.testing.assert_close((wave @ fit)[:, 0], line, atol=1e-4, rtol=0)
    assert float(fit.norm()) == pytest.approx(0.3 * 0.5, abs=1e-3)  # of the image's mean
    others = stripes.movedim(axis, 0).flatten(1)
    assert float((others - others[:, :1]).abs().max()) < 1e-4


def test_spikes_reach_all_of_k_space_but_its_centre():
    found = {Spike(strength=1).draw(np.random.default_rng(s), (1, 3, 3), None).keywords["where"] for s in range(200)}
    assert found == {(i, j) for i in range(3) for j in range(3)} - {(1, 1)}


@pytest.mark.parametrize("every", [2, 3, 4])
@pytest.mark.parametrize("axis", [0, 1])
def test_ghosts_are_copies_at_a_share_of_the_axis(axis, every):
    size = (24, 36)
    image = torch.zeros(1, *size)
    image[:, 9:12, 15:18] = 0.8
    copies = sum(torch.roll(image, m * size[axis] // every, axis + 1) for m in range(every))
    expected = (image - 0.6 / every * copies).abs()
    torch.testing.assert_close(ghost(image, axis=axis, every=every, share=0.6), expected, atol=1e-5, rtol=0)


def test_the_number_of_copies_is_drawn_from_its_range():
    config = Ghosting(strength=1, copies=(3, 5))
    drawn = [config.draw(np.random.default_rng(s), (1, 8, 8, 8), None).keywords for s in range(60)]
    assert {d["every"] for d in drawn} == {3, 4, 5} and {d["axis"] for d in drawn} == {0, 1, 2}
    refuses("E-CFG", lambda: validate(Mri, {"ghosting": {"copies": [5, 3]}}, where="test"), says="downwards")


@sizes
def test_without_a_change_of_pose_motion_is_the_identity(size):
    image, still = head(*size), (np.eye(len(size)), np.zeros(len(size)))
    for axis in range(len(size)):
        out = move(image, axis=axis, times=[0.2, 0.7], poses=[still] * 3)
        torch.testing.assert_close(out, image, atol=1e-5, rtol=0)


def test_a_move_at_the_very_end_of_k_space_changes_next_to_nothing_and_one_near_its_centre_much():
    image = head(32, 32)
    still, moved = (np.eye(2), np.zeros(2)), (rotation(2, [0.2]), np.array([2.0, 0.0]))
    late = move(image, axis=0, times=[30 / 32], poses=[still, moved]) - image
    early = move(image, axis=0, times=[18 / 32], poses=[still, moved]) - image
    assert 0 < float(late.abs().mean()) < 0.3 * float(early.abs().mean())


def test_motion_takes_each_line_from_the_image_as_it_lay_then():
    """Whole shifts of an image that is 0 at its border are exact, so its k-space can be put together by hand."""
    image = torch.zeros(1, 20, 24)
    image[:, 6:14, 7:15] = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    shift = np.array([2.0, -3.0])
    out = move(image, axis=1, times=[0.25, 0.75], poses=[(np.eye(2), shift)] * 3)
    rolled = torch.roll(image, (2, -3), (1, 2))
    lines = torch.fft.fftshift(torch.fft.fft(image, dim=2), dim=2)
    other = torch.fft.fftshift(torch.fft.fft(rolled, dim=2), dim=2)
    lines[..., :6], lines[..., 18:] = other[..., :6], other[..., 18:]
    expected = torch.fft.ifft(torch.fft.ifftshift(lines, dim=2), dim=2).abs().clamp(0, 1)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_a_turn_is_about_the_centre_and_in_voxels_that_are_square():
    """A quarter turn of every line but the central ones of an oblong image: compared with ``rot90`` of its middle."""
    from medmtl.data.mri import _posed

    image = torch.zeros(1, 16, 24)
    image[:, 4:12, 8:16] = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = _posed(image, rotation(2, [math.pi / 2]), np.zeros(2))[:, 4:12, 8:16]
    quarter = image[:, 4:12, 8:16]
    found = [torch.allclose(turned, quarter.rot90(k, (1, 2)), atol=1e-4) for k in (1, 3)]
    assert sum(found) == 1
    torch.testing.assert_close(_posed(image, np.eye(2), np.array([0.0, 1.0])), torch.roll(image, 1, 2), atol=1e-5,
                               rtol=0)  # fmt: skip


def test_rician_noise_is_rayleigh_in_air_and_shifts_tissue():
    """Air: mean std sqrt(pi / 2). Tissue: E[m^2] = x^2 + 2 std^2 (Gudbjartsson and Patz)."""
    noise = torch.randn(2, 1, 300, 300, generator=torch.Generator().manual_seed(0))
    air = add_rician(torch.zeros(1, 300, 300), noise=noise, std=0.05)
    tissue = add_rician(torch.full((1, 300, 300), 0.4), noise=noise, std=0.05)
    assert float(air.mean()) == pytest.approx(0.05 * math.sqrt(math.pi / 2), rel=0.01)
    assert float(tissue.square().mean()) == pytest.approx(0.4**2 + 2 * 0.05**2, rel=0.01)


def test_contrast_stretches_tissue_about_its_own_mean():
    image = head(24, 30)
    tissue = image > 0
    out = adjust_contrast(image, stretch=1.2, gamma=1.0)
    mean = image[tissue].mean()
    torch.testing.assert_close(out[tissue] - mean, 1.2 * (image[tissue] - mean), atol=1e-6, rtol=1e-5)
    assert torch.equal(adjust_contrast(torch.zeros(1, 4, 4), stretch=1.2, gamma=1.3), torch.zeros(1, 4, 4))
